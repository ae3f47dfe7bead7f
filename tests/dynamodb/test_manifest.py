"""Manifests: a correct one is read whole, any other is refused with the reason."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import ConfigurationError, TerminalError
from pipeline.core.exports.lines import count_lines
from pipeline.dynamodb.exports.export_files import read_lines
from pipeline.dynamodb.exports.manifest import ExportManifest, parse_files, read_manifest
from pipeline.dynamodb.exports.objects import FolderObjects, MissingObjectError
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, Layout, WindowChange, WrittenExport, md5_text

SAMPLE = Path(__file__).parents[3] / "shared" / "samples" / "full-export"
ITEMS = [{"Id": {"N": str(number)}, "empName": {"S": f"name {number}"}} for number in range(10)]


def read(export: WrittenExport, expected_table: str | None = "Employees") -> ExportManifest:
    return read_manifest(FolderObjects(), export.location, expected_table=expected_table)


def read_all(manifest: ExportManifest) -> list[dict[str, Any]]:
    blocks = [block for file in manifest.files for block in read_lines(FolderObjects(), manifest.bucket, file)]
    return [json.loads(line) for block in blocks for line in block.splitlines()]


def rewrite(path: Path, content: bytes) -> None:
    """Replace an object and the checksum beside it, so that the test does not test the checksum."""
    path.write_bytes(content)
    path.with_suffix(".md5").write_bytes(md5_text(content))


@pytest.fixture
def factory(tmp_path: Path) -> ExportFactory:
    return ExportFactory.in_folder(tmp_path)


def test_a_full_export(factory: ExportFactory, tmp_path: Path) -> None:
    export = factory.full(ITEMS)
    manifest = read(export)
    assert (manifest.kind, manifest.table_name, manifest.table_arn) == ("full", "Employees", export.table_arn)
    assert manifest.export_arn == export.export_arn
    assert manifest.snapshot_time == EXPORT_TIME
    assert (manifest.from_time, manifest.view_type) == (None, None)
    assert manifest.item_count == 10
    assert [file.item_count for file in manifest.files] == [4, 3, 3, 0]
    assert [Path("/", file.key) for file in manifest.files] == [tmp_path / key for key in export.data_keys]
    assert manifest.checksummed
    assert sorted(line["Item"]["Id"]["N"] for line in read_all(manifest)) == sorted(str(n) for n in range(10))


def test_an_incremental_export_has_its_data_beside_its_folder(factory: ExportFactory) -> None:
    window = (datetime(2026, 5, 1, 10, tzinfo=UTC), datetime(2026, 5, 1, 11, tzinfo=UTC))
    changes = [WindowChange(keys={"Id": {"N": "1"}}), WindowChange(keys={"Id": {"N": "2"}}, new={"Id": {"N": "2"}})]
    manifest = read(factory.incremental(changes, window=window, view_type="NEW_AND_OLD_IMAGES"))
    assert (manifest.kind, manifest.view_type) == ("incremental", "NEW_AND_OLD_IMAGES")
    assert (manifest.from_time, manifest.snapshot_time) == window
    assert all("/AWSDynamoDB/data/" in file.key for file in manifest.files)
    assert len(read_all(manifest)) == 2


def test_without_an_export_type_it_is_full(factory: ExportFactory) -> None:
    assert read(factory.full(ITEMS, Layout(summary={"exportType": None}))).kind == "full"


def test_an_export_without_prefix_and_without_items(factory: ExportFactory) -> None:
    manifest = read(factory.full([], Layout(prefix=None)))
    assert (manifest.item_count, read_all(manifest)) == (0, [])


def test_an_export_copied_elsewhere_is_read_from_there(factory: ExportFactory, tmp_path: Path) -> None:
    export = factory.full(ITEMS)
    copy = tmp_path / "another place"
    shutil.move((tmp_path / export.summary_key).parent, copy)
    manifest = read_manifest(FolderObjects(), (copy / "manifest-summary.json").as_uri(), expected_table="Employees")
    assert len(read_all(manifest)) == 10
    assert all(Path("/", file.key).is_relative_to(copy) for file in manifest.files)


def test_the_files_of_an_incremental_export_copied_elsewhere(factory: ExportFactory, tmp_path: Path) -> None:
    export = factory.incremental([WindowChange(keys={"Id": {"N": "1"}})])
    shutil.move(tmp_path / "exports", tmp_path / "moved")
    location = (tmp_path / export.summary_key.replace("exports", "moved", 1)).as_uri()
    assert len(read_all(read_manifest(FolderObjects(), location, expected_table=None))) == 1


@pytest.mark.parametrize(("suffix", "checksummed"), [(".md5", True), (".checksum", True), (None, False)])
def test_checksums_by_either_name_or_none(factory: ExportFactory, suffix: str | None, checksummed: bool) -> None:
    assert read(factory.full(ITEMS, Layout(checksum_suffix=suffix))).checksummed is checksummed


@pytest.mark.parametrize("suffix", [".md5", ".checksum"])
@pytest.mark.parametrize("name", ["manifest-summary", "manifest-files"])
def test_an_altered_manifest_is_refused(factory: ExportFactory, tmp_path: Path, suffix: str, name: str) -> None:
    export = factory.full(ITEMS, Layout(checksum_suffix=suffix))
    path = (tmp_path / export.summary_key).with_name(f"{name}.json")
    path.write_bytes(path.read_bytes().replace(b":4", b":5").replace(b":10,", b":11,"))
    with pytest.raises(TerminalError, match=rf"{name}\.json: it does not match its checksum in {name}\{suffix}"):
        read(export)


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({"outputFormat": "ION"}, r"in the format ION.*; request the export again with --export-format DYNAMODB_JSON"),
        ({"version": "2031-01-01"}, "its version is 2031-01-01; known are 2020-06-30, 2023-08-01"),
        ({"exportType": "SIDEWAYS"}, "its exportType SIDEWAYS is not known"),
        ({"itemCount": 11}, "it states 11 items, but the files that it names have 10"),
        ({"itemCount": -1}, "its itemCount is missing or has the wrong form"),
        ({"itemCount": True}, "its itemCount is missing or has the wrong form"),
        ({"tableArn": None}, "its tableArn is missing"),
        ({"exportTime": "yesterday"}, "its exportTime is not a time with an offset"),
        ({"exportTime": "2026-05-14T11:14:20.608"}, "its exportTime is not a time with an offset"),
        ({"exportType": "INCREMENTAL_EXPORT"}, "its exportToTime is missing"),
    ],
)
def test_a_summary_that_cannot_be_used(factory: ExportFactory, summary: dict[str, Any], message: str) -> None:
    with pytest.raises(TerminalError, match=message):
        read(factory.full(ITEMS, Layout(summary=summary)))


def test_an_export_of_another_table_is_refused_by_name(factory: ExportFactory) -> None:
    export = factory.full(ITEMS, Layout(table="Orders"))
    with pytest.raises(TerminalError, match=r"an export of Orders \(arn:.*:table/Orders\), not of Employees"):
        read(export, "Employees")
    with pytest.raises(TerminalError, match="an export of Orders"):
        read(export, export.table_arn.replace(":111122223333:", ":999999999999:"))
    assert read(export, export.table_arn).table_name == "Orders"
    assert read(export, None).table_name == "Orders"


def test_a_manifest_that_is_not_json(factory: ExportFactory, tmp_path: Path) -> None:
    export = factory.full(ITEMS)
    rewrite(tmp_path / export.summary_key, b"<html>")
    with pytest.raises(TerminalError, match=r"manifest-summary\.json: it is not a JSON object"):
        read(export)


def test_a_line_of_the_files_manifest_that_cannot_be_read_is_named(factory: ExportFactory, tmp_path: Path) -> None:
    export = factory.full(ITEMS)
    path = tmp_path / export.files_key
    lines = path.read_bytes().splitlines(keepends=True)
    rewrite(path, b"".join([*lines[:2], lines[2].replace(b'"dataFileS3Key"', b'"key"'), *lines[3:]]))
    with pytest.raises(TerminalError, match=r"manifest-files\.json, line 3: its dataFileS3Key is missing"):
        read(export)
    rewrite(path, b"".join([*lines[:1], b"[]\n", *lines[2:]]))
    with pytest.raises(TerminalError, match=r"manifest-files\.json, line 2: it is not a JSON object"):
        read(export)


def test_a_file_named_twice_is_refused() -> None:
    line = b'{"itemCount":1,"md5Checksum":"x","etag":"y","dataFileS3Key":"AWSDynamoDB/1/data/a.json.gz"}\n'
    with pytest.raises(TerminalError, match=r"line 2: the file AWSDynamoDB/1/data/a\.json\.gz is named a second time"):
        parse_files(line * 2, "s3://bucket/manifest-files.json")


def test_an_export_that_was_only_started(factory: ExportFactory, tmp_path: Path) -> None:
    export = factory.full(ITEMS)
    (tmp_path / export.summary_key).unlink()
    with pytest.raises(
        TerminalError, match="started but has written no manifest, so it is still running, or it failed"
    ):
        read(export)


def test_an_export_that_is_not_there(tmp_path: Path) -> None:
    location = (tmp_path / "manifest-summary.json").as_uri()
    with pytest.raises(MissingObjectError, match=rf"{location}: there is no such object"):
        read_manifest(FolderObjects(), location, expected_table=None)


def test_a_missing_files_manifest_is_named(factory: ExportFactory, tmp_path: Path) -> None:
    export = factory.full(ITEMS)
    (tmp_path / export.files_key).unlink()
    with pytest.raises(MissingObjectError, match=r"manifest-files\.json: there is no such object"):
        read(export)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("https://bucket/manifest-summary.json", "neither s3://bucket/key nor file:///folder/file"),
        ("s3://bucket", "neither s3://bucket/key"),
        ("s3://bucket/AWSDynamoDB/1/", "an export is named by its manifest-summary.json"),
    ],
)
def test_a_location_that_cannot_be_one(location: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_manifest(FolderObjects(), location, expected_table=None)


@pytest.mark.parametrize("folder", [SAMPLE] if SAMPLE.is_dir() else [], ids=lambda _: "genuine")
def test_the_genuine_export(folder: Path) -> None:
    location = (folder / "manifest-summary.json").resolve().as_uri()
    manifest = read_manifest(FolderObjects(), location, expected_table="S3ExportTest")
    assert (manifest.kind, manifest.item_count, manifest.checksummed) == ("full", 3, False)
    assert manifest.snapshot_time == datetime(2024, 5, 14, 11, 14, 20, 608000, tzinfo=UTC)
    assert {line["Item"]["id"]["S"] for line in read_all(manifest)} == {"foo", "bar", "K3TXQk84Si"}


def test_the_shape_of_the_genuine_export(factory: ExportFactory, tmp_path: Path) -> None:
    """As the genuine one was published: no exportType, no checksums, bucket renamed, its folder copied out."""
    item = {
        "id": {"S": "x"}, "a": {"BOOL": False}, "b": {"NULL": True}, "c": {"SS": ["p", "q"]}, "d": {"NS": ["3", "2"]},
        "e": {"L": [{"N": "1"}, {"S": "s"}]}, "f": {"M": {"h": {"NULL": True}}}, "j": {"B": "aGVsbG8="},
        "k": {"BS": ["aXMgZmFzdA=="]},
    }  # fmt: skip
    layout = Layout("S3ExportTest", "dynamodb-export", 1, 0, None, {"exportType": None, "s3Bucket": "renamed"})
    export = factory.full([item], layout)
    shutil.move((tmp_path / export.summary_key).parent, tmp_path / "full-export")
    location = (tmp_path / "full-export" / "manifest-summary.json").as_uri()
    manifest = read_manifest(FolderObjects(), location, expected_table="S3ExportTest")
    assert read_all(manifest) == [{"Item": item}]
    assert count_lines(next(read_lines(FolderObjects(), manifest.bucket, manifest.files[0]))) == 1
    assert manifest.snapshot_time - EXPORT_TIME == timedelta(0)
