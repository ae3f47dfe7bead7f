"""Windows of incremental exports: how a time range is split, and how the cuts are covered.

A range is split into adjacent windows of at most 24 hours. Each cut gets a *seam*: a short window from twice the margin
before the cut to twice the margin after it. So windows overlap by at least twice the margin around every cut. They
must, and in just this form (docs/decisions/0006-catch-up.md):

- A window counts as of its end less the margin. If the stream lost a change in the last minutes before a cut, the
  window has that change, but its state loses against an earlier change of those same minutes that the stream did bring.
  The seam counts as of a margin after the cut, and wins.
- Simply starting each window earlier would lose deletes: the first window brings an item inserted in the overlap and
  deleted after it, and the next does not mention it, because a window omits items that came and went within it.

The time of a snapshot applied earlier is a cut too: its rows do not say when they were written, so only a window that
begins where the snapshot ends is sure to report their deletes. If the adjacent windows cannot begin there, because they
would be too short, an extra window does.

Invariants: every moment of the range is in exactly one of the adjacent windows; every cut, including the beginning of
the range, is well inside a seam unless nothing before it can be exported; from the time of every snapshot within the
range to the range's end, each moment is in a window that begins at that time or later.
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
# The longest that point-in-time recovery reaches back (botocore: PointInTimeRecoveryDescription).
RECOVERY = timedelta(days=35)


@dataclass(frozen=True, slots=True)
class Window:
    """From `start`, inclusive, to `end`, exclusive; aware times, whole seconds."""

    start: datetime
    end: datetime

    def __str__(self) -> str:
        """The window in words."""
        start, end = self.start.astimezone(UTC), self.end.astimezone(UTC)
        return f"{start:%Y-%m-%d %H:%M:%S} to {end:%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time whose changes are all in a snapshot. `start` None: from the beginning."""

    start: datetime | None
    end: datetime

    def __contains__(self, moment: datetime) -> bool:
        """Whether a change written at `moment` is in the snapshot."""
        return (self.start is None or self.start <= moment) and moment < self.end


def whole_seconds(moment: datetime) -> datetime:
    """Return the moment in UTC, cut to whole seconds, as export times are."""
    return moment.astimezone(UTC).replace(microsecond=0)


def shortest_range(margin: timedelta, shortest: timedelta = SHORTEST) -> timedelta:
    """Return the shortest range that can be caught up: at least one window, and long enough for half a seam."""
    return max(shortest, 2 * margin)


def split(
    start: datetime,
    end: datetime,
    *,
    cuts: Iterable[datetime] = (),
    shortest: timedelta = SHORTEST,
) -> list[Window]:
    """Split a range into adjacent windows, each of `shortest` to 24 hours.

    `cuts` are the times of the snapshots applied earlier. A window begins at each; if two cuts are closer than
    `shortest`, at the later one, and `windows_from_cuts` handles the other. If the range is too short for a window
    after a cut, the windows end at that cut. Returns no windows if less than `shortest` is left.
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
    """Return an extra window for each cut at which no window of `split` begins.

    It extends at least to the beginning of the next window, which reports later deletes. Apply it after the windows
    that it overlaps, like a seam.
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
    """Return the whole seconds on both sides of every cut that lie between `start` and `end`, sorted.

    A window that begins on one side would miss deletes between that second and the cut, and on the other side inserts.
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
    """Return the window across a cut, within `earliest` and `end`; None if nothing before the cut can be exported."""
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
