"""The progress sensor: one for all tables, one query a tick.

Invariant: its cursor is all it remembers, so a restart neither repeats reports nor leaves one out for long. When the
bookkeeping cannot be read the tick fails with the reason, and freshness runs out: silence is never taken for health.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
import json
import time
from collections.abc import Sequence
from typing import Any

import dagster as dg

from dagster_project.broken import report_broken
from dagster_project.freshness import Freshness
from dagster_project.keys import TableKeys
from dagster_project.progress import Event, Memory, report
from dagster_project.resources import ServicesResource
from pipeline.core.mapping import TableMapping
from pipeline.core.yaml_fields import Problem
from pipeline.jobs.status import status

PROGRESS = "replication_progress"
INTERVAL_SECONDS = 30


def progress_sensor(mappings: Sequence[TableMapping], problems: Sequence[Problem]) -> dg.SensorDefinition:
    """Define the sensor over every mapping, and over the files that could not be read."""

    @dg.sensor(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves a parameter of PathLike out
        name=PROGRESS,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reads how far replication is and reports it on each table's `replication`: freshness, lag,"
        " counters, rejects. Starts no run.",
    )
    def replication_progress(context: dg.SensorEvaluationContext, dynaurora: ServicesResource) -> dg.SensorResult:
        cursor: dict[str, Any] = json.loads(context.cursor or "{}")
        events, cursor["broken"] = report_broken(problems, cursor.get("broken", ""))
        found = _report_all(mappings, dynaurora, cursor.setdefault("tables", {})) if mappings else []
        events = [*events, *found]
        return dg.SensorResult(
            asset_events=events,
            skip_reason=None if events else dg.SkipReason("nothing new to report"),
            cursor=json.dumps(cursor),
        )

    return replication_progress


def _report_all(mappings: Sequence[TableMapping], dynaurora: ServicesResource, memories: dict[str, Any]) -> list[Event]:
    events: list[Event] = []
    now = time.time()
    for mapping, found in zip(mappings, status(dynaurora.services, mappings), strict=True):
        memory = Memory.of(memories.get(mapping.name, {}))
        new, memory = report(TableKeys(mapping.name), Freshness.of(mapping), found, memory, now)
        events += new
        memories[mapping.name] = memory.stored()
    return events
