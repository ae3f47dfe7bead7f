"""What the probe keeps from tick to tick: its place in each shard, and the changes that have not arrived. Pure.

A change has *arrived* when its key's stored row, live or tombstone, is that state or a newer one; when it was set aside
as a reject; when `purged_through` is past it; when a finished catch-up covers it and a margin around it; or when a
reconciliation as of a later time left nothing to do. A change that has not arrived is in one of the states of `State`;
`pipeline.core.past.conclude` draws the conclusions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from pipeline.core.ordering import Position, accepts
from pipeline.core.past.losses import RETENTION, Kind, Proof
from pipeline.core.streams.positions import same_stream

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

# How long a change may take to appear in its stream, plus how far the clocks of this machine and of DynamoDB may
# disagree. AWS says "near real time" and states no figure.
SETTLE = timedelta(seconds=15)
# After this no Lambda can still receive a record: retention, plus an hour for trimming and a batch in progress.
GONE_AFTER = RETENTION + timedelta(hours=1)


class State(StrEnum):
    """The state of a change that has not arrived."""

    ON_ITS_WAY = "on_its_way"
    """The replicator may still bring it."""
    STUCK = "stuck"
    """The replicator may still bring it, but nothing moves in its shard. It counts as lag, but delays no decision."""
    PASSED = "passed"
    """Lost: the replicator has moved past it."""
    TRIMMED = "trimmed"
    """Lost: the stream no longer holds it."""

    @property
    def lost(self) -> bool:
        """Whether it will never arrive by itself."""
        return self in {State.PASSED, State.TRIMMED}

    @property
    def loss(self) -> Kind:
        """Return the kind of loss that changes in this state belong to; not defined for ON_ITS_WAY."""
        return Kind(self.value)


@dataclass(frozen=True, slots=True)
class Applied:
    """How far a shard is known to be applied: through this record."""

    version: int
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Unread:
    """A stretch of a shard that was skipped unread: the changes made in this span."""

    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """How far a shard is applied, and how far it was read: through `sequence_number`, or to where `iterator` points."""

    shard_id: str
    parent_id: str | None
    sequence_number: str | None = None
    iterator: str | None = None
    iterator_at: datetime | None = None
    read_through: datetime | None = None
    """Every change of the shard made before this time was read."""
    finished: bool = False
    """The shard is closed and was read whole."""
    applied: Applied | None = None
    """Newest record of the shard seen applied."""
    moved_at: datetime | None = None
    """When a tick last found something new in it, read or applied; after a pause in ticks, the first tick."""
    still_ticks: int = 0
    """Ticks since then that reached its end and found nothing new."""
    unread: Unread | None = None
    scout: str | None = None
    """Iterator of the scout, which reads from the shard's end while the place stays where it is."""
    scout_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A key with changes that have not arrived."""

    target: str
    """The target's view; empty for a record that matches no target."""
    key: tuple[str, ...]
    """Primary key texts; empty for a record that only a reject can account for."""
    version: int
    """Of its newest change."""
    as_of: datetime
    """Of its newest change: creation time, to the second."""
    since: datetime
    """Creation time of its oldest change that has not arrived."""
    shard_id: str
    state: State = State.ON_ITS_WAY

    @property
    def position(self) -> Position:
        """The position of its newest change."""
        return Position(self.as_of, self.version)

    @property
    def row(self) -> Row:
        """The row that it belongs to."""
        return (self.target, self.key)


Row = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Stored:
    """What Aurora holds, all as of one moment (one REPEATABLE READ snapshot).

    It must be one moment, because a replicator works through a shard in order, each batch in one transaction: if a
    later batch is visible, an earlier one that is not visible will not come.
    """

    positions: Mapping[Row, Position]
    """Positions of rows, live or tombstone."""
    rejected: Collection[int] = ()
    """Versions that were set aside as rejects."""
    purged_through: datetime | None = None

    def has(self, change: Waiting) -> bool:
        """Whether a change has arrived in Aurora."""
        if change.version in self.rejected:
            return True
        return bool(change.key) and not accepts(change.position, self.positions.get(change.row), self.purged_through)

    def applied(self, change: Waiting) -> Applied | None:
        """Return how far the replicator itself has visibly applied the change's key, up to this change at most.

        All it applied for a key came from the change's shard, or from that shard's ancestors.
        """
        if change.version in self.rejected:
            return Applied(change.version, change.as_of)
        at = self.positions.get(change.row)
        if at is None or at.version is None or not same_stream(at.version, change.version):
            return None
        return min(Applied(at.version, at.as_of), Applied(change.version, change.as_of), key=lambda one: one.version)


def not_arrived(changes: Iterable[Waiting], stored: Stored, proof: Proof, margin: timedelta) -> list[Waiting]:
    """Return what has not arrived, one entry per key, from single changes and what waited before; oldest first."""
    left: dict[tuple[Row, int], Waiting] = {}
    for change in changes:
        if stored.has(change) or proof.shows(change.since, change.as_of, margin):
            continue
        # A change without a key is an entry of its own.
        identity = (change.row, 0 if change.key else change.version)
        known = left.get(identity)
        left[identity] = change if known is None else _merged(known, change)
    return sorted(left.values(), key=lambda waiting: (waiting.since, waiting.version))


def _merged(one: Waiting, other: Waiting) -> Waiting:
    newest = max(one, other, key=lambda waiting: waiting.version)
    return replace(newest, since=min(one.since, other.since))


def frontier(shards: Iterable[ShardProgress]) -> list[ShardProgress]:
    """Return the shards that decide how far the stream was read: those not finished, or without a successor.

    A finished shard without a successor holds the time back: either the successor is not listed yet, or the stream was
    disabled, and no stream has what was written since.
    """
    known = list(shards)
    parents = {shard.parent_id for shard in known}
    return [shard for shard in known if not shard.finished or shard.shard_id not in parents]


def earliest(times: Iterable[datetime | None]) -> datetime | None:
    """Return the earliest time; None if any is unknown, or there is none."""
    known = list(times)
    return None if not known or None in known else min(time for time in known if time is not None)


def lineages(shards: Mapping[str, ShardProgress]) -> Iterator[Sequence[ShardProgress]]:
    """Return each shard, followed by its ancestors: once any of it is applied, its ancestors are applied whole."""
    for shard in shards.values():
        line = [shard]
        while (parent := shards.get(line[-1].parent_id or "")) is not None and parent not in line:
            line.append(parent)
        yield line
