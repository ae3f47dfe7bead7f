"""Sources of alerts: results of checks, failed runs, and failed ticks of sensors and schedules, read from the instance.

Invariant: each source is judged alone. The cursor notes what was sent, by subject, so each thing is sent once. A check
counts by its newest *result*; an evaluation that is only planned, by a run that is running or ended before it, is no
result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from dagster_project.failures import trouble

if TYPE_CHECKING:
    from dagster_shared.error import SerializableErrorInfo

ALERTS = "alerts"
MOST_RUNS = 100
# How far back a look goes: the clocks of the hosts that write run times may differ by that much.
OVERLAP_SECONDS = 120.0
# Statuses as Dagster names them; it exports none of the classes.
_TICK_FAILED, _TICK_ENDED = "FAILURE", {"SUCCESS", "SKIPPED", "FAILURE"}
_PLANNED = "PLANNED"
# Only the newest tick may be under way.
_TICKS = 2

State = Literal["error", "resolved", "run failed"]
Cursor = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. `subject` is short and stays the same until it is resolved, so that alerts can be grouped by it."""

    state: State
    subject: str
    """`employees/replication: lag`, `employees_full_load, run 0f3a…`, or `sensor replication_progress`."""
    text: str
    """What was found, and what to do next."""


def failing_checks(context: dg.SensorEvaluationContext, cursor: Cursor) -> Iterable[Alert]:
    """Compare each check's newest result with what was sent about it, and note it. An error is sent once."""
    repository = context.repository_def
    keys = sorted(repository.asset_graph.asset_check_keys, key=str) if repository else []
    known = set(cursor.setdefault("checks", []))
    storage = context.instance.event_log_storage
    records = storage.get_latest_asset_check_execution_by_key(keys)
    for key, record in records.items():
        newest = record
        if record.status.value == _PLANNED:
            evaluated = {status for status in type(record.status) if status.value != _PLANNED}
            results = storage.get_asset_check_execution_history(key, limit=1, status=evaluated)
            if not results:
                continue
            newest = results[0]
        result = newest.evaluation
        if result is None:
            continue
        failed = not result.passed and result.severity is dg.AssetCheckSeverity.ERROR
        name = _check_name(key)
        yield from _turned(
            cursor, name, lambda text=result.description: text or "see the check in Dagster", failed=failed
        )
    current = {_check_name(key) for key in keys}
    for name in sorted(known - current):
        yield from _turned(
            cursor, name, lambda: "the check no longer exists: its mapping was changed or removed", failed=False
        )
    cursor["checks"] = sorted(current & set(cursor["told"]))


def _check_name(key: dg.AssetCheckKey) -> str:
    return f"{key.asset_key.to_user_string()}: {key.name}"


def _turned(cursor: Cursor, subject: str, text: Callable[[], str], *, failed: bool) -> Iterable[Alert]:
    told: list[str] = cursor["told"]
    if failed and subject not in told:
        told.append(subject)
        yield Alert("error", subject, text())
    elif not failed and subject in told:
        told.remove(subject)
        yield Alert("resolved", subject, text())


def failing_runs(context: dg.SensorEvaluationContext, cursor: Cursor) -> Iterable[Alert]:
    """Find the runs of this code location that failed since the last look; the first look only begins."""
    first = "runs_since" not in cursor
    since: float = cursor.setdefault("runs_since", time.time())
    known: list[str] = cursor.get("runs_then", [])
    jobs = set(context.repository_def.job_names) if context.repository_def else set[str]()
    records = context.instance.get_run_records(
        dg.RunsFilter(
            statuses=[dg.DagsterRunStatus.FAILURE], updated_after=datetime.fromtimestamp(since - OVERLAP_SECONDS, UTC)
        ),
        limit=MOST_RUNS + len(known),  # those known come first, and must not crowd out what is new
        order_by="update_timestamp",
        ascending=True,
    )
    for record in records:
        run = record.dagster_run
        if not first and run.run_id not in known and run.job_name in jobs:
            yield Alert("run failed", f"{run.job_name}, run {run.run_id}", _why(context.instance, run.run_id))
    if records:
        cursor["runs_since"] = max(since, records[-1].update_timestamp.timestamp())
        cursor["runs_then"] = [record.dagster_run.run_id for record in records]


def _why(instance: dg.DagsterInstance, run_id: str) -> str:
    """Return what the failed step said, or where to look."""
    try:
        for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
            data: Any = entry.dagster_event.step_failure_data if entry.dagster_event else None
            if data and data.user_failure_data and data.user_failure_data.description:
                return str(data.user_failure_data.description)
    except Exception as error:  # noqa: BLE001  that it failed is what matters
        return f"see the run in Dagster (its log could not be read: {trouble(error)})"
    return "see the run in Dagster; run it again (**Re-execute**): a load resumes with the files that are left"


def failing_ticks(context: dg.SensorEvaluationContext, cursor: Cursor) -> Iterable[Alert]:
    """Look at the newest finished tick of every other sensor and schedule of this code location."""
    repository, place = context.repository_def, context.code_location_origin
    if repository is None or context.instance.schedule_storage is None:  # an instance that keeps no ticks
        return
    kinds = {sensor.name: "sensor" for sensor in repository.sensor_defs}
    kinds |= {schedule.name: "schedule" for schedule in repository.schedule_defs}
    for state in context.instance.all_instigator_state():
        kind = kinds.get(state.name)
        elsewhere = place is not None and state.repository_selector.location_name != place.location_name
        if kind is None or elsewhere or state.name == ALERTS:
            continue
        subject = f"{kind} {state.name}"
        if not state.is_running:
            yield from _turned(cursor, subject, lambda: "it was stopped in Dagster", failed=False)
            continue
        yield from _of_ticks(context.instance, state.instigator_origin_id, state.selector_id, cursor, subject)


def _of_ticks(
    instance: dg.DagsterInstance, origin: str, selector: str, cursor: Cursor, subject: str
) -> Iterable[Alert]:
    ticks = instance.get_ticks(origin, selector, limit=_TICKS)
    ended = next((tick for tick in ticks if tick.status.value in _TICK_ENDED), None)
    if ended is None:
        return
    failed, error = ended.status.value == _TICK_FAILED, ended.error
    yield from _turned(
        cursor, subject, lambda: _tick_error(error) if failed else "its newest tick succeeded", failed=failed
    )


def _tick_error(error: SerializableErrorInfo | None) -> str:
    """Return the text of our own error; for any other error only its class, because its text may quote data."""
    while error is not None and error.cause is not None:
        error = error.cause
    said = error.message.strip() if error else ""
    if not said.startswith(("pipeline.", "dagster_project.")):
        said = f"it raised {error.cls_name}" if error and error.cls_name else "it ended without a result"
    said = said.partition(": ")[2] or said
    return f"its tick failed, so what it watches is not reported: {said}; see its ticks in Dagster"
