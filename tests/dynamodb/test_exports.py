"""Exports: requested, waited for, found; and DynamoDB's refusals, with the remedy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.stub import Stubber
from types_boto3_dynamodb.client import DynamoDBClient
from types_boto3_s3.client import S3Client

from pipeline.core.errors import ConfigurationError, TerminalError, TransientError
from pipeline.core.exports.export_lines import parse_full, parse_incremental
from pipeline.dynamodb.client import client
from pipeline.dynamodb.exports.export_files import read_lines
from pipeline.dynamodb.exports.exports import (
    ExportStatus,
    ExportWindow,
    describe_export,
    request_export,
    wait_for_export,
)
from pipeline.dynamodb.exports.manifest import read_manifest
from pipeline.dynamodb.exports.objects import S3Objects
from pipeline.dynamodb.tables import describe
from tests.dynamodb.conftest import enable_recovery, put

STREAM = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
ITEMS = [{"Id": {"N": str(number)}, "empName": {"S": f"name {number}"}} for number in range(60)]
TABLE_ARN = "arn:aws:dynamodb:us-east-1:111122223333:table/Employees"
EXPORT_ARN = f"{TABLE_ARN}/export/01715685260608-c488b4e1"


@pytest.mark.stack
def test_a_full_export_from_request_to_items(
    dynamodb: DynamoDBClient, s3: S3Client, bucket: str, make_table: Callable[..., str]
) -> None:
    name = make_table(StreamSpecification=STREAM)
    enable_recovery(dynamodb, name)
    put(dynamodb, name, ITEMS)
    arn = describe(dynamodb, name).arn
    export = request_export(dynamodb, arn, bucket, "some/prefix", client_token="one")
    assert request_export(dynamodb, arn, bucket, "some/prefix", client_token="one") == export
    seen: list[ExportStatus] = []
    location = wait_for_export(dynamodb, export, poll_seconds=0.1, timeout_seconds=30, on_poll=seen.append)
    assert location.startswith(f"s3://{bucket}/some/prefix/AWSDynamoDB/")
    assert (seen[-1].status, seen[-1].item_count, seen[-1].failure) == ("COMPLETED", 60, None)
    store = S3Objects(s3)
    manifest = read_manifest(store, location, expected_table=name)
    assert (manifest.export_arn, manifest.table_arn) == (export, arn)
    blocks = [block for file in manifest.files for block in read_lines(store, bucket, file)]
    items = [item for block in blocks for item in parse_full(block, file="f")]
    assert sorted(items, key=lambda item: int(item["Id"]["N"])) == ITEMS


@pytest.mark.stack
def test_an_incremental_export(
    dynamodb: DynamoDBClient, s3: S3Client, bucket: str, make_table: Callable[..., str]
) -> None:
    start = datetime.now(UTC) - timedelta(minutes=1)
    name = make_table(StreamSpecification=STREAM)
    enable_recovery(dynamodb, name)
    put(dynamodb, name, ITEMS[:3])
    dynamodb.delete_item(TableName=name, Key={"Id": {"N": "2"}})
    table = describe(dynamodb, name)
    start = max(start, table.earliest_restorable or start)
    time.sleep(1.1)  # a window ends in the past, and a change of its last second may count as of that second's end
    window = ExportWindow(start, datetime.now(UTC))
    export = request_export(dynamodb, table.arn, bucket, client_token="two", window=window)
    location = wait_for_export(dynamodb, export, poll_seconds=0.1, timeout_seconds=30)
    manifest = read_manifest(S3Objects(s3), location, expected_table=table.arn)
    assert (manifest.kind, manifest.view_type) == ("incremental", "NEW_IMAGE")
    blocks = [block for file in manifest.files for block in read_lines(S3Objects(s3), bucket, file)]
    changes = [change for block in blocks for change in parse_incremental(block, file="f")]
    assert {change.keys["Id"]["N"]: change.image for change in changes} == {"0": ITEMS[0], "1": ITEMS[1]}


@pytest.mark.stack
def test_recovery_is_off(dynamodb: DynamoDBClient, bucket: str, make_table: Callable[..., str]) -> None:
    name = make_table()
    with pytest.raises(
        TerminalError, match=rf"point-in-time recovery of the table is off; enable it: .*--table-name {name} "
    ):
        request_export(dynamodb, describe(dynamodb, name).arn, bucket, client_token="three")


@pytest.mark.stack
def test_an_export_that_nobody_knows(dynamodb: DynamoDBClient) -> None:
    with pytest.raises(TerminalError, match=r"ExportNotFoundException; check the export's ARN; .* after 90 days"):
        describe_export(dynamodb, EXPORT_ARN)


@pytest.fixture
def stubbed() -> Iterator[tuple[DynamoDBClient, Stubber]]:
    made = client("dynamodb")
    with Stubber(made) as stubber:
        yield made, stubber
        stubber.assert_no_pending_responses()
    made.close()


def description(**members: Any) -> dict[str, Any]:  # noqa: ANN401  what DescribeExport answers
    return {"ExportDescription": {"ExportArn": EXPORT_ARN, "S3Bucket": "b", **members}}


def test_what_is_asked_for(stubbed: tuple[DynamoDBClient, Stubber]) -> None:
    made, stubber = stubbed
    times = datetime(2026, 5, 1, 10, tzinfo=UTC), datetime(2026, 5, 1, 11, tzinfo=UTC)
    common = {"TableArn": TABLE_ARN, "S3Bucket": "b", "ClientToken": "t", "ExportFormat": "DYNAMODB_JSON"}
    specification = {"ExportFromTime": times[0], "ExportToTime": times[1], "ExportViewType": "NEW_IMAGE"}
    incremental = {"ExportType": "INCREMENTAL_EXPORT", "IncrementalExportSpecification": specification}
    for more in ({"S3Prefix": "p", "S3BucketOwner": "1" * 12, "ExportTime": times[0]}, incremental):
        stubber.add_response("export_table_to_point_in_time", description(), {**common, **more})
    asked = request_export(made, TABLE_ARN, "b", "p", client_token="t", export_time=times[0], bucket_owner="1" * 12)
    assert asked == request_export(made, TABLE_ARN, "b", client_token="t", window=ExportWindow(*times)) == EXPORT_ARN


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("LimitExceededException", TransientError, "try again"),
        ("InvalidExportTimeException", TerminalError, "said so; choose a time inside the table's recovery window"),
        ("ExportConflictException", TerminalError, "use another token"),
        ("TableNotFoundException", TerminalError, "check the table's name"),
    ],
)
def test_refusals(stubbed: tuple[DynamoDBClient, Stubber], code: str, kind: type[Exception], message: str) -> None:
    made, stubber = stubbed
    stubber.add_client_error("export_table_to_point_in_time", code, "said so", 400)
    with pytest.raises(kind, match=rf"^requesting an export of {TABLE_ARN} to s3://b/p: .*{code}.*{message}"):
        request_export(made, TABLE_ARN, "b", "p", client_token="t")


def test_a_failed_export_tells_why(stubbed: tuple[DynamoDBClient, Stubber]) -> None:
    made, stubber = stubbed
    answer = description(ExportStatus="FAILED", FailureCode="S3AccessDenied", FailureMessage="no PutObject")
    stubber.add_response("describe_export", answer)
    with pytest.raises(
        TerminalError, match=rf"{EXPORT_ARN}: it failed with S3AccessDenied: no PutObject; fix the cause"
    ):
        wait_for_export(made, EXPORT_ARN, poll_seconds=0)


def test_waiting_outlasts_a_few_unanswered_polls_and_no_more(stubbed: tuple[DynamoDBClient, Stubber]) -> None:
    made, stubber = stubbed
    for _ in range(4):
        stubber.add_client_error("describe_export", "InternalServerError", http_status_code=500)
    stubber.add_response("describe_export", description(ExportStatus="IN_PROGRESS"))
    for _ in range(4):
        stubber.add_client_error("describe_export", "InternalServerError", http_status_code=500)
    stubber.add_response("describe_export", description(ExportStatus="COMPLETED", ExportManifest="p/m.json"))
    assert wait_for_export(made, EXPORT_ARN, poll_seconds=0) == "s3://b/p/m.json"
    for _ in range(5):
        stubber.add_client_error("describe_export", "InternalServerError", http_status_code=500)
    with pytest.raises(TransientError):
        wait_for_export(made, EXPORT_ARN, poll_seconds=0)


def test_an_export_that_takes_too_long_runs_on(stubbed: tuple[DynamoDBClient, Stubber]) -> None:
    made, stubber = stubbed
    stubber.add_response("describe_export", description(ExportStatus="IN_PROGRESS"))
    with pytest.raises(TransientError, match="not done after 0 s; the export continues; wait for it again"):
        wait_for_export(made, EXPORT_ARN, timeout_seconds=0)


def test_an_export_that_is_done_without_a_manifest(stubbed: tuple[DynamoDBClient, Stubber]) -> None:
    made, stubber = stubbed
    stubber.add_response("describe_export", description(ExportStatus="COMPLETED"))
    with pytest.raises(ConfigurationError, match=r"it is done, but names no manifest; .*check AWS_ENDPOINT_URL"):
        wait_for_export(made, EXPORT_ARN)
