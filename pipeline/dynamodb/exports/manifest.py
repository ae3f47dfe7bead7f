"""Reads an export's manifests: what was exported, from which table, as of when, and in which files.

Invariant: a manifest returned here is consistent. If the export has checksums of its two manifests, they match. The
files' item counts sum to the summary's; no file is named twice, and none is outside the export; the table is the
expected one; nothing says that the export was filtered or projected.

Layout (DynamoDB guide, S3DataExport.Output; checked against genuine exports): `manifest-summary.json` names
`manifest-files.json`, which has one JSON line for each file. Genuine exports have the base64 MD5 of each in a `.md5`
file beside it; the guide calls it `.checksum`; both are read. An export copied without either still loads
(`checksummed` is then False, so that reports can say so), because the counts must agree, and the manifest has the MD5
of every data file.

The keys in the manifests are relative to the root of the original bucket. The export may have been copied elsewhere
since, so we use the bucket of the given location, never the summary's, and read every key relative to the export's own
folder, under which a copy has the same layout.
"""

from __future__ import annotations

import base64
import hashlib
import json
import posixpath
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from pipeline.core.errors import ConfigurationError, TerminalError
from pipeline.dynamodb.exports.manifest_checks import (
    DAMAGED,
    check_inside,
    check_times,
    refuse_filtered,
    unknown_members,
)
from pipeline.dynamodb.exports.objects import MissingObjectError, join_location, split_location

if TYPE_CHECKING:
    from pipeline.dynamodb.exports.objects import ObjectStore

_Kind = TypeVar("_Kind", str, int)

SUMMARY_NAME = "manifest-summary.json"
# A member that no DynamoDB export has: it marks files from one of our scans.
SCAN_MARK = "dynauroraScan"
PROTECTION_MARK = "dynauroraProtection"
_VERSIONS = {"2020-06-30", "2023-08-01"}
_KINDS: dict[str, Literal["full", "incremental"]] = {"FULL_EXPORT": "full", "INCREMENTAL_EXPORT": "incremental"}
_TIMES = ("startTime", "endTime", "exportTime", "exportFromTime", "exportToTime")
_CHECKSUM_SUFFIXES = (".md5", ".checksum")


@dataclass(frozen=True, slots=True)
class ExportFile:
    """One data file: gzip of JSON lines."""

    key: str
    """Its current key in the manifest's `bucket`."""
    item_count: int
    md5: str
    """Base64 of the MD5 of the compressed bytes."""
    etag: str


@dataclass(frozen=True, slots=True)
class ExportManifest:
    """One export. Times are aware; `files` are in the manifest's order and add up to `item_count`."""

    kind: Literal["full", "incremental"]
    bucket: str
    """The bucket the files are read from; empty for a folder."""
    location: str
    export_arn: str
    table_arn: str
    table_name: str
    snapshot_time: datetime
    """The time of the export's state: `exportTime`, or the end of an incremental window."""
    from_time: datetime | None
    view_type: str | None
    item_count: int
    billed_size_bytes: int
    files: tuple[ExportFile, ...]
    checksummed: bool
    """Whether the export had checksums of its manifests; if they do not match, reading fails."""
    scanned: bool = False
    """Whether the files come from a scan; the snapshot's time is then the scan's start."""
    protection: str = ""
    """What a scan has replaced in its items already (`pipeline.core.model.protection`)."""
    table_id: str | None = None
    """The id that distinguishes a table from another one that had its name."""
    unknown_members: tuple[str, ...] = ()
    """Names of members of the summary that no export known to us has: they may say something new."""


def read_manifest(store: ObjectStore, location: str, *, expected_table: str | None) -> ExportManifest:
    """Read and verify the manifests at `s3://…/manifest-summary.json` or `file:///…/manifest-summary.json`.

    `expected_table` is a table's name or ARN, and an export of another table is refused; None accepts any. Raises
    TerminalError with the reason, MissingObjectError if there is no such object, ConfigurationError if the location
    cannot be a manifest's.
    """
    bucket, key = split_location(location)
    if posixpath.basename(key) != SUMMARY_NAME:
        raise ConfigurationError(
            f"reading the manifest {location}: an export is named by its {SUMMARY_NAME}",
            hint=f"give the location of that file, in the export's folder: …/AWSDynamoDB/ID/{SUMMARY_NAME}",
        )
    content = _read_summary(store, bucket, key)
    summary_checked = _verify_checksum(store, bucket, key, content)
    summary = _object(content, location)
    _check_form(summary, location)
    refuse_filtered(summary, f"reading the manifest {location}")
    _check_table(summary, location, expected_table)
    written_files_key = _field(summary, "manifestFilesS3Key", str, location)
    written_folder, folder = posixpath.dirname(written_files_key), posixpath.dirname(key)
    files_key = posixpath.join(folder, posixpath.basename(written_files_key))
    content = store.read(bucket, files_key)
    files_checked = _verify_checksum(store, bucket, files_key, content)
    inside = folder if _kind(summary) == "full" else posixpath.dirname(folder)
    files = parse_files(content, join_location(bucket, files_key), moved=(written_folder, folder), inside=inside)
    return _build(summary, files, location, bucket, checksummed=summary_checked and files_checked)


def parse_files(
    content: bytes, location: str, *, moved: tuple[str, str] = ("", ""), inside: str = ""
) -> tuple[ExportFile, ...]:
    """Parse `manifest-files.json`; `moved` says from which folder to which the export was copied.

    Raises TerminalError, naming the line that cannot be read, or the file that is named twice or is not inside
    `inside`.
    """
    files: dict[str, ExportFile] = {}
    for number, line in enumerate(content.splitlines(), 1):
        where = f"{location}, line {number}"
        entry = _object(line, where)
        written_key = _field(entry, "dataFileS3Key", str, where)
        key = _moved_key(written_key, *moved)
        if key in files:
            raise TerminalError(f"reading {where}: the file {written_key} is named a second time", hint=DAMAGED)
        check_inside(key, inside, where)
        files[key] = ExportFile(
            key=key,
            item_count=_field(entry, "itemCount", int, where),
            md5=_field(entry, "md5Checksum", str, where),
            etag=entry.get("etag") or "",
        )
    return tuple(files.values())


def _moved_key(key: str, written_folder: str, folder: str) -> str:
    """Return a file's key after its export's folder was copied; incremental data is beside that folder."""
    if written_folder == folder:
        return key
    return posixpath.normpath(posixpath.join(folder, posixpath.relpath("/" + key, "/" + written_folder)))


def _read_summary(store: ObjectStore, bucket: str, key: str) -> bytes:
    try:
        return store.read(bucket, key)
    except MissingObjectError:
        started = posixpath.join(posixpath.dirname(key), "_started")
        try:
            store.read(bucket, started)
        except MissingObjectError:
            pass
        else:
            raise TerminalError(
                f"reading the manifest {join_location(bucket, key)}: the export was started but has written no"
                " manifest, so it is still running, or it failed",
                hint="see `aws dynamodb describe-export` for its status; wait for it, or request another",
            ) from None
        raise


def _verify_checksum(store: ObjectStore, bucket: str, key: str, content: bytes) -> bool:
    """Compare an object with the checksum beside it; False if there is none."""
    stem = posixpath.splitext(key)[0]
    for suffix in _CHECKSUM_SUFFIXES:
        try:
            stated = store.read(bucket, stem + suffix)
        except MissingObjectError:
            continue
        if stated.strip() != base64.b64encode(_md5(content)):
            raise TerminalError(
                f"reading the manifest {join_location(bucket, key)}: it does not match its checksum in"
                f" {posixpath.basename(stem)}{suffix}",
                hint=DAMAGED,
            )
        return True
    return False


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def _check_form(summary: dict[str, Any], location: str) -> None:
    doing = f"reading the manifest {location}"
    output_format = summary.get("outputFormat")
    if output_format != "DYNAMODB_JSON":
        raise TerminalError(
            f"{doing}: the export is in the format {output_format}, and only DYNAMODB_JSON is read",
            hint="request the export again with --export-format DYNAMODB_JSON",
        )
    if summary.get("version") not in _VERSIONS:
        raise TerminalError(
            f"{doing}: its version is {summary.get('version')}; known are {', '.join(sorted(_VERSIONS))}",
            hint="use a newer Dynaurora, if there is one that knows this version",
        )
    if summary.get("exportType", "FULL_EXPORT") not in _KINDS:
        raise TerminalError(f"{doing}: its exportType {summary['exportType']} is not known", hint=DAMAGED)


def _check_table(summary: dict[str, Any], location: str, expected: str | None) -> None:
    arn = _field(summary, "tableArn", str, location)
    if expected is not None and expected != (arn if expected.startswith("arn:") else _table_name(arn)):
        raise TerminalError(
            f"reading the manifest {location}: it is an export of {_table_name(arn)} ({arn}), not of {expected}",
            hint=f"give an export of {expected}, or load it under the mapping of {_table_name(arn)}",
        )


def _build(
    summary: dict[str, Any], files: tuple[ExportFile, ...], location: str, bucket: str, *, checksummed: bool
) -> ExportManifest:
    item_count = _field(summary, "itemCount", int, location)
    counted = sum(file.item_count for file in files)
    if counted != item_count:
        raise TerminalError(
            f"reading the manifest {location}: it states {item_count} items, but the files that it names have"
            f" {counted}",
            hint=DAMAGED,
        )
    kind = _kind(summary)
    full = kind == "full"
    times = {name: _time(summary, name, location) for name in _TIMES if summary.get(name)}
    check_times(times, f"reading the manifest {location}")
    return ExportManifest(
        kind=kind,
        bucket=bucket,
        location=location,
        export_arn=_field(summary, "exportArn", str, location),
        table_arn=summary["tableArn"],
        table_name=_table_name(summary["tableArn"]),
        snapshot_time=_time(summary, "exportTime" if full else "exportToTime", location),
        from_time=None if full else _time(summary, "exportFromTime", location),
        view_type=None if full else summary.get("outputView"),
        item_count=item_count,
        billed_size_bytes=_field(summary, "billedSizeBytes", int, location),
        files=files,
        checksummed=checksummed,
        scanned=summary.get(SCAN_MARK) is True,
        protection=str(summary.get(PROTECTION_MARK) or ""),
        table_id=summary.get("tableId"),
        unknown_members=unknown_members(summary, ours={SCAN_MARK, PROTECTION_MARK}),
    )


def _kind(summary: dict[str, Any]) -> Literal["full", "incremental"]:
    return _KINDS[summary.get("exportType", "FULL_EXPORT")]


def _table_name(arn: str) -> str:
    return arn.partition(":table/")[2].partition("/")[0]


def _object(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content.decode())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise TerminalError(f"reading {where}: it is not a JSON object", hint=DAMAGED)
    return cast("dict[str, Any]", value)


def _field(entry: dict[str, Any], name: str, kind: type[_Kind], where: str) -> _Kind:
    value = entry.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
        raise TerminalError(f"reading {where}: its {name} is missing or has the wrong form", hint=DAMAGED)
    return value


def _time(summary: dict[str, Any], name: str, where: str) -> datetime:
    try:
        time = datetime.fromisoformat(_field(summary, name, str, where))
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise TerminalError(f"reading {where}: its {name} is not a time with an offset", hint=DAMAGED)
    return time
