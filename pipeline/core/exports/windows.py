"""Windows of incremental exports: how a range of time is cut up, and how the cuts are covered.

A range is cut into windows that meet, each of at most 24 hours, and across every cut lies a *seam*: a short window that
begins twice the margin before the cut and ends twice the margin after it. So windows overlap by at least twice the
margin around every cut, and need to, and need it in this form (docs/decisions/0006-catch-up.md):

- A window counts as of its end less the margin. A change lost in the last minutes before a cut is in the window, but
  its state is not taken where the stream brought an earlier change of those same minutes. The seam counts as of a
  margin after the cut, and takes it.
- Windows that simply began earlier would lose deletes: an item inserted in the overlap and deleted after it is brought
  by the one window and not mentioned by the next, because a window leaves out what came and went within it.

A snapshot that was applied before is a cut too: the rows that it brought do not say when they were written, so only a
window that begins where the snapshot ends is sure to tell of their deletes. Where the windows that meet cannot begin
there, because they would be too short, a further window does.

Invariants: every moment of the range is in exactly one window that meets the others; every cut between those, the
range's beginning included, is well inside one seam unless nothing before it can be exported; from every snapshot's time
in the range to its end, each moment is in a window that begins at that time or later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# DynamoDB guide, S3DataExport_Requesting.
SHORTEST = timedelta(minutes=15)
LONGEST = timedelta(hours=24)
# The most that point-in-time recovery reaches back (botocore: PointInTimeRecoveryDescription).
RECOVERY = timedelta(days=35)


@dataclass(frozen=True, slots=True)
class Window:
    """From `start`, inclusive, to `end`, exclusive; aware times, whole seconds."""

    start: datetime
    end: datetime

    def __str__(self) -> str:
        """The window, for people."""
        start, end = self.start.astimezone(UTC), self.end.astimezone(UTC)
        return f"{start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time that a snapshot holds every change of. `start` None: since ever."""

    start: datetime | None
    end: datetime

    def __contains__(self, moment: datetime) -> bool:
        """Whether a change written at `moment` is in the snapshot."""
        return (self.start is None or self.start <= moment) and moment < self.end


def whole_seconds(moment: datetime) -> datetime:
    """Return the moment in UTC without its fraction of a second, as export times are given."""
    return moment.astimezone(UTC).replace(microsecond=0)


def shortest_range(margin: timedelta, shortest: timedelta = SHORTEST) -> timedelta:
    """Return the shortest range that can be caught up: a window is one at least, and takes a seam's half."""
    return max(shortest, 2 * margin)


def split(
    start: datetime,
    end: datetime,
    *,
    cuts: Iterable[datetime] = (),
    shortest: timedelta = SHORTEST,
) -> list[Window]:
    """Cut a range into windows that meet, each of `shortest` to 24 hours.

    `cuts` are the times of the snapshots that were applied before. At each a window begins, of two that are closer than
    the shortest window at the later one; `windows_from_cuts` are for the others. The windows end before a cut for which
    the range leaves no window of its own. None are returned where then less than the shortest window is left.
    """
    inside = _whole(cuts, start, end)
    while late := [cut for cut in inside if end - shortest < cut < end]:
        end = late[0]
    if end - start < shortest:
        return []
    kept: list[datetime] = []
    before = end
    for cut in reversed(inside):
        if cut - start >= shortest and before - cut >= shortest:
            kept.append(cut)
            before = cut
    return [window for both in pairwise([start, *reversed(kept), end]) for window in _parts(*both)]


def windows_from_cuts(
    windows: Sequence[Window], cuts: Iterable[datetime], *, shortest: timedelta = SHORTEST
) -> list[Window]:
    """Return, for each cut that none of the windows of `split` begins at, a further window that does.

    It goes as far as the next one begins at least, which tells of what is deleted from there on. It is to be applied
    behind the windows that it overlaps, as a seam is.
    """
    if not windows:
        return []
    ends = [window.end for window in windows]
    return [
        Window(cut, max(min(end for end in ends if end > cut), cut + shortest))
        for cut in _whole(cuts, windows[0].start, ends[-1])
        if cut not in ends
    ]


def _whole(cuts: Iterable[datetime], start: datetime, end: datetime) -> list[datetime]:
    """Return the whole seconds on both sides of every cut, those between `start` and `end`, in their order.

    A window that begins at the one would leave out what was deleted, at the other what was inserted, between that
    second and the cut.
    """
    both = {moment for cut in cuts for moment in (whole_seconds(cut), round_up(cut))}
    return sorted(moment for moment in both if start < moment < end)


def round_up(moment: datetime) -> datetime:
    """Return the whole second at or after the moment."""
    return whole_seconds(moment + timedelta(microseconds=999_999))


def _parts(start: datetime, end: datetime) -> list[Window]:
    count = max(1, math.ceil((end - start) / LONGEST))
    inner = [whole_seconds(start + (end - start) * number / count) for number in range(1, count)]
    return [Window(*both) for both in pairwise([start, *inner, end])]


def seam(
    cut: datetime, margin: timedelta, *, earliest: datetime | None, end: datetime, shortest: timedelta = SHORTEST
) -> Window | None:
    """Return the window that lies across a cut, within `earliest` and `end`; None where nothing before it is left."""
    half = max(2 * margin, shortest / 2)
    begins = cut - half if earliest is None else max(cut - half, earliest)
    if begins >= cut:
        return None
    begins = round_up(begins)
    ends = min(round_up(max(cut + half, begins + shortest)), end)
    return Window(begins, ends) if begins < cut and ends - begins >= shortest else None


def covered(moment: datetime, spans: Sequence[Span]) -> bool:
    """Whether any of the snapshots holds what was written at `moment`."""
    return any(moment in span for span in spans)
