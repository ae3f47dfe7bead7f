"""Real ticks of the lost-history sensor: what it reports on the source, how seldom, and what a restart changes."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import dagster as dg
import pytest

from dagster_project import history_sensor
from dagster_project.definitions import build
from dagster_project.history_sensor import LOST_HISTORY
from pipeline.core.errors import TerminalError
from tests.dagster_project.conftest import Code

SOURCE = dg.AssetKey(["employees", "dynamodb_table"])
NAMES = ("source_configuration", "lost_history", "on_failure_waiting")


def tick(code: Code, cursor: str | None = None) -> tuple[dict[str, dg.AssetCheckEvaluation], str]:
    sensor = code.definitions.get_repository_def().get_sensor_def(LOST_HISTORY)
    context = dg.build_sensor_context(instance=code.instance, cursor=cursor, resources={"dynaurora": code.resource})
    result = sensor(context)
    assert isinstance(result, dg.SensorResult)
    assert not result.run_requests
    for event in result.asset_events:
        code.instance.report_runless_asset_event(event)
    events = [event for event in result.asset_events if isinstance(event, dg.AssetCheckEvaluation)]
    assert len(events) == len(result.asset_events)
    return {event.check_name: event for event in events}, result.cursor or ""


def test_a_source_at_work_is_reported_once_and_not_again_after_a_restart(code: Code) -> None:
    code.migrate()
    told, cursor = tick(code)
    assert {name: event.passed for name, event in told.items()} == dict.fromkeys(NAMES, True)
    assert all(event.asset_key == SOURCE for event in told.values())
    home = "https://eu-central-1.console.aws.amazon.com"
    assert {n: v.value for n, v in told["source_configuration"].metadata.items() if n.startswith("console")} == {
        "console_table": f"{home}/dynamodbv2/home?region=eu-central-1#table?name=Employees",
        "console_exports": f"{home}/dynamodbv2/home?region=eu-central-1#exports",
        "console_function": f"{home}/lambda/home?region=eu-central-1#/functions/r",
        "console_event_source_mapping": f"{home}/lambda/home?region=eu-central-1#/functions/r?tab=configure",
        "console_log_group": f"{home}/cloudwatch/home?region=eu-central-1"
        "#logsV2:log-groups/log-group/$252Faws$252Flambda$252Fr",
    }
    code.definitions = build(code.folder, code.resource)
    assert tick(code, cursor)[0] == {}


def test_an_outcome_is_told_again_after_hours(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    code.migrate()
    _, cursor = tick(code)
    monkeypatch.setattr(history_sensor, "REPEAT_SECONDS", 0.0)
    assert set(tick(code, cursor)[0]) == set(NAMES)


def test_a_fault_is_reported_with_its_remedy_and_so_is_its_end(code: Code) -> None:
    code.migrate()
    _, cursor = tick(code)
    code.services.lambdas.mappings[0]["State"] = "Disabled"
    code.services.bucket.objects = {"aws/lambda/esm-1/s/1": datetime(2026, 5, 1, tzinfo=UTC)}
    told, cursor = tick(code, cursor)
    assert set(told) == {"source_configuration", "on_failure_waiting"}
    assert all(not e.passed and e.severity is dg.AssetCheckSeverity.ERROR for e in told.values())
    assert "`aws lambda update-event-source-mapping --uuid esm-1 --enabled`" in (
        told["source_configuration"].description or ""
    )
    assert told["on_failure_waiting"].metadata["objects_waiting"].value == 1
    assert "`dynaurora redrive employees`" in (told["on_failure_waiting"].description or "")
    code.services.lambdas.mappings[0]["State"] = "Enabled"
    code.services.bucket.objects.clear()
    told, cursor = tick(code, cursor)
    assert {name: event.passed for name, event in told.items()} == {
        "source_configuration": True,
        "on_failure_waiting": True,
    }
    code.services.stream.label = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.000}"
    code.services.lambdas.add(code.services.stream.arn, "esm-2")
    told, _ = tick(code, cursor)
    assert (set(told), told["lost_history"].severity) == ({"lost_history"}, dg.AssetCheckSeverity.ERROR)
    assert "run `dynaurora catch-up employees --from " in (told["lost_history"].description or "")


def test_recovery_that_is_off_warns_and_what_may_not_be_seen_does_not_fail(code: Code) -> None:
    code.migrate()
    code.services.stream.restorable_since = None
    code.services.lambdas.denied = True
    told, _ = tick(code)
    configuration = told["source_configuration"]
    assert (configuration.passed, configuration.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "grant it lambda:ListEventSourceMappings" in (configuration.description or "")
    assert told["on_failure_waiting"].passed
    assert (told["on_failure_waiting"].description or "").startswith("not known: this process may not list")


def test_a_source_that_cannot_be_looked_at_is_told(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    code.migrate()

    def unknown(*_: object) -> None:
        raise TerminalError("describing the table Employees: there is none", hint="check its name")

    monkeypatch.setattr(history_sensor, "lost_history_report", unknown)
    told, cursor = tick(code)
    assert set(told) == {"source_configuration"}
    assert not told["source_configuration"].passed
    assert "check its name" in (told["source_configuration"].description or "")
    assert json.loads(cursor)["employees"]["looked_at"] > 0


def test_the_checks_can_be_launched_by_hand(code: Code) -> None:
    code.migrate()
    job = code.definitions.resolve_implicit_global_asset_job_def()
    keys = {dg.AssetCheckKey(SOURCE, name) for name in NAMES}
    result = job.get_subset(asset_selection=set(), asset_check_selection=keys).execute_in_process(
        instance=code.instance
    )
    assert {check.check_name: check.passed for check in result.get_asset_check_evaluations()} == dict.fromkeys(
        NAMES, True
    )


def test_it_keeps_to_the_schedule_of_the_probe(code: Code, monkeypatch: pytest.MonkeyPatch) -> None:
    code.migrate()
    monkeypatch.setenv("DYNAURORA_PROBE_CRON", "0 0 29 2 *")
    told, cursor = tick(code)
    assert set(told) == set(NAMES)
    code.services.lambdas.mappings[0]["State"] = "Disabled"
    told, _ = tick(code, cursor)
    assert told == {}
