"""The ordering contract by example and by property: which of two states of one key is the newer."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import TerminalError
from pipeline.core.model.change import Change, coalesce
from pipeline.core.ordering import DEFAULT_MARGIN, SMALLEST_MARGIN, Position, accepts, snapshot_position, supersedes
from pipeline.core.streams.positions import stream_version, streamed_position

if TYPE_CHECKING:
    from collections.abc import Callable

LABEL = "2024-05-14T11:14:20.608"
LATER_LABEL = "2024-05-14T11:14:20.609"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def streamed(number: int, seconds: float, label: str = LABEL) -> Position:
    return Position(at(seconds), stream_version(label, str(number)))


def snapshot(seconds: float) -> Position:
    return Position(at(seconds))


class TestStreamedAgainstStreamed:
    def test_the_higher_sequence_number_wins_within_one_second(self) -> None:
        assert supersedes(streamed(10**21 + 1, 5), streamed(10**21, 5))
        assert not supersedes(streamed(10**21, 5), streamed(10**21 + 1, 5))

    def test_the_same_record_again_changes_nothing(self) -> None:
        assert not supersedes(streamed(10**21, 5), streamed(10**21, 5))

    @pytest.mark.parametrize("digits", range(21, 40))
    def test_numbers_compare_as_numbers_across_every_length(self, digits: int) -> None:
        shorter, longer = 10**digits - 1, 10**digits  # 999… against 1000…, which sorts first as text
        assert supersedes(streamed(longer, 5), streamed(shorter, 5))
        assert not supersedes(streamed(shorter, 5), streamed(longer, 5))

    def test_the_creation_time_says_nothing_between_two_streamed_states(self) -> None:
        assert supersedes(streamed(2, 5), streamed(1, 9))
        assert not supersedes(streamed(1, 9), streamed(2, 5))

    @pytest.mark.parametrize("digits", range(21, 41))
    def test_a_later_label_beats_any_sequence_number_of_an_earlier_one(self, digits: int) -> None:
        largest = streamed(10**digits - 1, 5)
        assert supersedes(streamed(0, 5, LATER_LABEL), largest)
        assert not supersedes(largest, streamed(0, 5, LATER_LABEL))


class TestSnapshotAgainstStreamed:
    @pytest.mark.parametrize(
        ("snapshot_seconds", "snapshot_wins"), [(9.999999, False), (10, True), (10.000001, True), (11, True)]
    )
    def test_the_later_wins_and_at_the_tie_the_snapshot(self, snapshot_seconds: float, snapshot_wins: bool) -> None:
        assert supersedes(snapshot(snapshot_seconds), streamed(7, 10)) is snapshot_wins
        assert supersedes(streamed(7, 10), snapshot(snapshot_seconds)) is not snapshot_wins

    def test_no_sequence_number_and_no_label_helps_against_a_later_snapshot(self) -> None:
        assert supersedes(snapshot(10), streamed(10**40 - 1, 10, "2099-01-01T00:00:00.000"))

    def test_a_snapshot_replaces_every_change_of_the_second_it_ends_in(self) -> None:
        # Written at 10.9, recorded as 10. The smallest margin puts a snapshot that reaches 10 at 11: it holds them.
        last_of_the_second = streamed_position(LABEL, "9", 10.9)
        assert supersedes(snapshot_position(at(11), SMALLEST_MARGIN), last_of_the_second)


class TestSnapshotAgainstSnapshot:
    def test_the_later_wins(self) -> None:
        assert supersedes(snapshot(10.000001), snapshot(10))
        assert not supersedes(snapshot(10), snapshot(10.000001))

    def test_of_two_of_one_time_the_stored_one_stays(self) -> None:
        assert not supersedes(snapshot(10), snapshot(10))


class TestWhereNoRowIsStored:
    @pytest.mark.parametrize("candidate", [streamed(1, 10), snapshot(10)], ids=["streamed", "snapshot"])
    @pytest.mark.parametrize(
        ("purged_through", "taken"), [(None, True), (at(9), True), (at(10), False), (at(11), False)]
    )
    def test_only_what_is_newer_than_the_purge_is_taken(
        self, candidate: Position, purged_through: datetime | None, taken: bool
    ) -> None:
        assert accepts(candidate, None, purged_through) is taken

    def test_the_purge_says_nothing_where_a_row_is_stored(self) -> None:
        assert accepts(streamed(2, 10), streamed(1, 9), at(50))
        assert not accepts(streamed(1, 60), streamed(2, 55), at(50))


class TestCoalesce:
    def test_a_delete_is_a_state_like_any_other(self) -> None:
        put, removed = change(streamed(1, 10), "a"), change(streamed(2, 10), None)
        assert coalesce([put, removed]) == coalesce([removed, put]) == [removed]

    def test_a_put_after_a_delete_brings_the_item_back(self) -> None:
        removed, put = change(streamed(1, 10), None), change(streamed(2, 10), "a")
        assert coalesce([put, removed]) == [put]

    def test_kinds_mix(self) -> None:
        old, read, new = change(streamed(1, 10), "a"), change(snapshot(11), None), change(streamed(2, 12), "b")
        for order in itertools.permutations([old, read, new]):
            assert coalesce(order) == [new]
        for order in itertools.permutations([old, read]):
            assert coalesce(order) == [read]


class TestMargin:
    def test_it_is_subtracted(self) -> None:
        assert snapshot_position(at(1000), timedelta(seconds=300)) == Position(at(700))

    def test_it_is_five_minutes_unless_set(self) -> None:
        assert timedelta(minutes=5) == DEFAULT_MARGIN
        assert snapshot_position(at(1000)) == Position(at(700))

    @pytest.mark.parametrize("margin", [timedelta(0), timedelta(milliseconds=999), timedelta(seconds=-1)])
    def test_one_under_a_second_is_refused(self, margin: timedelta) -> None:
        with pytest.raises(ValueError, match="under the smallest, 1 s"):
            snapshot_position(at(1000), margin)


class TestStreamedPosition:
    @pytest.mark.parametrize("time", [1693997155, 1693997155.0, 1693997155.999, "1693997155", "1693997155.7"])
    def test_the_time_is_rounded_down_to_the_second(self, time: float | str) -> None:
        assert streamed_position(LABEL, "1", time).as_of == at(1693997155)

    @pytest.mark.parametrize("time", ["", "soon", "nan", "inf", float("nan"), float("-inf"), 1e18, -1e18, None, []])
    def test_a_malformed_time_is_named(self, time: object) -> None:
        with pytest.raises(TerminalError, match="ApproximateCreationDateTime"):
            streamed_position(LABEL, "1", time)  # type: ignore[arg-type]  # what a malformed record holds

    @pytest.mark.parametrize("number", ["", "-1", "1.0", "1e9", " 1", "0x1", "²", "١٢", "9" * 41])
    def test_a_malformed_sequence_number_is_named(self, number: str) -> None:
        with pytest.raises(TerminalError, match="SequenceNumber is not a number of at most 40 digits"):
            streamed_position(LABEL, number, 10)

    @pytest.mark.parametrize("label", ["", "latest", "2024-13-01T00:00:00.000"])
    def test_a_malformed_label_is_named(self, label: str) -> None:
        with pytest.raises(TerminalError, match="not the stream's creation time"):
            streamed_position(label, "1", 10)

    def test_no_message_quotes_what_it_read(self) -> None:
        with pytest.raises(TerminalError) as caught:
            streamed_position("secret label", "1", 10)
        assert "secret" not in str(caught.value)

    @given(
        st.lists(st.datetimes(datetime(2012, 1, 1), datetime(2200, 1, 1)), min_size=2, max_size=2),  # noqa: DTZ001 - labels are naive
        st.lists(st.integers(0, 10**40 - 1), min_size=2, max_size=2),
    )
    def test_versions_sort_like_the_pair(self, created: list[datetime], numbers: list[int]) -> None:
        labels = [
            c.replace(microsecond=c.microsecond // 1000 * 1000).isoformat(timespec="milliseconds") for c in created
        ]
        first, second = (stream_version(label, str(n)) for label, n in zip(labels, numbers, strict=True))
        pairs = list(zip(labels, numbers, strict=True))
        assert (first < second) is (pairs[0] < pairs[1])
        assert (first == second) is (pairs[0] == pairs[1])


def change(position: Position, name: str | None) -> Change:
    return Change(("1",), None if name is None else ("1", name), position)


class State(NamedTuple):
    """A state as it can arrive: its position, and the number of the write that it shows."""

    position: Position
    write: int


@st.composite
def histories(draw: st.DrawFn) -> list[State]:
    """States of one key: streamed ones whose creation times never run backwards, and snapshots that keep the contract.

    Times are quarters of a second, so that several writes share a second and ties with snapshots are common.
    """
    quarter = 0
    states: list[State] = []
    times: list[int] = []
    for write in range(draw(st.integers(1, 6))):
        quarter += draw(st.integers(0, 6))
        times.append(quarter)
        label = LABEL if write < 3 else LATER_LABEL  # the later label starts again from low numbers
        states.append(State(streamed(write % 3, quarter // 4, label), write))
    for taken in draw(st.lists(st.integers(0, quarter + 12), max_size=4, unique=True)):
        held = [write for write, time in enumerate(times) if time <= taken]
        if held:
            position = snapshot_position(at(taken / 4) + timedelta(0), SMALLEST_MARGIN)
            states.append(State(position, held[-1]))
    return draw(st.permutations(states))


class TestOrder:
    @given(histories())
    def test_no_two_states_supersede_each_other(self, states: list[State]) -> None:
        for a, b in itertools.permutations(states, 2):
            assert not (supersedes(a.position, b.position) and supersedes(b.position, a.position))

    @given(histories())
    def test_any_two_states_are_ordered(self, states: list[State]) -> None:
        for a, b in itertools.combinations(states, 2):
            assert supersedes(a.position, b.position) or supersedes(b.position, a.position)

    @given(histories())
    def test_the_order_is_transitive(self, states: list[State]) -> None:
        for a, b, c in itertools.permutations(states, 3):
            if supersedes(a.position, b.position) and supersedes(b.position, c.position):
                assert supersedes(a.position, c.position)

    @given(histories(), st.randoms(use_true_random=False))
    def test_every_order_and_repetition_ends_at_the_last_write(self, states: list[State], random: Random) -> None:
        arrivals = states + random.choices(states, k=len(states))
        random.shuffle(arrivals)
        stored = arrivals[0]
        for candidate in arrivals[1:]:
            stored = candidate if supersedes(candidate.position, stored.position) else stored
        assert stored.write == max(state.write for state in states)

    @given(histories(), st.integers(1, 8))
    def test_coalescing_first_decides_as_applying_one_by_one(self, states: list[State], size: int) -> None:
        changes = [change(state.position, str(state.write)) for state in states]
        one_by_one = fold(changes, supersedes)
        blocks = [coalesce(changes[start : start + size])[0] for start in range(0, len(changes), size)]
        assert fold(blocks, supersedes) == one_by_one


def fold(changes: list[Change], rule: Callable[[Position, Position], bool]) -> Change:
    stored = changes[0]
    for candidate in changes[1:]:
        stored = candidate if rule(candidate.position, stored.position) else stored
    return stored


class TestWhatTheContractAssumes:
    """The order is total only while one key's creation times do not run backwards (docs/decisions/0002-ordering.md)."""

    def test_creation_times_that_run_backwards_make_a_cycle(self) -> None:
        first, second = streamed(1, 10), streamed(2, 9)  # the later write carries the earlier time
        between = snapshot(9.5)
        assert supersedes(second, first)  # by version
        assert supersedes(first, between)  # by time
        assert supersedes(between, second)  # by time: a cycle, so the end depends on the order of arrival

    def test_the_smallest_history_that_ends_at_an_older_state(self) -> None:
        removed_late, put, read = streamed(2, 9), streamed(1, 10), snapshot(9.5)
        ends = {
            order: fold([change(position, None) for position in order], supersedes).position
            for order in itertools.permutations([put, removed_late, read])
        }
        wrong = [order for order, end in ends.items() if end == put]
        assert wrong == [(removed_late, read, put), (read, removed_late, put)]
        # and the next snapshot, later than the creation times, ends it whatever the order
        assert all(supersedes(snapshot(10), end) for end in ends.values())

    def test_two_snapshots_of_one_time_are_not_ordered(self) -> None:
        # They hold the same state up to that time; the stream or a later snapshot decides what they hold past it.
        assert not supersedes(snapshot(10), snapshot(10))
        assert fold([change(snapshot(10), "a"), change(snapshot(10), "b")], supersedes).row == ("1", "a")
