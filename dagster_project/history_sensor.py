"""The lost-history sensor: looks at every table's source every few minutes, and reports what it finds as checks.

Invariant: its cursor is its only memory, so a restart repeats no report. A table that cannot be looked at is reported
as such, and does not stop the others. It starts no run: the result names the command that repairs.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
import json
import os
import time
from collections.abc import Sequence
from typing import Any

import dagster as dg

from dagster_project.failures import trouble
from dagster_project.history_checks import CONFIGURED, judge_history
from dagster_project.keys import TableKeys
from dagster_project.probe_schedule import not_due
from dagster_project.progress import evaluation
from dagster_project.resources import ServicesResource
from pipeline.core.errors import TransientError
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.probe.lost_history import lost_history_report
from pipeline.jobs.services import Services

LOST_HISTORY = "lost_history"
INTERVAL_SECONDS = 600
# An outcome that does not change is reported again this often, so that its number has a history: 4 times a day.
REPEAT_SECONDS = 6 * 3600.0
LOOKING_SECONDS = 40.0


def history_sensor(mappings: Sequence[TableMapping]) -> dg.SensorDefinition:
    """Define the sensor over every mapping."""

    @dg.sensor(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves a parameter of PathLike out
        name=LOST_HISTORY,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks at each table's stream, event source mapping, point-in-time recovery and discarded batches."
        " It reports on the table's `dynamodb_table` what was lost or could be lost, with the remedy. It starts no"
        " run.",
    )
    def lost_history(context: dg.SensorEvaluationContext, dynaurora: ServicesResource) -> dg.SensorResult:
        cursor: dict[str, Any] = json.loads(context.cursor or "{}")
        events: list[dg.AssetCheckEvaluation] = []
        waits = not_due(os.environ, cursor, [mapping.name for mapping in mappings], time.time())
        end = time.monotonic() + (LOOKING_SECONDS if waits is None else 0.0)
        for mapping in sorted(mappings, key=lambda one: cursor.get(one.name, {}).get("looked_at", 0.0)):
            if time.monotonic() >= end:
                break
            memory = cursor.setdefault(mapping.name, {})
            events += news(memory, _results(dynaurora.services, mapping), time.time())
        return dg.SensorResult(
            asset_events=events,
            skip_reason=None if events else dg.SkipReason(waits or "nothing new to report"),
            cursor=json.dumps(cursor),
        )

    return lost_history


def _results(services: Services, mapping: TableMapping) -> list[dg.AssetCheckResult]:
    keys = TableKeys(mapping.name)
    try:
        return judge_history(keys, lost_history_report(services, mapping))
    except Exception as error:  # noqa: BLE001  a defect too: the other tables are still looked at
        again = isinstance(error, TransientError)
        return [
            dg.AssetCheckResult(
                passed=False,
                asset_key=keys.dynamodb_table,
                check_name=CONFIGURED,
                severity=dg.AssetCheckSeverity.WARN if again else dg.AssetCheckSeverity.ERROR,
                description=f"the source could not be looked at: {trouble(error)}",
            )
        ]


def news(memory: dict[str, Any], results: Sequence[dg.AssetCheckResult], now: float) -> list[dg.AssetCheckEvaluation]:
    """Return the results that differ from the last report, or whose last report is long ago; and remember them."""
    told: dict[str, list[Any]] = memory.setdefault("told", {})
    news: list[dg.AssetCheckEvaluation] = []
    for result in results:
        name, outcome = result.check_name or "", f"{result.passed} {result.severity.value} {result.description}"
        if told.get(name, [None])[0] != outcome or now - told[name][1] >= REPEAT_SECONDS:
            told[name] = [outcome, now]
            news.append(evaluation(result))
    memory["looked_at"] = now
    return news
