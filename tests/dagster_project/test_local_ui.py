"""Dagster on a laptop, for real: a job in its own process, the UI and the daemon, and nothing left running."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from pipeline.local.dagster_ui import DagsterHome, DagsterWebserver
from pipeline.local.errors import LocalStackError
from tests.dagster_project.conftest import Code
from tests.dagster_project.graphql import alive, ask, wait_until

QUERY = """{
  workspaceOrError { ... on Workspace { locationEntries { name loadStatus
    locationOrLoadError { __typename ... on PythonError { message } } } } }
  assetNodes { assetKey { path } freshnessStatusInfo { freshnessStatus }
    assetMaterializations(limit: 1) { runId } assetObservations(limit: 1) { metadataEntries { label } } }
  runsOrError { ... on Runs { results { runId status } } }
  ofTheJob: runsOrError(filter: {pipelineName: "employees_full_load",
    tags: [{key: ".dagster/repository", value: "__repository__@dynaurora"}]}) { ... on Runs { results { runId } } }
}"""


LAUNCH = """mutation ($form: RunConfigData!) { launchRun(executionParams: {
  selector: {repositoryLocationName: "dynaurora", repositoryName: "__repository__", jobName: "employees_full_load"},
  runConfigData: $form }) { __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on RunConfigValidationInvalid { errors { message } }
  ... on PythonError { message causes { message } } } }"""


@pytest.mark.timeout(240)
def test_a_job_then_the_ui_then_nothing(code: Code, tmp_path: Path) -> None:
    code.migrate()
    export = code.export(500)
    environment = {"DATABASE_URL": code.database, "DYNAURORA_TABLES": str(code.folder), "DYNAURORA_MARK": str(tmp_path)}
    home = DagsterHome(tmp_path, environment)
    lines: list[str] = []
    outcome = home.execute_job("employees_full_load", {"manifest": export.location}, on_line=lines.append)
    assert outcome.success, outcome.failures
    assert outcome.assets["employees/aurora_table"]["applied"] == 500
    assert any("500 of 500 rows" in line for line in lines)
    damaged = tmp_path / "s3" / export.data_keys[0]
    damaged.write_bytes(b"")
    failed = home.execute_job("employees_full_load", {"manifest": export.location, "margin_seconds": 5})
    assert not failed.success
    assert damaged.name in failed.failures[0]
    with pytest.raises(
        LocalStackError, match="employees_full_load: the form has wrong values: workers: input should be"
    ):
        home.execute_job("employees_full_load", {"workers": 0})
    code.replicate({"Id": {"N": "1"}})
    with DagsterWebserver(home) as server:
        wait_until(lambda: ask(server, QUERY)["assetNodes"], 60, "the code location is loaded")

        def replication() -> dict[str, Any]:
            nodes = {tuple(node["assetKey"]["path"]): node for node in ask(server, QUERY)["assetNodes"]}
            return nodes["employees", "replication"]

        # No stream can be reached, so the sensor shows what Aurora says and proves no freshness.
        wait_until(lambda: replication()["assetObservations"], 120, "the sensor has reported replication")
        assert not replication()["assetMaterializations"]
        found = ask(server, QUERY)
        (location,) = found["workspaceOrError"]["locationEntries"]
        assert (location["name"], location["loadStatus"]) == ("dynaurora", "LOADED")
        runs = {run["runId"]: run for run in found["runsOrError"]["results"]}
        assert runs[outcome.run_id]["status"] == "SUCCESS"
        assert {run["runId"] for run in found["ofTheJob"]["results"]} == set(runs)
        assert runs[failed.run_id]["status"] == "FAILURE"
        assert len(runs) == 2
        launch_from_the_form(server, code.export(300).location)
        assert len(alive(str(tmp_path))) >= 2
    wait_until(lambda: not alive(str(tmp_path)), 20, "every process has ended")


def launch_from_the_form(server: DagsterWebserver, location: str) -> None:
    """Launch as the launchpad does: through the daemon's queue, in its own run worker."""
    refused = ask(server, LAUNCH, form={"manifest": location, "workers": 99})["launchRun"]
    assert "workers: input should be less than or equal to 32" in json.dumps(refused)
    launched = ask(server, LAUNCH, form={"manifest": location})["launchRun"]
    run_id = launched["run"]["runId"]

    def status() -> str:
        return {run["runId"]: run["status"] for run in ask(server, QUERY)["runsOrError"]["results"]}[run_id]

    wait_until(lambda: status() in {"SUCCESS", "FAILURE"}, 60, "the launched load has ended")
    assert status() == "SUCCESS"


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LocalStackError, match=f"port {port} .* is taken"):
            DagsterWebserver(DagsterHome(tmp_path, {}), port).start()
