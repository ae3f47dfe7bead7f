"""The probe's reasoning: which changes are on their way, and through what time none is. Pure; time is a parameter.

A change has *arrived* when the stored row of its key is its own state or a newer one, when a purge has closed its
time, or when it waits as a reject. Otherwise it is *waiting*.

Invariant: `caught_up_through` claims no more than was seen. A shard counts up to the moment at which it was read to
its end, less `settle`; what was passed by unread withholds every further claim until it cannot be on its way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.core.ordering import Position, accepts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

# How long after it was made a change may still be missing from its stream, together with what the clocks of this
# machine and of DynamoDB may disagree by. AWS says "near real time" and states no figure.
SETTLE = timedelta(seconds=15)
# A stream keeps its records for 24 h; older ones "can be removed at any moment" (DynamoDB guide, Streams).
RETENTION = timedelta(hours=24)
# After this no Lambda can still be handed a record: retention, and an hour for the trimming and a batch under way.
GONE_AFTER = RETENTION + timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """How far a shard was read: behind `sequence_number`, or where `iterator` points."""

    shard_id: str
    parent_id: str | None
    sequence_number: str | None = None
    iterator: str | None = None
    iterator_at: datetime | None = None
    read_through: datetime | None = None
    """Every change of the shard made before this time was read."""
    finished: bool = False
    """Closed, and nothing of it is left to read."""


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

    @property
    def position(self) -> Position:
        """Where it stands, as a change."""
        return Position(self.as_of, self.version)


def still_waiting(
    sightings: Iterable[Waiting],
    stored: Mapping[tuple[str, tuple[str, ...]], Position],
    rejected: Collection[int],
    purged_through: datetime | None,
) -> list[Waiting]:
    """Return what has not arrived, one for each key, out of single changes and what waited before.

    `stored` holds the positions of rows by target and key, `rejected` the versions that wait as rejects.
    """
    left: dict[tuple[str, tuple[str, ...], int], Waiting] = {}
    for seen in sightings:
        if seen.version in rejected:
            continue
        if seen.key and not accepts(seen.position, stored.get((seen.target, seen.key)), purged_through):
            continue
        # Without a key each stands for itself.
        identity = (seen.target, seen.key, 0 if seen.key else seen.version)
        known = left.get(identity)
        left[identity] = seen if known is None else _merged(known, seen)
    return sorted(left.values(), key=lambda waiting: (waiting.since, waiting.version))


def _merged(one: Waiting, other: Waiting) -> Waiting:
    newest = max(one, other, key=lambda waiting: waiting.version)
    return replace(newest, since=min(one.since, other.since))


def read_through(shards: Iterable[ShardProgress]) -> datetime | None:
    """Return the time before which every change that the stream holds was read; None when a shard's is not known.

    A shard that has ended and has no successor holds the time back: either the successor is not listed yet, or the
    stream was disabled, and what is written since is in no stream.
    """
    known = list(shards)
    parents = {shard.parent_id for shard in known}
    times = [s.read_through for s in known if not s.finished or s.shard_id not in parents]
    if not times or None in times:
        return None
    return min(time for time in times if time is not None)


def caught_up(
    previous: datetime | None,
    read: datetime | None,
    *,
    waiting: Iterable[Waiting],
    unread_until: datetime | None,
    now: datetime,
) -> datetime | None:
    """Return the time before which no change is still on its way; None when not known.

    `unread_until`: changes made before it were passed by unread. They count as settled once the stream cannot hold
    them any more. (A load would not settle them: a removal that is on its way leaves no trace in a snapshot.) A
    change that has waited so long that its record is gone is lost, not on its way.
    """
    if unread_until is not None and now < unread_until + GONE_AFTER:
        read = None
    proven = max((time for time in (previous, read) if time is not None), default=None)
    coming = [change.since for change in waiting if change.as_of > now - GONE_AFTER]
    if proven is None or not coming:
        return proven
    return min(proven, *coming)


def lag_seconds(waiting: Iterable[Waiting], *, read_whole: bool, now: datetime) -> float | None:
    """Return the age of the oldest change that has not arrived, 0 when everything has; None when not all was read."""
    oldest = min((change.since for change in waiting), default=None)
    if oldest is not None:
        return max(0.0, (now - oldest).total_seconds())
    return 0.0 if read_whole else None
