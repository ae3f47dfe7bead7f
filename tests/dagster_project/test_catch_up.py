"""Catch-up from Dagster: hours as partitions, a backfill of many hours as one run, and the schedule."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._utils.schedules import reverse_cron_string_iterator

from dagster_project.catch_up import hour_of, hours
from dagster_project.definitions import build
from dagster_project.resources import ServicesResource
from pipeline.jobs.services import Services
from tests.dagster_project.conftest import MAPPING, Code
from tests.jobs.past_table import PastServices, PastTable, item

CATCH_UP = dg.AssetKey(["employees", "catch_up"])
HOUR = timedelta(hours=1)


class PastResource(ServicesResource):
    """The resource over a made-up past."""

    folder: str

    @property
    def services(self) -> Services:
        return PastServices(self.database_url or "", PASTS[self.folder])


PASTS: dict[str, PastTable] = {}


@pytest.fixture
def past(tmp_path: Path) -> PastTable:
    return PASTS.setdefault(str(tmp_path), PastTable(tmp_path / "s3"))


@pytest.fixture
def caught(code: Code, past: PastTable, tmp_path: Path) -> Code:
    assert past is PASTS[str(tmp_path)]
    code.migrate()
    code.definitions = build(code.folder, PastResource(database_url=code.database, folder=str(tmp_path)))
    return code


def name(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d-%H:00}"


def run_hours(code: Code, first: datetime, last: datetime, config: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - dagster's
    tags = {"dagster/asset_partition_range_start": name(first), "dagster/asset_partition_range_end": name(last)}
    ops = {"ops": {"employees__catch_up": {"config": config}}} if config else {}
    job = code.definitions.resolve_job_def("employees_catch_up")
    return job.execute_in_process(instance=code.instance, run_config=ops, tags=tags, raise_on_error=False)


def test_a_backfill_of_a_day_is_one_run_and_turns_its_hours_green(caught: Code, past: PastTable) -> None:
    first = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 26 * HOUR
    for number in range(48):
        past.put(first + number * timedelta(minutes=30), number, f"name {number}")
    result = run_hours(caught, first, first + 23 * HOUR, {"margin_seconds": 60, "workers": 1})
    assert result.success
    assert caught.query('SELECT count(*) FROM "Employees"') == [(48,)]
    assert caught.instance.get_materialized_partitions(CATCH_UP) == {name(first + n * HOUR) for n in range(24)}
    assert past.requested == [
        (first, first + 24 * HOUR),
        (first - timedelta(minutes=7.5), first + timedelta(minutes=7.5)),
    ]
    assert past.state() == {number: item(number, f"name {number}")["empName"]["S"] for number in range(48)}


def test_a_backfill_launched_from_the_ui_takes_24_hours_a_run(caught: Code) -> None:
    asset = caught.definitions.resolve_asset_graph().get(CATCH_UP)
    assert asset.backfill_policy == dg.BackfillPolicy.multi_run(max_partitions_per_run=24)
    assert isinstance(asset.partitions_def, dg.HourlyPartitionsDefinition)
    names = asset.partitions_def.get_partition_keys()
    assert 35 * 24 <= len(names) < 36 * 24
    assert hour_of(names[-1]) + HOUR <= datetime.now(UTC)


def test_what_is_beyond_the_recovery_window_fails_once_with_the_next_step(caught: Code, past: PastTable) -> None:
    past.earliest = datetime.now(UTC) - 5 * HOUR
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 9 * HOUR
    result = run_hours(caught, hour, hour)
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    data = failed.step_failure_data.user_failure_data
    assert "beyond the table's point-in-time recovery" in (data.description or "")
    assert "dynaurora load employees" in str(data.metadata["next step"].value)


@pytest.mark.parametrize(("cron", "expected"), [("10 * * * *", 1), ("30 0,6,12,18 * * *", 6), ("0 3 * * 1", 24)])
def test_the_schedule_takes_the_hours_that_ended_since_it_was_last_due(folder: Path, cron: str, expected: int) -> None:
    (folder / "employees.yaml").write_text(MAPPING.replace('reconcile: "0 3 * * *"', f'catch_up: "{cron}"'))
    definitions = build(folder)
    (schedule,) = [s for s in definitions.get_repository_def().schedule_defs if "purge" not in s.name]
    assert (schedule.name, schedule.default_status) == (
        "employees_catch_up_schedule",
        dg.DefaultScheduleStatus.RUNNING,
    )
    at = next(reverse_cron_string_iterator(datetime.now(UTC).timestamp(), cron, "Europe/Berlin"))
    repository = definitions.get_repository_def()
    context = dg.build_schedule_context(scheduled_execution_time=at, repository_def=repository)
    (request,) = schedule.evaluate_tick(context).run_requests or []
    tags = request.tags
    if expected == 1:
        assert request.partition_key is not None
        assert at - 2 * HOUR < hour_of(request.partition_key) <= at - HOUR
    else:
        first = hour_of(tags["dagster/asset_partition_range_start"])
        last = hour_of(tags["dagster/asset_partition_range_end"])
        assert (last - first) / HOUR + 1 == expected


def test_the_hours_are_those_that_recovery_reaches() -> None:
    first = hours(datetime(2026, 5, 14, 11, 14, tzinfo=UTC)).get_first_partition_window()
    assert first is not None
    assert first.start == datetime(2026, 4, 9, tzinfo=UTC)
