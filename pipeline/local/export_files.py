"""Writes the files of one export, laid out, named and checked as DynamoDB does it.

Invariant: the summary, which readers wait for, is written last; every checksum is over the exact bytes written.

Layout and forms: "DynamoDB table export output format" in the DynamoDB developer guide, and genuine exports, which have
`.md5` files where the guide says `.checksum`. There is one data file for each partition of the table; we pretend to
have eight, some possibly empty. The `etag` of an entry is that of an S3 upload in one part, as in genuine manifests.
"""

import base64
import gzip
import hashlib
import secrets
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.local.history import WindowChange, to_json
from pipeline.local.raw_aws import Json, RawAws
from pipeline.local.snapshot import Table

PARTITIONS = 8
NAME_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
INCREMENTAL_MINIMUM_BILLED_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True)
class Destination:
    """Where an export goes."""

    bucket: str
    prefix: str | None
    export_arn: str
    sse_algorithm: str
    sse_kms_key_id: str | None

    @property
    def base(self) -> str:
        """The folder that all exports under this prefix share."""
        return f"{self.prefix.rstrip('/')}/AWSDynamoDB" if self.prefix else "AWSDynamoDB"

    @property
    def folder(self) -> str:
        """The folder of this export."""
        return f"{self.base}/{self.export_arn.rpartition('/')[2]}"


@dataclass(frozen=True)
class Written:
    """What DescribeExport reports of a finished export."""

    manifest_key: str
    item_count: int
    billed_size_bytes: int


def iso_ms(time_ms: int) -> str:
    """2024-05-14T11:14:20.608Z."""
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_full(
    aws: RawAws, to: Destination, table: Table, items: dict[str, str], times: tuple[int, int, int]
) -> Written:
    """A FULL_EXPORT of `items` by key; `times` are its start, end and export time in ms."""
    started, ended, exported = times
    lines = [(key, f'{{"Item":{item}}}') for key, item in items.items()]
    size = sum(len(line) for _, line in lines)
    manifest = _write_data(aws, to, f"{to.folder}/data", lines)
    summary = {"version": "2020-06-30", **_origin(to, table, started, ended), "exportTime": iso_ms(exported)}
    summary |= _totals(to, size, len(lines)) | {"exportType": "FULL_EXPORT"}
    return _write_manifests(aws, to, manifest, summary)


def write_incremental(
    aws: RawAws,
    to: Destination,
    table: Table,
    changes: list[WindowChange],
    times: tuple[int, int, int, int],
    view: str,
) -> Written:
    """An INCREMENTAL_EXPORT; `times` are its start, end, and the window's from and to in ms."""
    started, ended, from_ms, to_ms = times
    lines = [(change.keys, _change_line(change, with_old=view == "NEW_AND_OLD_IMAGES")) for change in changes]
    size = max(INCREMENTAL_MINIMUM_BILLED_BYTES, sum(len(line) for _, line in lines))
    manifest = _write_data(aws, to, f"{to.base}/data", lines)
    summary = {"version": "2023-08-01", **_origin(to, table, started, ended)}
    summary |= {"exportFromTime": iso_ms(from_ms), "exportToTime": iso_ms(to_ms)}
    summary |= _totals(to, size, len(lines)) | {"outputView": view, "exportType": "INCREMENTAL_EXPORT"}
    return _write_manifests(aws, to, manifest, summary)


def write_started(aws: RawAws, to: Destination) -> None:
    """The empty object with which DynamoDB checks whether it may write."""
    aws.s3_put(to.bucket, f"{to.folder}/_started", b"")


def _change_line(change: WindowChange, *, with_old: bool) -> str:
    parts = [
        f'"Metadata":{{"WriteTimestampMicros":{{"N":"{change.at_ms * 1000}"}}}}',
        f'"Keys":{change.keys}',
    ]
    if with_old and change.old is not None:
        parts.append(f'"OldImage":{change.old}')
    if change.new is not None:
        parts.append(f'"NewImage":{change.new}')
    return "{" + ",".join(parts) + "}"


def _write_data(aws: RawAws, to: Destination, folder: str, lines: list[tuple[str, str]]) -> list[Json]:
    partitions: list[list[str]] = [[] for _ in range(PARTITIONS)]
    for key, line in lines:
        partitions[zlib.crc32(key.encode()) % PARTITIONS].append(line)
    entries: list[Json] = []
    for partition in partitions:
        body = gzip.compress("".join(f"{line}\n" for line in partition).encode(), compresslevel=6)
        key = f"{folder}/{''.join(secrets.choice(NAME_ALPHABET) for _ in range(26))}.json.gz"
        aws.s3_put(to.bucket, key, body)
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        etag = hashlib.md5(digest, usedforsecurity=False).hexdigest() + "-1"
        entry = {"itemCount": len(partition), "md5Checksum": base64.b64encode(digest).decode()}
        entries.append({**entry, "etag": etag, "dataFileS3Key": key})
    return entries


def _origin(to: Destination, table: Table, started: int, ended: int) -> Json:
    times = {"startTime": iso_ms(started), "endTime": iso_ms(ended)}
    return {"exportArn": to.export_arn, **times, "tableArn": table.arn, "tableId": table.table_id}


def _totals(to: Destination, size: int, count: int) -> Json:
    return {
        "s3Bucket": to.bucket,
        "s3Prefix": to.prefix,
        "s3SseAlgorithm": to.sse_algorithm,
        "s3SseKmsKeyId": to.sse_kms_key_id,
        "manifestFilesS3Key": f"{to.folder}/manifest-files.json",
        "billedSizeBytes": size,
        "itemCount": count,
        "outputFormat": "DYNAMODB_JSON",
    }


def _write_manifests(aws: RawAws, to: Destination, entries: list[Json], summary: Json) -> Written:
    for name, text in (
        ("manifest-files", "".join(f"{to_json(entry)}\n" for entry in entries)),
        ("manifest-summary", to_json(summary)),
    ):
        body = text.encode()
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        aws.s3_put(to.bucket, f"{to.folder}/{name}.md5", base64.b64encode(digest))
        aws.s3_put(to.bucket, f"{to.folder}/{name}.json", body)
    return Written(f"{to.folder}/manifest-summary.json", summary["itemCount"], summary["billedSizeBytes"])
