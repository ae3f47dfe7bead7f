"""Schedules at a real tick: each that is due requests one run, with a form that its job accepts."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg
import pytest

from tests.dagster_project.conftest import Code


@pytest.mark.parametrize(
    ("schedule", "job"),
    [("employees_reconcile_schedule", "employees_reconcile"), ("employees_purge_schedule", "employees_purge")],
)
def test_a_schedule_that_is_due_launches_its_job(code: Code, schedule: str, job: str) -> None:
    repository = code.definitions.get_repository_def()
    definition = repository.get_schedule_def(schedule)
    assert definition.job_name == job
    due = datetime(2026, 5, 14, 1, 0, tzinfo=UTC)
    context = dg.build_schedule_context(instance=code.instance, scheduled_execution_time=due, repository_def=repository)
    (request,) = definition.evaluate_tick(context).run_requests or []
    assert dg.validate_run_config(code.definitions.resolve_job_def(job), request.run_config)


def test_a_scheduled_purge_runs_to_its_end(code: Code) -> None:
    code.migrate()
    repository = code.definitions.get_repository_def()
    definition = repository.get_schedule_def("employees_purge_schedule")
    context = dg.build_schedule_context(instance=code.instance, repository_def=repository)
    (request,) = definition.evaluate_tick(context).run_requests or []
    assert code.run(definition.job_name, dict(request.run_config)).success
