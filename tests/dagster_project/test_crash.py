"""The host-crash drill: everything is killed with signal 9 in the middle of a load, and started again.

Two run workers share the load, so the drill loses both the run that leads it and the run that shares it, and with them
the daemon that watches runs, the web server, the code servers, and PostgreSQL.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from pipeline.local.dagster_ui import DagsterHome, DagsterWebserver
from pipeline.local.postgres import PostgresServer
from tests.conftest import run_directory
from tests.dagster_project.conftest import Code, items
from tests.dagster_project.graphql import alive, ask, wait_until
from tests.dynamodb.export_fixture import Layout

ITEMS, FILES = 2_400, 120
# Every file takes a second, so that the load can be killed in the middle.
SLOW = """CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
CREATE TRIGGER slow BEFORE INSERT ON replica."Employees" FOR EACH STATEMENT EXECUTE FUNCTION slow()"""

LAUNCH = """mutation ($form: RunConfigData!) { launchRun(executionParams: {
  selector: {repositoryLocationName: "dynaurora", repositoryName: "__repository__", jobName: "employees_full_load"},
  runConfigData: $form }) { __typename ... on LaunchRunSuccess { run { runId } } } }"""
FROM_FAILURE = """mutation ($run: String!) { launchRunReexecution(reexecutionParams: {
  parentRunId: $run, strategy: FROM_FAILURE, extraTags: [{key: "dagster/max_runtime", value: "600"}] }) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
RUNS = "{ runsOrError { ... on Runs { results { runId jobName status } } } }"


@pytest.fixture
def postgres() -> Generator[PostgresServer]:
    """A server for this test alone, because it is killed too."""
    with run_directory() as folder, PostgresServer(folder / "postgres", durable=False) as server:
        yield server


@pytest.fixture
def home(code: Code, tmp_path: Path) -> DagsterHome:
    """The laptop's instance; its daemon checks runs every second, so that the drill need not wait."""
    environment = {"DATABASE_URL": code.database, "DYNAURORA_TABLES": str(code.folder), "DYNAURORA_MARK": str(tmp_path)}
    made = DagsterHome(tmp_path, environment)
    path = made.folder / "dagster.yaml"
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    config["run_monitoring"].update(poll_interval_seconds=1, free_slots_after_run_end_seconds=1)
    path.write_text(yaml.safe_dump(config))
    return made


@pytest.mark.timeout(300)
def test_everything_is_killed_in_the_middle_of_a_load_and_nothing_stays_held(
    code: Code, home: DagsterHome, postgres: PostgresServer, tmp_path: Path
) -> None:
    code.migrate()
    code.execute(SLOW)
    export = code.exports.full(items(ITEMS), Layout(files=FILES, empty_files=0))

    def sessions(name: str) -> int:
        return code.query(f"SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '{name}'")[0][0]  # noqa: S608

    def marked() -> int:
        return code.query("SELECT count(*) FROM replication.export_files")[0][0]

    with DagsterWebserver(home) as server:
        form = {"manifest": export.location, "workers": 1, "run_workers": 2}
        launched = ask(server, LAUNCH, form=form)["launchRun"]["run"]["runId"]
        wait_until(lambda: sessions("dynaurora load worker") == 2, 110, "two run workers load files")
        assert marked() >= 1
        kill_everything(str(tmp_path))

    wait_until(lambda: sessions("dynaurora load%") == 0, 10, "the server has noticed")
    assert code.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
    done = marked()
    assert 1 <= done < FILES
    postgres.kill()
    postgres.restart()
    assert marked() == done
    code.execute('DROP TRIGGER slow ON replica."Employees"')

    with dg.DagsterInstance.from_config(str(home.folder)) as instance:
        lost = {run.run_id: run for run in instance.get_runs()}
        assert {run.job_name for run in lost.values()} == {"employees_full_load", "employees_load_files"}
        assert {run.status for run in lost.values()} == {
            dg.DagsterRunStatus.STARTED
        }  # nothing is left to say otherwise
        assert [run.tags.get("dynaurora/load_run") for run in lost.values() if run.run_id != launched] == [launched]
        assert slots(instance) == 1
        for run_id in lost:  # so that the test need not wait three days
            instance.add_run_tags(run_id, {"dagster/max_runtime": "1"})

        with DagsterWebserver(home) as server:

            def statuses() -> dict[str, str]:
                return {run["runId"]: run["status"] for run in ask(server, RUNS)["runsOrError"]["results"]}

            wait_until(lambda: set(statuses().values()) == {"FAILURE"}, 60, "run monitoring fails the lost runs")
            wait_until(lambda: slots(instance) == 0, 30, "the pool is free")
            again = ask(server, FROM_FAILURE, run=launched)["launchRunReexecution"]["run"]["runId"]
            wait_until(lambda: statuses()[again] in {"SUCCESS", "FAILURE"}, 90, "the load has ended")
            assert statuses()[again] == "SUCCESS"
            ended = {"SUCCESS", "FAILURE", "CANCELED"}
            wait_until(lambda: set(statuses().values()) <= ended, 60, "what shares it has ended too")
        loaded = instance.get_latest_materialization_event(dg.AssetKey(["employees", "aurora_table"]))
        assert loaded is not None
        assert loaded.asset_materialization is not None
        assert loaded.run_id == again
        assert loaded.asset_materialization.metadata["files_resumed"].value == done
        assert slots(instance) == 0
    assert code.query('SELECT count(*), count(DISTINCT "Name"), min("Id"), max("Id") FROM "Employees"') == [
        (ITEMS, ITEMS, 0, ITEMS - 1)
    ]


def kill_everything(mark: str) -> None:
    """Kill everything, and whatever the dying processes still started, until nothing is left."""

    def killed() -> bool:
        left = alive(mark)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    wait_until(killed, 20, "every process is gone")


def slots(instance: dg.DagsterInstance) -> int:
    """Slots of the table's pool that are taken."""
    return instance.event_log_storage.get_concurrency_info("employees_load").active_slot_count
