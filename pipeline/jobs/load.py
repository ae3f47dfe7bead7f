"""Load: bring a full export into a table's targets, under the ordering rule, while the stream is applied.

Invariant: each file's rows and its mark commit together after the whole file has been verified, so a damaged file
leaves nothing behind, a killed load resumes, and no file counts twice. Items must add up to the manifest.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.aurora import loads, rejects
from pipeline.aurora.errors import translating
from pipeline.aurora.loads import FileCounts
from pipeline.aurora.staging import Staging
from pipeline.core.decode import RowDecoder
from pipeline.core.errors import ConfigurationError, DataError, ReplicationError, TerminalError
from pipeline.core.export_lines import decode_full, parse_full
from pipeline.core.ordering import Position, snapshot_position
from pipeline.core.stream_records import Reject
from pipeline.dynamodb.export_files import check_count, count_lines, read_lines
from pipeline.dynamodb.manifest import read_manifest
from pipeline.dynamodb.objects import join_location

if TYPE_CHECKING:
    from pipeline.aurora.connection import Connection
    from pipeline.core.change import Row
    from pipeline.core.mapping import TableMapping
    from pipeline.dynamodb.manifest import ExportFile, ExportManifest
    from pipeline.jobs.services import Services


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load is, over all its files; `rows` and the rate count this run's items."""

    files_done: int
    files: int
    rows_done: int
    rows: int
    size_bytes_done: int
    seconds: float
    rows_per_second: float
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did. `applied` + `stale` + `rejected` = items × targets; stale rows were newer in Aurora already."""

    table: str
    export_id: int
    location: str
    export_arn: str | None
    snapshot_time: datetime
    as_of: datetime
    files: int
    items: int
    applied: int
    stale: int
    rejected: int
    size_bytes: int
    seconds: float
    files_resumed: int
    """Files that an earlier run of the same load had finished."""
    already_loaded: bool


def load(
    services: Services,
    mapping: TableMapping,
    location: str,
    *,
    margin: timedelta | None = None,
    workers: int = 2,
    on_progress: Callable[[LoadProgress], None] | None = None,
) -> LoadReport:
    """Load the full export at `location` (its manifest-summary.json). Idempotent; run again it resumes.

    `margin` is the mapping's unless given. Raises TerminalError with the file and the reason when the export is
    damaged or foreign, or when another load of the table is running; nothing of a damaged file is in the table.
    """
    started = time.monotonic()
    manifest = read_manifest(services.store(location), location, expected_table=mapping.table)
    if manifest.kind != "full":
        raise ConfigurationError(
            f"loading {location}: it is an incremental export",
            table=mapping.name,
            hint="use `dynaurora catch-up` for it",
        )
    position = snapshot_position(manifest.snapshot_time, mapping.margin if margin is None else margin)
    with services.connect("dynaurora load") as connection:
        loads.lock_table(connection, mapping.name)
        record = loads.begin(
            connection,
            mapping.name,
            kind="full",
            location=location,
            export_arn=manifest.export_arn,
            snapshot_time=manifest.snapshot_time,
            as_of=position.as_of,
            item_count=manifest.item_count,
            file_count=len(manifest.files),
            size_bytes=manifest.billed_size_bytes,
        )
        work = _Work(services, mapping, manifest, position, record.id)
        waiting = [file for file in manifest.files if file.key not in record.loaded_files]
        try:
            _load_files(work, waiting, _Progress(manifest, waiting, on_progress), workers)
            files, counts = loads.totals(connection, record.id)
            _check_totals(work, files, counts)
        except ReplicationError as error:
            loads.finish(connection, record.id, failure=str(error))
            raise
        if record.status != "loaded":
            loads.finish(connection, record.id)
    return LoadReport(
        table=mapping.name,
        export_id=record.id,
        location=location,
        export_arn=manifest.export_arn,
        snapshot_time=manifest.snapshot_time,
        as_of=position.as_of,
        files=files,
        items=counts.items,
        applied=counts.applied,
        stale=counts.stale,
        rejected=counts.rejected,
        size_bytes=counts.size_bytes,
        seconds=time.monotonic() - started,
        files_resumed=len(manifest.files) - len(waiting),
        already_loaded=record.status == "loaded",
    )


@dataclass(frozen=True, slots=True)
class _Work:
    services: Services
    mapping: TableMapping
    manifest: ExportManifest
    position: Position
    export_id: int


def _load_files(work: _Work, files: Sequence[ExportFile], progress: _Progress, workers: int) -> None:
    """Load files side by side, each worker with its own connection; the first failure stops the rest."""
    progress.tell()
    stop = threading.Event()
    if not files:
        return
    with ThreadPoolExecutor(max_workers=max(1, min(workers, len(files))), thread_name_prefix="load") as pool:
        pending = [pool.submit(_load_one, work, file, progress, stop) for file in files]
        try:
            for done in as_completed(pending):
                done.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _load_one(work: _Work, file: ExportFile, progress: _Progress, stop: threading.Event) -> None:
    if stop.is_set():
        return
    with work.services.connect("dynaurora load worker") as connection:
        load_file(connection, work, file, lambda lines: progress.add(lines, stop))
    progress.finish_file()


def load_file(connection: Connection, work: _Work, file: ExportFile, on_lines: Callable[[int], None]) -> FileCounts:
    """Load one file in one transaction: its rows, its rejects, its mark. Raises with the file's name.

    When PostgreSQL refuses a value, the file is read again with savepoints, to set that record alone aside.
    """
    try:
        return _load_file(connection, work, file, on_lines, isolate=False)
    except DataError:
        return _load_file(connection, work, file, lambda _: None, isolate=True)


def _load_file(
    connection: Connection, work: _Work, file: ExportFile, on_lines: Callable[[int], None], *, isolate: bool
) -> FileCounts:
    bucket, mapping = work.manifest.bucket, work.mapping
    location = join_location(bucket, file.key)
    store = work.services.store(work.manifest.location)
    lines = applied = rows_seen = size_bytes = 0
    refused: list[Reject] = []
    with translating(f"loading {location}", table=mapping.name), connection.transaction():
        targets = [(RowDecoder(t), Staging.temporary(connection, t)) for t in mapping.targets]
        for block in read_lines(store, bucket, file):
            for decoder, staging in targets:
                rows, failures = decode_full(block, decoder, file=location, first_line=lines + 1)
                rows_seen += len(rows)
                refused += [_reject(decoder, line, error.message, work.position) for line, error in failures]
                if isolate:
                    refuse = _Refuser(decoder, block, work.position, refused)
                    applied += staging.store_isolating(connection, rows, mapping.name, work.position.as_of, refuse)
                else:
                    staging.copy(connection, [rows])
            lines += count_lines(block)
            size_bytes += len(block)
            on_lines(count_lines(block))
        check_count(file, bucket, lines)
        if not isolate:
            applied = sum(staging.merge(connection, mapping.name, work.position.as_of) for _, staging in targets)
        rejects.add(connection, mapping.name, refused, source=f"export {location}")
        stale = lines * len(targets) - applied - len(refused)
        counts = FileCounts(lines, applied, stale, len(refused), size_bytes)
        loads.mark_file(connection, work.export_id, file.key, counts)
    return counts


def _reject(decoder: RowDecoder, line: bytes, reason: str, position: Position) -> Reject:
    return Reject(decoder.target.view_name, reason, json.loads(line), position)


@dataclass(frozen=True, slots=True)
class _Refuser:
    """Finds the line of a row that PostgreSQL refused, and sets it aside."""

    decoder: RowDecoder
    block: bytes
    position: Position
    refused: list[Reject]

    def __call__(self, row: Row, error: DataError) -> None:
        for line in self.block.splitlines():
            for item in parse_full(line + b"\n", file="", first_line=1):
                try:
                    found = self.decoder.row(item) == row
                except TerminalError:  # a line that could not be converted is a reject already
                    continue
                if found:
                    self.refused.append(_reject(self.decoder, line, error.message, self.position))
                    return


def _check_totals(work: _Work, files: int, counts: FileCounts) -> None:
    manifest = work.manifest
    if files != len(manifest.files) or counts.items != manifest.item_count:
        raise TerminalError(
            f"loading {manifest.location}: {counts.items} items of {files} files are loaded, and the manifest states"
            f" {manifest.item_count} items of {len(manifest.files)} files",
            table=work.mapping.name,
            hint="run the load again; if it stays so, request another export",
        )


class _Progress:
    """Counts over all workers; tells the caller at most twice a second, and at every finished file."""

    def __init__(
        self,
        manifest: ExportManifest,
        waiting: Sequence[ExportFile],
        on_progress: Callable[[LoadProgress], None] | None,
    ) -> None:
        self._tell = on_progress
        self._lock = threading.Lock()
        self._files, self._rows = len(manifest.files), manifest.item_count
        self._files_done = self._files - len(waiting)
        self._resumed = self._rows_done = self._rows - sum(file.item_count for file in waiting)
        self._started = self._told = time.monotonic()

    def add(self, rows: int, stop: threading.Event) -> None:
        """Count rows read. Raises when another worker has failed, so that this one's file is rolled back."""
        if stop.is_set():
            raise TerminalError("loading: stopped, because another file failed")
        with self._lock:
            self._rows_done += rows
            if time.monotonic() - self._told > 0.5:
                self._report()

    def finish_file(self) -> None:
        """Count a file as loaded."""
        with self._lock:
            self._files_done += 1
            self._report()

    def tell(self) -> None:
        """Report now."""
        with self._lock:
            self._report()

    def _report(self) -> None:
        self._told = time.monotonic()
        seconds = self._told - self._started
        rate = (self._rows_done - self._resumed) / seconds if seconds > 0 else 0.0
        if self._tell:
            self._tell(
                LoadProgress(
                    files_done=self._files_done,
                    files=self._files,
                    rows_done=self._rows_done,
                    rows=self._rows,
                    size_bytes_done=0,
                    seconds=seconds,
                    rows_per_second=rate,
                    seconds_left=(self._rows - self._rows_done) / rate if rate else None,
                )
            )
