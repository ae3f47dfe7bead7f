"""Reading a stream as a second reader: one contract for the scripted stream and the local stack, then special cases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import pytest
from types_boto3_dynamodb.client import DynamoDBClient
from types_boto3_dynamodbstreams.client import DynamoDBStreamsClient

from pipeline.core.errors import TerminalError, TransientError
from pipeline.dynamodb.client import client
from pipeline.dynamodb.streams.shards import LostPlaceError, Shard, StreamReader, latest_stream
from tests.dynamodb.scripted_stream import ScriptedShard, ScriptedStream


@dataclass
class Stream:
    """A stream with one shard, and how to write to its table."""

    reader: StreamReader
    table: str
    dynamodb: DynamoDBClient
    write: Callable[[int], object]


def scripted() -> tuple[ScriptedStream, Stream]:
    stream = ScriptedStream(page_shards=2)
    stream.shards["s"] = ScriptedShard()
    reader = StreamReader(cast("DynamoDBStreamsClient", stream), stream.arn)

    def write(number: int) -> object:
        return stream.write("s", number, time.time())

    return stream, Stream(reader, "Employees", cast("DynamoDBClient", stream), write)


@pytest.fixture(params=["scripted", "local stack"])
def stream(request: pytest.FixtureRequest) -> Iterator[Stream]:
    if request.param == "scripted":
        yield scripted()[1]
        return
    dynamodb: DynamoDBClient = request.getfixturevalue("dynamodb")
    name = f"Table{uuid4().hex[:10]}"
    dynamodb.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    streams = client("dynamodbstreams", request.getfixturevalue("aws_endpoint"))
    reader = StreamReader(streams, latest_stream(dynamodb, name).arn)
    yield Stream(
        reader, name, dynamodb, lambda number: dynamodb.put_item(TableName=name, Item={"Id": {"N": str(number)}})
    )
    streams.close()


def test_the_latest_stream_of_a_table(stream: Stream) -> None:
    found = latest_stream(stream.dynamodb, stream.table)
    assert (found.enabled, found.view_type) == (True, "NEW_AND_OLD_IMAGES")
    assert found.arn.endswith(f"table/{stream.table}/stream/{found.label}")


def test_pages_go_on_where_the_last_one_ended(stream: Stream) -> None:
    reader = stream.reader
    (shard,) = reader.shards()
    assert (shard.parent_id, shard.closed) == (None, False)
    latest, oldest = reader.open(shard.shard_id, latest=True), reader.open(shard.shard_id)
    before = time.time()
    stream.write(1)
    stream.write(2)
    page = reader.page(oldest.iterator or "")
    assert [record.keys for record in page.records] == [{"Id": {"N": "1"}}, {"Id": {"N": "2"}}]
    assert all(abs(record.created_at - before) < 60 for record in page.records)
    one, two = (int(record.sequence_number) for record in page.records)
    assert one < two
    assert page.following is not None
    assert reader.page(page.following).records == []
    stream.write(3)
    assert [r.keys["Id"] for r in reader.page(page.following).records] == [{"N": "3"}]
    behind = reader.open(shard.shard_id, after=page.records[0].sequence_number)
    assert not behind.trimmed
    assert [r.keys["Id"]["N"] for r in reader.page(behind.iterator or "").records] == ["2", "3"]
    assert [r.keys["Id"]["N"] for r in reader.page(latest.iterator or "").records] == ["1", "2", "3"]
    assert reader.calls == 9


def test_shards_are_listed_page_by_page_with_their_lineage() -> None:
    stream, found = scripted()
    stream.split("s", "a", "b")
    stream.split("b", "c", "d")
    assert found.reader.shards() == [
        Shard("s", None, closed=True, ending=str(10**20)),
        Shard("a", "s", closed=False),
        Shard("b", "s", closed=True, ending=str(10**20)),
        Shard("c", "b", closed=False),
        Shard("d", "b", closed=False),
    ]
    assert found.reader.calls == 3


def test_a_place_that_was_trimmed_is_the_oldest_record_and_says_so() -> None:
    stream, found = scripted()
    records: list[dict[str, Any]] = [stream.write("s", number, 1_778_753_000.0) for number in range(4)]
    stream.shards["s"].trimmed = 3
    opened = found.reader.open("s", after=records[0]["dynamodb"]["SequenceNumber"])
    assert opened.trimmed
    assert [r.keys["Id"]["N"] for r in found.reader.page(opened.iterator or "").records] == ["3"]


def test_a_closed_shard_ends_and_one_that_is_gone_has_no_iterator() -> None:
    stream, found = scripted()
    stream.split("s")
    assert found.reader.page(found.reader.open("s").iterator or "").following is None
    assert found.reader.open("gone").iterator is None


def test_a_lost_place_and_throttling_are_told_apart() -> None:
    stream, found = scripted()
    iterator = found.reader.open("s").iterator or ""
    stream.shards["s"].throttled = True
    with pytest.raises(TransientError, match="LimitExceededException"):
        found.reader.page(iterator)
    stream.expired += 1
    with pytest.raises(LostPlaceError):
        found.reader.page(iterator)


def test_a_table_without_a_stream(dynamodb: DynamoDBClient) -> None:
    name = f"Table{uuid4().hex[:10]}"
    dynamodb.create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
        BillingMode="PAY_PER_REQUEST",
    )
    with pytest.raises(TerminalError, match=f"looking for the stream of {name}: it has none; enable it"):
        latest_stream(dynamodb, name)
