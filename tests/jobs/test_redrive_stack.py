"""Redrive on the local stack: objects in S3, and messages of a queue whose records are read from the stream again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.redrive import redrive
from pipeline.jobs.services import Services
from pipeline.local.mapping_delivery import Discard
from pipeline.local.mapping_documents import failure_document
from pipeline.local.stack import LocalStack
from pipeline.settings import Settings
from tests.jobs.conftest import STREAM, named, view


@pytest.fixture
def services(stack: LocalStack, services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    return Services(
        Settings.from_environment(dict(os.environ) | {"DATABASE_URL": services.settings.database_url or ""})
    )


@pytest.fixture
def s3(services: Services) -> Any:  # noqa: ANN401 - the SDK's client
    from pipeline.dynamodb.client import client  # noqa: PLC0415 - beside its one use

    return client("s3", services.settings.endpoint_url)


def names(connection: Connection) -> dict[int, str]:
    return {number: name for number, (name, _) in view(connection).items()}


def document(records: list[dict[str, Any]], stream: str, shard: str = "shardId-1") -> bytes:
    return failure_document(
        shard, stream, Discard(records, "RetryAttemptsExhausted", 3, function_error=True), datetime.now(UTC)
    )


def test_objects_in_s3_are_applied_and_moved(
    services: Services,
    employees: TableMapping,
    connection: Connection,
    s3: Any,  # noqa: ANN401 - the SDK's client
) -> None:
    bucket = f"failed-{uuid4().hex[:10]}"
    s3.create_bucket(Bucket=bucket)
    for number in range(3):
        body = document([named(number, number + 1, f"name {number}")], STREAM)
        s3.put_object(Bucket=bucket, Key=f"aws/lambda/m/shardId-1/2026/05/14/{number}", Body=body)
    s3.put_object(Bucket=bucket, Key="aws/lambda/m/else", Body=b"else")
    report = redrive(services, [employees], prefix=f"s3://{bucket}/aws/lambda/")
    assert (report.batches, [left.location for left in report.left]) == (3, [f"s3://{bucket}/aws/lambda/m/else"])
    assert names(connection) == {number: f"name {number}" for number in range(3)}
    keys = sorted(entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"])
    done = [f"done/aws/lambda/m/shardId-1/2026/05/14/{number}" for number in range(3)]
    assert keys == ["aws/lambda/m/else", *done]
    assert redrive(services, [employees], prefix=f"s3://{bucket}").batches == 0


@pytest.fixture
def streamed(services: Services, employees: TableMapping) -> Callable[[], tuple[TableMapping, str, str, list[Any]]]:
    """A table with three items, and the records of its stream."""

    def make() -> tuple[TableMapping, str, str, list[Any]]:
        mapping = replace(employees, table=f"Employees-{uuid4().hex[:8]}")
        services.dynamodb.create_table(
            TableName=mapping.table,
            AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
            KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
        )
        for number in range(5):
            item: Any = {"Id": {"N": str(number)}, "empName": {"S": f"name {number}"}}
            services.dynamodb.put_item(TableName=mapping.table, Item=item)
        services.dynamodb.delete_item(TableName=mapping.table, Key={"Id": {"N": "2"}})
        described: Any = services.dynamodb.describe_table(TableName=mapping.table)
        arn = described["Table"]["LatestStreamArn"]
        shards: Any = services.streams.describe_stream(StreamArn=arn)
        shard = shards["StreamDescription"]["Shards"][0]["ShardId"]
        iterator: Any = services.streams.get_shard_iterator(
            StreamArn=arn, ShardId=shard, ShardIteratorType="TRIM_HORIZON"
        )
        records: Any = services.streams.get_records(ShardIterator=iterator["ShardIterator"])["Records"]
        return mapping, arn, shard, records

    return make


def message(arn: str, shard: str, records: list[Any]) -> str:
    """The document that a queue gets, without the event."""
    plain: list[Any] = [
        {
            "dynamodb": {
                "SequenceNumber": record["dynamodb"]["SequenceNumber"],
                "ApproximateCreationDateTime": record["dynamodb"]["ApproximateCreationDateTime"].timestamp(),
            }
        }
        for record in records
    ]
    whole = json.loads(document(plain, arn, shard))
    return json.dumps({name: value for name, value in whole.items() if name != "payload"})


def test_messages_of_a_queue_are_read_from_the_stream_again(
    services: Services,
    connection: Connection,
    streamed: Callable[[], tuple[TableMapping, str, str, list[Any]]],
) -> None:
    mapping, arn, shard, records = streamed()
    connection.execute("UPDATE replication.tables SET source_table = %s", [mapping.table])
    url = services.queues.create_queue(QueueName=f"failed-{uuid4().hex[:10]}")["QueueUrl"]
    for part in (records[1:3], records[3:]):
        services.queues.send_message(QueueUrl=url, MessageBody=message(arn, shard, part))
    report = redrive(services, [mapping], queue_url=url)
    assert (report.batches, report.read_again, report.left, report.records) == (2, 2, [], len(records) - 1)
    assert names(connection) == {number: f"name {number}" for number in (1, 3, 4)}
    assert redrive(services, [mapping], queue_url=url).batches == 0


def test_records_that_the_stream_has_lost_are_named_as_a_window(
    services: Services,
    connection: Connection,
    streamed: Callable[[], tuple[TableMapping, str, str, list[Any]]],
) -> None:
    mapping, arn, shard, records = streamed()
    url = services.queues.create_queue(QueueName=f"failed-{uuid4().hex[:10]}")["QueueUrl"]
    body = json.loads(message(arn, shard, records[:2]))
    info = body["DDBStreamBatchInfo"]
    info["startSequenceNumber"] = str(int(info["startSequenceNumber"]) - 1)  # trimmed: the stream begins behind it
    info["approximateArrivalOfFirstRecord"] = "2026-05-14T10:00:00Z"
    info["approximateArrivalOfLastRecord"] = "2026-05-14T10:01:00Z"
    services.queues.send_message(QueueUrl=url, MessageBody=json.dumps(body))
    info["shardId"] = "shardId-00000000000000000000-gone"
    services.queues.send_message(QueueUrl=url, MessageBody=json.dumps(body))
    report = redrive(services, [mapping], queue_url=url)
    assert (report.batches, len(report.left)) == (0, 2)
    for left in report.left:
        assert "no longer holds them" in left.reason
        assert "--from 2026-05-14T09:55:00Z --to 2026-05-14T10:16:00Z" in (left.next_step or "")
    assert names(connection) == {}
