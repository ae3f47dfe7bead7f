"""Judge a difference once its source has been read again: right, drift, or undecided.

Invariant: drift is proven, never guessed. Let R be the stored row. It was read before the source was, and the source
gave something else. Once replication is known to have applied every change made before that read, R has either changed
or not. If R is still the same, no change in transit explains it: it is drift. If R changed meanwhile, it was in flight.

One look is enough where the source still holds what the snapshot held, the row was last changed before the snapshot,
and replication has passed the snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from pipeline.aurora.bookkeeping.applied_through import AppliedThrough
    from pipeline.aurora.compare.candidates import Candidate
    from pipeline.aurora.compare.compare import Compared


class Verdict(Enum):
    """What is known of a difference."""

    RIGHT = "right"
    DRIFT = "drift"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class SnapshotTime:
    """The snapshot from which candidates differed."""

    time: datetime
    margin: timedelta

    @property
    def as_of(self) -> datetime:
        """The time that the snapshot stands for."""
        return self.time - self.margin


def judge(
    candidate: Candidate,
    compared: Compared,
    *,
    before: str,
    applied: AppliedThrough,
    snapshot: SnapshotTime,
    now: datetime,
) -> Verdict:
    """Judge a key. `before` is the row's mark before the source was read, `compared` the comparison after it."""
    if compared.kind is None:
        return Verdict.RIGHT
    same_as_at_last_look = candidate.mark is not None and candidate.mark == compared.mark
    if same_as_at_last_look and (
        candidate.proven or (candidate.read_at is not None and candidate.read_at <= applied.read_covered)
    ):
        return Verdict.DRIFT
    source_unchanged = compared.source_hash == candidate.snapshot_hash
    row_is_older = compared.as_of is None or compared.as_of <= snapshot.as_of
    if (
        before == compared.mark
        and source_unchanged
        and row_is_older
        and applied.covers_snapshot(snapshot.time, snapshot.margin, now)
    ):
        return Verdict.DRIFT
    return Verdict.OPEN
