"""The poller of an event source mapping: shards and batches on a scripted stream, targets, and real ministack."""

import base64
import json
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.local.mapping_delivery import FunctionError, MappingSettings, ThrottledError
from pipeline.local.mapping_poller import MappingPoller
from pipeline.local.mapping_source import DynamoDbStream, ExpiredError, Shard
from pipeline.local.mapping_targets import InvocationContext, in_process, runtime_emulator
from pipeline.local.process import free_port
from pipeline.local.raw_aws import RawAws
from pipeline.local.stack import LocalStack
from tests.local.conftest import MakeTable

if TYPE_CHECKING:
    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_s3 import S3Client

Json = dict[str, Any]
ARN = "arn:aws:dynamodb:us-east-1:000000000000:table/T/stream/2026-01-01T00:00:00.000"


def record(number: int, *, text: str = "") -> Json:
    return {
        "eventID": f"9de4f8cb-e9ad-4817-bd64-{number:012d}",
        "eventName": "INSERT",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "dynamodb": {
            "ApproximateCreationDateTime": int(time.time()),
            "Keys": {"Id": {"N": str(number)}},
            "NewImage": {"Id": {"N": str(number)}, "text": {"S": text}},
            "SequenceNumber": f"{number:021d}",
            "SizeBytes": 10,
            "StreamViewType": "NEW_IMAGE",
        },
    }


class ScriptedStream:
    """A stream held in lists; a closed shard ends. Positions are `shard:index`."""

    stream_arn = ARN

    def __init__(self) -> None:
        self.parents: dict[str, str | None] = {}
        self.content: dict[str, list[Json]] = {}
        self.closed: set[str] = set()
        self.expire_once: set[str] = set()

    def add(self, shard_id: str, numbers: range, parent: str | None = None, *, closed: bool = False) -> None:
        self.content.setdefault(shard_id, []).extend(record(number) for number in numbers)
        if closed:
            self.closed.add(shard_id)
        self.parents.setdefault(shard_id, parent)

    def shards(self) -> list[Shard]:
        return [Shard(shard_id, parent) for shard_id, parent in self.parents.items()]

    def iterator(self, shard_id: str, start: str, after: str | None = None) -> str:
        if after is not None:
            sequence = [r["dynamodb"]["SequenceNumber"] for r in self.content[shard_id]]
            return f"{shard_id}:{sequence.index(after) + 1}"
        return f"{shard_id}:{len(self.content[shard_id]) if start == 'LATEST' else 0}"

    def records(self, iterator: str) -> tuple[list[Json], str | None]:
        if iterator in self.expire_once:
            self.expire_once.discard(iterator)
            raise ExpiredError
        shard_id, _, position = iterator.partition(":")
        page = self.content[shard_id][int(position) : int(position) + 3]
        following = int(position) + len(page)
        at_end = shard_id in self.closed and following == len(self.content[shard_id])
        return page, None if at_end else f"{shard_id}:{following}"


class Recorder:
    """A target that remembers its batches, and may have something to do for each."""

    def __init__(self, act: Callable[[list[int]], object] | None = None) -> None:
        self.events: list[Json] = []
        self.batches: list[list[int]] = []
        self._act = act

    def __call__(self, event: Json) -> object:
        self.events.append(event)
        self.batches.append([int(r["dynamodb"]["SequenceNumber"]) for r in event["Records"]])
        return self._act(self.batches[-1]) if self._act else None

    @property
    def numbers(self) -> list[int]:
        return [number for batch in self.batches for number in batch]


def test_a_shard_is_read_in_order_in_batches_of_the_size_asked_for() -> None:
    stream = ScriptedStream()
    stream.add("a", range(1, 11))
    target = Recorder()
    settings = MappingSettings(batch_size=4, window_seconds=0.5)
    with MappingPoller(stream, target, settings) as mapping:
        assert mapping.wait_quiet()
    assert target.batches == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_a_window_gathers_what_trickles_in() -> None:
    stream = ScriptedStream()
    stream.add("a", range(1, 2))
    target = Recorder()
    with MappingPoller(stream, target, MappingSettings(window_seconds=1.0)):
        time.sleep(0.4)
        stream.add("a", range(2, 4))
        assert target.batches == []
        time.sleep(1.0)
    assert target.batches == [[1, 2, 3]]


def test_without_a_window_records_are_sent_as_they_come() -> None:
    stream = ScriptedStream()
    stream.add("a", range(1, 2))
    target = Recorder()
    with MappingPoller(stream, target) as mapping:
        assert mapping.wait_quiet()
        stream.add("a", range(2, 4))
        assert mapping.wait_quiet()
    assert target.batches == [[1], [2, 3]]


def test_a_batch_stays_below_the_payload_limit() -> None:
    stream = ScriptedStream()
    stream.parents["a"] = None
    stream.content["a"] = [record(number, text="x" * 399_000) for number in range(1, 21)]
    target = Recorder()
    with MappingPoller(stream, target, MappingSettings(window_seconds=0.5)) as mapping:
        assert mapping.wait_quiet()
    assert target.numbers == list(range(1, 21))
    assert len(target.batches) == 2
    assert all(len(json.dumps(event)) <= 6 * 1024 * 1024 for event in target.events)


def test_children_wait_for_their_parent_and_strangers_do_not() -> None:
    stream = ScriptedStream()
    stream.add("child", range(10, 13), parent="parent")
    stream.add("parent", range(1, 3), closed=True)
    stream.add("stranger", range(20, 23))
    release = threading.Event()

    def block_the_parent(batch: list[int]) -> object:
        if 1 in batch and not release.is_set():
            raise FunctionError("ValueError", "not yet")
        return None

    target = Recorder(block_the_parent)
    with MappingPoller(stream, target) as mapping:
        time.sleep(1.0)
        assert 20 in target.numbers
        assert 10 not in target.numbers
        release.set()
        assert mapping.wait_quiet()
    assert [number for number in target.numbers if number in (2, 10, 11, 12)][-4:] == [2, 10, 11, 12]


def test_shards_that_appear_later_are_read_from_their_beginning_even_from_latest() -> None:
    stream = ScriptedStream()
    stream.add("a", range(1, 4))
    target = Recorder()
    with MappingPoller(stream, target, MappingSettings(starting_position="LATEST")) as mapping:
        stream.add("a", range(4, 6), closed=True)
        stream.add("b", range(6, 8), parent="a")
        time.sleep(1.5)
        assert mapping.wait_quiet()
    assert target.numbers == [4, 5, 6, 7]


def test_an_expired_iterator_is_fetched_again_where_it_was() -> None:
    stream = ScriptedStream()
    stream.add("a", range(1, 6))
    stream.expire_once = {"a:3"}
    target = Recorder()
    with MappingPoller(stream, target) as mapping:
        assert mapping.wait_quiet()
    assert target.numbers == [1, 2, 3, 4, 5]


def test_what_ends_a_shards_work_is_raised_on_stop() -> None:
    class BrokenStream(ScriptedStream):
        def records(self, iterator: str) -> tuple[list[Json], str | None]:
            raise ConnectionResetError(iterator)

    stream = BrokenStream()
    stream.add("a", range(1, 3))
    mapping = MappingPoller(stream, Recorder())
    mapping.start()
    with pytest.raises(ConnectionResetError):
        mapping.stop()


def test_a_target_in_this_process_has_its_errors_and_its_json_checked() -> None:
    def handler(event: Json, context: InvocationContext) -> object:
        assert context.get_remaining_time_in_millis() > 1000
        event["Records"].append("mine alone")
        return event["answer"]

    event: Json = {"Records": [], "answer": {"batchItemFailures": []}}
    assert in_process(handler)(event) == {"batchItemFailures": []}
    assert event["Records"] == []
    with pytest.raises(FunctionError, match="KeyError"):
        in_process(handler)({"Records": []})
    with pytest.raises(FunctionError, match="TypeError"):
        in_process(lambda _event, _context: {1, 2})(event)


def test_an_emulator_that_is_not_there_counts_as_not_run() -> None:
    with pytest.raises(ThrottledError, match="cannot be reached"):
        runtime_emulator(f"http://127.0.0.1:{free_port()}")({"Records": []})


def test_against_ministack_events_are_as_lambda_sends_them(
    stack: LocalStack, dynamodb: "DynamoDBClient", make_table: MakeTable
) -> None:
    table = make_table("NEW_AND_OLD_IMAGES")
    arn = dynamodb.describe_table(TableName=table)["Table"].get("LatestStreamArn", "")
    target = Recorder()
    stream = DynamoDbStream(RawAws(stack.exports.port, "test", "us-east-1"), arn)
    with MappingPoller(stream, target, MappingSettings(batch_size=7)) as mapping:
        for number in range(20):
            item: Any = {"Id": {"N": str(number)}, "b": {"B": b"\x00\xff"}, "ns": {"NS": ["1.50", "2"]}}
            dynamodb.put_item(TableName=table, Item=item)
        dynamodb.delete_item(TableName=table, Key={"Id": {"N": "3"}})
        assert mapping.wait_quiet()
    assert len(target.numbers) == 21
    assert target.numbers == sorted(target.numbers)
    assert max(map(len, target.batches)) <= 7
    sent: list[Json] = [record for event in target.events for record in event["Records"]]
    first, last = sent[0], sent[-1]
    assert re.fullmatch("[0-9a-f]{32}", first["eventID"])
    assert (first["eventVersion"], first["eventSource"], first["awsRegion"]) == ("1.1", "aws:dynamodb", "us-east-1")
    assert first["eventSourceARN"] == arn
    assert isinstance(first["dynamodb"]["ApproximateCreationDateTime"], int | float)
    assert first["dynamodb"]["NewImage"]["b"] == {"B": base64.b64encode(b"\x00\xff").decode()}
    assert first["dynamodb"]["Keys"] == {"Id": {"N": "0"}}
    assert (last["eventName"], "NewImage" in last["dynamodb"]) == ("REMOVE", False)
    assert "userIdentity" not in last


def test_discarded_records_lie_whole_in_s3_under_the_documented_key(
    stack: LocalStack, dynamodb: "DynamoDBClient", s3: "S3Client", bucket: str, make_table: MakeTable
) -> None:
    table = make_table()
    arn = dynamodb.describe_table(TableName=table)["Table"].get("LatestStreamArn", "")
    for number in range(4):
        dynamodb.put_item(TableName=table, Item={"Id": {"N": str(number)}})

    def refuse_number_two(event: Json, _context: object) -> None:
        assert all(r["dynamodb"]["Keys"] != {"Id": {"N": "2"}} for r in event["Records"])

    aws = RawAws(stack.exports.port, "test", "us-east-1")
    settings = MappingSettings(maximum_retry_attempts=1, bisect_on_error=True)
    mapping = MappingPoller(
        DynamoDbStream(aws, arn),
        in_process(refuse_number_two),
        settings,
        on_failure=lambda key, body: aws.s3_put(bucket, key, body),
    )
    with mapping:
        assert mapping.wait_quiet()
    assert mapping.statistics.discarded == 1
    (stored,) = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    key = stored.get("Key", "")
    folder = rf"aws/lambda/{mapping.mapping_id}/shardId-[0-9a-f-]+"
    pattern = rf"{folder}/\d{{4}}/\d\d/\d\d/\d{{4}}-\d\d-\d\dT\d\d\.\d\d\.\d\d-[0-9a-f-]{{36}}"
    assert re.fullmatch(pattern, key)
    document = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
    assert document["requestContext"]["condition"] == "RetryAttemptsExhausted"
    assert document["requestContext"]["approximateInvokeCount"] == 2
    assert document["responseContext"] == {
        "statusCode": 200,
        "executedVersion": "$LATEST",
        "functionError": "Unhandled",
    }
    (kept,) = json.loads(document["payload"])["Records"]
    assert kept["dynamodb"]["Keys"] == {"Id": {"N": "2"}}
    batch = document["DDBStreamBatchInfo"]
    assert batch["batchSize"] == 1
    assert batch["streamArn"] == arn
    assert batch["startSequenceNumber"] == batch["endSequenceNumber"] == kept["dynamodb"]["SequenceNumber"]
