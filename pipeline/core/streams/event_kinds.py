"""Recognises an event by its well-known form: the records of a DynamoDB stream, or something else, which is named.

Invariant: an event that is not a batch of stream records raises, and the text names it by its keys, never by its
values. A new event version is accepted, because DynamoDB raises it whenever it adds a member (botocore:
Record.eventVersion).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pipeline.core.errors import TerminalError

if TYPE_CHECKING:
    from pipeline.core.streams.stream_records import StreamRecord

# The first entry whose keys an event or a record has gives its name.
_SHAPES: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"deliveryStreamArn", "records"}), "an event of Amazon Data Firehose"),
    (frozenset({"records"}), "an object with `records` in lower case, as Firehose sends them"),
    (frozenset({"key1"}), "the Lambda console's test event"),
    (frozenset({"recordFormat", "tableName"}), "a record of Kinesis Data Streams for DynamoDB"),
    (frozenset({"kinesis"}), "a record of a Kinesis stream"),
    (frozenset({"body", "messageId"}), "an SQS message"),
    (frozenset({"Sns"}), "an SNS notification"),
    (frozenset({"s3"}), "an S3 notification"),
    (frozenset({"detail", "detail-type"}), "an EventBridge event"),
    (frozenset({"DDBStreamBatchInfo"}), "a failed batch's document, which `dynaurora redrive` reads"),
    (frozenset({"requestContext"}), "an HTTP request"),
    (frozenset({"dynamodb"}), "one bare stream record"),
    (frozenset({"awslogs"}), "a CloudWatch Logs event"),
)
_HINT = (
    "invoke the replicator only through an event source mapping of the table's DynamoDB stream; a test event must be a"
    ' batch of stream records: {"Records": [...]}'
)
_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


def records_of(event: object) -> list[StreamRecord]:
    """Return an event's records: those under `Records`, or a bare list of them, as EventBridge Pipes sends it.

    An empty batch is a batch. Raises TerminalError for everything else, naming what it received.
    """
    found: object = cast("dict[str, Any]", event).get("Records", event) if isinstance(event, dict) else event
    if not isinstance(found, list):
        named = isinstance(event, dict) and "Records" in event
        came = f"an object whose `Records` is {_kind(found)}, not a list" if named else shape(cast("object", event))
        raise _no_batch(came)
    records = cast("list[Any]", found)
    for record in records:
        if not isinstance(record, dict):
            raise _no_batch(f"a list with {_kind(record)} instead of a record")
    return cast("list[StreamRecord]", records)


def check_source(record: StreamRecord) -> None:
    """Raise TerminalError unless a record says that it comes from a DynamoDB stream."""
    arn: object = record.get("eventSourceARN")
    source: object = record.get("eventSource", "aws:dynamodb")
    if isinstance(arn, str) and ":dynamodb:" in arn and source == "aws:dynamodb":
        return
    came = shape(record)
    if came == "one bare stream record":
        came = "a stream record whose eventSourceARN or eventSource is not that of a DynamoDB stream"
    raise _no_batch(f"a record that is {came}")


def shape(value: object) -> str:
    """Name a value by its keys, never by their contents."""
    if not isinstance(value, dict):
        return _kind(value)
    keys = cast("dict[str, Any]", value).keys()
    if not keys:
        return "an empty object"
    return next((name for members, name in _SHAPES if members <= keys), "an object of an unknown form")


def _kind(value: object) -> str:
    return "null" if value is None else _KINDS.get(type(value), "something else")


def _no_batch(came: str) -> TerminalError:
    return TerminalError(f"reading an event: expected a batch of DynamoDB stream records, and got {came}", hint=_HINT)
