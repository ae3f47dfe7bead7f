"""Exports as DynamoDB writes them, made from items: full and incremental, into a folder or into S3.

Layout, names and the form of every value are those of genuine full exports and, for incremental ones, those of the
documentation (DynamoDB guide, S3DataExport.Output). Exports verify: counts, MD5s and etags are right.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, Literal

from types_boto3_s3.client import S3Client

from pipeline.core.model.attributes import Item
from pipeline.dynamodb.exports.objects import join_location

Sink = Callable[[str, bytes], object]
"""Puts an object under a key of one bucket."""

EXPORT_TIME = datetime(2026, 5, 14, 11, 14, 20, 608000, tzinfo=UTC)
ACCOUNT, REGION = "111122223333", "eu-central-1"
_numbers = count(1)


@dataclass(frozen=True)
class WindowChange:
    """The content of an incremental export for one key: `new` None is a delete."""

    keys: Item
    new: Item | None = None
    old: Item | None = None
    write_micros: int = 1_778_757_000_123_456


@dataclass(frozen=True)
class WrittenExport:
    """The location of an export: `location` is for `read_manifest`, the keys are those in its bucket."""

    location: str
    export_arn: str
    table_arn: str
    summary_key: str
    files_key: str
    data_keys: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How to write an export; the defaults are the form of genuine ones today."""

    table: str = "Employees"
    prefix: str | None = "exports"
    files: int = 3
    empty_files: int = 1
    """Files without items, as empty partitions give."""
    checksum_suffix: str | None = ".md5"
    summary: dict[str, Any] = field(default_factory=dict[str, Any])
    """Replacements in the summary; a value of None leaves the member out."""
    micros_form: Literal["text", "attribute", "number"] = "text"


def full_lines(items: Iterable[Item]) -> list[bytes]:
    """One line for each item, without line ends."""
    return [json.dumps({"Item": item}, separators=(",", ":"), ensure_ascii=False).encode() for item in items]


def incremental_lines(changes: Iterable[WindowChange], view_type: str, micros_form: str = "text") -> list[bytes]:
    """One line for each change, without line ends."""
    lines: list[bytes] = []
    for change in changes:
        micros: Any = change.write_micros
        if micros_form != "number":
            micros = str(micros) if micros_form == "text" else {"N": str(micros)}
        line: dict[str, Any] = {"Metadata": {"WriteTimestampMicros": micros}, "Keys": change.keys}
        if change.old is not None and view_type == "NEW_AND_OLD_IMAGES":
            line["OldImage"] = change.old
        if change.new is not None:
            line["NewImage"] = change.new
        lines.append(json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode())
    return lines


class ExportFactory:
    """Writes exports into one bucket, or into one folder that represents a bucket."""

    def __init__(self, bucket: str, sink: Sink, location_of: Callable[[str], str]) -> None:
        self.bucket = bucket
        self._put = sink
        self._location_of = location_of

    @classmethod
    def in_folder(cls, folder: Path) -> ExportFactory:
        def put(key: str, content: bytes) -> None:
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

        return cls("test-bucket", put, lambda key: (folder / key).absolute().as_uri())

    @classmethod
    def in_s3(cls, client: S3Client, bucket: str) -> ExportFactory:
        def put(key: str, content: bytes) -> None:
            client.put_object(Bucket=bucket, Key=key, Body=content)

        return cls(bucket, put, lambda key: join_location(bucket, key))

    def full(
        self, items: Iterable[Item], layout: Layout | None = None, *, export_time: datetime = EXPORT_TIME
    ) -> WrittenExport:
        """Write a full export of `items` as of `export_time`."""
        summary = {"version": "2020-06-30", "exportTime": _iso(export_time), "exportType": "FULL_EXPORT"}
        return self._write(full_lines(items), layout or Layout(), summary, export_time)

    def incremental(
        self,
        changes: Iterable[WindowChange],
        layout: Layout | None = None,
        *,
        window: tuple[datetime, datetime] = (EXPORT_TIME - timedelta(hours=1), EXPORT_TIME),
        view_type: str = "NEW_IMAGE",
    ) -> WrittenExport:
        """Write an incremental export of `changes` over `window`."""
        layout = layout or Layout()
        summary = {
            "version": "2023-08-01",
            "exportFromTime": _iso(window[0]),
            "exportToTime": _iso(window[1]),
            "exportType": "INCREMENTAL_EXPORT",
            "outputView": view_type,
        }
        return self._write(incremental_lines(changes, view_type, layout.micros_form), layout, summary, window[1])

    def _write(self, lines: list[bytes], layout: Layout, summary: dict[str, Any], at: datetime) -> WrittenExport:
        export_id = f"{int(at.timestamp() * 1000):014d}-{next(_numbers):08x}"
        table_arn = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{layout.table}"
        root = f"{layout.prefix}/AWSDynamoDB" if layout.prefix else "AWSDynamoDB"
        data = f"{root}/data" if summary["exportType"] == "INCREMENTAL_EXPORT" else f"{root}/{export_id}/data"
        shares = [lines[start :: layout.files] for start in range(layout.files)] + [[]] * layout.empty_files
        keys = [f"{data}/{_file_name(export_id, number)}.json.gz" for number in range(len(shares))]
        self._put(f"{root}/{export_id}/_started", b"")
        entries = [self._write_file(key, share) for key, share in zip(keys, shares, strict=True)]
        whole: dict[str, Any] = {
            "exportArn": f"{table_arn}/export/{export_id}",
            "startTime": _iso(at),
            "endTime": _iso(at + timedelta(minutes=5)),
            "tableArn": table_arn,
            "tableId": "11111111-2222-3333-4444-555555555555",
            "s3Bucket": self.bucket,
            "s3Prefix": layout.prefix,
            "s3SseAlgorithm": "AES256",
            "s3SseKmsKeyId": None,
            "manifestFilesS3Key": f"{root}/{export_id}/manifest-files.json",
            "billedSizeBytes": sum(map(len, lines)),
            "itemCount": len(lines),
            "outputFormat": "DYNAMODB_JSON",
            **summary,
            **layout.summary,
        }
        for name in [name for name, value in layout.summary.items() if value is None]:
            del whole[name]
        files_key, summary_key = whole["manifestFilesS3Key"], f"{root}/{export_id}/manifest-summary.json"
        self._put_checked(files_key, b"".join(_json(entry) + b"\n" for entry in entries), layout.checksum_suffix)
        self._put_checked(summary_key, _json(whole), layout.checksum_suffix)
        location = self._location_of(summary_key)
        return WrittenExport(location, whole["exportArn"], table_arn, summary_key, files_key, tuple(keys))

    def _write_file(self, key: str, lines: Sequence[bytes]) -> dict[str, Any]:
        content = gzip.compress(b"".join([line + b"\n" for line in lines]), compresslevel=1)
        self._put(key, content)
        md5 = hashlib.md5(content, usedforsecurity=False).digest()
        return {
            "itemCount": len(lines),
            "md5Checksum": base64.b64encode(md5).decode(),
            "etag": hashlib.md5(md5, usedforsecurity=False).hexdigest() + "-1",
            "dataFileS3Key": key,
        }

    def _put_checked(self, key: str, content: bytes, suffix: str | None) -> None:
        self._put(key, content)
        if suffix:
            self._put(key.removesuffix(".json") + suffix, md5_text(content))


def md5_text(content: bytes) -> bytes:
    """The base64 MD5 as in `manifest-summary.md5`: 24 bytes, no line end."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest())


def _file_name(export_id: str, number: int) -> str:
    digest = hashlib.sha256(f"{export_id}/{number}".encode()).digest()
    return base64.b32encode(digest).decode().lower()[:26]


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
