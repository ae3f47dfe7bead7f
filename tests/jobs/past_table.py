"""A DynamoDB table whose whole past is invented, so that hours and days pass in a test of seconds.

It replaces the DynamoDB calls that a catch-up makes. The test chooses the time of every write. The export fixture
writes the exports, in the documented form, into a folder that stands for S3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from botocore.exceptions import ClientError
from types_boto3_dynamodb.client import DynamoDBClient

from pipeline.dynamodb.exports.objects import FolderObjects, ObjectBody, ObjectStore
from pipeline.jobs.services import Services
from pipeline.settings import Settings
from tests.dynamodb.export_fixture import ExportFactory, Layout, WindowChange
from tests.jobs.conftest import STREAM, named, record

TABLE_ARN = STREAM.partition("/stream/")[0]
BUCKET = "test-bucket"


@dataclass(frozen=True)
class Write:
    """One write: `name` None is a delete."""

    at: datetime
    number: int
    name: str | None
    sequence: int

    @property
    def record(self) -> dict[str, Any]:
        """The record of the stream, its time rounded down to the second."""
        at = int(self.at.timestamp())
        if self.name is None:
            return record(self.number, self.sequence, "REMOVE", at=at)
        return named(self.number, self.sequence, self.name, at=at)


def item(number: int, name: str) -> dict[str, Any]:
    return {"Id": {"N": str(number)}, "empName": {"S": name}}


@dataclass
class PastTable:
    """The history, and DynamoDB's answers about it. Write in the order of time."""

    folder: Path
    files: int = 2
    micros_form: Any = "text"
    writes: list[Write] = field(default_factory=list[Write])
    earliest: datetime = field(default_factory=lambda: datetime.now(UTC) - timedelta(days=35))
    requested: list[tuple[datetime, datetime]] = field(default_factory=list[tuple[datetime, datetime]])
    keys_read: int = 0
    _exports: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    _tokens: dict[str, str] = field(default_factory=dict[str, str])

    def put(self, at: datetime, number: int, name: str) -> Write:
        return self._write(at, number, name)

    def delete(self, at: datetime, number: int) -> Write:
        return self._write(at, number, None)

    def _write(self, at: datetime, number: int, name: str | None) -> Write:
        made = Write(at, number, name, len(self.writes) + 1)
        self.writes.append(made)
        return made

    def state(self, at: datetime | None = None) -> dict[int, str]:
        """The items, now or just before `at`."""
        items: dict[int, str] = {}
        for write in self.writes:
            if at is not None and write.at >= at:
                continue
            if write.name is None:
                items.pop(write.number, None)
            else:
                items[write.number] = write.name
        return items

    @property
    def factory(self) -> ExportFactory:
        return ExportFactory.in_folder(self.folder / BUCKET)

    def full(self, at: datetime) -> str:
        """Write a full export; returns its location, in the folder itself."""
        items = [item(number, name) for number, name in self.state(at).items()]
        return self.factory.full(items, Layout(files=self.files), export_time=at).location

    def incremental(self, start: datetime, end: datetime, view_type: str = "NEW_IMAGE") -> Any:  # noqa: ANN401 - a fixture's value
        before, after = self.state(start), self.state(end)
        last = {write.number: write for write in self.writes if start <= write.at < end}
        changes = [
            WindowChange(
                {"Id": {"N": str(number)}},
                item(number, after[number]) if number in after else None,
                item(number, before[number]) if number in before else None,
                int(write.at.timestamp() * 1_000_000),
            )
            for number, write in last.items()
            if number in before or number in after
        ]
        layout = Layout(files=self.files, micros_form=self.micros_form)
        return self.factory.incremental(changes, layout, window=(start, end), view_type=cast("Any", view_type))

    # The following methods have the client's own names.

    def describe_table(self, *, TableName: str) -> dict[str, Any]:  # noqa: N803
        table = {
            "TableName": TableName,
            "TableArn": TABLE_ARN,
            "AttributeDefinitions": [{"AttributeName": "Id", "AttributeType": "N"}],
            "KeySchema": [{"AttributeName": "Id", "KeyType": "HASH"}],
        }
        return {"Table": table}

    def describe_continuous_backups(self, *, TableName: str) -> dict[str, Any]:  # noqa: ARG002, N803
        recovery = {
            "PointInTimeRecoveryStatus": "ENABLED",
            "EarliestRestorableDateTime": self.earliest,
            "LatestRestorableDateTime": datetime.now(UTC),
        }
        return {"ContinuousBackupsDescription": {"PointInTimeRecoveryDescription": recovery}}

    def export_table_to_point_in_time(self, **request: Any) -> dict[str, Any]:  # noqa: ANN401 - the SDK's own
        token = request["ClientToken"]
        if token not in self._tokens:
            asked = request["IncrementalExportSpecification"]
            start, end = asked["ExportFromTime"], asked["ExportToTime"]
            if not timedelta(minutes=15) <= end - start <= timedelta(hours=24) or start < self.earliest:
                error = {"Error": {"Code": "InvalidExportTimeException", "Message": f"{start} to {end}"}}
                raise ClientError(cast("Any", error), "ExportTableToPointInTime")
            self.requested.append((start, end))
            written = self.incremental(start, end, asked["ExportViewType"])
            self._tokens[token] = written.export_arn
            self._exports[written.export_arn] = {
                "ExportArn": written.export_arn,
                "ExportStatus": "COMPLETED",
                "S3Bucket": BUCKET,
                "ExportManifest": written.summary_key,
            }
        return {"ExportDescription": self._exports[self._tokens[token]]}

    def describe_export(self, *, ExportArn: str) -> dict[str, Any]:  # noqa: N803
        if ExportArn not in self._exports:
            error = {"Error": {"Code": "ExportNotFoundException", "Message": "as after 90 days"}}
            raise ClientError(cast("Any", error), "DescribeExport")
        return {"ExportDescription": self._exports[ExportArn]}

    def fail_exports(self) -> None:
        """Turn every requested export into one that failed."""
        for export in self._exports.values():
            export |= {"ExportStatus": "FAILED", "FailureCode": "S3AccessDenied", "FailureMessage": "no PutObject"}

    def batch_get_item(self, *, RequestItems: dict[str, Any]) -> dict[str, Any]:  # noqa: N803
        ((table, request),) = RequestItems.items()
        state = self.state()
        numbers = [int(key["Id"]["N"]) for key in request["Keys"]]
        self.keys_read += len(numbers)
        return {"Responses": {table: [item(number, state[number]) for number in numbers if number in state]}}


class PastServices(Services):
    """Services with an invented DynamoDB and S3; Aurora is real."""

    def __init__(self, database: str, past: PastTable) -> None:
        super().__init__(Settings.from_environment({"DATABASE_URL": database, "DYNAURORA_EXPORT_BUCKET": BUCKET}))
        self.past = past

    @property
    def dynamodb(self) -> DynamoDBClient:  # pyright: ignore[reportIncompatibleVariableOverride]  # a stand-in
        """The invented past."""
        return cast("DynamoDBClient", self.past)

    def store(self, location: str) -> ObjectStore:
        """The folder that stands for S3."""
        return (
            super().store(location) if location.startswith("file:") else cast("ObjectStore", _Folder(self.past.folder))
        )


@dataclass(frozen=True)
class _Folder:
    root: Path

    def read(self, bucket: str, key: str) -> bytes:
        return FolderObjects().read("", str(self.root / bucket / key))

    def open(self, bucket: str, key: str) -> ObjectBody:
        return FolderObjects().open("", str(self.root / bucket / key))


def records(writes: Sequence[Write]) -> list[dict[str, Any]]:
    return [write.record for write in writes]
