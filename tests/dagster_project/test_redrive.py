"""Redrive and purge from Dagster: the jobs, and real ticks of the sensor on the on-failure prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dagster_project.definitions import build
from dagster_project.redrive import GIVEN_UP
from dagster_project.resources import ServicesResource
from pipeline.jobs.load.load import load
from tests.dagster_project.conftest import Code
from tests.jobs.conftest import named, record
from tests.jobs.test_redrive import Kept


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "on-failure")


@pytest.fixture
def redriving(code: Code, kept: Kept) -> Code:
    code.migrate()
    code.resource = ServicesResource(database_url=code.database, on_failure=kept.location)
    code.definitions = build(code.folder, code.resource)
    return code


def tick(code: Code, cursor: str | None) -> tuple[list[dg.RunRequest], str]:
    sensor = code.definitions.get_repository_def().get_sensor_def(GIVEN_UP)
    context = dg.build_sensor_context(
        instance=code.instance, cursor=cursor, resources={"dynaurora": code.resource}, definitions=code.definitions
    )
    result = sensor.evaluate_tick(context)
    return list(result.run_requests or []), result.cursor or cursor or ""


def names(code: Code) -> dict[int, str]:
    return dict(code.query('SELECT "Id", "Name" FROM "Employees"'))


def test_new_batches_launch_one_run_and_the_cursor_survives_a_restart(redriving: Code, kept: Kept) -> None:
    requests, cursor = tick(redriving, None)
    assert requests == []
    kept.keep([named(1, 1, "one")])
    kept.keep([named(2, 2, "two")])
    requests, cursor = tick(redriving, cursor)
    assert len(requests) == 1
    assert tick(redriving, cursor)[0] == []  # under way
    assert redriving.run("redrive").success
    assert names(redriving) == {1: "one", 2: "two"}
    redriving.definitions = build(redriving.folder, redriving.resource)
    requests, cursor = tick(redriving, cursor)
    assert requests == []
    kept.keep([named(3, 3, "three")])
    assert len(tick(redriving, cursor)[0]) == 1


def test_what_is_left_fails_the_run_with_its_name_and_starts_none_without_end(redriving: Code, kept: Kept) -> None:
    kept.put("aws/lambda/damaged.x", b"damaged")
    kept.keep([named(1, 1, "one")])
    requests, cursor = tick(redriving, None)
    assert len(requests) == 1
    result = redriving.run("redrive")
    assert not result.success
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    data: Any = failed.step_failure_data.user_failure_data
    assert "damaged.x" in data.description
    assert names(redriving) == {1: "one"}
    assert tick(redriving, cursor)[0] == []


def test_what_can_be_read_of_a_damaged_batch_is_applied_from_the_form(redriving: Code, kept: Kept) -> None:
    path = kept.keep([named(1, 1, "one"), named(2, 2, "two")])
    path.write_bytes(path.read_bytes().replace(b"two", b"\xff\xfe"))
    assert not redriving.run("redrive").success
    assert names(redriving) == {}
    choice = {"object": path.as_uri(), "accept_partial": True}
    assert redriving.run("redrive", choice).success
    assert names(redriving) == {1: "one"}
    assert not path.exists()


def test_without_a_prefix_the_sensor_says_so(code: Code) -> None:
    sensor = code.definitions.get_repository_def().get_sensor_def(GIVEN_UP)
    context = dg.build_sensor_context(
        instance=code.instance, resources={"dynaurora": code.resource}, definitions=code.definitions
    )
    assert "DYNAURORA_ON_FAILURE is not set" in (sensor.evaluate_tick(context).skip_message or "")


def test_a_purge_reports_what_it_removed(redriving: Code, kept: Kept) -> None:
    kept.keep([record(7, 1, "REMOVE")])
    assert redriving.run("redrive").success
    load(redriving.resource.services, redriving.mapping, redriving.export(3).location)
    result = redriving.run("employees_purge", {"retention_days": 1})
    assert result.success
    assert redriving.query("SELECT purged_through IS NOT NULL FROM replication.tables") == [(True,)]
    assert redriving.query('SELECT count(*) FROM replica."Employees" WHERE _deleted') == [(0,)]
    (output,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    found: Any = output.step_output_data.metadata
    assert found["tombstones"].value == 1
    assert found["bound"].value == "retention"


def test_a_purge_that_keeps_tombstones_fails_with_their_reason(redriving: Code, kept: Kept) -> None:
    kept.keep([named(7, 1, "here", "INSERT")])
    assert redriving.run("redrive").success
    redriving.execute(
        'CREATE TABLE badges (employee bigint CONSTRAINT worn_by REFERENCES replica."Employees");'
        " INSERT INTO badges VALUES (7)"
    )
    kept.keep([record(7, 2, "REMOVE")])
    assert redriving.run("redrive").success
    load(redriving.resource.services, redriving.mapping, redriving.export(3).location)
    result = redriving.run("employees_purge", {"retention_days": 1})
    assert not result.success
    (failure,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    told: Any = failure.step_failure_data.user_failure_data
    reason = "ForeignKeyViolation (23503, table badges, constraint worn_by)"
    assert told.description == f"1 tombstones kept: {reason}"
    assert told.metadata["kept"].value == {reason: 1}
    assert told.metadata["tombstones"].value == 0
