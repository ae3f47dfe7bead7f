"""How far replication has provably come, so that a comparison with the source's state can rely on it.

Invariant: `through` never claims more than its basis supports. A probe proves it (`settled_through`). If no probe runs,
late batches are evidence that replication is behind. Otherwise we assume, and report as an assumption, that replication
is at most the margin behind.

The state of the change that a row waits for matters. A change on its way delays a decision. A stuck or lost change does
not: it explains why the row holds an older state, and the row may be repaired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from pipeline.aurora.bookkeeping import probes
from pipeline.aurora.errors import translating
from pipeline.core.ordering import Position
from pipeline.core.past.probing import State

if TYPE_CHECKING:
    from pipeline.aurora.sessions.connection import Connection

# A batch that was committed longer ago than this says nothing about replication's lag now.
_RECENT = timedelta(seconds=20)
# Without a probe, a table to which nothing was applied for this long counts as idle.
_IDLE = timedelta(minutes=20)
# A probe that has not ticked for this long says nothing either.
_PROBE_STOPPED = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class AppliedThrough:
    """No change that the source made before `through` is still on its way, according to `basis`."""

    through: datetime
    basis: Literal["probe", "late batches", "assumption"]
    newest: datetime | None
    """Creation time of the newest change applied."""

    def lag(self, now: datetime) -> timedelta:
        """How far replication is known to be behind; 0 if `through` is only an assumption."""
        if self.basis == "assumption":
            return timedelta(0)
        return max(timedelta(0), now - max(self.through, self.newest or self.through))

    def covers_snapshot(self, snapshot_time: datetime, margin: timedelta, now: datetime) -> bool:
        """Whether replication must have applied everything in the snapshot, which may contain changes up to a margin
        later.

        If `through` is only an assumption, something newer than the snapshot must have arrived too, unless nothing has
        arrived for so long that the table seems idle.
        """
        if self.basis == "assumption":
            idle = self.newest is None or self.newest < now - _IDLE
            return now >= snapshot_time + margin and (idle or (self.newest or now) >= snapshot_time)
        return self.through >= snapshot_time + margin

    @property
    def read_covered(self) -> datetime:
        """The time before which replication must have applied any state read from the source.

        If `through` is only an assumption, something that the source made later must have arrived too, because an
        assumption would not notice a dead replicator.
        """
        if self.basis == "assumption":
            return min(self.through, self.newest) if self.newest else datetime.min.replace(tzinfo=self.through.tzinfo)
        return self.through


def applied_through(connection: Connection, table_name: str, *, now: datetime, margin: timedelta) -> AppliedThrough:
    """Return how far the table's stream is known to be applied, as of `now`. Reads only; takes no lock."""
    with translating("reading the progress of replication", table=table_name):
        row = connection.execute(
            "SELECT max(as_of), max(as_of) FILTER (WHERE applied_at > %s) FROM replication.watermarks"
            " WHERE table_name = %s AND sequence_number IS NOT NULL",
            [now - _RECENT, table_name],
        ).fetchone()
    newest, recent = row or (None, None)
    proven = settled_through(connection, table_name, now)
    if proven is not None:
        return AppliedThrough(proven, "probe", newest)
    if recent is not None and recent < now - margin - _RECENT:
        return AppliedThrough(recent, "late batches", newest)
    return AppliedThrough(now - margin, "assumption", newest)


def settled_through(connection: Connection, table_name: str, now: datetime) -> datetime | None:
    """Return the time before which nothing is on its way, according to the probe; None if unknown, or out of date."""
    tick = _tick(connection, table_name, now)
    return tick.settled_through if tick else None


def _tick(connection: Connection, table_name: str, now: datetime) -> probes.Tick | None:
    tick = probes.read_tick(connection, table_name)
    return None if tick is None or tick.ticked_at < now - _PROBE_STOPPED else tick


@dataclass(frozen=True, slots=True)
class AppliedToKeys:
    """How far replication has come for single keys: further than for the table if it only waits for other keys."""

    table: AppliedThrough
    read: datetime | None = None
    """For a key without a known change on its way, nothing made before this time is on its way; None: unknown."""
    on_way: frozenset[tuple[str, ...]] = frozenset()
    """Keys, as the codec writes them, that have a change on its way."""
    behind: Mapping[tuple[str, ...], Position] = field(default_factory=dict[tuple[str, ...], Position])
    """Keys with a stuck or lost change, and the position of the newest one."""

    @property
    def at_best(self) -> AppliedThrough:
        """How far replication has come for a key that has nothing on its way."""
        return self.table if self.read is None else replace(self.table, through=max(self.table.through, self.read))

    def of(self, key: tuple[str, ...]) -> AppliedThrough:
        """Return how far replication has come for a key."""
        return self.table if key in self.on_way else self.at_best


def applied_to_keys(
    connection: Connection,
    table_name: str,
    target: str,
    keys: Sequence[tuple[str, ...]],
    *,
    now: datetime,
    margin: timedelta,
) -> AppliedToKeys:
    """Return how far the table's stream is known to be applied for each of these keys of a target."""
    table = applied_through(connection, table_name, now=now, margin=margin)
    tick = _tick(connection, table_name, now)
    if table.basis != "probe" or tick is None:
        return AppliedToKeys(table)
    with translating("reading what the probe waits for", table=table_name):
        waiting = connection.execute(
            "SELECT key, version, as_of, state FROM replication.probe_waiting WHERE table_name = %s AND target = %s",
            [table_name, target],
        ).fetchall()
    asked = set(keys)
    changes = [(tuple(key), Position(as_of, int(version)), State(state)) for key, version, as_of, state in waiting]
    ours = [change for change in changes if change[0] in asked]
    return AppliedToKeys(
        table,
        tick.read_through,
        frozenset(key for key, _, state in ours if state is State.ON_ITS_WAY),
        {key: position for key, position, state in ours if state is not State.ON_ITS_WAY},
    )
