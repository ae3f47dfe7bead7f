"""A table's changes as its Kinesis destination has them, including those made while its stream is disabled.

Point-in-time recovery does not depend on a table's stream, but the local stack reconstructs the past from the stream's
records. For a table with an active Kinesis destination (`EnableKinesisStreamingDestination`) it uses that instead.

Invariant: every change since the destination was enabled, in order: one shard, read to its end, as long as the Kinesis
stream keeps its records.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from operator import itemgetter

from pipeline.local.raw_aws import AwsError, Json, RawAws

_PAGE = 2_000


def change_log_arn(aws: RawAws, table_name: str) -> str | None:
    """The Kinesis stream that a table's changes go to, if there is one."""
    answer = aws.dynamodb("DescribeKinesisStreamingDestination", {"TableName": table_name})
    active = [one for one in answer["KinesisDataStreamDestinations"] if one["DestinationStatus"] == "ACTIVE"]
    return active[0]["StreamArn"] if active else None


@dataclass
class ChangeLogTail:
    """Reads a Kinesis stream from its oldest record, and continues where it stopped."""

    aws: RawAws
    stream_arn: str
    _last: str | None = None
    _shard_id: str = field(default="", init=False)

    def open(self) -> None:
        """Find the shard."""
        shards = self.aws.kinesis("ListShards", {"StreamARN": self.stream_arn})["Shards"]
        if len(shards) != 1:
            raise AwsError("ValidationException", "The local stack tells the past from a Kinesis stream of one shard")
        self._shard_id = shards[0]["ShardId"]

    def read(self) -> list[Json]:
        """Every change since the last call, as stream records."""
        position: Json = {"ShardIteratorType": "TRIM_HORIZON"}
        if self._last is not None:
            position = {"ShardIteratorType": "AFTER_SEQUENCE_NUMBER", "StartingSequenceNumber": self._last}
        request = {"StreamARN": self.stream_arn, "ShardId": self._shard_id, **position}
        iterator = self.aws.kinesis("GetShardIterator", request)["ShardIterator"]
        changes: list[Json] = []
        while True:
            page = self.aws.kinesis("GetRecords", {"ShardIterator": iterator, "Limit": _PAGE})
            records, iterator = page["Records"], page["NextShardIterator"]
            changes += map(json.loads, map(base64.b64decode, map(itemgetter("Data"), records)))
            if records:
                self._last = records[-1]["SequenceNumber"]
            if len(records) < _PAGE:  # the end: while there are writes, an empty page may never come
                return changes
