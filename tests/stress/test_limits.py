"""The limits of the contract's promise: each case is shown on the real store, with what repairs it.

docs/decisions/0002-ordering.md explains why.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.stress.source import SECOND, START, SourceTable, moment
from tests.stress.target import ONE_TARGET, TargetSystem

KEY = 0


def as_of(seconds: float) -> datetime:
    """A snapshot's place: its time less the margin."""
    return moment(START + int(seconds * SECOND))


def record(seconds: int, state: str | None, number: int) -> dict[str, Any]:
    """One record of KEY, created at START + `seconds`."""
    source = SourceTable(ONE_TARGET.table, 1, [0])
    source.put(KEY, 1)
    source.delete(KEY, 1)
    event = source.records[0 if state else 1].event
    event["dynamodb"]["ApproximateCreationDateTime"] = float(START // SECOND + seconds)
    event["dynamodb"]["SequenceNumber"] = str(10**21 + number)
    if state:
        event["dynamodb"]["NewImage"]["Name"]["S"] = state
    return event


class TestCreationTimesThatRunBack:
    """The clock behind one key's records steps back between two writes: from 10 to 9."""

    first, last = record(10, "first", 1), record(9, "last", 2)

    @pytest.mark.parametrize("snapshot_before", [True, False])
    def test_a_late_redrive_ends_at_the_older_write(self, system: TargetSystem, snapshot_before: bool) -> None:
        if snapshot_before:
            system.merge([(KEY, "last")], as_of(9.5))
        system.replicate([self.last])
        system.merge([(KEY, "last")], as_of(9.5))
        assert system.shown() == [{KEY: "last"}]
        system.replicate([self.first])  # discarded before, redriven now
        assert system.shown() == [{KEY: "first"}]

    def test_it_can_bring_a_deleted_item_back(self, system: TargetSystem) -> None:
        """A repair at 9.5 found the item gone."""
        system.replicate([record(9, None, 2)])
        system.merge([], as_of(9.5))
        system.apply_mixed([], [system.absent(KEY, as_of(9.5))])
        system.replicate([self.first])
        assert system.shown() == [{KEY: "first"}]

    def test_the_next_snapshot_ends_it(self, system: TargetSystem) -> None:
        self.test_a_late_redrive_ends_at_the_older_write(system, snapshot_before=False)
        system.merge([(KEY, "last")], as_of(10))
        system.replicate([self.first, self.last])
        assert system.shown() == [{KEY: "last"}]

    def test_without_a_snapshot_in_between_nothing_goes_wrong(self, system: TargetSystem) -> None:
        for event in (self.last, self.first, self.last, self.first):
            system.replicate([event])
        assert system.shown() == [{KEY: "last"}]


class TestARemovalThatNoStreamRecorded:
    """The stream is off when the item is deleted; a newer snapshot lacks the item, and nothing else records that."""

    @pytest.mark.parametrize("late", ["export", "record"])
    def test_an_older_state_that_comes_after_brings_the_item_back(self, system: TargetSystem, late: str) -> None:
        system.merge([(1, "another")], as_of(60))  # the newer snapshot: KEY is not in it
        self.arrive(system, late)
        assert system.shown() == [{KEY: "old", 1: "another"}]

    @pytest.mark.parametrize("late", ["export", "record"])
    @pytest.mark.parametrize("known", [True, False], ids=["tombstone of before", "never seen"])
    def test_a_purge_through_the_newer_snapshot_ends_it(self, system: TargetSystem, late: str, known: bool) -> None:
        if known:
            system.replicate([record(3, None, 0)])
        system.merge([(1, "another")], as_of(60))
        system.purge(as_of(60))
        self.arrive(system, late)
        assert system.shown() == [{1: "another"}]

    def test_a_newer_state_is_still_taken_after_that_purge(self, system: TargetSystem) -> None:
        system.merge([(1, "another")], as_of(60))
        system.purge(as_of(60))
        system.replicate([record(61, "new", 1)])
        assert system.shown() == [{KEY: "new", 1: "another"}]

    def arrive(self, system: TargetSystem, late: str) -> None:
        if late == "export":
            system.merge([(KEY, "old")], as_of(10))
        else:
            system.replicate([record(10, "old", 1)])


class TestAPurgeThatOvertakesARecord:
    def test_a_record_first_delivered_after_it_is_refused_until_the_next_snapshot(self, system: TargetSystem) -> None:
        """The only record of an item waits in the on-failure destination while a purge passes its time."""
        system.purge(as_of(20))
        system.replicate([record(10, "only", 1)])
        assert system.shown() == [{}]
        system.merge([(KEY, "only")], as_of(21))
        assert system.shown() == [{KEY: "only"}]

    def test_a_purge_through_a_loaded_snapshot_overtakes_nothing(self, system: TargetSystem) -> None:
        system.merge([(KEY, "only")], as_of(20))
        system.purge(as_of(20))
        system.replicate([record(10, "only", 1), record(21, "next", 2)])
        assert system.shown() == [{KEY: "next"}]
