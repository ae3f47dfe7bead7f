"""Alerts: what a person must know now, sent outside Dagster.

It sends checks that turn to error and back, runs that fail, and other sensors and schedules whose tick fails.

Invariant: a change is sent when it is seen, and the sensor's cursor is the only memory. Each check, run and sensor is
judged alone. An alert that could not be sent waits in the cursor for the next tick: it may be sent twice, and is never
dropped. Alerts repeat what checks and errors say, which contains no attribute values.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, cast

import dagster as dg

from dagster_project.alert_sources import ALERTS, Alert, failing_checks, failing_runs, failing_ticks
from dagster_project.failures import trouble
from pipeline.core.errors import ConfigurationError

__all__ = ["ALERTS", "Alert", "alerts_sensor", "teller"]

VARIABLE = "DYNAURORA_ALERTS"
INTERVAL_SECONDS = 30
# Dagster gives a tick 60 s, and remembers what a tick has sent only when the tick ends.
SENDING_SECONDS = 40.0
# How many alerts may wait because they could not be sent. Beyond that, the oldest are only in the log of their ticks.
MOST_WAITING = 1_000

Tell = Callable[[Alert], object]


def alerts_sensor() -> dg.SensorDefinition:
    """Define the sensor over every check, job, sensor and schedule of the code location."""

    @dg.sensor(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves a parameter of PathLike out
        name=ALERTS,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Calls the function that {VARIABLE} names (`module:function`) for checks that turn to error and"
        " back, for runs that fail, and for sensors and schedules whose tick fails. Without the variable, alerts are in"
        " the log of the tick. It starts no run.",
    )
    def alerts(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        cursor: dict[str, Any] = json.loads(context.cursor or "{}")
        found = list(_found(context, cursor))
        for alert in found:
            context.log.error("%s: %s: %s", alert.state, alert.subject, alert.text)
        waiting = [Alert(*fields) for fields in cursor.get("waiting", [])]
        unsent, problem = _send([*waiting, *found])
        cursor["waiting"] = [[alert.state, alert.subject, alert.text] for alert in unsent[-MOST_WAITING:]]
        if problem:
            problem = f"{len(unsent)} alerts could not be sent and wait for the next tick: {problem}"
            context.log.error("%s", problem)
        skipped = problem or (None if found or waiting else "nothing has changed")
        return dg.SensorResult(skip_reason=dg.SkipReason(skipped) if skipped else None, cursor=json.dumps(cursor))

    return alerts


def _found(context: dg.SensorEvaluationContext, cursor: dict[str, Any]) -> Iterable[Alert]:
    """Find what is new, each source by itself. A source that cannot be read is an alert too, and stops no other."""
    told: list[str] = cursor.setdefault("told", [])
    for source in (failing_checks, failing_runs, failing_ticks):
        subject = f"alerts: {source.__name__}"
        try:
            yield from source(context, cursor)
        except Exception as error:  # noqa: BLE001  whatever it is, the other sources are still read
            if subject not in told:
                told.append(subject)
                yield Alert(
                    "error", subject, f"they could not be read, so what failed there is not sent: {trouble(error)}"
                )
        else:
            if subject in told:
                told.remove(subject)
                yield Alert("resolved", subject, "they are read again")


def _send(alerts: list[Alert]) -> tuple[list[Alert], str]:
    """Send alerts in order; return those that could not be sent, and why.

    After one that failed, later ones of the same subject wait too, so that `error` never comes after `resolved`.
    """
    if not alerts:
        return [], ""
    try:
        tell = teller(os.environ)
    except ConfigurationError as error:
        return alerts, str(error)
    if tell is None:  # they are in the log
        return [], ""
    unsent: list[Alert] = []
    problem, end = "", time.monotonic() + SENDING_SECONDS
    for alert in alerts:
        if time.monotonic() > end:
            problem = problem or f"the function took more than {SENDING_SECONDS:.0f} s; give it a timeout"
        elif alert.subject not in {one.subject for one in unsent}:
            try:
                tell(alert)
                continue
            except Exception as error:  # noqa: BLE001  a user's function; the other alerts are still sent
                problem = f"{os.environ[VARIABLE]} raised {trouble(error)}"
        unsent.append(alert)
    return unsent, problem


def teller(environment: Mapping[str, str]) -> Tell | None:
    """Return the function that alerts are sent to, or None if none is named. Raises ConfigurationError."""
    name = environment.get(VARIABLE, "")
    if not name:
        return None
    module, _, function = name.partition(":")
    reason = ""
    try:
        found = getattr(import_module(module), function, None) if module and function else None
    except Exception as error:  # noqa: BLE001  a user's module: whatever its import raises is reported with its name
        found, reason = None, f": importing {module} raised {trouble(error)}"
    if not callable(found):
        raise ConfigurationError(
            f"sending alerts: {VARIABLE} names no function that can be imported{reason}",
            hint=f"set it to module:function, such as {VARIABLE}=company.alerts:tell; the function takes one alert"
            " with state, subject and text",
        )
    return cast("Tell", found)
