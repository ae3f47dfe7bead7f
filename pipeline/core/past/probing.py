"""What the probe keeps between two ticks: its place in each shard, and the changes that have not arrived. Pure.

A change has *arrived* when the stored row of its key, live or tombstone, is that state or a newer one; when it was set
aside as a reject; when a purge has passed it; when a finished catch-up covers it and a margin around it; or when a
reconciliation as of a later time left nothing to do. What has not arrived is in one of the states of `State`.

What follows from them is in `pipeline.core.past.conclude`.
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

# How long after it was made a change may still be missing from its stream, together with what the clocks of this
# machine and of DynamoDB may disagree by. AWS says "near real time" and states no figure.
SETTLE = timedelta(seconds=15)
# After this no Lambda can still be handed a record: retention, and an hour for the trimming and a batch under way.
GONE_AFTER = RETENTION + timedelta(hours=1)


class State(StrEnum):
    """Of a change that has not arrived."""

    ON_ITS_WAY = "on_its_way"
    """The replicator may still bring it."""
    STUCK = "stuck"
    """It may, but nothing has moved in its shard. It counts as lag, and holds up no decision."""
    PASSED = "passed"
    """Lost: the replicator has come past it."""
    TRIMMED = "trimmed"
    """Lost: the stream does not hold it any more."""

    @property
    def lost(self) -> bool:
        """Whether nothing will bring it by itself."""
        return self in {State.PASSED, State.TRIMMED}

    @property
    def loss(self) -> Kind:
        """Return the kind of loss that changes in this state make up; not for one on its way."""
        return Kind(self.value)


@dataclass(frozen=True, slots=True)
class Applied:
    """How far a shard is known to be applied: through this record of it."""

    version: int
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Unread:
    """A stretch of a shard that was passed by unread: what was made in this span."""

    since: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """How far a shard was read (behind `sequence_number`, or where `iterator` points), and how far it is applied."""

    shard_id: str
    parent_id: str | None
    sequence_number: str | None = None
    iterator: str | None = None
    iterator_at: datetime | None = None
    read_through: datetime | None = None
    """Every change of the shard made before this time was read."""
    finished: bool = False
    """Closed, and nothing of it is left to read."""
    applied: Applied | None = None
    """Newest record of the shard seen applied."""
    moved_at: datetime | None = None
    """When a tick last found something new in it, read or applied; or the first tick since, after a pause."""
    still_ticks: int = 0
    """Ticks since that reached its end and found nothing new."""
    unread: Unread | None = None
    scout: str | None = None
    """Where a reader points that looks on from the shard's end, while the place does not move on."""
    scout_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A key with changes that have not arrived."""

    target: str
    """The target's view; empty for a record that matches no target."""
    key: tuple[str, ...]
    """Primary key texts; empty for a record that only a reject can settle."""
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
        """Where it stands, as a change."""
        return Position(self.as_of, self.version)

    @property
    def row(self) -> Row:
        """The row that it is for."""
        return (self.target, self.key)


Row = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Stored:
    """What Aurora holds of changes, all as of one moment (one REPEATABLE READ snapshot).

    One moment, because a replicator works through a shard in order, each batch in one transaction: where a later
    batch is seen, an earlier one that is not seen will not come.
    """

    positions: Mapping[Row, Position]
    """Of rows, live or tombstone."""
    rejected: Collection[int] = ()
    """Versions that were set aside as rejects."""
    purged_through: datetime | None = None

    def has(self, change: Waiting) -> bool:
        """Whether a change has arrived there."""
        if change.version in self.rejected:
            return True
        return bool(change.key) and not accepts(change.position, self.positions.get(change.row), self.purged_through)

    def applied(self, change: Waiting) -> Applied | None:
        """Return how far the replicator itself is seen to have brought the change's key, through the change at most.

        What it has brought of a key lies in the change's shard, or in one that the shard came from.
        """
        if change.version in self.rejected:
            return Applied(change.version, change.as_of)
        at = self.positions.get(change.row)
        if at is None or at.version is None or not same_stream(at.version, change.version):
            return None
        return min(Applied(at.version, at.as_of), Applied(change.version, change.as_of), key=lambda one: one.version)


def not_arrived(changes: Iterable[Waiting], stored: Stored, proof: Proof, margin: timedelta) -> list[Waiting]:
    """Return what has not arrived, one for each key, out of single changes and what waited before; oldest first."""
    left: dict[tuple[Row, int], Waiting] = {}
    for change in changes:
        if stored.has(change) or proof.shows(change.since, change.as_of, margin):
            continue
        # Without a key each stands for itself.
        identity = (change.row, 0 if change.key else change.version)
        known = left.get(identity)
        left[identity] = change if known is None else _merged(known, change)
    return sorted(left.values(), key=lambda waiting: (waiting.since, waiting.version))


def _merged(one: Waiting, other: Waiting) -> Waiting:
    newest = max(one, other, key=lambda waiting: waiting.version)
    return replace(newest, since=min(one.since, other.since))


def frontier(shards: Iterable[ShardProgress]) -> list[ShardProgress]:
    """Return the shards that say how far the stream was read: those not finished, or without a successor.

    One that has ended and has no successor holds the time back: either the successor is not listed yet, or the
    stream was disabled, and what is written since is in no stream.
    """
    known = list(shards)
    parents = {shard.parent_id for shard in known}
    return [shard for shard in known if not shard.finished or shard.shard_id not in parents]


def earliest(times: Iterable[datetime | None]) -> datetime | None:
    """Return the earliest time; None when one is not known, or there is none."""
    known = list(times)
    return None if not known or None in known else min(time for time in known if time is not None)


def lineages(shards: Mapping[str, ShardProgress]) -> Iterator[Sequence[ShardProgress]]:
    """Return each shard with its ancestors, the shard first: what is applied of it, is applied of them wholly."""
    for shard in shards.values():
        line = [shard]
        while (parent := shards.get(line[-1].parent_id or "")) is not None and parent not in line:
            line.append(parent)
        yield line
