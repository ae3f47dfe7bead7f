"""Real ticks of the progress sensor over real bookkeeping, and what an instance makes of them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.loader import LoadingContextForTest

from dagster_project.definitions import build
from dagster_project.resources import ServicesResource
from dagster_project.sensors import PROGRESS
from pipeline.core.errors import TerminalError, UnreachableError
from tests.dagster_project.conftest import MAPPING, Code

REPLICATION = dg.AssetKey(["employees", "replication"])
PERSON = {"Id": {"N": "1"}, "empName": {"S": "Akua"}}


def tick(code: Code, cursor: str | None = None) -> tuple[dg.SensorResult, str]:
    """Evaluate the sensor as a daemon does, and store what it reports."""
    repository = code.definitions.get_repository_def()
    sensor = repository.get_sensor_def(PROGRESS)
    resources = {"dynaurora": code.resource}
    context = dg.build_sensor_context(instance=code.instance, cursor=cursor, resources=resources)
    result = sensor(context)
    assert isinstance(result, dg.SensorResult)
    for event in result.asset_events:
        code.instance.report_runless_asset_event(event)
    return result, result.cursor or ""


def materializations(code: Code) -> int:
    return len(code.instance.fetch_materializations(REPLICATION, limit=50).records)


def test_ticks_report_what_was_applied_and_the_cursor_survives_a_restart(code: Code, folder: Path) -> None:
    code.migrate()
    result, cursor = tick(code)
    assert result.skip_reason is not None
    assert materializations(code) == 0
    code.replicate(PERSON)
    result, cursor = tick(code, cursor)
    assert materializations(code) == 1
    record = code.instance.get_latest_materialization_event(REPLICATION)
    assert record is not None
    found = record.asset_materialization
    assert found is not None
    assert 0 <= float(str(found.metadata["lag_seconds"].value)) < 60
    assert found.metadata["applied"].value == 1
    code.definitions = build(folder, code.resource)
    result, cursor = tick(code, cursor)
    assert result.asset_events == []
    assert materializations(code) == 1


def test_a_late_table_is_observed_and_its_lag_check_fails(code: Code) -> None:
    code.migrate()
    code.replicate(PERSON, age=timedelta(minutes=21))
    tick(code)
    assert materializations(code) == 0
    key = dg.AssetCheckKey(REPLICATION, "lag")
    record = code.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    evaluation = record.evaluation
    assert evaluation is not None
    assert (evaluation.passed, evaluation.severity) == (False, dg.AssetCheckSeverity.ERROR)


def test_check_results_count_for_the_materialization_that_came_with_them(code: Code) -> None:
    code.migrate()
    code.replicate({"Id": {"N": "1"}, "empName": {"S": "x" * 21}}, {"Id": {"N": "2"}})
    tick(code)
    loading = LoadingContextForTest(code.instance)
    keys = [dg.AssetCheckKey(REPLICATION, name) for name in ("lag", "rejects_waiting")]
    records = code.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    assert all(asyncio.run(record.targets_latest_materialization(loading)) for record in records.values())
    rejects = records[keys[1]].evaluation
    assert rejects is not None
    assert not rejects.passed
    assert rejects.metadata["rejects_waiting"].value == 1


def test_the_checks_can_be_launched_by_hand(code: Code) -> None:
    code.migrate()
    code.replicate(PERSON)
    job = code.definitions.resolve_implicit_global_asset_job_def()
    keys = {dg.AssetCheckKey(REPLICATION, name) for name in ("lag", "rejects_waiting")}
    result = job.get_subset(asset_selection=set(), asset_check_selection=keys).execute_in_process(
        instance=code.instance
    )
    assert {check.check_name: check.passed for check in result.get_asset_check_evaluations()} == {
        "lag": True,
        "rejects_waiting": True,
    }


def test_a_tick_without_bookkeeping_fails_and_tells_to_migrate(code: Code) -> None:
    with pytest.raises(TerminalError, match="dynaurora migrate"):
        tick(code)


def test_a_tick_without_database_fails(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    code.resource = ServicesResource()
    with pytest.raises(UnreachableError):
        tick(code)


def test_a_broken_file_is_reported_once(code: Code, folder: Path) -> None:
    code.migrate()
    (folder / "zebra.yaml").write_text(MAPPING.replace("name: employees", "name: Zebra!"))
    code.definitions = build(folder, code.resource)
    result, cursor = tick(code)
    (event,) = [e for e in result.asset_events if isinstance(e, dg.AssetCheckEvaluation) and e.check_name == "readable"]
    assert not event.passed
    assert "Zebra!" in (event.description or "")
    result, _ = tick(code, cursor)
    assert result.asset_events == []
