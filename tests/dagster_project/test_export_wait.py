"""A run whose wait for its export runs out: it is retried and launched again, all for one export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import dagster as dg
import psycopg
import pytest

from dagster_project import failures
from dagster_project.definitions import build
from dagster_project.resources import ServicesResource
from pipeline.dynamodb.client import client
from pipeline.local.export_server import ExportServer
from pipeline.local.stack import LocalStack
from tests.dagster_project.conftest import Code


@pytest.fixture
def slow(stack: LocalStack, tmp_path: Path) -> Iterator[str]:
    with ExportServer(tmp_path, stack.ministack.port, delay_seconds=5.0) as server:
        yield server.url


def test_a_wait_that_runs_out_and_its_retries_are_one_export(
    code: Code, stack: LocalStack, slow: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(failures, "FIRST_WAIT_SECONDS", 0.0)
    table, bucket = f"Employees-{uuid4().hex[:8]}", f"exports-{uuid4().hex[:8]}"
    dynamodb, s3 = client("dynamodb", slow), client("s3", slow)
    s3.create_bucket(Bucket=bucket)
    arn = dynamodb.create_table(
        TableName=table,
        AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
        KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )["TableDescription"].get("TableArn", "")
    dynamodb.update_continuous_backups(
        TableName=table, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
    )
    dynamodb.put_item(TableName=table, Item={"Id": {"N": "1"}, "empName": {"S": "one"}})
    mapping = folder / "employees.yaml"
    mapping.write_text(mapping.read_text().replace("table: Employees", f"table: {table}"))
    code.migrate()
    resource = ServicesResource(database_url=code.database, endpoint_url=slow, export_bucket=bucket)
    code.definitions = build(folder, resource)

    refused = code.run("employees_full_load", {"export_wait": "0s"})
    assert not refused.success
    assert len([e for e in refused.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]) == failures.RETRIES
    (event,) = [e for e in refused.all_events if e.is_step_failure]
    (export,) = dynamodb.list_exports(TableArn=arn)["ExportSummaries"]
    assert f"it resumes export {export.get('ExportArn')}" in str(event.step_failure_data.user_failure_data)

    assert code.run("employees_full_load").success
    assert len(dynamodb.list_exports(TableArn=arn)["ExportSummaries"]) == 1
    with psycopg.connect(code.database) as connection:
        assert connection.execute('SELECT "Name" FROM public."Employees"').fetchall() == [("one",)]
    dynamodb.close()
    s3.close()


@pytest.mark.parametrize("job", ["employees_full_load", "employees_reconcile"])
def test_a_wait_that_is_not_a_duration_starts_nothing(code: Code, job: str) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError, match="export_wait: it is not a duration; write a number"):
        code.run(job, {"export_wait": "soon"})
