"""Reads a table's stream as a second reader beside Lambda: shards, their lineage, pages of records.

Invariant: a page's records are in the order of the shard, and `following` continues right after them. AWS advises at
most two readers a shard and allows 5 reads a second, of which Lambda's poller takes 4, so this reader must read slowly.

An empty page does not mean that the shard's end was reached: "it might take multiple calls to get to a portion of the
shard that contains stream records" (API reference, GetRecords), and nothing else in the answer says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from pipeline.core.errors import TerminalError
from pipeline.dynamodb.clock import SourceClock
from pipeline.dynamodb.errors import error_code, translate, translating
from pipeline.dynamodb.wire import to_wire

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient
    from types_boto3_dynamodbstreams.client import DynamoDBStreamsClient
    from types_boto3_dynamodbstreams.type_defs import RecordTypeDef

    from pipeline.core.model.attributes import Item

_LOST_PLACE = {"ExpiredIteratorException", "TrimmedDataAccessException"}


@dataclass(frozen=True, slots=True)
class TableStream:
    """The latest stream of a table. One that was disabled stays readable for 24 hours."""

    arn: str
    label: str
    enabled: bool
    view_type: str | None
    table_id: str | None = None
    """The table's id; a later table of the same name has a different one."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard, its parent, and whether it accepts no more records."""

    shard_id: str
    parent_id: str | None
    closed: bool
    ending: str | None = None
    """Sequence number of its last record, if it is closed."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What the probe needs from a record: which item changed, and the change's position."""

    keys: Item
    sequence_number: str
    created_at: float
    """ApproximateCreationDateTime, epoch seconds."""


@dataclass(frozen=True, slots=True)
class Page:
    """`following` is None if the shard is closed and this was its last page."""

    records: list[KeyRecord]
    following: str | None


@dataclass(frozen=True, slots=True)
class Opened:
    """Where to read a shard from. `iterator` is None if the shard is gone."""

    iterator: str | None
    trimmed: bool = False
    """The stream no longer holds the place, and perhaps not all records after it."""


class LostPlaceError(Exception):
    """The iterator is older than 15 minutes, or its records were trimmed: open the shard again."""


def latest_stream(client: DynamoDBClient, table_name: str, clock: SourceClock | None = None) -> TableStream:
    """Return the table's latest stream; `clock` learns the time. Raises TerminalError if it never had one."""
    with translating(f"describing the table {table_name}"):
        answer, _ = (clock or SourceClock()).ask(client.describe_table, TableName=table_name)
    table: Any = answer["Table"]
    if not table.get("LatestStreamArn"):
        raise TerminalError(
            f"looking for the stream of {table_name}: it has none",
            hint=f"enable it: `aws dynamodb update-table --table-name {table_name}"
            " --stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES`",
        )
    stream = table.get("StreamSpecification", {})
    return TableStream(
        arn=table["LatestStreamArn"],
        label=table["LatestStreamLabel"],
        enabled=stream.get("StreamEnabled", False),
        view_type=stream.get("StreamViewType"),
        table_id=table.get("TableId"),
    )


class StreamReader:
    """Reads one stream, and counts its calls. Threads may share it.

    `pages`, if given, is the client that reads the shards; the caller paces and retries its reads.
    """

    def __init__(
        self, client: DynamoDBStreamsClient, stream_arn: str, pages: DynamoDBStreamsClient | None = None
    ) -> None:
        self.calls = 0
        self._client, self._pages = client, pages or client
        self._arn = stream_arn
        self._lock = Lock()

    def shards(self) -> list[Shard]:
        """Return all shards, 100 in a call. Shards that ended stay listed for about 24 hours."""
        found: list[Shard] = []
        more: dict[str, str] = {}
        while True:
            self._count()
            with translating(f"describing the stream {self._arn}"):
                answer = self._client.describe_stream(StreamArn=self._arn, **more)  # type: ignore[arg-type]  # one optional name
            description: Any = answer["StreamDescription"]
            for shard in description.get("Shards", []):
                ending = shard.get("SequenceNumberRange", {}).get("EndingSequenceNumber")
                found.append(Shard(shard["ShardId"], shard.get("ParentShardId"), ending is not None, ending))
            if not description.get("LastEvaluatedShardId"):
                return found
            more = {"ExclusiveStartShardId": description["LastEvaluatedShardId"]}

    def open(self, shard_id: str, *, after: str | None = None, latest: bool = False) -> Opened:
        """Open a shard after `after`, at its end with `latest`, or otherwise at its oldest record.

        If `after` was trimmed, it opens the shard at its oldest record.
        """
        request: dict[str, str] = {"ShardIteratorType": "LATEST" if latest else "TRIM_HORIZON"}
        if after is not None:
            request = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": after}
        self._count()
        try:
            answer = self._pages.get_shard_iterator(StreamArn=self._arn, ShardId=shard_id, **request)  # type: ignore[arg-type]  # names are right
        except ClientError as error:
            if error_code(error) == "TrimmedDataAccessException" and after is not None:
                return Opened(self.open(shard_id).iterator, trimmed=True)
            if error_code(error) in {"ResourceNotFoundException", "TrimmedDataAccessException"}:
                return Opened(None, trimmed=after is not None)
            raise translate(error, f"opening the shard {shard_id}") from None
        except BotoCoreError as error:
            raise translate(error, f"opening the shard {shard_id}") from None
        return Opened(answer.get("ShardIterator"))

    def page(self, iterator: str) -> Page:
        """Read a page, of up to 1,000 records or 1 MB. Raises LostPlaceError, TransientError, TerminalError."""
        self._count()
        try:
            answer = self._pages.get_records(ShardIterator=iterator)
        except ClientError as error:
            if error_code(error) in _LOST_PLACE:
                raise LostPlaceError from None
            raise translate(error, "reading the stream") from None
        except BotoCoreError as error:
            raise translate(error, "reading the stream") from None
        return Page([_key_record(record) for record in answer.get("Records", [])], answer.get("NextShardIterator"))

    def _count(self) -> None:
        with self._lock:
            self.calls += 1


def _key_record(record: RecordTypeDef) -> KeyRecord:
    change: Any = record.get("dynamodb", {})
    return KeyRecord(
        to_wire(change["Keys"]), change["SequenceNumber"], change["ApproximateCreationDateTime"].timestamp()
    )
