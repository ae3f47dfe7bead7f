"""How a range is cut into windows, and how the cuts are covered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.windows import LONGEST, SHORTEST, Span, Window, covered, seam, shortest_range, split

START = datetime(2026, 5, 1, tzinfo=UTC)
MARGIN = timedelta(minutes=5)
seconds = st.integers(0, 5 * 24 * 3600).map(lambda s: timedelta(seconds=s))


@given(length=seconds, cuts=st.lists(seconds, max_size=6))
def test_windows_meet_and_are_of_a_length_that_can_be_exported(length: timedelta, cuts: list[timedelta]) -> None:
    end = START + max(length, SHORTEST)
    windows = split(START, end, cuts=[START + cut for cut in cuts])
    assert windows[0].start == START
    assert all(one.end == other.start for one, other in pairwise(windows))
    assert all(SHORTEST <= window.end - window.start <= LONGEST for window in windows)
    assert windows[-1].end == end or windows[-1].end in [START + cut for cut in cuts]
    assert end - windows[-1].end < SHORTEST


@given(cut=seconds)
def test_a_cut_that_is_far_from_others_begins_a_window(cut: timedelta) -> None:
    end = START + timedelta(days=5)
    windows = split(START, end, cuts=[START + cut])
    if cut >= SHORTEST:
        assert START + cut in {window.start for window in windows} | {windows[-1].end}


def test_without_cuts_the_windows_are_equal() -> None:
    windows = split(START, START + timedelta(hours=36))
    assert windows == [
        Window(START, START + timedelta(hours=18)),
        Window(START + timedelta(hours=18), START + timedelta(hours=36)),
    ]


@given(margin=st.integers(1, 3600).map(lambda s: timedelta(seconds=s)), after=seconds, before=seconds)
def test_a_seam_overlaps_by_twice_the_margin_on_both_sides(
    margin: timedelta, after: timedelta, before: timedelta
) -> None:
    cut = START + before
    end = cut + max(after, shortest_range(margin))
    across = seam(cut, margin, earliest=START, end=end)
    if before >= max(2 * margin, SHORTEST / 2):
        assert across is not None
        assert across.start <= cut - 2 * margin
    if across is not None:
        assert START <= across.start < cut
        assert cut + 2 * margin <= across.end <= end
        assert across.end - across.start >= SHORTEST


def test_nothing_before_a_cut_needs_no_seam() -> None:
    assert seam(START, MARGIN, earliest=START, end=START + timedelta(hours=1)) is None


def test_what_a_span_covers() -> None:
    spans = [Span(START, START + MARGIN), Span(None, START - timedelta(days=1))]
    assert covered(START, spans)
    assert not covered(START + MARGIN, spans)
    assert covered(START - timedelta(days=2), spans)
    assert not covered(START - timedelta(days=1), spans)
