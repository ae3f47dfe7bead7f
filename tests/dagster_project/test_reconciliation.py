"""End to end on the local stack: export on request, load, drift by hand, reconciliation, repair, and the check."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import dagster as dg
import psycopg
import pytest
from dagster._core.loader import LoadingContextForTest

from dagster_project.definitions import build
from dagster_project.resources import ServicesResource
from pipeline.dynamodb.client import client
from pipeline.local.stack import LocalStack
from tests.dagster_project.conftest import MAPPING, Code, items
from tests.dynamodb.export_fixture import ExportFactory

RECONCILIATION = dg.AssetKey(["employees", "reconciliation"])
PARITY = dg.AssetCheckKey(RECONCILIATION, "parity")


@pytest.fixture
def sourced(
    stack: LocalStack, database: str, tmp_path: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Code:
    """The code location over a DynamoDB table of the local stack, with 40 items."""
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    table, bucket = f"Employees-{uuid4().hex[:8]}", f"exports-{uuid4().hex[:8]}"
    dynamodb = client("dynamodb", stack.endpoint_url)
    client("s3", stack.endpoint_url).create_bucket(Bucket=bucket)
    dynamodb.create_table(
        TableName=table,
        AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
        KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    dynamodb.update_continuous_backups(
        TableName=table, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
    )
    for item in items(40):
        dynamodb.put_item(TableName=table, Item=item)
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "employees.yaml").write_text(MAPPING.replace("table: Employees", f"table: {table}"))
    resource = ServicesResource(database_url=database, export_bucket=bucket)
    code = Code(folder, database, instance, ExportFactory.in_folder(tmp_path), build(folder, resource), resource)
    code.migrate()
    return code


def evaluation(result: dg.ExecuteInProcessResult, name: str) -> dg.AssetCheckEvaluation:
    (found,) = (check for check in result.get_asset_check_evaluations() if check.check_name == name)
    return found


def parity(code: Code, result: dg.ExecuteInProcessResult) -> tuple[bool, dg.AssetCheckSeverity]:
    check = evaluation(result, PARITY.name)
    record = code.instance.event_log_storage.get_latest_asset_check_execution_by_key([PARITY])[PARITY]
    assert asyncio.run(record.targets_latest_materialization(LoadingContextForTest(code.instance)))
    return check.passed, check.severity


def test_a_load_then_drift_then_repair(sourced: Code) -> None:
    loaded = sourced.run("employees_full_load", {"margin_seconds": 1})
    assert loaded.success
    assert sourced.query('SELECT count(*) FROM "Employees"') == [(40,)]
    with psycopg.connect(sourced.database, autocommit=True) as connection:
        connection.execute('UPDATE replica."Employees" SET "Name" = \'bent\' WHERE "Id" = 7')
        connection.execute('DELETE FROM replica."Employees" WHERE "Id" = 8')
        connection.execute(
            'INSERT INTO replica."Employees" ("Id", attributes, _as_of)'
            " SELECT 999, '{}', min(_as_of) FROM replica.\"Employees\""
        )
    found = sourced.run("employees_reconcile", {"margin_seconds": 1})
    (event,) = found.get_asset_materialization_events()
    counts = {name: value.value for name, value in event.materialization.metadata.items()}
    assert (counts["missing"], counts["extra"], counts["different"], counts["repaired"]) == (1, 1, 1, 0)
    assert counts["differing_columns"] == {"Name": 1}
    assert len(event.materialization.metadata["sample"].records) == 3  # type: ignore[attr-defined]  # a table
    assert parity(sourced, found) == (False, dg.AssetCheckSeverity.ERROR)
    mended = sourced.run("employees_reconcile", {"margin_seconds": 1, "repair": True})
    assert parity(sourced, mended) == (False, dg.AssetCheckSeverity.WARN)
    proven = sourced.run("employees_reconcile", {"margin_seconds": 1})
    assert parity(sourced, proven)[0]
    assert sourced.query('SELECT count(*), min("Name") FILTER (WHERE "Id" = 7) FROM "Employees"') == [(40, "name 7")]


def test_the_attributes_without_a_column_are_shown_and_those_that_wait_for_promotion_warn(sourced: Code) -> None:
    with psycopg.connect(sourced.database, autocommit=True) as connection:
        connection.execute(
            'INSERT INTO replica."Employees" ("Id", attributes, _as_of)'
            """ VALUES (999, '{"badge": 7, "empName": "x"}', '2020-01-01')"""
        )
    sourced.run("employees_full_load", {"margin_seconds": 1})
    check = evaluation(sourced.run("employees_reconcile", {"margin_seconds": 1}), "unmapped_attributes")
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    table = check.metadata["attributes"]
    assert isinstance(table, dg.TableMetadataValue)
    shown = {record.data["attribute"]: record.data for record in table.records}
    assert (shown["badge"]["state"], shown["empName"]["state"]) == ("new", "waiting")
    assert str(shown["badge"]["line"]).startswith("badge:")
