"""The stream that an event source mapping reads, as the poller needs it.

Invariant: records are as GetRecords has them on the wire; nothing is converted.
"""

from dataclasses import dataclass
from typing import Protocol

from pipeline.local.raw_aws import AwsError, Json, RawAws


@dataclass(frozen=True)
class Shard:
    """A shard and the one it came from."""

    shard_id: str
    parent_id: str | None


class StreamSource(Protocol):
    """A stream as the poller needs it; records are as GetRecords has them on the wire."""

    @property
    def stream_arn(self) -> str:
        """The stream."""
        ...

    def shards(self) -> list[Shard]:
        """All shards there are now."""
        ...

    def iterator(self, shard_id: str, start: str, after: str | None = None) -> str:
        """A position: after a sequence number, or else `start`."""
        ...

    def records(self, iterator: str) -> tuple[list[Json], str | None]:
        """A page and where it continues, None at the end of a closed shard. Raises ExpiredError."""
        ...


class ExpiredError(Exception):
    """The iterator is older than its 15 minutes."""


@dataclass(frozen=True)
class DynamoDbStream:
    """The stream of a table, read by its API."""

    aws: RawAws
    stream_arn: str

    def shards(self) -> list[Shard]:
        """All shards, page by page."""
        found: list[Shard] = []
        request: Json = {"StreamArn": self.stream_arn}
        while True:
            description = self.aws.streams("DescribeStream", request)["StreamDescription"]
            found += [Shard(shard["ShardId"], shard.get("ParentShardId")) for shard in description["Shards"]]
            if "LastEvaluatedShardId" not in description:
                return found
            request["ExclusiveStartShardId"] = description["LastEvaluatedShardId"]

    def iterator(self, shard_id: str, start: str, after: str | None = None) -> str:
        """See StreamSource. If the position was trimmed, the oldest record there is."""
        request: Json = {"StreamArn": self.stream_arn, "ShardId": shard_id, "ShardIteratorType": start}
        if after is not None:
            request |= {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "SequenceNumber": after}
        try:
            return self.aws.streams("GetShardIterator", request)["ShardIterator"]
        except AwsError as error:
            if error.code != "TrimmedDataAccessException":
                raise
            return self.iterator(shard_id, "TRIM_HORIZON")

    def records(self, iterator: str) -> tuple[list[Json], str | None]:
        """One page of at most 1,000 records."""
        try:
            answer = self.aws.streams("GetRecords", {"ShardIterator": iterator})
        except AwsError as error:
            if error.code in ("ExpiredIteratorException", "TrimmedDataAccessException"):
                raise ExpiredError(error.message) from error
            raise
        return answer["Records"], answer.get("NextShardIterator")
