"""Checks of replication: is it behind, and does anything wait for a person.

Invariant: they are judged from one look, in the same way by the progress sensor and when launched by hand: what the
bookkeeping says, and what a tick of the probe found in the stream and in Aurora.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import dagster as dg

from dagster_project.console import source_links
from dagster_project.failures import trouble
from dagster_project.freshness import Freshness
from dagster_project.keys import TableKeys
from dagster_project.resources import ServicesResource
from pipeline.aurora.bookkeeping.probes import Tick
from pipeline.aurora.bookkeeping.status import TableStatus
from pipeline.core.errors import ReplicationError, TransientError
from pipeline.core.model.mapping import TableMapping
from pipeline.dynamodb.clock import NOTABLE, SET_IT, how_far
from pipeline.dynamodb.streams.event_sources import EventSourceMapping
from pipeline.jobs.probe.lost_history import readers_when_late, why_not_delivered
from pipeline.jobs.probe.probe import probe
from pipeline.jobs.probe.probe_shards import Limits
from pipeline.jobs.services import Services
from pipeline.jobs.status import not_migrated, status

LAG, REJECTS = "lag", "rejects_waiting"


@dataclass(frozen=True, slots=True)
class Look:
    """What one look sees of a table's replication."""

    found: TableStatus | None
    """None if its bookkeeping could not be read, or there is none yet."""
    tick: Tick | None
    """What the probe found; None if it could not run."""
    problem: str = ""
    """Why it could not."""
    needs_person: bool = False
    """The problem stays until somebody does something. Otherwise the next look may find out."""
    table_arn: str = ""
    readers: Sequence[EventSourceMapping] | None = None
    """What reads the stream, looked up when replication is late; None if it was not looked up, or could not be."""
    why: Sequence[str] = ()
    """What about the readers explains a lag; empty if all of them work."""

    @property
    def lag_seconds(self) -> float | None:
        """Age of the oldest change that has not arrived; 0 if all have, None if it is not known."""
        return self.tick.lag_seconds if self.tick else None


def look(services: Services, mapping: TableMapping, found: TableStatus | None, limits: Limits | None = None) -> Look:
    """Run a tick of the probe. What goes wrong with this table is part of the look, so no other table's look fails.

    If replication is late, look up what should have applied the changes, which takes 3 more AWS calls.
    """
    if found is None:
        return Look(None, None, str(not_migrated(mapping)), needs_person=True)
    try:
        tick = probe(services, mapping, limits=limits)
    except Exception as error:  # noqa: BLE001  a defect too: the other tables are still looked at
        return Look(found, None, trouble(error), needs_person=not isinstance(error, TransientError))
    if tick.lag_seconds is None or tick.lag_seconds <= Freshness.of(mapping).warn.total_seconds():
        return Look(found, tick)
    try:
        seen = readers_when_late(services, mapping)
    except ReplicationError:  # the lag is what matters, and it is known
        seen = None
    if seen is None:
        return Look(found, tick)
    table, readers = seen
    return Look(found, tick, table_arn=table.arn, readers=readers.ours, why=why_not_delivered(readers))


def replication_checks(mapping: TableMapping) -> dg.AssetChecksDefinition:
    """Define both checks as one step that looks once."""
    keys = TableKeys(mapping.name)

    @dg.multi_asset_check(name=f"{mapping.name}__replication_checks", specs=check_specs(mapping))
    def checks(dynaurora: ServicesResource) -> Iterator[dg.AssetCheckResult]:
        (found,) = status(dynaurora.services, [mapping])
        yield from judge(keys, Freshness.of(mapping), look(dynaurora.services, mapping, found))

    return checks


def check_specs(mapping: TableMapping) -> list[dg.AssetCheckSpec]:
    """Describe the checks."""
    keys, freshness = TableKeys(mapping.name), Freshness.of(mapping)
    return [
        dg.AssetCheckSpec(
            LAG,
            asset=keys.replication,
            description="Every change in the table's stream arrived in Aurora within"
            f" {_span(freshness.warn.total_seconds())} of being made (an error beyond"
            f" {_span(freshness.fail.total_seconds())}). It is measured from the stream and the stored rows, so it is"
            " right even if the replicator has stopped or nothing is written. If it is late: look at the replicator's"
            " errors, throttles and iterator age in CloudWatch, at its event source mapping (the result links to both),"
            " and at the load of the database.",
        ),
        dg.AssetCheckSpec(
            REJECTS,
            asset=keys.replication,
            description="No record is waiting that could not be converted. If some are, `dynaurora rejects list"
            f" {mapping.name}` shows the reasons. Correct the mapping, run `dynaurora migrate {mapping.name}`, deploy"
            f" it to the replicator, then launch `{keys.replay_job}` (or run `dynaurora rejects replay"
            f" {mapping.name}`).",
        ),
    ]


def judge(keys: TableKeys, freshness: Freshness, seen: Look) -> list[dg.AssetCheckResult]:
    """Judge what was seen of a table: lag first, then rejects."""
    return [_lag(keys, freshness, seen), _rejects(keys, seen)]


def _lag(keys: TableKeys, freshness: Freshness, seen: Look) -> dg.AssetCheckResult:
    lag, warn, fail = seen.lag_seconds, freshness.warn.total_seconds(), freshness.fail.total_seconds()
    lost = seen.tick is not None and seen.tick.lost > 0
    metadata: dict[str, dg.MetadataValue] = {}
    if seen.tick is not None:
        metadata = {
            "waiting": dg.MetadataValue.int(seen.tick.waiting),
            "stuck": dg.MetadataValue.int(seen.tick.stuck),
            "lost": dg.MetadataValue.int(seen.tick.lost),
            "open_shards": dg.MetadataValue.int(seen.tick.shards),
        }
        if seen.tick.caught_up_through is not None:
            metadata["caught_up_through"] = dg.MetadataValue.timestamp(seen.tick.caught_up_through)
    if lag is not None:
        metadata["lag_seconds"] = dg.MetadataValue.float(round(lag, 3))
    metadata |= source_links(seen.table_arn, seen.readers)
    return dg.AssetCheckResult(
        passed=lag is not None and lag <= warn and not lost,
        asset_key=keys.replication,
        check_name=LAG,
        severity=dg.AssetCheckSeverity.ERROR
        if seen.needs_person or lost or (lag is not None and lag > fail)
        else dg.AssetCheckSeverity.WARN,
        description=_told(seen) + (_lost(keys, seen.tick) + _clock(seen.tick) if seen.tick else ""),
        metadata=metadata,
    )


def _told(seen: Look) -> str:
    if seen.tick is None:
        return f"the lag is not known: {seen.problem}"
    if seen.lag_seconds is None:
        return "the lag is not known: the stream is off, or was not read to its end; the next look may find out"
    if seen.tick.waiting:
        return (
            f"{seen.tick.waiting} keys have changes that have not arrived, the oldest made"
            f" {_span(seen.lag_seconds)} ago{''.join(f'; {why}' for why in seen.why)}"
        )
    return "every change in the stream has arrived"


def _clock(tick: Tick) -> str:
    ahead = timedelta(seconds=tick.clock_ahead_seconds or 0)
    if abs(ahead) < NOTABLE:
        return ""
    return f"; this host's clock is {how_far(ahead)} DynamoDB's, which the lag is measured by: {SET_IT}"


def _lost(keys: TableKeys, tick: Tick) -> str:
    if not tick.lost:
        return ""
    return (
        f"; {tick.lost} keys have changes that are lost: the check `lost_history` and `dynaurora status {keys.name}`"
        " name the command that brings them back"
    )


def _rejects(keys: TableKeys, seen: Look) -> dg.AssetCheckResult:
    if seen.found is None:
        return dg.AssetCheckResult(
            passed=False,
            asset_key=keys.replication,
            check_name=REJECTS,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"not known: {seen.problem}",
        )
    waiting = seen.found.rejects_waiting
    return dg.AssetCheckResult(
        passed=waiting == 0,
        asset_key=keys.replication,
        check_name=REJECTS,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{waiting} rejects wait: `dynaurora rejects list {keys.name}` says why; correct the mapping,"
        f" migrate, then launch `{keys.replay_job}` or run `dynaurora rejects replay {keys.name}`"
        if waiting
        else "no reject waits",
        metadata={"rejects_waiting": dg.MetadataValue.int(waiting)},
    )


def _span(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"
