"""What to report about a table's replication at one tick: pure, from what is seen now and what was reported before.

It is a materialization while every change has arrived within the warning window, even if nothing is written, because
that is what the freshness policy counts. Otherwise it is an observation, now and then. A materialization clears the
asset's check results, so both checks are reported with it, and also whenever their outcome changes.

Invariant: events are rare, because Dagster keeps them. With the default windows (5 and 30 min), a table that is caught
up, idle or not, gets a materialization every 15 min: 96 a day, and 192 check evaluations.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_project.replication_checks import LAG, judge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dagster_project.freshness import Freshness
    from dagster_project.keys import TableKeys
    from dagster_project.replication_checks import Look

IDLE_SECONDS = 3600.0

Event = dg.AssetMaterialization | dg.AssetObservation | dg.AssetCheckEvaluation


@dataclass(frozen=True, slots=True)
class Memory:
    """What was last reported about one table. Times are epoch seconds, 0 for never."""

    applied: int = 0
    materialized_at: float = 0.0
    observed_at: float = 0.0
    counted_at: float = 0.0
    looked_at: float = 0.0
    known_at: float = 0.0
    """When the lag was last known."""
    outcomes: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Memory:
        """Read a memory from a cursor; fields of another release are ignored."""
        known = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in stored.items() if name in known})

    def stored(self) -> dict[str, Any]:
        """Return what a cursor keeps."""
        return asdict(self)


def report(keys: TableKeys, freshness: Freshness, seen: Look, memory: Memory, now: float) -> tuple[list[Event], Memory]:
    """Return the events of this tick in order, and what to remember."""
    lag, warn = seen.lag_seconds, freshness.warn.total_seconds()
    every = freshness.report_every.total_seconds()
    if lag is not None:
        memory = replace(memory, known_at=now)
    events: list[Event] = []
    materialize = lag is not None and lag <= warn and now - memory.materialized_at >= every
    if materialize:
        events.append(dg.AssetMaterialization(keys.replication, metadata=_metadata(seen, memory)))
        applied = seen.found.applied if seen.found else memory.applied
        memory = replace(memory, applied=applied, materialized_at=now)
    elif now - max(memory.materialized_at, memory.observed_at) >= (IDLE_SECONDS if lag is None else every):
        events.append(dg.AssetObservation(keys.replication, metadata=_metadata(seen, memory)))
        memory = replace(memory, observed_at=now)
    if seen.found and seen.found.rows_estimate is not None and now - memory.counted_at >= IDLE_SECONDS:
        rows = {"dagster/row_count": dg.MetadataValue.int(seen.found.rows_estimate)}
        events.append(dg.AssetObservation(keys.aurora_table, description="estimated", metadata=rows))
        memory = replace(memory, counted_at=now)
    # One look that found nothing out (a throttled read) changes nothing, as long as the one before is recent.
    quiet = {LAG} if lag is None and not seen.needs_person and now - memory.known_at <= warn else set[str]()
    return _add_checks(events, keys, freshness, seen, memory, quiet, all_of_them=materialize)


def _add_checks(
    events: list[Event],
    keys: TableKeys,
    freshness: Freshness,
    seen: Look,
    memory: Memory,
    quiet: set[str],
    *,
    all_of_them: bool,
) -> tuple[list[Event], Memory]:
    outcomes = dict(memory.outcomes)
    for result in judge(keys, freshness, seen):
        name = result.check_name or ""
        if name in quiet:
            continue
        outcomes[name] = "passed" if result.passed else f"{result.severity.value} {seen.problem}".strip()
        if all_of_them or memory.outcomes.get(name) != outcomes[name]:
            events.append(evaluation(result))
    return events, replace(memory, outcomes=outcomes)


def evaluation(result: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    """Turn a check's result into the event that a sensor may report."""
    if result.asset_key is None or result.check_name is None:
        raise ValueError("the result names no asset or no check")
    return dg.AssetCheckEvaluation(
        asset_key=result.asset_key,
        check_name=result.check_name,
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=result.metadata,
    )


def _metadata(seen: Look, memory: Memory) -> dict[str, dg.MetadataValue]:
    found = seen.found
    if found is None:
        return {"problem": dg.MetadataValue.text(seen.problem)}
    metadata: dict[str, dg.MetadataValue] = {
        "applied_since_last_report": dg.MetadataValue.int(max(0, found.applied - memory.applied)),
        "applied": dg.MetadataValue.int(found.applied),
        "stale": dg.MetadataValue.int(found.stale),
        "deleted": dg.MetadataValue.int(found.deleted),
        "expired": dg.MetadataValue.int(found.expired),
        "rejected": dg.MetadataValue.int(found.rejected),
        "rejects_waiting": dg.MetadataValue.int(found.rejects_waiting),
        "batches": dg.MetadataValue.int(found.batches),
        "writers": dg.MetadataValue.int(found.writers),
    }
    if seen.lag_seconds is not None:
        metadata["lag_seconds"] = dg.MetadataValue.float(round(seen.lag_seconds, 3))
    if seen.tick is not None:
        metadata["waiting"] = dg.MetadataValue.int(seen.tick.waiting)
        metadata["lost"] = dg.MetadataValue.int(seen.tick.lost)
        if seen.tick.caught_up_through is not None:
            metadata["caught_up_through"] = dg.MetadataValue.timestamp(seen.tick.caught_up_through)
    if found.applied_at is not None:
        metadata["applied_at"] = dg.MetadataValue.timestamp(found.applied_at)
    if found.newest_change is not None:
        metadata["newest_change"] = dg.MetadataValue.timestamp(found.newest_change)
    return metadata
