"""A snapshot by scan, for tables that cannot be exported: written as the files of a full export, and loaded like one.

The snapshot's time is the *start* of the scan. Each page is of its own, later time, so a row may contain changes made
while the scan ran; it still counts as of the start, less the margin. That claims too little, which is the safe side:
every change since the start is in the stream, at a later position, and wins whether it comes before the row or after.
What a reader may see meanwhile: if the stream is behind, a row that the scan brought in its state of a later moment
goes back to an earlier change as the stream applies it, and forward again later. It ends right.

It reads consistently, the whole table once, within a budget of read capacity units a second, whatever the number of
segments: one unit for each 4 KB, so 10 GB need 2.6 million units, or seven hours at 100 a second.

A run that finds another one scanning the table waits for it and uses its snapshot; if that one dies, it continues in
its place.

Invariant: what was scanned is not scanned again. A file is written, then the place after it is stored beside the files.
A scan that was killed resumes there, with the start, the segments and the folder that it had. The manifest comes last,
so whatever can be loaded is whole.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import time
import uuid
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.aurora.bookkeeping import loads, protection, sources
from pipeline.core.decode.protect import Protector
from pipeline.core.errors import ConfigurationError
from pipeline.dynamodb.exports.manifest import PROTECTION_MARK, SCAN_MARK, SUMMARY_NAME
from pipeline.dynamodb.exports.objects import MissingObjectError, join_location
from pipeline.dynamodb.scans import scan_segments
from pipeline.dynamodb.tables import check_source, describe
from pipeline.jobs.clocks import refuse_wrong_clock
from pipeline.jobs.snapshots.export_destination import export_destination

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.attributes import Item
    from pipeline.core.model.mapping import TableMapping
    from pipeline.dynamodb.clock import SourceClock
    from pipeline.dynamodb.exports.objects import ObjectStore
    from pipeline.dynamodb.tables import SourceTable
    from pipeline.jobs.services import Services
    from pipeline.jobs.snapshots.export_destination import ExportDestination

READ_CAPACITY = 100.0
SEGMENTS = 4
# A file is written when a segment has this much, uncompressed: after a kill, less than this is read again.
FILE_BYTES = 8 << 20
_TELL_SECONDS = 1.0
# How often to look whether another run's scan has ended.
_LOOK_SECONDS = 2.0


def scan_snapshot(
    services: Services,
    mapping: TableMapping,
    *,
    read_capacity: float = READ_CAPACITY,
    segments: int = SEGMENTS,
    file_bytes: int = FILE_BYTES,
    on_progress: Callable[[str], None] | None = None,
) -> str:
    """Scan the table into files, and return the location of their manifest-summary.json; resumes an unfinished scan.

    `read_capacity` is in units a second; if another run has begun the scan, its value stays. Raises ConfigurationError
    if there is no bucket or the table is not fit, TransientError if it may be run again.
    """
    mapping = services.with_key(mapping)
    destination = export_destination(services.settings, "scanning", table=mapping.name)
    bucket = destination.bucket
    if read_capacity <= 0 or segments < 1:
        raise ConfigurationError("scanning: read capacity and segments must be above 0", table=mapping.name)
    source = describe(services.dynamodb, mapping.table, services.clock)
    problems = check_source(source, mapping, exported=False)
    if problems:
        raise ConfigurationError(f"scanning {mapping.table}: {'; '.join(problems)}", table=mapping.name)
    with closing(services.connect("dynaurora scan")) as connection:
        sources.require(
            connection, mapping.name, mapping.table, doing="scanning", arn=source.arn, table_id=source.table_id
        )
        protection.require(connection, mapping, doing="scanning")
        prefix = services.settings.export_prefix.strip("/")
        base = f"{prefix}/AWSDynamoDB" if prefix else "AWSDynamoDB"
        place = _Place(services.store(f"s3://{bucket}"), destination, base, source)
        if (other := _of_another_run(connection, mapping, place, on_progress)) is not None:
            return other
        refuse_wrong_clock(services, mapping, mapping.margin, "scanning", connection, on_progress)
        scan = _Scan.resumed_or_new(place, segments, services.clock, mapping)
        scan.run(services, read_capacity, file_bytes, on_progress)
        return scan.finish()


def _of_another_run(
    connection: Connection, mapping: TableMapping, place: _Place, on_progress: Callable[[str], None] | None
) -> str | None:
    """Take the scan lock; while another run has it, wait, and return its snapshot. None: this run has to scan."""
    if loads.try_lock_scan(connection, mapping.name):
        return None
    before = place.progress()
    if on_progress:
        on_progress("another run scans the table: waiting for its snapshot, which this run uses too")
    while not loads.try_lock_scan(connection, mapping.name):
        time.sleep(_LOOK_SECONDS)
    now = place.progress()
    if now is None or not now.finished or (before is not None and before.finished and before.id == now.id):
        return None  # it died or failed
    return place.summary(now)


@dataclass
class _Progress:
    """What is kept beside the files."""

    id: str
    started_at: str
    table_arn: str
    table_id: str | None
    segments: int
    protection: str = ""
    """What is replaced in the items of the files."""
    resume: dict[str, Item | None] = field(default_factory=dict[str, "Item | None"])
    files: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    size_bytes: int = 0
    finished: bool = False

    @property
    def items(self) -> int:
        return sum(entry["itemCount"] for entry in self.files)


@dataclass(frozen=True)
class _Place:
    """Where scans of a table are kept."""

    store: ObjectStore
    destination: ExportDestination
    base: str
    source: SourceTable

    @property
    def progress_key(self) -> str:
        return f"{self.base}/_scans/{self.source.name}.json"

    def progress(self) -> _Progress | None:
        """Return what is stored about this table's newest scan; None if there is nothing, or it is of another table."""
        try:
            found = _Progress(**json.loads(self.store.read(self.destination.bucket, self.progress_key)))
        except (MissingObjectError, ValueError):
            return None
        same = (found.table_arn, found.table_id) == (self.source.arn, self.source.table_id)
        return found if same else None

    def folder(self, progress: _Progress) -> str:
        return f"{self.base}/{progress.id}"

    def summary(self, progress: _Progress) -> str:
        """Return the location of a finished scan's manifest."""
        return join_location(self.destination.bucket, f"{self.folder(progress)}/{SUMMARY_NAME}")


@dataclass
class _Scan:
    place: _Place
    progress: _Progress
    clock: SourceClock
    protector: Protector | None = None
    waiting_bytes: dict[int, int] = field(default_factory=dict[int, int])
    lines: dict[int, list[bytes]] = field(default_factory=dict[int, "list[bytes]"])

    @classmethod
    def resumed_or_new(cls, place: _Place, segments: int, clock: SourceClock, mapping: TableMapping) -> _Scan:
        found, protector = place.progress(), Protector(mapping) if mapping.protects else None
        if found and not found.finished and found.protection == mapping.protection:
            return cls(place, found, clock, protector)
        now = clock.now()
        name = f"{int(now.timestamp() * 1000):014d}-{uuid.uuid4().hex[:8]}"
        begun = _Progress(
            name, _iso(now), place.source.arn, place.source.table_id, segments, protection=mapping.protection
        )
        scan = cls(place, begun, clock, protector)
        scan._keep()  # the start is kept before the first page is read: a scan that resumes claims no later one
        return scan

    def run(
        self,
        services: Services,
        read_capacity: float,
        file_bytes: int,
        on_progress: Callable[[str], None] | None,
    ) -> None:
        """Scan what is not in a file yet."""
        resume = {int(segment): key for segment, key in self.progress.resume.items()}
        told, scanned = time.monotonic(), self.progress.items
        for page in scan_segments(
            services.dynamodb,
            self.progress.table_arn.partition(":table/")[2],
            segments=self.progress.segments,
            read_capacity_per_second=read_capacity,
            resume=resume,
            clock=services.clock,
        ):
            lines = self.lines.setdefault(page.segment, [])
            items = map(self.protector.item, page.items) if self.protector else page.items
            added = [_line(item) for item in items]
            lines += added
            size = self.waiting_bytes.get(page.segment, 0) + sum(map(len, added))
            self.waiting_bytes[page.segment] = size
            scanned += len(added)
            if page.resume_from is None or size >= file_bytes:
                self._write(page.segment, page.resume_from)
            if on_progress and time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                on_progress(f"scanned {scanned:,} items")

    def _write(self, segment: int, resume_from: Item | None) -> None:
        """Write a segment's lines as a file, then store the place after them."""
        lines = self.lines.pop(segment, [])
        self.waiting_bytes.pop(segment, None)
        number = sum(1 for entry in self.progress.files if f"/{segment:05d}-" in entry["dataFileS3Key"])
        key = f"{self._folder}/data/{segment:05d}-{number:06d}.json.gz"
        content = gzip.compress(b"".join(lines), compresslevel=1)
        self.place.store.write(self.bucket, key, content)
        digest = hashlib.md5(content, usedforsecurity=False).digest()
        self.progress.files.append(
            {
                "itemCount": len(lines),
                "md5Checksum": base64.b64encode(digest).decode(),
                "etag": hashlib.md5(digest, usedforsecurity=False).hexdigest() + "-1",
                "dataFileS3Key": key,
            }
        )
        self.progress.size_bytes += sum(map(len, lines))
        self.progress.resume[str(segment)] = resume_from
        self._keep()

    def finish(self) -> str:
        """Write the manifests, and remove the scan's state; return the location of the summary."""
        files = "".join(_json(entry) + "\n" for entry in self.progress.files).encode()
        summary: dict[str, Any] = {
            "version": "2020-06-30",
            "exportArn": f"{self.progress.table_arn}/export/{self.progress.id}",
            "startTime": self.progress.started_at,
            "endTime": _iso(self.clock.now()),
            "tableArn": self.progress.table_arn,
            "tableId": self.progress.table_id,
            "exportTime": self.progress.started_at,
            "s3Bucket": self.bucket,
            "s3Prefix": self.place.base.rpartition("/")[0] or None,
            "s3SseAlgorithm": self.place.destination.sse_algorithm or "AES256",
            "s3SseKmsKeyId": self.place.destination.kms_key,
            "manifestFilesS3Key": f"{self._folder}/manifest-files.json",
            "billedSizeBytes": self.progress.size_bytes,
            "itemCount": self.progress.items,
            "outputFormat": "DYNAMODB_JSON",
            "exportType": "FULL_EXPORT",
            SCAN_MARK: True,
            PROTECTION_MARK: self.progress.protection,
        }
        for name, content in (("manifest-files", files), ("manifest-summary", _json(summary).encode())):
            digest = hashlib.md5(content, usedforsecurity=False).digest()
            self.place.store.write(self.bucket, f"{self._folder}/{name}.md5", base64.b64encode(digest))
            self.place.store.write(self.bucket, f"{self._folder}/{name}.json", content)
        self.progress.finished = True
        self._keep()
        return self.place.summary(self.progress)

    @property
    def bucket(self) -> str:
        return self.place.destination.bucket

    @property
    def _folder(self) -> str:
        return self.place.folder(self.progress)

    def _keep(self) -> None:
        self.place.store.write(self.bucket, self.place.progress_key, _json(vars(self.progress)).encode())


def _line(item: Item) -> bytes:
    return _json({"Item": item}).encode() + b"\n"


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
