"""Real ticks of the progress sensor over a scripted stream and real bookkeeping, and what an instance stores."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.loader import LoadingContextForTest

from dagster_project.definitions import build
from dagster_project.resources import ServicesResource
from dagster_project.sensors import PROGRESS
from pipeline.core.errors import ConfigurationError, UnreachableError
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


def lag_check(code: Code) -> tuple[bool, dg.AssetCheckSeverity, str]:
    key = dg.AssetCheckKey(REPLICATION, "lag")
    record = code.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    evaluation = record.evaluation
    assert evaluation is not None
    return evaluation.passed, evaluation.severity, evaluation.description or ""


def test_ticks_report_that_all_has_arrived_and_the_cursor_survives_a_restart(code: Code, folder: Path) -> None:
    code.migrate()
    code.replicate(PERSON)
    _, cursor = tick(code)
    assert materializations(code) == 1
    record = code.instance.get_latest_materialization_event(REPLICATION)
    assert record is not None
    found = record.asset_materialization
    assert found is not None
    assert found.metadata["lag_seconds"].value == 0.0
    assert found.metadata["applied"].value == 1
    code.definitions = build(folder, code.resource)
    result, cursor = tick(code, cursor)
    assert result.asset_events == []
    assert result.skip_reason is not None
    assert materializations(code) == 1


def test_an_idle_table_is_fresh(code: Code) -> None:
    code.migrate()
    tick(code)
    assert materializations(code) == 1
    assert lag_check(code)[0]


def judged_by_hand(code: Code) -> str:
    job = code.definitions.resolve_implicit_global_asset_job_def()
    keys = {dg.AssetCheckKey(REPLICATION, name) for name in ("lag", "rejects_waiting")}
    job.get_subset(asset_selection=set(), asset_check_selection=keys).execute_in_process(instance=code.instance)
    return lag_check(code)[2]


def test_a_dead_lambda_is_seen_and_its_lag_check_fails(code: Code) -> None:
    code.migrate()
    code.replicate(PERSON)
    _, cursor = tick(code)
    code.replicate(PERSON, age=timedelta(minutes=5), dead=True)
    _, cursor = tick(code, cursor)
    passed, severity, told = lag_check(code)
    assert (passed, severity) == (False, dg.AssetCheckSeverity.WARN)
    assert told.startswith("1 keys have changes that have not arrived, the oldest made 5")
    code.services.lambdas.mappings[0]["State"] = "Disabled"
    code.replicate({"Id": {"N": "2"}}, age=timedelta(minutes=21), dead=True)
    tick(code, cursor)
    passed, severity, told = lag_check(code)
    assert (passed, severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert told.endswith("; event source mapping esm-1 is Disabled")
    code.services.lambdas.mappings[0] |= {"State": "Enabled", "FilterCriteria": {"Filters": [{"Pattern": "{}"}]}}
    told = judged_by_hand(code)
    assert told.endswith(
        "; event source mapping esm-1 has FilterCriteria, and the changes that they exclude never arrive"
    )
    key = dg.AssetCheckKey(REPLICATION, "lag")
    record = code.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert record.evaluation is not None
    assert {"console_function", "console_event_source_mapping", "console_log_group"} <= set(record.evaluation.metadata)
    assert materializations(code) == 1


def test_a_table_without_a_stream_keeps_no_other_from_being_reported(code: Code, folder: Path) -> None:
    (folder / "other.yaml").write_text(MAPPING.replace("Employees", "Others").replace("employees", "others"))
    code.definitions = build(folder, code.resource)
    code.migrate()
    stream = code.services.stream
    describe = stream.describe_table
    stream.describe_table = lambda TableName: {"Table": {}} if TableName == "Others" else describe(TableName)  # type: ignore[method-assign]  # noqa: N803
    tick(code)
    assert materializations(code) == 1
    key = dg.AssetCheckKey(dg.AssetKey(["others", "replication"]), "lag")
    record = code.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert record.evaluation is not None
    assert not record.evaluation.passed
    assert "enable it: `aws dynamodb update-table --table-name Others" in (record.evaluation.description or "")


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


def judged(code: Code, name: str, check: str = "lag") -> dg.AssetCheckEvaluation:
    key = dg.AssetCheckKey(dg.AssetKey([name, "replication"]), check)
    found = code.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key].evaluation
    assert found is not None
    return found


def test_a_table_that_is_not_migrated_or_lost_its_storage_is_an_error_of_its_own(code: Code, folder: Path) -> None:
    for name in ("others", "zebras"):
        (folder / f"{name}.yaml").write_text(MAPPING.replace("Employees", name.title()).replace("employees", name))
    code.migrate()
    (folder / "news.yaml").write_text(MAPPING.replace("Employees", "News").replace("employees", "news"))
    code.execute('DROP TABLE replica."Others" CASCADE')
    code.replicate(PERSON)  # all tables share the scripted stream: the sensor looks for what Others lacks
    (folder / "broken.yaml").write_text("name: [")
    code.definitions = build(folder, code.resource)
    tick(code)
    assert lag_check(code)[0]
    assert materializations(code) == 1
    assert not judged(code, "zebras").metadata.get("problem")
    missing, lost = judged(code, "news"), judged(code, "others")
    assert (missing.passed, missing.severity) == (lost.passed, lost.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "run `dynaurora migrate news`" in (missing.description or "")
    assert "the lag is not known: " in (lost.description or "")
    assert not judged(code, "news", "rejects_waiting").passed


def test_a_defect_in_one_look_is_told_with_its_place_and_stops_no_other_table(
    code: Code, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.yaml").write_text(MAPPING.replace("Employees", "Others").replace("employees", "a"))
    code.migrate()
    code.definitions = build(folder, code.resource)
    describe = code.services.stream.describe_table

    def defective(TableName: str) -> dict[str, Any]:  # noqa: N803 - the SDK's name
        if TableName == "Others":
            raise ValueError("a secret")
        return describe(TableName)

    monkeypatch.setattr(code.services.stream, "describe_table", defective)
    tick(code)
    assert lag_check(code)[0]
    assert (judged(code, "a").description or "").startswith("the lag is not known: ValueError at test_sensor.py")


def test_the_checks_of_a_table_that_is_not_migrated_can_be_launched_by_hand(code: Code) -> None:
    job = code.definitions.resolve_implicit_global_asset_job_def()
    keys = {dg.AssetCheckKey(REPLICATION, name) for name in ("lag", "rejects_waiting")}
    result = job.get_subset(asset_selection=set(), asset_check_selection=keys).execute_in_process(
        instance=code.instance
    )
    assert [check.passed for check in result.get_asset_check_evaluations()] == [False, False]


def test_a_tick_without_database_fails(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    code.resource = ServicesResource()
    with pytest.raises(UnreachableError):
        tick(code)


def test_with_a_schedule_of_the_probe_aurora_is_left_alone_in_between(
    code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    code.migrate()
    monkeypatch.setenv("DYNAURORA_PROBE_CRON", "0 0 29 2 *")
    result, cursor = tick(code)
    assert materializations(code) == 1, "the first look is due"
    due, code.resource = code.resource, ServicesResource(database_url="postgresql://nobody@127.0.0.1:1/none")
    result, cursor = tick(code, cursor)
    assert "as DYNAURORA_PROBE_CRON says; until then Aurora may pause" in str(result.skip_reason)
    earlier = json.loads(cursor)
    earlier["tables"]["employees"]["looked_at"] = earlier["tables"]["employees"]["materialized_at"] = 1.0
    with pytest.raises(UnreachableError):
        tick(code, json.dumps(earlier))
    code.resource = due
    tick(code, json.dumps(earlier))
    assert materializations(code) == 2


def test_a_wrong_schedule_of_the_probe_is_named_by_the_tick_and_loads(
    code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNAURORA_PROBE_CRON", "hourly")
    code.definitions = build(code.folder, code.resource)
    with pytest.raises(ConfigurationError, match="DYNAURORA_PROBE_CRON is not a cron expression"):
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


@pytest.mark.parametrize(
    ("windows", "seconds"),
    [("{warn: 4m, fail: 20m}", 30), ("{warn: 20s, fail: 20m}", 10), ("{warn: 2s, fail: 20m}", 4)],
)
def test_a_short_window_is_looked_into_more_often(code: Code, folder: Path, windows: str, seconds: int) -> None:
    (folder / "other.yaml").write_text(
        MAPPING.replace("Employees", "Others").replace("employees", "others").replace("{warn: 4m, fail: 20m}", windows)
    )
    code.definitions = build(folder, code.resource)
    sensor = code.definitions.get_repository_def().get_sensor_def(PROGRESS)
    assert sensor.minimum_interval_seconds == seconds
