"""A stream with as many shards as a test wants, behind the SDK's calls: splits, trimming, throttling, empty pages.

Invariant: its answers have the forms and the errors of the SDK's own client. Iterators are `shard:offset`, counted over
all records that the shard ever had, so that a trimmed one is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import RLock
from typing import Any, cast

from botocore.exceptions import ClientError

from pipeline.jobs.services import Services
from pipeline.settings import Settings

LABEL = "2026-05-14T10:00:00.000"


def aws_error(code: str, operation: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "as scripted"}}, operation)


@dataclass
class ScriptedShard:
    parent: str | None = None
    closed: bool = False
    trimmed: int = 0
    """How many of its records have been trimmed."""
    records: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    throttled: bool = False
    empty_pages: int = 0
    """Empty pages that come before its records."""


class ScriptedStream:
    """The calls of DynamoDB Streams that the probe makes, and DescribeTable."""

    def __init__(self, *, label: str = LABEL, page_records: int = 1000, page_shards: int = 100) -> None:
        self.shards: dict[str, ScriptedShard] = {}
        self.table, self.label, self.enabled, self.view_type = "Employees", label, True, "NEW_AND_OLD_IMAGES"
        self.restorable_since: datetime | None = datetime(2026, 4, 20, tzinfo=UTC)
        self.more: dict[str, Any] = {}
        """Further members of DescribeTable's answer."""
        self.calls: list[str] = []
        self.on_call: Callable[[str], None] = lambda _: None
        """Called for each call, one at a time, with the call: moves a scripted clock by what the call takes."""
        self.may_read: Callable[[str], bool] = lambda _: True
        """Whether a read of this shard is within its limit now."""
        self.date: Callable[[], str | None] = lambda: None
        """The Date header of DescribeTable's answer."""
        self.expired = 0
        """Iterators with a lower generation than this have expired."""
        self._page_records, self._page_shards = page_records, page_shards
        self._sequence = 10**20
        self._lock = RLock()

    @property
    def arn(self) -> str:
        return f"arn:aws:dynamodb:eu-central-1:111122223333:table/{self.table}/stream/{self.label}"

    def split(self, name: str, *children: str) -> None:
        """Close a shard and begin its children."""
        self.shards[name].closed = True
        for child in children:
            self.shards[child] = ScriptedShard(parent=name)

    def write(self, shard: str, number: int, at: float, event: str = "MODIFY", **image: Any) -> dict[str, Any]:  # noqa: ANN401 - attribute values
        """Put a record into a shard, and return it in Lambda's form."""
        with self._lock:
            self._sequence += 1
            sequence = str(self._sequence)
        keys = {"Id": {"N": str(number)}}
        change: dict[str, Any] = {"Keys": keys, "SequenceNumber": sequence}
        self.shards[shard].records.append(
            {
                "eventName": event,
                "dynamodb": {**change, "ApproximateCreationDateTime": datetime.fromtimestamp(at, UTC)},
            }
        )
        change["ApproximateCreationDateTime"] = at
        if event != "REMOVE":
            change["NewImage"] = {**keys, **image}
        return {"eventName": event, "eventSourceARN": self.arn, "dynamodb": change}

    def describe_table(self, TableName: str) -> dict[str, Any]:  # noqa: N803 - the SDK's name
        self._called("DescribeTable")
        table: dict[str, Any] = {
            "TableName": TableName,
            "TableArn": f"arn:aws:dynamodb:eu-central-1:111122223333:table/{TableName}",
            "KeySchema": [{"AttributeName": "Id", "KeyType": "HASH"}],
            "AttributeDefinitions": [{"AttributeName": "Id", "AttributeType": "N"}],
        }
        if self.label:
            table |= {"LatestStreamArn": self.arn, "LatestStreamLabel": self.label}
            table["StreamSpecification"] = {"StreamEnabled": self.enabled, "StreamViewType": self.view_type}
        date = self.date()
        headers = {} if date is None else {"date": date}
        return {"Table": table | self.more, "ResponseMetadata": {"HTTPHeaders": headers}}

    def describe_continuous_backups(self, TableName: str) -> dict[str, Any]:  # noqa: N803 - the SDK's name
        self._called("DescribeContinuousBackups")
        assert TableName == self.table
        recovery: dict[str, Any] = {"PointInTimeRecoveryStatus": "ENABLED" if self.restorable_since else "DISABLED"}
        if self.restorable_since:
            recovery["EarliestRestorableDateTime"] = self.restorable_since
        return {"ContinuousBackupsDescription": {"PointInTimeRecoveryDescription": recovery}}

    def describe_export(self, ExportArn: str) -> dict[str, Any]:  # noqa: N803 - the SDK's name
        self._called("DescribeExport")
        assert ExportArn
        raise aws_error("ExportNotFoundException", "DescribeExport")

    def describe_stream(self, StreamArn: str, ExclusiveStartShardId: str | None = None) -> dict[str, Any]:  # noqa: N803 - the SDK's names
        self._called("DescribeStream")
        assert StreamArn == self.arn
        names = list(self.shards)
        start = names.index(ExclusiveStartShardId) + 1 if ExclusiveStartShardId else 0
        page = names[start : start + self._page_shards]
        description: dict[str, Any] = {"Shards": [self._description(name) for name in page]}
        if start + len(page) < len(names):
            description["LastEvaluatedShardId"] = page[-1]
        return {"StreamDescription": description}

    def _description(self, name: str) -> dict[str, Any]:
        shard = self.shards[name]
        numbers = {"StartingSequenceNumber": str(10**20)}
        if shard.closed:
            numbers["EndingSequenceNumber"] = str(self._sequence)
        parent = {"ParentShardId": shard.parent} if shard.parent else {}
        return {"ShardId": name, "SequenceNumberRange": numbers, **parent}

    def get_shard_iterator(
        self,
        StreamArn: str,  # noqa: N803 - the SDK's names
        ShardId: str,  # noqa: N803
        ShardIteratorType: str,  # noqa: N803
        SequenceNumber: str | None = None,  # noqa: N803
    ) -> dict[str, str]:
        self._called(f"GetShardIterator {ShardIteratorType}")
        assert StreamArn == self.arn
        shard = self.shards.get(ShardId)
        if shard is None:
            raise aws_error("ResourceNotFoundException", "GetShardIterator")
        offset = {"TRIM_HORIZON": shard.trimmed, "LATEST": len(shard.records)}.get(ShardIteratorType)
        if offset is None:
            numbers = [record["dynamodb"]["SequenceNumber"] for record in shard.records]
            offset = numbers.index(cast("str", SequenceNumber)) + 1
            if offset < shard.trimmed:
                raise aws_error("TrimmedDataAccessException", "GetShardIterator")
        return {"ShardIterator": f"{ShardId}:{offset}:{self.expired}"}

    def get_records(self, ShardIterator: str) -> dict[str, Any]:  # noqa: N803 - the SDK's name
        self._called("GetRecords")
        name, offset, generation = ShardIterator.split(":")
        shard, start = self.shards[name], int(offset)
        if int(generation) < self.expired:
            raise aws_error("ExpiredIteratorException", "GetRecords")
        with self._lock:
            throttled = shard.throttled or not self.may_read(name)
        if throttled:
            raise aws_error("LimitExceededException", "GetRecords")
        if start < shard.trimmed:
            raise aws_error("TrimmedDataAccessException", "GetRecords")
        if shard.empty_pages:
            shard.empty_pages -= 1
            return {"Records": [], "NextShardIterator": ShardIterator}
        page = shard.records[start : start + self._page_records]
        end = start + len(page)
        if shard.closed and end == len(shard.records):
            return {"Records": page}
        return {"Records": page, "NextShardIterator": f"{name}:{end}:{self.expired}"}

    def _called(self, what: str) -> None:
        with self._lock:
            self.calls.append(what)
            self.on_call(what)


@dataclass
class ScriptedLambda:
    """ListEventSourceMappings, as the paginator gives it."""

    mappings: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    denied: bool = False

    def add(self, stream_arn: str, uuid: str = "esm-1", state: str = "Enabled", start: str = "TRIM_HORIZON") -> None:
        """Map a stream to a function, replacing earlier event source mappings."""
        destination = {"OnFailure": {"Destination": "arn:aws:s3:::given-up"}}
        function = "arn:aws:lambda:eu-central-1:111122223333:function:r"
        self.mappings = [
            {
                "UUID": uuid,
                "State": state,
                "EventSourceArn": stream_arn,
                "FunctionArn": function,
                "StartingPosition": start,
                "DestinationConfig": destination,
                "FunctionResponseTypes": ["ReportBatchItemFailures"],
                "BisectBatchOnFunctionError": True,
            }
        ]

    def get_paginator(self, operation: str) -> ScriptedLambda:
        assert operation == "list_event_source_mappings"
        return self

    def paginate(self, EventSourceArn: str) -> list[dict[str, Any]]:  # noqa: N803 - the SDK's name
        if self.denied:
            raise aws_error("AccessDeniedException", "ListEventSourceMappings")
        found = [mapping for mapping in self.mappings if mapping["EventSourceArn"] == EventSourceArn]
        return [{"EventSourceMappings": found[:1]}, {"EventSourceMappings": found[1:]}]


@dataclass
class ScriptedBucket:
    """ListObjectsV2, two objects a page."""

    objects: dict[str, datetime] = field(default_factory=dict[str, datetime])
    denied: bool = False

    def list_objects_v2(self, Bucket: str, Prefix: str, ContinuationToken: str = "") -> dict[str, Any]:  # noqa: N803
        if self.denied:
            raise aws_error("AccessDenied", "ListObjectsV2")
        assert Bucket == "given-up"
        keys = sorted(key for key in self.objects if key.startswith(Prefix) and key > ContinuationToken)
        page = {"Contents": [{"Key": key, "LastModified": self.objects[key]} for key in keys[:2]]}
        return page | ({"NextContinuationToken": keys[1]} if len(keys) > 2 else {})


class ScriptedServices(Services):
    """Services whose AWS is scripted and whose database is real."""

    def __init__(self, settings: Settings, stream: ScriptedStream) -> None:
        super().__init__(settings)
        self.stream, self.lambdas, self.bucket = stream, ScriptedLambda(), ScriptedBucket()
        self.__dict__ |= {
            "dynamodb": stream,
            "streams": stream,
            "shard_pages": stream,
            "functions": self.lambdas,
            "s3": self.bucket,
        }
