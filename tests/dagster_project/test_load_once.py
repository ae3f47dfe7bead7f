"""A run that Dagster marks as failed while it lives, and its retry: one export, one load, and both report it.

Real processes: a web server and its daemon launch the runs, and the instance marks the first as run monitoring does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import psycopg
import pytest
import yaml

from pipeline.dynamodb.client import client
from pipeline.local.dagster_ui import DagsterHome, DagsterWebserver
from pipeline.local.export_server import ExportServer
from pipeline.local.stack import LocalStack
from tests.dagster_project.conftest import Code, items
from tests.dagster_project.graphql import ask, wait_until
from tests.dagster_project.test_crash import FROM_FAILURE, LAUNCH, RUNS

ITEMS = 40
# A load cannot store a row while somebody holds the gate.
GATE = """CREATE TABLE gate ();
CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM FROM gate; RETURN NULL; END $$;
CREATE TRIGGER gate BEFORE INSERT ON replica."Employees" FOR EACH STATEMENT EXECUTE FUNCTION wait_at_gate()"""


@pytest.fixture
def exporting(stack: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "exports").mkdir()
    with ExportServer(tmp_path / "exports", stack.ministack.port, delay_seconds=1.0) as server:
        yield server.url


@pytest.fixture
def exports(code: Code, exporting: str) -> Iterator[Callable[[], int]]:
    """A table on the local stack that the code location maps; counts the exports requested of it."""
    table = f"Employees-{uuid4().hex[:8]}"
    dynamodb = client("dynamodb", exporting)
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
    for each in items(ITEMS):
        made: Any = each
        dynamodb.put_item(TableName=table, Item=made)
    mapping = code.folder / "employees.yaml"
    mapping.write_text(mapping.read_text().replace("table: Employees", f"table: {table}"))
    yield lambda: len(dynamodb.list_exports(TableArn=arn)["ExportSummaries"])
    dynamodb.close()


@pytest.fixture
def home(code: Code, stack: LocalStack, exporting: str, tmp_path: Path) -> DagsterHome:
    bucket = f"exports-{uuid4().hex[:8]}"
    client("s3", exporting).create_bucket(Bucket=bucket)
    made = DagsterHome(
        tmp_path,
        {
            **stack.environment(),
            "AWS_ENDPOINT_URL": exporting,
            "DYNAURORA_EXPORT_BUCKET": bucket,
            "DATABASE_URL": code.database,
            "DYNAURORA_TABLES": str(code.folder),
        },
    )
    path = made.folder / "dagster.yaml"
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    config["run_monitoring"].update(poll_interval_seconds=1, free_slots_after_run_end_seconds=1)
    path.write_text(yaml.safe_dump(config))
    return made


@pytest.mark.timeout(400)
def test_a_run_marked_failed_while_it_lives_and_its_retry_are_one_export_and_one_load(
    code: Code, exports: Callable[[], int], home: DagsterHome
) -> None:
    code.migrate()
    code.execute(GATE)
    at_gate = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name LIKE 'dynaurora load%' AND wait_event = 'relation'"
    )
    with psycopg.connect(code.database) as holder, DagsterWebserver(home) as server:
        holder.execute("LOCK TABLE gate")
        first = ask(server, LAUNCH, form={"workers": 1})["launchRun"]["run"]["runId"]
        with dg.DagsterInstance.from_config(str(home.folder)) as instance:

            def said(run_id: str, words: str) -> bool:
                return any(words in entry.user_message for entry in instance.all_logs(run_id))

            def statuses() -> dict[str, str]:
                return {run["runId"]: run["status"] for run in ask(server, RUNS)["runsOrError"]["results"]}

            def ended(run_id: str) -> bool:
                return any(e.is_dagster_event and e.dagster_event_type == dg.DagsterEventType.STEP_SUCCESS
                           for e in instance.all_logs(run_id))  # fmt: skip

            wait_until(lambda: code.query(at_gate)[0][0], 150, "the first run stores rows")
            lost = instance.get_run_by_id(first)
            assert lost is not None
            instance.report_run_failed(lost)
            wait_until(lambda: statuses()[first] == "FAILURE", 30, "Dagster takes it for dead")
            again = ask(server, FROM_FAILURE, run=first)["launchRunReexecution"]["run"]["runId"]
            wait_until(lambda: said(again, "another run leads the load"), 120, "the second run finds the first one")
            holder.rollback()
            wait_until(lambda: ended(first) and ended(again), 120, "both have ended")
            assert said(again, "this run did not load again")
            loaded = {
                record.run_id: record.asset_materialization.metadata
                for record in instance.fetch_materializations(
                    dg.AssetKey(["employees", "aurora_table"]), limit=9
                ).records
                if record.asset_materialization
            }
            wait_until(lambda: statuses()[again] == "SUCCESS", 60, "the second run has ended well")
    assert {run: data["led_by_another_run"].value for run, data in loaded.items()} == {first: False, again: True}
    assert loaded[first]["location"].value == loaded[again]["location"].value
    assert loaded[again]["items"].value == ITEMS
    assert exports() == 1
    assert code.query("SELECT status FROM replication.exports") == [("loaded",)]
    assert code.query('SELECT count(*) FROM "Employees"') == [(ITEMS,)]
