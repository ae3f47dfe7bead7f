"""Spans of time whose changes may be missing: their kinds, what widens one, and what closes it. Pure.

Invariant: a loss closes only on proof that its changes are in Aurora: a catch-up over its whole span, a reconciliation
that left nothing to do, or the arrival of every change where all were kept by key.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from pipeline.core.streams.positions import label_time

if TYPE_CHECKING:
    from collections.abc import Iterable


class Kind(StrEnum):
    """A finding about a table's source: a lasting condition, or a loss."""

    STREAM_OFF = "stream_off"
    VIEW_TYPE = "view_type"
    NO_MAPPING = "no_mapping"
    MAPPING_OFF = "mapping_off"
    MAPPING_UNKNOWN = "mapping_unknown"
    MAPPING_FAULT = "mapping_fault"
    CROWDED = "crowded"
    KEY_UNUSABLE = "key_unusable"
    NO_RECOVERY = "no_recovery"
    ABOUT_TO_BE_LOST = "about_to_be_lost"

    PASSED = "passed"
    """The replicator has applied later changes of the same shard: it will not come back for these."""
    TRIMMED = "trimmed"
    """The stream dropped changes that had not arrived."""
    STUCK = "stuck"
    """Changes wait in a shard where nothing moves: the function fails, or the database was restored."""
    GAP = "gap"
    """No tick covers this time, and the stream no longer holds it."""
    UNREAD = "unread"
    """The probe skipped a stretch of a busy shard and did not look up whether its changes arrived."""
    STREAM_REMADE = "stream_remade"
    TABLE_RECREATED = "table_recreated"
    REPOINTED = "repointed"
    MAPPING_REMADE = "mapping_remade"


# A stream keeps its records for 24 h; older ones "can be removed at any moment" (DynamoDB guide, Streams).
RETENTION = timedelta(hours=24)
# Another table's rows are still there. A catch-up only brings what was written to the new table, and leaves those rows.
NOT_BY_CATCH_UP = frozenset({Kind.TABLE_RECREATED, Kind.REPOINTED})


@dataclass(frozen=True, slots=True)
class Loss:
    """A span of time whose changes may never have been applied."""

    kind: Kind
    since: datetime
    until: datetime
    keys_kept: bool = False
    """All its changes are kept by key; the loss closes by itself once the last has arrived."""
    found_at: datetime | None = None
    """None: just found."""

    def widened(self, other: Loss) -> Loss:
        """Return a loss over both spans."""
        return replace(
            self,
            since=min(self.since, other.since),
            until=max(self.until, other.until),
            keys_kept=self.keys_kept and other.keys_kept,
            found_at=self.found_at or other.found_at,
        )


@dataclass(frozen=True, slots=True)
class Proof:
    """Proof that changes are in Aurora, without looking up each one. Use `Proof.of`."""

    covered: tuple[tuple[datetime, datetime], ...] = ()
    """The ranges that finished catch-ups cover, in order, with gaps between them."""
    reconciled: datetime | None = None
    """Newest `as_of` of a reconciliation that left nothing undecided and nothing to repair."""

    @classmethod
    def of(cls, catch_ups: Iterable[tuple[datetime, datetime]] = (), reconciled: datetime | None = None) -> Proof:
        """Merge the ranges of finished catch-ups, given in any order, overlapping or not."""
        covered: list[tuple[datetime, datetime]] = []
        for since, until in sorted(catch_ups):
            if covered and since <= covered[-1][1]:
                covered[-1] = (covered[-1][0], max(covered[-1][1], until))
            else:
                covered.append((since, until))
        return cls(tuple(covered), reconciled)

    def covers(self, since: datetime, until: datetime, margin: timedelta) -> bool:
        """Whether catch-ups cover the span and a margin at both ends.

        The later end must be past the margin: of two changes in one second, a streamed row of the first would stay.
        """
        at = bisect_right(self.covered, since - margin, key=lambda span: span[0]) - 1
        return at >= 0 and self.covered[at][1] > until + margin

    def shows(self, since: datetime, until: datetime, margin: timedelta) -> bool:
        """Whether every change made from `since` to `until` is in Aurora."""
        return (self.reconciled is not None and self.reconciled >= until) or self.covers(since, until, margin)

    def closes(self, loss: Loss, margin: timedelta) -> bool:
        """Whether a loss is closed."""
        if loss.kind in NOT_BY_CATCH_UP:
            return self.reconciled is not None and self.reconciled >= loss.until
        return self.shows(loss.since, loss.until, margin)


def stream_changed(
    label: str, *, proven: datetime | None, waiting: Iterable[datetime], other_table: bool, now: datetime
) -> Loss:
    """Return what may be lost between an earlier stream and the one of this label.

    Everything made before `proven` is in Aurora; `waiting` are the times of changes that are not. The loss includes
    what the new stream has dropped since it began, because nobody read it.
    """
    begun = max(label_time(label), now - RETENTION)
    since = min([begun, proven or begun, *waiting])
    return Loss(Kind.TABLE_RECREATED if other_table else Kind.STREAM_REMADE, since, begun)


def merged(losses: Iterable[Loss]) -> list[Loss]:
    """Return one loss of each kind, the earliest first."""
    by_kind: dict[Kind, Loss] = {}
    for loss in losses:
        known = by_kind.get(loss.kind)
        by_kind[loss.kind] = loss if known is None else known.widened(loss)
    return sorted(by_kind.values(), key=lambda loss: (loss.since, loss.kind))
