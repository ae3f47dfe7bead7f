"""Exports that are not whole, of another table or from the future: every verb refuses them and writes nothing."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.aurora.sessions.connection import Connection
from pipeline.cli import main
from pipeline.core.errors import ConfigurationError, TerminalError
from pipeline.core.model.attributes import Item
from pipeline.core.model.mapping import TableMapping
from pipeline.dynamodb.exports.manifest import read_manifest
from pipeline.dynamodb.exports.objects import FolderObjects
from pipeline.jobs.catch_up.catch_up import apply_export
from pipeline.jobs.load.load import load
from pipeline.jobs.reconcile.reconcile import reconcile
from pipeline.jobs.services import Services
from pipeline.jobs.snapshots.snapshot import take_snapshot
from pipeline.settings import Settings
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, Layout, WindowChange, WrittenExport, md5_text
from tests.dynamodb.scripted_stream import ScriptedServices, ScriptedStream, aws_error
from tests.jobs.conftest import view

ITEMS: list[Item] = [{"Id": {"N": str(n)}, "empName": {"S": f"name {n}"}} for n in range(4)]
CHANGES = [WindowChange(keys={"Id": {"N": "1"}}), WindowChange(keys={"Id": {"N": "2"}}, new=ITEMS[2])]
TABLE_ID = "11111111-2222-3333-4444-555555555555"
ARN = "arn:aws:dynamodb:eu-central-1:111122223333:table/Employees"


class DescribedStream(ScriptedStream):
    """Answers DescribeTable and DescribeExport as a test wants."""

    table_id: str | None = TABLE_ID
    denied = False
    export: dict[str, Any] | None = None

    def describe_table(self, TableName: str) -> dict[str, Any]:  # noqa: N803 - the SDK's name
        if self.denied:
            raise aws_error("AccessDeniedException", "DescribeTable")
        answer = super().describe_table(TableName)
        answer["Table"]["TableId"] = self.table_id
        return answer

    def describe_export(self, ExportArn: str) -> dict[str, Any]:  # noqa: N803 - the SDK's name
        if self.export is None:
            return super().describe_export(ExportArn)
        return {"ExportDescription": {"ExportArn": ExportArn, "ExportStatus": "COMPLETED", **self.export}}


@pytest.fixture
def aws() -> DescribedStream:
    return DescribedStream()


@pytest.fixture
def described(services: Services, aws: DescribedStream) -> ScriptedServices:
    """The migrated database, with a DynamoDB that answers."""
    return ScriptedServices(services.settings, aws)


def verbs(services: Services, mapping: TableMapping, full: str, incremental: str, **options: Any) -> list[Any]:  # noqa: ANN401
    """How `load`, `reconcile` and `catch-up` use existing exports."""

    def loading() -> None:
        load(services, mapping, take_snapshot(services, mapping, manifest=full, **options).location, **options)

    def reconciling() -> None:
        reconcile(services, mapping, take_snapshot(services, mapping, manifest=full, **options).location, **options)

    return [loading, reconciling, lambda: apply_export(services, mapping, location=incremental, **options)]


def untouched(connection: Connection) -> bool:
    counts = "SELECT (SELECT count(*) FROM replication.exports) + (SELECT count(*) FROM replication.reconciliations)"
    (count,) = cast("tuple[int]", connection.execute(counts.encode()).fetchone())
    return count == 0 and not view(connection)


FILTERS: list[dict[str, Any]] = [
    {"filterSpecification": {"FilterExpression": "Id < :x", "ExpressionAttributeValues": {":x": {"N": "secret"}}}},
    {"FilterSpecification": {"ProjectionExpression": "Id"}},
    {"projectionExpression": "Id"},
    {"key_condition_expression": "Id = :x"},
    {"exportSpecification": {"filterExpression": "x"}},
    {"isFiltered": True},
]


@pytest.mark.parametrize("member", FILTERS, ids=lambda member: next(iter(member)))
def test_a_filtered_or_projected_export_is_refused_by_every_verb(
    described: ScriptedServices,
    employees: TableMapping,
    exports: ExportFactory,
    connection: Connection,
    member: dict[str, Any],
) -> None:
    full = exports.full(ITEMS, Layout(summary=member)).location
    incremental = exports.incremental(CHANGES, Layout(summary=member)).location
    for verb in verbs(described, employees, full, incremental):
        with pytest.raises(TerminalError, match=f"not of the whole table: .*{next(iter(member))}") as refused:
            verb()
        assert "secret" not in str(refused.value)
    assert untouched(connection)


@pytest.mark.parametrize("member", [{"filterSpecification": None}, {"FilterSpecification": {"FilterExpression": None}}])
def test_an_empty_filter_is_no_filter(exports: ExportFactory, member: dict[str, Any]) -> None:
    kept = {name: value for name, value in member.items() if value is not None}
    export = exports.full(ITEMS, Layout(summary=kept))
    assert read_manifest(FolderObjects(), export.location, expected_table=None).item_count == 4


def test_an_export_that_only_dynamodb_says_is_filtered_is_refused_by_every_verb(
    described: ScriptedServices,
    aws: DescribedStream,
    employees: TableMapping,
    exports: ExportFactory,
    connection: Connection,
) -> None:
    aws.export = {"FilterSpecification": {"FilterExpression": "Id < :x"}}
    for verb in verbs(described, employees, exports.full(ITEMS).location, exports.incremental(CHANGES).location):
        with pytest.raises(TerminalError, match="FilterSpecification says that it was filtered or projected"):
            verb()
    for taking in (take_snapshot, apply_export):
        with pytest.raises(TerminalError, match="FilterSpecification says that it was filtered or projected"):
            taking(described, employees, export_arn=f"{ARN}/export/01715685260608-c488b4e1")
    assert untouched(connection)


OTHERS = [
    ({"tableArn": ARN.replace("111122223333", "999999999999")}, "account 999999999999, not 111122223333"),
    ({"tableArn": ARN.replace("eu-central-1", "us-east-1")}, "Region us-east-1, not eu-central-1"),
    ({"tableArn": ARN.replace("arn:aws:", "arn:aws-cn:")}, "partition aws-cn, not aws"),
    ({"tableArn": ARN.replace("Employees", "Restored")}, "table Restored, not Employees"),
    ({"tableId": "99999999-0000-0000-0000-000000000000"}, f"table id 9+-[-0]+, not {TABLE_ID}"),
]


@pytest.mark.parametrize(("summary", "difference"), OTHERS)
def test_an_export_of_another_table_is_refused_by_name_unless_it_is_meant(
    described: ScriptedServices,
    employees: TableMapping,
    exports: ExportFactory,
    connection: Connection,
    summary: dict[str, Any],
    difference: str,
) -> None:
    full = exports.full(ITEMS, Layout(summary=summary)).location
    incremental = exports.incremental(CHANGES, Layout(summary=summary)).location
    for verb in verbs(described, employees, full, incremental):
        with pytest.raises(TerminalError, match=f"is not of the mapped table Employees: {difference}.*--accept-other"):
            verb()
    assert untouched(connection)
    told: list[str] = []
    meant: dict[str, Any] = {"accept_other_table": True}
    load(
        described,
        employees,
        take_snapshot(described, employees, manifest=full, on_notice=told.append, **meant).location,
        **meant,
    )
    assert view(connection).keys() == {0, 1, 2, 3}
    assert any("accepted as asked" in line for line in told)
    for verb in verbs(described, employees, full, incremental, **meant)[1:]:
        verb()


def test_where_dynamodb_may_not_be_asked_that_is_said_and_earlier_loads_are_compared(
    described: ScriptedServices, aws: DescribedStream, employees: TableMapping, exports: ExportFactory
) -> None:
    aws.denied = True
    told: list[str] = []
    first = exports.full(ITEMS).location
    load(described, employees, take_snapshot(described, employees, manifest=first, on_notice=told.append).location)
    assert any("could not ask DynamoDB which table Employees is" in line for line in told)
    other = exports.full(ITEMS, Layout(summary={"tableArn": OTHERS[0][0]["tableArn"]})).location
    with pytest.raises(TerminalError, match="account 999999999999, not 111122223333"):
        take_snapshot(described, employees, manifest=other)


@pytest.mark.parametrize("margin", [timedelta(minutes=5), timedelta(days=3)])
def test_an_export_of_the_future_is_refused_by_every_verb(
    described: ScriptedServices,
    employees: TableMapping,
    exports: ExportFactory,
    connection: Connection,
    margin: timedelta,
) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    full = exports.full(ITEMS, export_time=ahead).location
    incremental = exports.incremental(CHANGES, window=(ahead - timedelta(hours=1), ahead)).location
    for verb in verbs(described, employees, full, incremental):
        with pytest.raises(TerminalError, match="by the database's clock: the snapshot is from the future"):
            verb()
    for call in (
        lambda: load(described, employees, full, margin=margin),
        lambda: reconcile(described, employees, full, margin=margin),
        lambda: apply_export(described, employees, location=incremental, margin=margin),
    ):
        with pytest.raises(TerminalError, match="the snapshot is from the future"):
            call()
    assert untouched(connection)


def test_a_clock_that_is_ahead_by_less_than_the_margin_is_no_future(
    described: ScriptedServices, employees: TableMapping, exports: ExportFactory
) -> None:
    export = exports.full(ITEMS, export_time=datetime.now(UTC) + timedelta(seconds=30))
    assert load(described, employees, export.location).items == 4


def test_members_that_nobody_knows_are_named_and_their_values_are_not(
    described: ScriptedServices, employees: TableMapping, exports: ExportFactory
) -> None:
    told: list[str] = []
    export = exports.full(ITEMS, Layout(summary={"newThing": "secret", "other": 1}))
    take_snapshot(described, employees, manifest=export.location, on_notice=told.append)
    (line,) = [line for line in told if "newThing" in line]
    assert "newThing, other" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({"startTime": "2026-05-14T12:00:00Z"}, "its startTime, .* is not before its endTime"),
        ({"exportTime": "2026-05-14T12:00:00Z"}, "its exportTime, .* is not before its endTime"),
    ],
)
def test_times_that_cannot_be(exports: ExportFactory, summary: dict[str, Any], message: str) -> None:
    export = exports.full(ITEMS, Layout(summary=summary))
    with pytest.raises(TerminalError, match=message):
        read_manifest(FolderObjects(), export.location, expected_table="Employees")


@pytest.mark.parametrize("length", [timedelta(0), timedelta(hours=-1)])
def test_a_window_that_ends_before_it_begins(exports: ExportFactory, length: timedelta) -> None:
    export = exports.incremental(CHANGES, window=(EXPORT_TIME, EXPORT_TIME + length))
    with pytest.raises(TerminalError, match=r"its exportFromTime, .* is not before its exportToTime"):
        read_manifest(FolderObjects(), export.location, expected_table="Employees")


def rewrite_keys(tmp_path: Path, export: WrittenExport, old: str, new: str) -> None:
    path = tmp_path / "bucket" / export.files_key
    content = path.read_bytes().replace(old.encode(), new.encode(), 1)
    path.write_bytes(content)
    path.with_suffix(".md5").write_bytes(md5_text(content))


def test_files_of_another_export_and_the_same_file_twice(exports: ExportFactory, tmp_path: Path) -> None:
    other, export = exports.full(ITEMS), exports.full(ITEMS)
    rewrite_keys(tmp_path, export, export.data_keys[0], other.data_keys[0])
    with pytest.raises(TerminalError, match="is outside the export's own folder"):
        read_manifest(FolderObjects(), export.location, expected_table="Employees")
    climbing = exports.full(ITEMS)
    rewrite_keys(tmp_path, climbing, "/data/", "/data/../../../")
    with pytest.raises(TerminalError, match="is outside the export's own folder"):
        read_manifest(FolderObjects(), climbing.location, expected_table="Employees")
    twice = exports.full(ITEMS)
    rewrite_keys(tmp_path, twice, twice.data_keys[0], twice.data_keys[1])
    with pytest.raises(TerminalError, match="is named a second time"):
        read_manifest(FolderObjects(), twice.location, expected_table="Employees")


def test_a_manifest_that_dynamodb_describes_otherwise_was_altered(
    described: ScriptedServices, aws: DescribedStream, employees: TableMapping, exports: ExportFactory
) -> None:
    aws.export = {"ItemCount": 20}
    with pytest.raises(TerminalError, match="states 4 items, and DynamoDB says that the export has 20"):
        take_snapshot(described, employees, manifest=exports.full(ITEMS).location)


@pytest.mark.parametrize("taking", [take_snapshot, apply_export])
def test_what_is_no_export_of_the_table_is_said_before_anything_is_waited_for(
    described: ScriptedServices,
    employees: TableMapping,
    taking: Any,  # noqa: ANN401
) -> None:
    with pytest.raises(ConfigurationError, match='"nonsense" is not the ARN of an export; write it as arn:aws:'):
        taking(described, employees, export_arn="nonsense")
    with pytest.raises(ConfigurationError, match="table Orders, not Employees"):
        taking(described, employees, export_arn=f"{ARN.replace('Employees', 'Orders')}/export/0-1")


def test_exit_codes_of_the_command_line(
    services: Services, exports: ExportFactory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    environment = {"DATABASE_URL": str(services.settings.database_url)}
    filtered = exports.full(ITEMS, Layout(summary={"filterSpecification": {"FilterExpression": "x"}})).location
    for verb in ("load", "reconcile", "catch-up"):
        assert main([verb, "employees", "--manifest", filtered], environment) == 1
        assert "says that it was filtered or projected" in capsys.readouterr().err
        assert main([verb, "employees", "--export-arn", "nonsense"], environment) == 2
        assert "is not the ARN of an export; write it as" in capsys.readouterr().err
    other = exports.full(ITEMS, Layout(summary={"tableArn": OTHERS[3][0]["tableArn"]})).location
    assert main(["load", "employees", "--manifest", other], environment) == 1
    assert "table Restored, not Employees" in capsys.readouterr().err
    assert main(["load", "employees", "--manifest", other, "--accept-other-table", "--json"], environment) == 0
    assert json.loads(capsys.readouterr().out)["items"] == 4
    assert main(["load", "employees", "--accept-other-table"], environment) == 2
    with closing(Services(Settings.from_environment(environment)).connect("test")) as connection:
        assert len(view(connection)) == 4
