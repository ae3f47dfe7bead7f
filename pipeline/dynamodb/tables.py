"""Describes a source table as it is now, and checks whether it can be replicated.

Invariant: every fault of a table is reported before anything is copied from it, with the command that repairs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.core.past.lost_history import change_view_type
from pipeline.dynamodb.clock import SourceClock
from pipeline.dynamodb.errors import translating

if TYPE_CHECKING:
    from datetime import datetime

    from types_boto3_dynamodb.client import DynamoDBClient

    from pipeline.core.model.mapping import TableMapping

_VIEWS_WITH_NEW_IMAGES = {"NEW_IMAGE", "NEW_AND_OLD_IMAGES"}


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A DynamoDB table. Counts and sizes are DynamoDB's own, up to six hours old."""

    name: str
    arn: str
    table_id: str | None
    key: dict[str, str]
    """Key attributes and their types, partition key first: `{"Id": "N"}`, as in a mapping."""
    stream_enabled: bool
    stream_arn: str | None
    """The latest stream; one that was disabled stays readable for 24 hours."""
    stream_label: str | None
    stream_view_type: str | None
    item_count: int
    size_bytes: int
    pitr_enabled: bool
    earliest_restorable: datetime | None
    latest_restorable: datetime | None
    replicated: bool = False
    """Whether it is a global table, with replicas in other Regions."""
    kms_key: str = ""
    """ARN of the customer managed key that encrypts it; empty for a key owned by AWS."""
    key_unusable_since: datetime | None = None
    """Since when DynamoDB cannot use that key."""


def describe(client: DynamoDBClient, table_name: str, clock: SourceClock | None = None) -> SourceTable:
    """Describe a table by name or ARN; `clock` learns the source's time. Raises TerminalError if there is none."""
    with translating(f"describing the table {table_name}"):
        answer, _ = (clock or SourceClock()).ask(client.describe_table, TableName=table_name)
        table: Any = answer["Table"]  # the stubs declare every member optional
        backups = client.describe_continuous_backups(TableName=table_name)["ContinuousBackupsDescription"]
    recovery = backups.get("PointInTimeRecoveryDescription", {})
    stream, encryption = table.get("StreamSpecification", {}), table.get("SSEDescription", {})
    types = {attribute["AttributeName"]: attribute["AttributeType"] for attribute in table["AttributeDefinitions"]}
    schema = sorted(table["KeySchema"], key=lambda part: part["KeyType"] != "HASH")
    return SourceTable(
        name=table["TableName"],
        arn=table["TableArn"],
        table_id=table.get("TableId"),
        key={part["AttributeName"]: types[part["AttributeName"]] for part in schema},
        stream_enabled=stream.get("StreamEnabled", False),
        stream_arn=table.get("LatestStreamArn"),
        stream_label=table.get("LatestStreamLabel"),
        stream_view_type=stream.get("StreamViewType"),
        item_count=table.get("ItemCount", 0),
        size_bytes=table.get("TableSizeBytes", 0),
        pitr_enabled=recovery.get("PointInTimeRecoveryStatus") == "ENABLED",
        earliest_restorable=recovery.get("EarliestRestorableDateTime"),
        latest_restorable=recovery.get("LatestRestorableDateTime"),
        replicated=bool(table.get("Replicas")),
        kms_key=encryption.get("KMSMasterKeyArn", ""),
        key_unusable_since=encryption.get("InaccessibleEncryptionDateTime"),
    )


def identify(client: DynamoDBClient, table_name: str, clock: SourceClock | None = None) -> tuple[str, str | None]:
    """Return a table's ARN and its id, which a later table of the same name does not share. Raises like `describe`."""
    with translating(f"describing the table {table_name}"):
        answer, _ = (clock or SourceClock()).ask(client.describe_table, TableName=table_name)
    table = answer["Table"]
    return table.get("TableArn", ""), table.get("TableId")


def check_source(table: SourceTable, mapping: TableMapping, *, exported: bool = True) -> list[str]:
    """Return what prevents the table from being replicated under the mapping, each with its remedy; empty if nothing.

    `exported`: whether it will be exported, which needs point-in-time recovery.
    """
    problems: list[str] = []
    if list(table.key.items()) != list(mapping.key.items()):
        problems.append(
            f"the key of {table.name} is {_spell(table.key)}, and the mapping {mapping.name} says"
            f" {_spell(mapping.key)}; write `key: {_spell(table.key)}` under `source` in"
            f" {mapping.path or 'the mapping file'}"
        )
    if not table.stream_enabled:
        problems.append(f"the stream of {table.name} is off; enable it: {_stream_command(table.name)}")
    elif table.stream_view_type not in _VIEWS_WITH_NEW_IMAGES:
        problems.append(
            f"the stream of {table.name} has the view type {table.stream_view_type}, without new images, and a view"
            f" type cannot be changed; {change_view_type(table.name, replicated=table.replicated)}, then load or catch"
            " up over the gap"
        )
    recovery = check_recovery(table) if exported else None
    return [*problems, f"{recovery} (or load by a scan: --scan)"] if recovery else problems


def check_recovery(table: SourceTable) -> str | None:
    """Return what prevents the table from being exported, with its remedy; None if nothing does."""
    if table.pitr_enabled:
        return None
    return (
        f"point-in-time recovery of {table.name} is off, so it cannot be exported; enable it:"
        f" {enable_recovery_command(table.name)}"
    )


def enable_recovery_command(table_name: str) -> str:
    """Return the command that turns point-in-time recovery on."""
    return (
        f"`aws dynamodb update-continuous-backups --table-name {table_name}"
        " --point-in-time-recovery-specification PointInTimeRecoveryEnabled=true`"
    )


def _stream_command(table_name: str) -> str:
    return (
        f"`aws dynamodb update-table --table-name {table_name}"
        " --stream-specification StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES`"
    )


def _spell(key: dict[str, str]) -> str:
    return f"{{{', '.join(f'{name}: {kind}' for name, kind in key.items())}}}"
