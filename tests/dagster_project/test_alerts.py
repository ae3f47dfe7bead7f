"""Real ticks of the alerts sensor: what is told, once, and that nothing is left out when telling fails."""

from __future__ import annotations

import json

import dagster as dg
import pytest

from dagster_project.alerts import ALERTS, Alert, teller
from pipeline.core.errors import ConfigurationError
from tests.dagster_project.conftest import Code

REPLICATION = dg.AssetKey(["employees", "replication"])
TOLD: list[Alert] = []


def tell(alert: Alert) -> None:
    TOLD.append(alert)


def refuse(_: Alert) -> None:
    raise ConnectionError("nobody answers")


@pytest.fixture(autouse=True)
def _told_here(monkeypatch: pytest.MonkeyPatch) -> None:
    TOLD.clear()
    monkeypatch.setenv("DYNAURORA_ALERTS", f"{__name__}:tell")


def tick(code: Code, cursor: str | None) -> str:
    sensor = code.definitions.get_repository_def().get_sensor_def(ALERTS)
    context = dg.build_sensor_context(instance=code.instance, cursor=cursor, definitions=code.definitions)
    return sensor.evaluate_tick(context).cursor or ""


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


def test_what_could_not_be_told_is_told_with_the_next_tick(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    cursor = tick(code, None)
    judge(code, passed=False)
    monkeypatch.setenv("DYNAURORA_ALERTS", f"{__name__}:refuse")
    with pytest.raises(ConnectionError):
        tick(code, cursor)
    monkeypatch.setenv("DYNAURORA_ALERTS", f"{__name__}:tell")
    tick(code, cursor)
    assert [alert.subject for alert in TOLD] == ["employees/replication: lag"]


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
