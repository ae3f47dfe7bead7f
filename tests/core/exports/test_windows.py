"""How a range is cut into windows, and what covers the cuts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.exports.windows import (
    LONGEST,
    SHORTEST,
    Span,
    Window,
    covered,
    round_up,
    seam,
    shortest_range,
    split,
    whole_seconds,
    windows_from_cuts,
)

START = datetime(2026, 5, 1, tzinfo=UTC)
MARGIN = timedelta(minutes=5)
seconds = st.integers(0, 5 * 24 * 3600).map(lambda s: timedelta(seconds=s))


instants = st.integers(0, 5 * 24 * 3_600_000).map(lambda ms: timedelta(milliseconds=ms))
crowded = st.lists(
    st.one_of(instants, st.integers(0, 3_600_000).map(lambda ms: timedelta(milliseconds=ms))), max_size=8
)


@given(length=st.one_of(seconds, st.integers(900, 7200).map(lambda s: timedelta(seconds=s))), cuts=crowded)
def test_windows_meet_and_are_of_a_length_that_can_be_exported(length: timedelta, cuts: list[timedelta]) -> None:
    end = START + max(length, SHORTEST)
    moments = [START + cut for cut in cuts]
    windows = split(START, end, cuts=moments)
    if not windows:
        assert any(START < moment < end for moment in moments)
        return
    assert windows[0].start == START
    assert all(one.end == other.start for one, other in pairwise(windows))
    assert all(SHORTEST <= window.end - window.start <= LONGEST for window in windows)
    assert windows[-1].end == end or windows[-1].end in [
        beside for moment in moments for beside in (whole_seconds(moment), round_up(moment))
    ]


@given(length=st.one_of(seconds, st.integers(900, 7200).map(lambda s: timedelta(seconds=s))), cuts=crowded)
def test_windows_from_a_snapshots_time_show_what_happened_to_its_items(
    length: timedelta, cuts: list[timedelta]
) -> None:
    end = START + max(length, SHORTEST)
    moments = [START + cut for cut in cuts]
    windows = split(START, end, cuts=moments)
    further = windows_from_cuts(windows, moments)
    for moment in {beside for cut in moments for beside in (whole_seconds(cut), round_up(cut))}:
        told = moment
        for window in sorted([*windows, *further], key=lambda window: window.start):
            if moment <= window.start <= told:
                told = max(told, window.end)
        if windows and moment > START:
            assert told >= windows[-1].end
    for window in further:
        assert SHORTEST <= window.end - window.start <= LONGEST
        assert window.end <= windows[-1].end


@given(cut=seconds)
def test_a_cut_that_is_far_from_others_begins_a_window(cut: timedelta) -> None:
    end = START + timedelta(days=5)
    windows = split(START, end, cuts=[START + cut])
    further = windows_from_cuts(windows, [START + cut])
    begins = {window.start for window in [*windows, *further]} | {windows[-1].end}
    assert START + cut in begins
    assert len(further) == (timedelta() < cut < SHORTEST)


def test_loads_too_close_to_both_ends_leave_no_window() -> None:
    assert split(START, START + 2 * SHORTEST, cuts=[START + SHORTEST]) != []
    short = 2 * SHORTEST - timedelta(seconds=1)
    assert split(START, START + short, cuts=[START + SHORTEST - timedelta(milliseconds=500)]) == []
    assert windows_from_cuts([], [START]) == []


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
