"""The progress sensor: one for all tables, with one query for their status and one look with the probe at each.

Invariant: its cursor is its only memory, so a restart neither repeats reports nor leaves one out for long. If the
bookkeeping cannot be read, the tick fails with the reason, and freshness runs out: silence never counts as health.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import dagster as dg

from dagster_project.broken import report_broken
from dagster_project.freshness import Freshness
from dagster_project.keys import TableKeys
from dagster_project.probe_schedule import not_due
from dagster_project.progress import Event, Memory, report
from dagster_project.replication_checks import Look, look
from dagster_project.resources import ServicesResource
from pipeline.aurora.bookkeeping.status import TableStatus
from pipeline.core.mapping_files.yaml_fields import Problem
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.probe.probe import TICK_SECONDS
from pipeline.jobs.probe.probe_shards import Limits
from pipeline.jobs.probe.probe_tables import TABLES_AT_ONCE
from pipeline.jobs.status import status

PROGRESS = "replication_progress"
INTERVAL_SECONDS = 30
# Dagster's daemon looks at sensors every 5 s. With an interval of 5, every other look would come a hair too early.
SHORTEST_INTERVAL_SECONDS = 4
# Dagster gives a tick 60 s (DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS).
LOOKING_SECONDS = 40.0


def progress_sensor(mappings: Sequence[TableMapping], problems: Sequence[Problem]) -> dg.SensorDefinition:
    """Define the sensor over every mapping, and over the files that could not be read."""

    @dg.sensor(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves a parameter of PathLike out
        name=PROGRESS,
        minimum_interval_seconds=interval_seconds([Freshness.of(mapping) for mapping in mappings]),
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reads each table's stream beside the Lambda function, asks Aurora what has arrived, and reports"
        " freshness, lag, counters and rejects on the table's `replication`. It starts no run. With"
        " DYNAURORA_PROBE_CRON it looks only on that schedule, so that a Serverless v2 cluster can pause in between.",
    )
    def replication_progress(context: dg.SensorEvaluationContext, dynaurora: ServicesResource) -> dg.SensorResult:
        cursor: dict[str, Any] = json.loads(context.cursor or "{}")
        events, cursor["broken"] = report_broken(problems, cursor.get("broken", ""))
        memories = cursor.setdefault("tables", {})
        waits = not_due(os.environ, memories, [mapping.name for mapping in mappings], time.time())
        if mappings and waits is None:
            events = [*events, *_report_all(mappings, dynaurora, memories)]
        return dg.SensorResult(
            asset_events=events,
            skip_reason=None if events else dg.SkipReason(waits or "nothing new to report"),
            cursor=json.dumps(cursor),
        )

    return replication_progress


def interval_seconds(freshness: Sequence[Freshness]) -> int:
    """Return how often to look: twice within the shortest warning window, within the bounds above."""
    shortest = min((one.warn.total_seconds() for one in freshness), default=2.0 * INTERVAL_SECONDS)
    return int(min(max(shortest / 2, SHORTEST_INTERVAL_SECONDS), INTERVAL_SECONDS))


def _report_all(mappings: Sequence[TableMapping], dynaurora: ServicesResource, memories: dict[str, Any]) -> list[Event]:
    """Look at the tables, those looked at longest ago first. Tables for which there was no time come first
    next time.
    """
    events: list[Event] = []
    statuses = status(dynaurora.services, mappings)
    end = time.monotonic() + LOOKING_SECONDS
    waiting = sorted(
        zip(mappings, statuses, strict=True), key=lambda pair: memories.get(pair[0].name, {}).get("looked_at", 0.0)
    )

    def look_in_time(pair: tuple[TableMapping, TableStatus | None]) -> Look | None:
        left = end - time.monotonic()
        if left <= 0:
            return None
        return look(dynaurora.services, *pair, Limits(time.monotonic() + min(TICK_SECONDS, left)))

    with ThreadPoolExecutor(TABLES_AT_ONCE, thread_name_prefix="look") as threads:
        looks = list(threads.map(look_in_time, waiting))
    for (mapping, _), seen in zip(waiting, looks, strict=True):
        if seen is None:
            continue
        now = time.time()
        memory = replace(Memory.of(memories.get(mapping.name, {})), looked_at=now)
        new, memory = report(TableKeys(mapping.name), Freshness.of(mapping), seen, memory, now)
        events += new
        memories[mapping.name] = memory.stored()
    return events
