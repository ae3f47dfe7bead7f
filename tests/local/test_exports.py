"""The export service: layout, semantics, and exactness while writes continue."""

import base64
import gzip
import hashlib
import json
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from pipeline.local.stack import LocalStack
from tests.local.conftest import MakeTable, session_of

if TYPE_CHECKING:
    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.literals import StreamViewTypeType
    from types_boto3_s3 import S3Client

Item = dict[str, Any]
Description = dict[str, Any]
ITEMS = 600


def fill(dynamodb: "DynamoDBClient", table: str) -> dict[str, Item]:
    items = {str(n): {"Id": {"N": str(n)}, "v": {"N": "0"}, "b": {"B": b"\x00\xff"}} for n in range(ITEMS)}
    rows = list(items.values())
    for first in range(0, ITEMS, 25):
        requests: Any = [{"PutRequest": {"Item": item}} for item in rows[first : first + 25]]
        dynamodb.batch_write_item(RequestItems={table: requests})
    return {key: {**item, "b": {"B": "AP8="}} for key, item in items.items()}


def arn_of(dynamodb: "DynamoDBClient", table: str) -> str:
    return dynamodb.describe_table(TableName=table)["Table"].get("TableArn", "")


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def finished(dynamodb: "DynamoDBClient", export_arn: str) -> Description:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        answer: Any = dynamodb.describe_export(ExportArn=export_arn)
        description: Description = answer["ExportDescription"]
        if description["ExportStatus"] != "IN_PROGRESS":
            return description
        time.sleep(0.05)
    pytest.fail("the export did not finish")


def read_export(s3: "S3Client", description: Description) -> tuple[Any, list[Any], list[Any]]:
    """Summary, manifest entries and lines, every checksum and count verified."""

    def body(key: str) -> bytes:
        return s3.get_object(Bucket=description["S3Bucket"], Key=key)["Body"].read()

    def checked(key: str) -> bytes:
        content = body(key)
        checksum = body(key.replace(".json", ".md5")).decode()
        assert checksum == base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        return content

    summary = json.loads(checked(description["ExportManifest"]))
    entries = [json.loads(line) for line in checked(summary["manifestFilesS3Key"]).splitlines()]
    lines: list[Any] = []
    for entry in entries:
        compressed = body(entry["dataFileS3Key"])
        digest = hashlib.md5(compressed, usedforsecurity=False).digest()
        assert entry["md5Checksum"] == base64.b64encode(digest).decode()
        assert entry["etag"] == hashlib.md5(digest, usedforsecurity=False).hexdigest() + "-1"
        read = [json.loads(line) for line in gzip.decompress(compressed).splitlines()]
        assert len(read) == entry["itemCount"]
        lines += read
    assert len(lines) == summary["itemCount"] == description["ItemCount"]
    assert description["BilledSizeBytes"] == summary["billedSizeBytes"] > 0
    return summary, entries, lines


class Writer:
    """Writes without pause and records when each write began and when it was answered."""

    def __init__(self, client: "DynamoDBClient", table: str, items: dict[str, Item]) -> None:
        self._client = client
        self._table = table
        self._start = dict(items)
        self._log: list[tuple[float, float, str, Item | None]] = []
        self._stop = threading.Event()

    def run(self) -> None:
        step = 0
        while not self._stop.is_set():
            step += 1
            key = str(step * 7919 % (ITEMS + 100))
            item: Any = None if step % 5 == 0 else {"Id": {"N": key}, "v": {"N": str(step)}}
            begun = time.time()
            if item is None:
                self._client.delete_item(TableName=self._table, Key={"Id": {"N": key}})
            else:
                self._client.put_item(TableName=self._table, Item=item)
            self._log.append((begun, time.time(), key, item))

    def stop(self) -> None:
        self._stop.set()

    def wait_for(self, writes: int) -> None:
        target = len(self._log) + writes
        while len(self._log) < target:
            time.sleep(0.01)

    def states_at(self, at: float) -> list[dict[str, Item]]:
        """The states the table may have had: a write that began before the moment and was answered after it
        may be in or not.
        """
        state = dict(self._start)
        states: list[dict[str, Item]] = []
        for begun, answered, key, item in self._log:
            if begun >= at:
                break
            if answered > at:
                states.append(dict(state))
            if item is None:
                state.pop(key, None)
            else:
                state[key] = item
        return [*states, state]


@contextmanager
def writing(dynamodb: "DynamoDBClient", table: str, items: dict[str, Item]) -> Generator[Writer]:
    writer = Writer(dynamodb, table, items)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        writer.wait_for(30)
        yield writer
    finally:
        writer.stop()
        thread.join()


def by_key(lines: list[Any]) -> dict[str, Item]:
    items = {line["Item"]["Id"]["N"]: line["Item"] for line in lines}
    assert len(items) == len(lines)
    return items


@pytest.mark.parametrize("view", ["NEW_IMAGE", "NEW_AND_OLD_IMAGES", "KEYS_ONLY", None])
def test_a_full_export_is_the_table_of_its_export_time_while_writes_go_on(
    view: "StreamViewTypeType | None", dynamodb: "DynamoDBClient", s3: "S3Client", bucket: str, make_table: MakeTable
) -> None:
    table = make_table(None)
    items = fill(dynamodb, table)
    if view is not None:
        # Enabled on a table that holds items already, as in the seed: the stream never saw them.
        stream: Any = {"StreamEnabled": True, "StreamViewType": view}
        dynamodb.update_table(TableName=table, StreamSpecification=stream)
    arn = arn_of(dynamodb, table)
    with writing(dynamodb, table, items) as writer:
        for _ in range(3):
            writer.wait_for(20)
            asked = dynamodb.export_table_to_point_in_time(TableArn=arn, S3Bucket=bucket)["ExportDescription"]
            assert asked.get("ExportStatus") == "IN_PROGRESS"
            description = finished(dynamodb, asked.get("ExportArn", ""))
            writer.wait_for(5)
            assert description["ExportStatus"] == "COMPLETED"
            exported = by_key(read_export(s3, description)[2])
            assert exported in writer.states_at(description["ExportTime"].timestamp())
            assert description["ExportTime"] == description["StartTime"]


def test_exports_asked_for_at_once_are_each_of_their_own_time(
    dynamodb: "DynamoDBClient", s3: "S3Client", bucket: str, make_table: MakeTable
) -> None:
    """They share what an earlier export read, whichever of them gets to it first."""
    table = make_table("NEW_AND_OLD_IMAGES")
    items = fill(dynamodb, table)
    arn = arn_of(dynamodb, table)
    with writing(dynamodb, table, items) as writer:
        for _ in range(3):
            asked: list[str] = []
            for _ in range(4):
                writer.wait_for(5)
                answer = dynamodb.export_table_to_point_in_time(TableArn=arn, S3Bucket=bucket)
                asked.append(answer["ExportDescription"].get("ExportArn", ""))
            descriptions = [finished(dynamodb, export_arn) for export_arn in asked]
            writer.wait_for(5)
            for description in descriptions:
                exported = by_key(read_export(s3, description)[2])
                assert exported in writer.states_at(description["ExportTime"].timestamp())


def test_an_export_after_the_stream_was_changed_reads_the_table_again(
    dynamodb: "DynamoDBClient", s3: "S3Client", bucket: str, make_table: MakeTable
) -> None:
    table = make_table("NEW_AND_OLD_IMAGES")
    items = fill(dynamodb, table)
    arn = arn_of(dynamodb, table)
    for key in ("1", "2"):
        answer: Any = dynamodb.export_table_to_point_in_time(TableArn=arn, S3Bucket=bucket)
        exported = by_key(read_export(s3, finished(dynamodb, answer["ExportDescription"]["ExportArn"]))[2])
        assert exported == items
        # No stream contains what is written while there is no stream.
        dynamodb.update_table(TableName=table, StreamSpecification={"StreamEnabled": False})
        dynamodb.delete_item(TableName=table, Key={"Id": {"N": key}})
        del items[key]
        stream: Any = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
        dynamodb.update_table(TableName=table, StreamSpecification=stream)


def test_layout_and_summary_of_a_full_export(
    dynamodb: "DynamoDBClient", s3: "S3Client", bucket: str, make_table: MakeTable
) -> None:
    table = make_table()
    items = fill(dynamodb, table)
    arn = arn_of(dynamodb, table)
    asked = dynamodb.export_table_to_point_in_time(TableArn=arn, S3Bucket=bucket, S3Prefix="some/prefix")
    description = finished(dynamodb, asked["ExportDescription"].get("ExportArn", ""))
    summary, entries, lines = read_export(s3, description)
    folder = f"some/prefix/AWSDynamoDB/{description['ExportArn'].rpartition('/')[2]}"
    stored = {found.get("Key", "") for found in s3.list_objects_v2(Bucket=bucket).get("Contents", [])}
    names = ("_started", "manifest-files.json", "manifest-files.md5", "manifest-summary.json", "manifest-summary.md5")
    assert stored == {f"{folder}/{name}" for name in names} | {entry["dataFileS3Key"] for entry in entries}
    assert all(entry["dataFileS3Key"].startswith(f"{folder}/data/") for entry in entries)
    assert len(entries) == 8
    assert by_key(lines) == items
    assert list(summary) == [
        *("version", "exportArn", "startTime", "endTime", "tableArn", "tableId", "exportTime", "s3Bucket", "s3Prefix"),
        *("s3SseAlgorithm", "s3SseKmsKeyId", "manifestFilesS3Key", "billedSizeBytes", "itemCount", "outputFormat"),
        "exportType",
    ]
    assert summary["version"] == "2020-06-30"
    assert summary["exportType"] == "FULL_EXPORT"
    assert summary["s3Prefix"] == "some/prefix"
    assert summary["exportTime"] == description["ExportTime"].strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def test_a_past_moment_and_the_changes_between_two(
    dynamodb: "DynamoDBClient", s3: "S3Client", bucket: str, make_table: MakeTable
) -> None:
    table = make_table()
    items = fill(dynamodb, table)
    arn = arn_of(dynamodb, table)
    time.sleep(1.0)
    with writing(dynamodb, table, items) as writer:
        time.sleep(3.5)
        to_time = int(time.time())
        from_time = to_time - 2
        writer.wait_for(30)
        full = dynamodb.export_table_to_point_in_time(TableArn=arn, S3Bucket=bucket, ExportTime=moment(from_time))
        windows = {
            view: dynamodb.export_table_to_point_in_time(
                TableArn=arn,
                S3Bucket=bucket,
                ExportType="INCREMENTAL_EXPORT",
                IncrementalExportSpecification={
                    "ExportFromTime": moment(from_time),
                    "ExportToTime": moment(to_time),
                    "ExportViewType": view,
                },
            )
            for view in ("NEW_IMAGE", "NEW_AND_OLD_IMAGES")
        }
    before = by_key(read_export(s3, finished(dynamodb, full["ExportDescription"].get("ExportArn", "")))[2])
    assert before in writer.states_at(from_time)
    for view, asked in windows.items():
        description = finished(dynamodb, asked["ExportDescription"].get("ExportArn", ""))
        summary, entries, lines = read_export(s3, description)
        assert summary["version"] == "2023-08-01"
        assert summary["exportType"] == "INCREMENTAL_EXPORT"
        assert summary["outputView"] == view
        assert "exportTime" not in summary
        assert all(entry["dataFileS3Key"].startswith("AWSDynamoDB/data/") for entry in entries)
        after = dict(before)
        for line in lines:
            key = line["Keys"]["Id"]["N"]
            micros = int(line["Metadata"]["WriteTimestampMicros"]["N"])
            assert from_time * 1_000_000 <= micros < to_time * 1_000_000
            assert line.get("OldImage") == (before.get(key) if view == "NEW_AND_OLD_IMAGES" else None)
            after.pop(key, None)
            if "NewImage" in line:
                after[key] = line["NewImage"]
        assert len(lines) > 20
        assert after in writer.states_at(to_time)


def test_what_was_written_while_the_stream_was_off_is_told_from_a_kinesis_destination(
    stack: LocalStack, dynamodb: "DynamoDBClient", s3: "S3Client", bucket: str, make_table: MakeTable
) -> None:
    """Point-in-time recovery does not depend on the stream; the local stack's window used to leave these writes out."""
    table = make_table("NEW_AND_OLD_IMAGES")
    arn = arn_of(dynamodb, table)
    kinesis = session_of(stack).client("kinesis", endpoint_url=stack.endpoint_url)
    kinesis.create_stream(StreamName=table, ShardCount=1)
    log = kinesis.describe_stream_summary(StreamName=table)["StreamDescriptionSummary"]["StreamARN"]
    dynamodb.enable_kinesis_streaming_destination(TableName=table, StreamArn=log)
    for number, enabled in enumerate((None, False, True)):
        if enabled is not None:
            stream: Any = {"StreamEnabled": enabled} | ({"StreamViewType": "NEW_AND_OLD_IMAGES"} if enabled else {})
            dynamodb.update_table(TableName=table, StreamSpecification=stream)
        for written in range(number, 3):  # the later ones are overwritten each time
            dynamodb.put_item(TableName=table, Item={"Id": {"N": str(written)}, "v": {"N": str(number)}})
        time.sleep(1.1)
    for _ in range(2):  # the second one continues where the first one stopped
        asked = dynamodb.export_table_to_point_in_time(
            TableArn=arn,
            S3Bucket=bucket,
            ExportType="INCREMENTAL_EXPORT",
            IncrementalExportSpecification={
                "ExportFromTime": dynamodb.describe_table(TableName=table)["Table"].get("CreationDateTime", moment(0)),
                "ExportToTime": moment(int(time.time())),
                "ExportViewType": "NEW_AND_OLD_IMAGES",
            },
        )
        description = finished(dynamodb, asked["ExportDescription"].get("ExportArn", ""))
        _, _, lines = read_export(s3, description)
        after = {line["Keys"]["Id"]["N"]: line["NewImage"]["v"]["N"] for line in lines}
        assert after == {"0": "0", "1": "1", "2": "2"}


def test_a_client_token_is_idempotent_and_conflicts_with_other_parameters(
    dynamodb: "DynamoDBClient", bucket: str, make_table: MakeTable
) -> None:
    arn = arn_of(dynamodb, make_table())

    def ask(prefix: str) -> str:
        asked = dynamodb.export_table_to_point_in_time(
            TableArn=arn, S3Bucket=bucket, S3Prefix=prefix, ClientToken="once"
        )
        return asked["ExportDescription"].get("ExportArn", "")

    first = ask("a")
    assert ask("a") == first
    finished(dynamodb, first)
    assert ask("a") == first
    with pytest.raises(dynamodb.exceptions.ExportConflictException):
        ask("b")
    other = dynamodb.export_table_to_point_in_time(TableArn=arn, S3Bucket=bucket)["ExportDescription"]
    finished(dynamodb, other.get("ExportArn", ""))
    listed = dynamodb.list_exports(TableArn=arn, MaxResults=1)
    rest = dynamodb.list_exports(TableArn=arn, NextToken=listed.get("NextToken", ""))
    summaries = listed.get("ExportSummaries", []) + rest.get("ExportSummaries", [])
    assert [summary.get("ExportArn") for summary in summaries] == [first, other.get("ExportArn")]


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ClientError) as raised:
        call()
    return raised.value.response.get("Error", {}).get("Code", "")


def test_what_is_refused(dynamodb: "DynamoDBClient", bucket: str, make_table: MakeTable) -> None:
    unprotected = arn_of(dynamodb, make_table(recovery=False))
    table = arn_of(dynamodb, make_table())
    export = dynamodb.export_table_to_point_in_time
    unavailable = "PointInTimeRecoveryUnavailableException"
    assert refused(lambda: export(TableArn=unprotected, S3Bucket=bucket)) == unavailable
    assert refused(lambda: export(TableArn=f"{table}Other", S3Bucket=bucket)) == "TableNotFoundException"
    for outside in (moment(time.time() + 60), moment(time.time() - 3600)):
        late = refused(lambda at=outside: export(TableArn=table, S3Bucket=bucket, ExportTime=at))
        assert late == "InvalidExportTimeException"
    now = int(time.time())
    for window in ((now, now), (now, now - 5), (now - 3600, now)):
        asked: Any = {"ExportFromTime": window[0], "ExportToTime": window[1]}
        code = refused(
            lambda asked=asked: export(
                TableArn=table,
                S3Bucket=bucket,
                ExportType="INCREMENTAL_EXPORT",
                IncrementalExportSpecification=asked,
            )
        )
        assert code == "InvalidExportTimeException"
    assert refused(lambda: dynamodb.describe_export(ExportArn=f"{table}/export/0123456789012-abcdef01"))


def test_a_missing_bucket_fails_the_export(dynamodb: "DynamoDBClient", make_table: MakeTable) -> None:
    arn = arn_of(dynamodb, make_table())
    asked = dynamodb.export_table_to_point_in_time(TableArn=arn, S3Bucket="no-such-bucket")["ExportDescription"]
    description = finished(dynamodb, asked.get("ExportArn", ""))
    assert (description["ExportStatus"], description["FailureCode"]) == ("FAILED", "S3NoSuchBucket")
    assert "ExportManifest" not in description


def test_the_recovery_window_begins_when_recovery_was_enabled(
    dynamodb: "DynamoDBClient", make_table: MakeTable
) -> None:
    table = make_table()
    described = dynamodb.describe_continuous_backups(TableName=table)["ContinuousBackupsDescription"]
    recovery = described.get("PointInTimeRecoveryDescription", {})
    time.sleep(0.05)
    again = dynamodb.describe_continuous_backups(TableName=table)["ContinuousBackupsDescription"]
    later = again.get("PointInTimeRecoveryDescription", {})
    assert recovery.get("EarliestRestorableDateTime") == later.get("EarliestRestorableDateTime")
    assert recovery.get("LatestRestorableDateTime") != later.get("LatestRestorableDateTime")
