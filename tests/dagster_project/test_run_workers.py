"""The runs that share a load's files, as jobs. test_crash.py tests them with real run workers."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import dagster as dg
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from dagster_project.keys import TableKeys
from dagster_project.run_workers import RunWorkers
from pipeline.aurora.bookkeeping.load_lead import Lead
from tests.dagster_project.conftest import Code
from tests.dagster_project.test_full_load import logged
from tests.dagster_project.test_instances import FOLDER


def test_a_load_without_a_run_launcher_loads_every_file_itself_and_says_so(code: Code) -> None:
    code.migrate()
    result = code.run("employees_full_load", {"manifest": code.export(50).location, "run_workers": 3})
    assert result.success
    assert code.query('SELECT count(*) FROM "Employees"') == [(50,)]
    assert any("it loads every file itself" in line for line in logged(code, result.run_id))
    assert len(code.instance.get_runs()) == 1


def test_a_run_whose_load_has_ended_does_nothing_and_says_so(code: Code) -> None:
    code.migrate()
    code.run("employees_full_load", {"manifest": code.export(5).location})
    late = code.run("employees_load_files", {"export_id": 1, "ticket": 1})
    assert late.success
    assert any("the load had ended" in line and "0 files" in line for line in logged(code, late.run_id))


def test_runs_that_still_wait_leave_the_queue_when_the_load_ends(code: Code, tmp_path: Path) -> None:
    shutil.copy(FOLDER / "laptop.yaml", tmp_path / "dagster.yaml")
    job = code.definitions.resolve_job_def("employees_load_files")
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("dynaurora"), "repository"), job.name)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        queued, begun = [
            instance.create_run_for_job(
                job, run_config={"export_id": 1, "ticket": 1}, status=status, remote_job_origin=origin
            ).run_id
            for status in (dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED)
        ]
        context = cast("Any", SimpleNamespace(instance=instance))
        with RunWorkers(context, TableKeys("employees"), run_workers=3, workers=1) as run_workers:
            run_workers.launched += [queued, begun]
        statuses = {run.run_id: run.status for run in instance.get_runs()}
    assert statuses == {queued: dg.DagsterRunStatus.CANCELED, begun: dg.DagsterRunStatus.STARTED}


def test_a_run_that_cannot_be_launched_does_not_stop_the_load(code: Code) -> None:
    """Whatever the run launcher raises, the load that calls this continues, and its log says why it is alone."""
    said: list[str] = []

    def say(text: str, *values: object) -> None:
        said.append(text % values)

    log = SimpleNamespace(info=say, warning=say)
    run = SimpleNamespace(remote_job_origin="somewhere", job_code_origin=None, run_id="1", tags={})
    context = cast("Any", SimpleNamespace(instance=code.instance, run=run, log=log))  # it has no repository
    with RunWorkers(context, TableKeys("employees"), run_workers=2, workers=1) as run_workers:
        run_workers.launch(Lead(1, 1))
    assert said == [
        "launching run workers failed (AttributeError); the load continues",
        "launched to share the files: none",
    ]
