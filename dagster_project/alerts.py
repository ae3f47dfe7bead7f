"""Alerts: what a person must know now, told outside Dagster. Checks that turn to error and back, and runs that fail.

Invariant: a change is told when it is seen, and its cursor is all the sensor remembers. Should telling fail, the tick
fails with the reason and the next one tells again: a change may be told twice, and is never left out. Alerts say what
checks and errors say, which holds no attribute values.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from typing import Any, Literal, cast

import dagster as dg

from pipeline.core.errors import ConfigurationError

ALERTS = "alerts"
VARIABLE = "DYNAURORA_ALERTS"
INTERVAL_SECONDS = 30
MOST_RUNS = 100


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing to tell. `subject` is short and stays the same until it is resolved, so that it can group alerts."""

    state: Literal["error", "resolved", "run failed"]
    subject: str
    """`employees/replication: lag`, or `employees_full_load, run 0f3a…`."""
    text: str
    """What was found, and what to do next."""


Tell = Callable[[Alert], object]


def alerts_sensor() -> dg.SensorDefinition:
    """Define the sensor over every check and every job of the code location."""

    @dg.sensor(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves a parameter of PathLike out
        name=ALERTS,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Tells checks that turn to error, and back, and runs that fail, to the function that {VARIABLE}"
        " names (`module:function`); without it they stand in the log of the tick. Starts no run.",
    )
    def alerts(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        cursor: dict[str, Any] = json.loads(context.cursor or "{}")
        told: list[str] = cursor.setdefault("told", [])
        found = [*_of_checks(context, told), *_of_runs(context, cursor)]
        tell = teller(os.environ)
        for alert in found:
            if tell:
                tell(alert)
            else:
                context.log.error("%s: %s: %s", alert.state, alert.subject, alert.text)
        skipped = None if found else dg.SkipReason("nothing has changed")
        return dg.SensorResult(skip_reason=skipped, cursor=json.dumps(cursor))

    return alerts


def teller(environment: Mapping[str, str]) -> Tell | None:
    """Return the function that is told alerts; None when none is named. Raises ConfigurationError."""
    name = environment.get(VARIABLE, "")
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function, None) if module and function else None
    except ImportError:
        found = None
    if not callable(found):
        raise ConfigurationError(
            f"telling alerts: {VARIABLE} names no function that can be imported",
            hint=f"set it to module:function, such as {VARIABLE}=company.alerts:tell; the function takes one alert"
            " with state, subject and text",
        )
    return cast("Tell", found)


def _of_checks(context: dg.SensorEvaluationContext, told: list[str]) -> Iterable[Alert]:
    """Compare each check's newest result with what was told of it, and note it. An error is told once."""
    repository = context.repository_def
    keys = sorted(repository.asset_graph.asset_check_keys, key=str) if repository else []
    records = context.instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    for key, record in records.items():
        result = record.evaluation
        if result is None:  # it is being made, or its step failed: the run's failure is told
            continue
        name = f"{key.asset_key.to_user_string()}: {key.name}"
        failed = not result.passed and result.severity is dg.AssetCheckSeverity.ERROR
        text = result.description or "see the check in Dagster"
        if failed and name not in told:
            told.append(name)
            yield Alert("error", name, text)
        elif not failed and name in told:
            told.remove(name)
            yield Alert("resolved", name, text)


def _of_runs(context: dg.SensorEvaluationContext, cursor: dict[str, Any]) -> Iterable[Alert]:
    """Find the runs of this code location that failed since the last look; the first look only begins."""
    first = "runs_since" not in cursor
    since: float = cursor.setdefault("runs_since", time.time())
    known: list[str] = cursor.get("runs_then", [])
    jobs = set(context.repository_def.job_names) if context.repository_def else set[str]()
    records = context.instance.get_run_records(
        # A moment earlier, as the filter leaves out what is of its very time; what was told is known.
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=datetime.fromtimestamp(since - 1, UTC)),
        limit=MOST_RUNS,
        order_by="update_timestamp",
        ascending=True,
    )
    for record in records:
        run = record.dagster_run
        if not first and run.run_id not in known and run.job_name in jobs:
            yield Alert("run failed", f"{run.job_name}, run {run.run_id}", _why(context.instance, run.run_id))
    if records:
        cursor["runs_since"] = records[-1].update_timestamp.timestamp()
        cursor["runs_then"] = [record.dagster_run.run_id for record in records]


def _why(instance: dg.DagsterInstance, run_id: str) -> str:
    """Return what the failed step said, else what Dagster says of the run."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        data: Any = entry.dagster_event.step_failure_data if entry.dagster_event else None
        if data and data.user_failure_data and data.user_failure_data.description:
            return str(data.user_failure_data.description)
    return "see the run in Dagster"
