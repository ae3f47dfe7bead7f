"""Objects in S3: exact bytes, even over connections that break."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from types_boto3_s3.client import S3Client

from pipeline.core.errors import TerminalError, TransientError, UnreachableError
from pipeline.core.exports.lines import count_lines
from pipeline.dynamodb.client import client
from pipeline.dynamodb.exports.export_files import check_count, read_lines
from pipeline.dynamodb.exports.manifest import ExportFile, read_manifest
from pipeline.dynamodb.exports.objects import MissingObjectError, ObjectStore, S3Objects, join_location, split_location
from tests.dynamodb.export_fixture import ExportFactory, Layout, WindowChange, md5_text

pytestmark = pytest.mark.stack

ITEMS = [{"Id": {"N": str(number)}, "empName": {"S": f"name {number}"}} for number in range(500)]


def read_ids(store: ObjectStore, location: str) -> list[str]:
    manifest = read_manifest(store, location, expected_table="Employees")
    ids: list[str] = []
    for file in manifest.files:
        lines = [line for block in read_lines(store, manifest.bucket, file) for line in block.splitlines()]
        check_count(file, manifest.bucket, len(lines))
        ids += [(line.get("Item") or line["Keys"])["Id"]["N"] for line in map(json.loads, lines)]
    return ids


def test_a_full_export_in_s3(s3: S3Client, s3_exports: ExportFactory) -> None:
    export = s3_exports.full(ITEMS)
    assert export.location == f"s3://{s3_exports.bucket}/{export.summary_key}"
    assert sorted(read_ids(S3Objects(s3), export.location), key=int) == [str(number) for number in range(500)]


def test_two_incremental_exports_share_a_folder_and_are_not_mixed(s3: S3Client, s3_exports: ExportFactory) -> None:
    first = s3_exports.incremental([WindowChange({"Id": {"N": "1"}})])
    second = s3_exports.incremental([WindowChange({"Id": {"N": "2"}})])
    assert first.data_keys[0].rpartition("/")[0] == second.data_keys[0].rpartition("/")[0]
    assert read_ids(S3Objects(s3), first.location) == ["1"]
    assert read_ids(S3Objects(s3), second.location) == ["2"]


def test_the_bucket_of_the_location_wins_over_the_summarys(s3: S3Client, s3_exports: ExportFactory) -> None:
    export = s3_exports.full(ITEMS[:3], Layout(summary={"s3Bucket": "somewhere-else"}))
    assert len(read_ids(S3Objects(s3), export.location)) == 3


def test_a_missing_data_file_is_named(s3: S3Client, s3_exports: ExportFactory) -> None:
    export = s3_exports.full(ITEMS)
    s3.delete_object(Bucket=s3_exports.bucket, Key=export.data_keys[1])
    with pytest.raises(MissingObjectError, match=f"s3://{s3_exports.bucket}/{export.data_keys[1]}: there is no such"):
        read_ids(S3Objects(s3), export.location)


def test_a_missing_bucket_and_an_unfinished_export(s3: S3Client, s3_exports: ExportFactory) -> None:
    with pytest.raises(TerminalError, match=r"NoSuchBucket.*; check the bucket's name"):
        read_manifest(S3Objects(s3), "s3://no-such-bucket-here/manifest-summary.json", expected_table=None)
    export = s3_exports.full(ITEMS)
    s3.delete_object(Bucket=s3_exports.bucket, Key=export.summary_key)
    with pytest.raises(TerminalError, match="started but has written no manifest"):
        read_manifest(S3Objects(s3), export.location, expected_table=None)


@pytest.mark.parametrize("location", ["s3://bucket/a key/with %20 and ?#.json", "file:///folder/a file.json"])
def test_locations_there_and_back(location: str) -> None:
    assert join_location(*split_location(location)) == location


def test_a_folders_url_may_be_escaped(tmp_path: Path) -> None:
    path = tmp_path / "a b%.json"
    assert split_location(path.as_uri()) == ("", str(path).lstrip("/"))


class BreakingS3(BaseHTTPRequestHandler):
    """Serves one object over connections that break after `cut` bytes of the body."""

    content = b""
    cut = 0
    ranges: list[str | None]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        body = self.content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"one"')
        self.end_headers()
        self.wfile.write(body[: self.cut])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class's name
        """Say nothing."""


@pytest.fixture
def breaking_s3() -> Iterator[tuple[type[BreakingS3], S3Objects]]:
    handler = type("Breaking", (BreakingS3,), {"ranges": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    made = client("s3", f"http://127.0.0.1:{server.server_address[1]}")
    yield handler, S3Objects(made)
    made.close()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_broken_connection_is_resumed_where_it_broke(
    breaking_s3: tuple[type[BreakingS3], S3Objects],
) -> None:
    handler, store = breaking_s3
    text = b"".join(hashlib.sha256(str(n).encode()).hexdigest().encode() + b"\n" for n in range(40_000))
    handler.content, handler.cut = gzip.compress(text), 600_000
    file = ExportFile("data.json.gz", 40_000, md5_text(handler.content).decode(), "")
    blocks = list(read_lines(store, "bucket", file))
    assert b"".join(blocks) == text
    assert sum(map(count_lines, blocks)) == 40_000
    assert handler.ranges[0] is None
    assert len(handler.ranges) == -(-len(handler.content) // 600_000) > 2
    assert handler.ranges[1:] == [f"bytes={cut}-" for cut in range(600_000, len(handler.content), 600_000)]


def test_a_connection_that_never_gets_on_is_a_transient_error(
    breaking_s3: tuple[type[BreakingS3], S3Objects],
) -> None:
    handler, store = breaking_s3
    handler.content, handler.cut = os.urandom(1000), 0
    with pytest.raises(TransientError, match=r"s3://bucket/k: the connection broke off at byte 0, 4 times in a row"):
        store.read("bucket", "k")


def test_nothing_answers() -> None:
    made = client("s3", "http://127.0.0.1:9")
    try:
        with pytest.raises(UnreachableError, match=r"reading s3://bucket/k: AWS could not be reached"):
            S3Objects(made).read("bucket", "k")
    finally:
        made.close()
