"""The ordering contract: which of two states of one key is newer. Everything else depends on it.

A state has its position in time in one of two ways.

- *streamed*: it came from the table's stream. `version` is (stream label, sequence number) as one number, and
  `as_of` is the record's ApproximateCreationDateTime, whole seconds rounded down.
- *snapshot*: it came from a full export, an incremental export, a scan or a consistent re-read. It has no version, and
  `as_of` is the snapshot's time less a margin, so that everything older than `as_of` is in the snapshot even if the
  clocks disagree.

For each key this is a total order, as long as the creation times of one key's records do not go back
against their sequence numbers (docs/decisions/0002-ordering.md shows what happens when they do). So any order of
arrival, any repetition and any mixture of load, stream, redrive and repair ends in the same state: the newest.

The same rule in SQL is `pipeline.aurora.rows.ordering_sql`; a test holds the two against each other.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

DEFAULT_MARGIN = timedelta(minutes=5)
# Stream records carry whole seconds rounded down, so a smaller margin could call a change of the same second older.
SMALLEST_MARGIN = timedelta(seconds=1)


class Position(NamedTuple):
    """The position in time of a state of one key: `version` is None for a snapshot."""

    as_of: datetime
    version: int | None = None

    @property
    def streamed(self) -> bool:
        """Whether the state came from the stream."""
        return self.version is not None


def supersedes(candidate: Position, stored: Position) -> bool:
    """Whether `candidate` replaces the stored row, live or tombstone.

    Two streamed states compare by version alone. Otherwise the later `as_of` wins, and at a tie a snapshot wins
    over a streamed row, because a snapshot holds every change up to its margin.
    """
    if candidate.version is not None and stored.version is not None:
        return candidate.version > stored.version
    if candidate.as_of != stored.as_of:
        return candidate.as_of > stored.as_of
    return candidate.version is None and stored.version is not None


def accepts(candidate: Position, stored: Position | None, purged_through: datetime | None) -> bool:
    """Whether `candidate` is accepted, whether or not a row is stored.

    If no row is stored, a tombstone may have been purged. A candidate that is not newer than `purged_through` is
    refused, because it could bring a deleted item back.
    """
    if stored is not None:
        return supersedes(candidate, stored)
    return purged_through is None or candidate.as_of > purged_through


def comes_too_late(candidate: Position, *, deleted: bool, shown: bool, proven: bool) -> bool:
    """Whether a change is left out although the rule would accept it.

    `proven`: a catch-up or a reconciliation proved that Aurora has every change made at that time. So whether the key's
    row is `shown` is already right, and the change could only undo that, permanently if a later record of the key is
    lost. If no row is shown, a delete is still accepted, so that older, unproven changes lose against it.
    """
    return candidate.streamed and proven and (shown or not deleted)


def snapshot_position(snapshot_time: datetime, margin: timedelta = DEFAULT_MARGIN) -> Position:
    """Position of every item in a snapshot taken at `snapshot_time` (aware).

    Raises ValueError when the margin is under a second, the resolution of a stream record's time.
    """
    if margin < SMALLEST_MARGIN:
        raise ValueError(f"a margin of {margin.total_seconds()} s is under the smallest, 1 s")
    return Position(snapshot_time - margin)
