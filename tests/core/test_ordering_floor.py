"""A stronger contract that was not adopted, as a model (docs/decisions/0002-ordering.md).

When a snapshot replaces a row, the highest version seen of that key stays beside it as a floor: a streamed state at or
below the floor never replaces the snapshot. These tests show that it decides alike while creation times do not run
backwards, and that it still ends at the last write when they do, where the contract may not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from pipeline.core.ordering import Position, supersedes

MARGIN_SECONDS = 5
EPOCH = datetime(2024, 1, 1, tzinfo=UTC)


class State(NamedTuple):
    position: Position
    write: int


@dataclass
class Row:
    """One key's stored row under either rule."""

    stored: State | None = None
    floor: int = -1
    """The highest version seen, stale ones too."""

    def apply(self, candidate: State) -> None:
        if self.stored is None or supersedes(candidate.position, self.stored.position):
            self.stored = candidate

    def apply_with_floor(self, candidate: State) -> None:
        version = candidate.position.version
        below = version is not None and version <= self.floor
        if not below:
            self.apply(candidate)
        self.floor = max(self.floor, -1 if version is None else version)


def ends(arrivals: list[State], *, floor: bool) -> int:
    row = Row()
    for candidate in arrivals:
        (row.apply_with_floor if floor else row.apply)(candidate)
    assert row.stored is not None
    return row.stored.write


def histories(largest_step_back: int, *, most_writes: int = 4) -> st.SearchStrategy[tuple[list[State], list[State]]]:
    """(states in true order, a generated order of arrival): writes a second or more apart, snapshots in between."""

    @st.composite
    def build(draw: st.DrawFn) -> tuple[list[State], list[State]]:
        time, states = 0, list[State]()
        for write in range(draw(st.integers(1, most_writes))):
            time += draw(st.integers(0, 3))
            error = draw(st.integers(0, largest_step_back))
            states.append(State(Position(EPOCH + timedelta(seconds=time - error), write), write))
            if draw(st.booleans()):
                taken = time + draw(st.integers(0, MARGIN_SECONDS))
                states.append(
                    State(Position(EPOCH + timedelta(seconds=taken - MARGIN_SECONDS, milliseconds=500)), write)
                )
                time = taken + 1  # the snapshot holds every write before this one and none after it
        return states, draw(st.permutations(states))

    return build()


@given(histories(0), st.randoms(use_true_random=False))
def test_it_decides_alike_while_creation_times_do_not_run_back(
    history: tuple[list[State], list[State]], random: Random
) -> None:
    states, arrivals = history
    arrivals = arrivals + random.choices(states, k=3)
    assert ends(arrivals, floor=True) == ends(arrivals, floor=False) == max(state.write for state in states)


@settings(max_examples=500)
@given(histories(MARGIN_SECONDS - 1))
def test_it_ends_at_the_last_write_when_they_run_back_by_less_than_the_margin(
    history: tuple[list[State], list[State]],
) -> None:
    states, arrivals = history
    assert ends(arrivals, floor=True) == max(state.write for state in states)


def ends_wrong(history: tuple[list[State], list[State]]) -> bool:
    states, arrivals = history
    return ends(arrivals, floor=False) != max(state.write for state in states)


def test_the_contract_may_not_then() -> None:
    """The smallest such history: two writes, and one snapshot between their creation times."""
    some = settings(max_examples=2_000, database=None, derandomize=True)
    stepping_back = histories(MARGIN_SECONDS - 1, most_writes=2)
    states, _ = find(stepping_back, lambda history: len(history[0]) == 3 and ends_wrong(history), settings=some)
    assert [state.position.streamed for state in states] == [True, True, False]
    first, last, snapshot = (state.position.as_of for state in states)
    assert last <= snapshot < first
    with pytest.raises(NoSuchExample):
        find(stepping_back, lambda history: len(history[0]) < 3 and ends_wrong(history), settings=some)


def test_it_settles_nothing_that_the_stream_lost() -> None:
    """Where records are lost, a floor cannot replace them: only the next snapshot can, as under the contract."""
    first, last = State(Position(EPOCH, 1), 1), State(Position(EPOCH + timedelta(seconds=60)), 2)
    assert ends([last, first], floor=True) == ends([first, last], floor=True) == 2
    assert ends([first], floor=True) == 1


@pytest.mark.parametrize("floor", [True, False])
def test_a_stale_state_raises_the_floor_too(floor: bool) -> None:
    """Without that, snapshot, then the late write, then the early one, would still end at the early one."""
    early = State(Position(EPOCH + timedelta(seconds=10), 1), 1)
    late = State(Position(EPOCH + timedelta(seconds=9), 2), 2)
    between = State(Position(EPOCH + timedelta(seconds=9, milliseconds=500)), 2)
    assert ends([between, late, early], floor=floor) == (2 if floor else 1)
