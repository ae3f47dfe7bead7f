"""Real ticks of the alerts sensor: what it sends, that it sends it once, and that a failed send drops nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from dagster_project.alerts import ALERTS, Alert, teller
from dagster_project.definitions import build
from dagster_project.resources import ServicesResource
from pipeline.core.errors import ConfigurationError
from tests.dagster_project.conftest import Code

REPLICATION = dg.AssetKey(["employees", "replication"])
TOLD: list[Alert] = []


def tell(alert: Alert) -> None:
    TOLD.append(alert)


def refuse_lag(alert: Alert) -> None:
    if alert.subject.endswith("lag"):
        raise ConnectionError("nobody answers")
    TOLD.append(alert)


@pytest.fixture(autouse=True)
def _told_here(monkeypatch: pytest.MonkeyPatch) -> None:
    TOLD.clear()
    monkeypatch.setenv("DYNAURORA_ALERTS", f"{__name__}:tell")


def result_of_tick(code: Code, cursor: str | None) -> SensorExecutionData:
    sensor = code.definitions.get_repository_def().get_sensor_def(ALERTS)
    context = dg.build_sensor_context(instance=code.instance, cursor=cursor, definitions=code.definitions)
    return sensor.evaluate_tick(context)


def tick(code: Code, cursor: str | None) -> str:
    return result_of_tick(code, cursor).cursor or ""


def run_event(run: dg.DagsterRun, kind: dg.DagsterEventType) -> dg.EventLogEntry:
    return dg.EventLogEntry(
        error_info=None,
        level=20,
        user_message="",
        run_id=run.run_id,
        timestamp=time.time(),
        job_name=run.job_name,
        dagster_event=dg.DagsterEvent(kind.value, run.job_name),
    )


def judge(code: Code, *, passed: bool, severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR) -> None:
    code.instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=REPLICATION, check_name="lag", passed=passed, severity=severity, description="it is 31 m behind"
        )
    )


def test_a_check_is_told_when_it_turns_to_error_and_back_and_not_in_between(code: Code) -> None:
    cursor = tick(code, None)
    judge(code, passed=False, severity=dg.AssetCheckSeverity.WARN)
    cursor = tick(code, cursor)
    assert TOLD == []
    judge(code, passed=False)
    cursor = tick(code, cursor)
    judge(code, passed=False)
    cursor = tick(code, cursor)
    (alert,) = TOLD
    assert alert == Alert("error", "employees/replication: lag", "it is 31 m behind")
    judge(code, passed=True)
    cursor = tick(code, cursor)
    assert [alert.state for alert in TOLD] == ["error", "resolved"]
    tick(code, cursor)
    assert len(TOLD) == 2


def test_a_run_that_fails_is_told_once_with_what_to_do(code: Code) -> None:
    failed_before = code.run("employees_full_load")
    cursor = tick(code, None)
    assert not failed_before.success
    assert [alert.state for alert in TOLD] == ["error"]  # the check on the schema: of runs the first look only begins
    TOLD.clear()
    failed = code.run("employees_full_load")
    cursor = tick(code, cursor)
    cursor = tick(code, cursor)
    (alert,) = TOLD
    assert (alert.state, alert.subject) == ("run failed", f"employees_full_load, run {failed.run_id}")
    assert "dynaurora migrate" in alert.text
    again = code.run("employees_full_load")
    tick(code, cursor)
    assert [again.run_id in alert.subject for alert in TOLD] == [False, True]


def fail_at_once(code: Code, count: int, *, clock_behind: float = 0.0) -> set[str]:
    """Let runs fail within a second, as the runs of a backfill do; returns their ids."""
    job = code.definitions.resolve_job_def("employees_full_load")
    runs = [code.instance.create_run_for_job(job) for _ in range(count)]
    for run in runs:
        event = run_event(run, dg.DagsterEventType.RUN_FAILURE)
        code.instance.handle_new_event(event._replace(timestamp=event.timestamp - clock_behind))
    return {run.run_id for run in runs}


def runs_told() -> list[str]:
    return [alert.subject.rpartition(" ")[2] for alert in TOLD if alert.state == "run failed"]


def test_of_many_runs_that_fail_at_once_each_is_told_once(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagster_project.alert_sources.MOST_RUNS", 3)
    cursor = tick(code, None)
    failed = fail_at_once(code, 8)
    for _ in range(4):
        cursor = tick(code, cursor)
    assert sorted(runs_told()) == sorted(failed)


def test_a_run_whose_host_has_a_slow_clock_is_told(code: Code) -> None:
    cursor = tick(code, None)
    first = fail_at_once(code, 1)
    cursor = tick(code, cursor)
    late = fail_at_once(code, 1, clock_behind=30.0)
    tick(code, tick(code, cursor))
    assert sorted(runs_told()) == sorted(first | late)


def test_an_alert_that_could_not_be_sent_waits_and_the_others_are_sent(
    code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = tick(code, None)
    judge(code, passed=False)
    failed = code.run("employees_full_load")  # two alerts more: its check on the schema, and the run
    monkeypatch.setenv("DYNAURORA_ALERTS", f"{__name__}:refuse_lag")
    cursor = tick(code, cursor)
    assert sorted(alert.subject for alert in TOLD) == [
        "employees/aurora_table: schema_matches_mapping",
        f"employees_full_load, run {failed.run_id}",
    ]
    judge(code, passed=True)
    cursor = tick(code, cursor)  # `resolved` must not come before the `error` that is refused again
    assert len(TOLD) == 2
    monkeypatch.setenv("DYNAURORA_ALERTS", f"{__name__}:tell")
    cursor = tick(code, cursor)
    assert [(alert.state, alert.subject) for alert in TOLD[2:]] == [
        ("error", "employees/replication: lag"),
        ("resolved", "employees/replication: lag"),
    ]
    tick(code, cursor)
    assert len(TOLD) == 4


def test_a_module_that_cannot_be_imported_loses_no_alert(
    code: Code, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_alerts.py").write_text("raise ValueError('a secret')")
    monkeypatch.syspath_prepend(str(tmp_path))  # pyright: ignore[reportUnknownMemberType]
    monkeypatch.setenv("DYNAURORA_ALERTS", "broken_alerts:tell")
    judge(code, passed=False)
    result = result_of_tick(code, None)
    said = result.skip_message or ""
    assert "1 alerts could not be sent and wait for the next tick" in said
    assert "importing broken_alerts raised ValueError at broken_alerts.py:1" in said
    assert "a secret" not in said
    monkeypatch.setenv("DYNAURORA_ALERTS", f"{__name__}:tell")
    tick(code, result.cursor)
    assert [alert.subject for alert in TOLD] == ["employees/replication: lag"]


def start_load(code: Code) -> dg.DagsterRun:
    """Begin a load as a daemon does: its checks are planned, and none has a result yet."""
    job = code.definitions.resolve_job_def("employees_full_load")
    run = code.instance.create_run_for_job(job)
    code.instance.handle_new_event(run_event(run, dg.DagsterEventType.RUN_START))
    key = dg.AssetCheckKey(dg.AssetKey(["employees", "aurora_table"]), "schema_matches_mapping")
    record = code.instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert (record.status.value, record.run_id) == ("PLANNED", run.run_id)
    return run


def test_a_load_at_work_hides_no_alert_and_neither_does_one_that_failed_or_was_killed_before_its_check(
    code: Code,
) -> None:
    cursor = tick(code, None)
    code.run("employees_full_load")  # not migrated: the check is an error
    cursor = tick(code, cursor)
    assert ("error", "employees/aurora_table: schema_matches_mapping") in [(a.state, a.subject) for a in TOLD]
    TOLD.clear()
    killed = start_load(code)
    judge(code, passed=False)
    cursor = tick(code, cursor)
    assert [(alert.state, alert.subject) for alert in TOLD] == [("error", "employees/replication: lag")]
    TOLD.clear()
    code.instance.report_run_failed(killed, "the run's process is gone")  # as run monitoring does
    failed = code.definitions.resolve_job_def("employees_full_load").execute_in_process(
        instance=code.instance,
        raise_on_error=False,
        resources={"dynaurora": ServicesResource(database_url="postgresql://nobody@127.0.0.1:9/none")},
    )
    cursor = tick(code, cursor)
    assert {alert.subject for alert in TOLD} == {
        f"employees_full_load, run {killed.run_id}",
        f"employees_full_load, run {failed.run_id}",
    }
    TOLD.clear()
    code.migrate()
    code.run("employees_full_load", {"manifest": code.export(1).location})
    start_load(code)  # planned again: the result before counts
    cursor = tick(code, cursor)
    assert ("resolved", "employees/aurora_table: schema_matches_mapping") in [(a.state, a.subject) for a in TOLD]


def test_an_error_is_sent_though_the_next_load_is_already_planned(code: Code) -> None:
    cursor = tick(code, None)
    code.run("employees_full_load")
    start_load(code)
    tick(code, cursor)
    assert "employees/aurora_table: schema_matches_mapping" in [alert.subject for alert in TOLD]


def test_a_check_that_is_gone_is_resolved(code: Code) -> None:
    judge(code, passed=False)
    cursor = tick(code, tick(code, None))
    path = code.folder / "employees.yaml"
    path.write_text(path.read_text().replace("name: employees", "name: people"))
    code.definitions = build(code.folder, code.resource)
    tick(code, cursor)
    assert [(alert.state, alert.subject) for alert in TOLD] == [
        ("error", "employees/replication: lag"),
        ("resolved", "employees/replication: lag"),
    ]


def test_a_source_that_cannot_be_read_is_an_alert_and_hides_no_other(
    code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor = tick(code, None)
    judge(code, passed=False)

    def unreadable(*_: object, **__: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(type(code.instance), "get_run_records", unreadable)
        cursor = tick(code, cursor)
        cursor = tick(code, cursor)
    tick(code, cursor)
    assert [(alert.state, alert.subject) for alert in TOLD] == [
        ("error", "employees/replication: lag"),
        ("error", "alerts: failing_runs"),
        ("resolved", "alerts: failing_runs"),
    ]


def test_without_a_function_alerts_stand_in_the_log_and_are_done_with(
    code: Code, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DYNAURORA_ALERTS")
    cursor = tick(code, None)
    judge(code, passed=False)
    assert json.loads(tick(code, cursor))["told"] == ["employees/replication: lag"]


@pytest.mark.parametrize("named", ["company.alerts:tell", "json", "json:", ":tell", "json:missing"])
def test_a_function_that_cannot_be_found_is_named_with_the_remedy(named: str) -> None:
    with pytest.raises(ConfigurationError, match=r"set it to module:function"):
        teller({"DYNAURORA_ALERTS": named})
