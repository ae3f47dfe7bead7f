"""Re-reads a stream's records between two sequence numbers of a shard, in the form that Lambda would deliver.

Invariant: all of the range or nothing. If the stream has trimmed any of it, or the shard is gone, `read_range` raises
TrimmedError and returns no record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from botocore.exceptions import ClientError

from pipeline.core.errors import TerminalError
from pipeline.dynamodb.errors import error_code, translating
from pipeline.dynamodb.wire import to_wire

if TYPE_CHECKING:
    from types_boto3_dynamodbstreams.client import DynamoDBStreamsClient

    from pipeline.core.streams.failed_batches import FailedBatch
    from pipeline.core.streams.stream_records import StreamRecord

_GONE = {"TrimmedDataAccessException", "ResourceNotFoundException"}
_IMAGES = ("Keys", "NewImage", "OldImage")
# A closed shard ends. An open one returns empty pages at its end, and a page may be empty before it.
_MOST_EMPTY_PAGES = 100


class TrimmedError(TerminalError):
    """The stream no longer holds the records."""


def read_range(client: DynamoDBStreamsClient, batch: FailedBatch) -> list[StreamRecord]:
    """Return the batch's records. Raises TrimmedError if they are not all there, TransientError, TerminalError."""
    doing = f"reading {batch.size} records of the stream of {batch.table} again"
    with translating(doing):
        try:
            records = _read(client, batch)
        except ClientError as error:
            if error_code(error) not in _GONE:
                raise
            records = []
    numbers = [int(record["dynamodb"]["SequenceNumber"]) for record in records]
    if not numbers or (numbers[0], numbers[-1]) != (int(batch.first_sequence_number), int(batch.last_sequence_number)):
        raise TrimmedError(f"{doing}: the stream no longer holds them")
    return [event_record(record, batch.stream_arn) for record in records]


def _read(client: DynamoDBStreamsClient, batch: FailedBatch) -> list[dict[str, Any]]:
    """Read from the first record until the last one or the end of the shard."""
    iterator: str | None = client.get_shard_iterator(
        StreamArn=batch.stream_arn,
        ShardId=batch.shard_id,
        ShardIteratorType="AT_SEQUENCE_NUMBER",
        SequenceNumber=batch.first_sequence_number,
    ).get("ShardIterator")
    records: list[dict[str, Any]] = []
    last, empty = int(batch.last_sequence_number), 0
    while iterator is not None and empty < _MOST_EMPTY_PAGES:
        answer: Any = client.get_records(ShardIterator=iterator)
        page: list[dict[str, Any]] = answer["Records"]
        records += [record for record in page if int(record["dynamodb"]["SequenceNumber"]) <= last]
        if page and int(page[-1]["dynamodb"]["SequenceNumber"]) >= last:
            break
        empty = 0 if page else empty + 1
        iterator = answer.get("NextShardIterator")
    return records


def event_record(record: dict[str, Any], stream_arn: str) -> StreamRecord:
    """Return a GetRecords record in the form of a Lambda event."""
    change = dict(record["dynamodb"])
    created = change.get("ApproximateCreationDateTime")
    if created is not None:
        change["ApproximateCreationDateTime"] = created.timestamp()
    change |= {name: to_wire(change[name]) for name in _IMAGES if name in change}
    event: dict[str, Any] = {
        "eventID": record.get("eventID", ""),
        "eventName": record["eventName"],
        "eventSourceARN": stream_arn,
        "dynamodb": change,
    }
    identity = record.get("userIdentity")
    if identity:
        event["userIdentity"] = {"type": identity.get("Type", ""), "principalId": identity.get("PrincipalId", "")}
    return cast("StreamRecord", event)
