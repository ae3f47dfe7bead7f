"""Two writers of one key at once, made to meet: one transaction is held open while the other arrives.

Invariant: whichever commits first, the newest state is stored; a purge never opens a gap between a tombstone and
`purged_through`. Each case first waits until the second writer is seen waiting (or has ended), so nothing is timed.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
from psycopg import sql

from pipeline.aurora.rows import purge
from pipeline.core.errors import TransientError
from tests.stress.source import SECOND, START, SourceTable, moment
from tests.stress.target import ONE_TARGET, TWO_TARGETS, TargetSystem

KEY = 0


def life(*states: str | None, keys: int = 1) -> list[dict[str, Any]]:
    """Events of one key that took these states, ten seconds apart; the first at START + 10 s."""
    source = SourceTable(ONE_TARGET.table, keys, [0] * keys)
    for state in states:
        source.tick(10 * SECOND)
        if state is None:
            source.delete(KEY, 10**20)
        else:
            source.put(KEY, 10**20)
    events = [record.event for record in source.records]
    for event, state in zip(events, states, strict=True):
        if state is not None:
            event["dynamodb"]["NewImage"]["Name"]["S"] = state
    return events


def as_of(seconds: float) -> Any:  # noqa: ANN401 - datetime
    return moment(START + int(seconds * SECOND))


PUT_THEN_DELETE = life("first", None)
WRITERS: dict[str, tuple[str | None, Callable[[TargetSystem, int], None]]] = {
    "older put": ("first", lambda s, lane: s.replicate(PUT_THEN_DELETE[:1], lane)),
    "newer delete": (None, lambda s, lane: s.replicate(PUT_THEN_DELETE[1:], lane)),
    "whole batch": (None, lambda s, lane: s.replicate(PUT_THEN_DELETE, lane)),
    "older snapshot": ("first", lambda s, lane: s.merge([(KEY, "first")], as_of(15), lane)),
    "newer snapshot": ("second", lambda s, lane: s.merge([(KEY, "second")], as_of(30), lane)),
}
AGE = ["older put", "older snapshot", "newer delete", "whole batch", "newer snapshot"]


@pytest.mark.parametrize("commit", [True, False], ids=["commits", "rolls back"])
@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(WRITERS, 2)))
def test_the_newest_is_stored_whoever_commits_first(
    system: TargetSystem, first: str, second: str, commit: bool
) -> None:
    system.race(
        lambda lane: WRITERS[first][1](system, lane), lambda lane: WRITERS[second][1](system, lane), commit=commit
    )
    winner = max(first, second, key=AGE.index) if commit else second
    expected = WRITERS[winner][0]
    assert system.shown() == [{} if expected is None else {KEY: expected}]


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(["older put", "newer delete"], 2)))
def test_with_a_row_stored_already_the_newest_is_stored_too(system: TargetSystem, first: str, second: str) -> None:
    before, put, removed = life("before", "put", None)
    system.replicate([before])
    events = {"older put": [put], "newer delete": [removed]}
    system.race(
        lambda lane: system.replicate(events[first], lane),
        lambda lane: system.replicate(events[second], lane),
        commit=True,
    )
    assert system.shown() == [{}]
    assert system.stored_keys() == {KEY}


class TestPurgeAgainstWriters:
    """The tombstone's time is START + 20 s; the purge goes through START + 25 s."""

    through = as_of(25)

    @pytest.mark.parametrize("late", ["older put", "older snapshot"])
    def test_a_writer_that_comes_while_a_purge_is_open_waits_and_is_refused(
        self, system: TargetSystem, late: str
    ) -> None:
        system.replicate(PUT_THEN_DELETE)
        system.race(
            lambda lane: system.purge(self.through, lane), lambda lane: WRITERS[late][1](system, lane), commit=True
        )
        assert system.stored_keys() == set()

    @pytest.mark.parametrize("late", ["older put", "older snapshot"])
    def test_a_purge_that_comes_while_a_writer_is_open_waits_for_it(self, system: TargetSystem, late: str) -> None:
        system.replicate(PUT_THEN_DELETE)
        system.race(
            lambda lane: WRITERS[late][1](system, lane), lambda lane: system.purge(self.through, lane), commit=True
        )
        assert system.stored_keys() == set()
        WRITERS[late][1](system, 0)
        assert system.stored_keys() == set()

    def test_a_purge_that_is_rolled_back_left_the_tombstone(self, system: TargetSystem) -> None:
        system.replicate(PUT_THEN_DELETE)
        system.race(
            lambda lane: system.purge(self.through, lane),
            lambda lane: WRITERS["older put"][1](system, lane),
            commit=False,
        )
        assert system.shown() == [{}]
        assert system.stored_keys() == {KEY}

    def test_a_new_item_is_taken_while_a_purge_is_open(self, system: TargetSystem) -> None:
        *old, new = life("first", None, "back")
        system.replicate(old)
        system.race(
            lambda lane: system.purge(self.through, lane), lambda lane: system.replicate([new], lane), commit=True
        )
        assert system.shown() == [{KEY: "back"}]

    def test_a_purge_gives_up_when_a_writer_stays_too_long(self, system: TargetSystem) -> None:
        system.replicate(PUT_THEN_DELETE)
        with patch.object(purge, "LOCK_SECONDS", 0.05), system.connections[0].transaction():
            system.replicate(PUT_THEN_DELETE[:1], 0)
            with pytest.raises(TransientError, match="purging tombstones"):
                system.purge(self.through, 1)
        assert system.stored_keys() == {KEY}

    def test_without_its_lock_a_deleted_item_would_come_back(self, system: TargetSystem) -> None:
        """The reason for the lock: a writer whose snapshot is older than the purge sees neither row nor purge."""
        system.replicate(PUT_THEN_DELETE)
        assert self._delayed_writer_against_purge(system, locked=False) == [{KEY: "first"}]

    def test_with_its_lock_the_same_meeting_is_harmless(self, system: TargetSystem) -> None:
        system.replicate(PUT_THEN_DELETE)
        assert self._delayed_writer_against_purge(system, locked=True) == [{}]

    def _delayed_writer_against_purge(self, system: TargetSystem, *, locked: bool) -> list[dict[int, str]]:
        """Hold a writer inside its statement, after its snapshot was taken and before it looks for the key."""
        system.watching.execute(_DELAY)
        system.watching.execute("SELECT pg_advisory_lock(7)")
        mode = "SHARE ROW EXCLUSIVE" if locked else "ACCESS SHARE"
        try:
            with patch.object(purge.sql, "SQL", _replacing("SHARE ROW EXCLUSIVE", mode)):
                writing = _start(lambda: system.replicate(PUT_THEN_DELETE[:1], 0))
                system.wait_until_waiting(writing, 0)
                purging = _start(lambda: system.purge(self.through, 1))
                system.wait_until_waiting(purging, 1)
                system.watching.execute("SELECT pg_advisory_unlock(7)")
                writing.join()
                purging.join()
        finally:
            system.watching.execute("SELECT pg_advisory_unlock_all(); DROP FUNCTION wait_for_purge CASCADE")
        return system.shown()


_DELAY = """
CREATE FUNCTION wait_for_purge() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END';
CREATE TRIGGER wait_for_purge BEFORE INSERT ON replica."One" FOR EACH ROW EXECUTE FUNCTION wait_for_purge();
"""


def _start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def _replacing(text: str, replacement: str) -> type:
    original = sql.SQL

    class Replacing(original):
        def __init__(self, given: Any) -> None:  # noqa: ANN401 - SQL takes a LiteralString
            super().__init__(given.replace(text, replacement))

    return Replacing


def test_a_load_and_the_stream_lock_rows_in_one_order(system: TargetSystem) -> None:
    """9, 50, 100 as numbers are 100, 50, 9 as texts: in two orders each writer would hold what the other needs."""
    keys = [9, 50, 100]
    source = SourceTable(ONE_TARGET.table, 101, [0] * 101)
    for key in keys:
        source.put(key, 1)
    events = [record.event for record in source.records]
    system.replicate(events)
    failures: list[Exception] = []

    def merge() -> None:
        try:
            system.merge([(key, "merged") for key in keys], as_of(1000), 1)
        except TransientError as error:
            failures.append(error)

    def replicate() -> None:
        try:
            system.replicate(events, 0)
        except RuntimeError as error:
            failures.append(error)

    with system.watching.transaction():
        system.watching.execute('SELECT FROM replica."One" WHERE "Id" = 50 FOR UPDATE')
        merging = _start(merge)
        system.wait_until_waiting(merging, 1)  # holds 9
        replicating = _start(replicate)
        system.wait_until_waiting(replicating, 0)
    merging.join()
    replicating.join()
    assert failures == []


def test_both_targets_of_a_mapping_agree(system: TargetSystem) -> None:
    system.reset(TWO_TARGETS)
    arn = "eventSourceARN"
    events = [{**event, arn: event[arn].replace("table/One", "table/Two")} for event in PUT_THEN_DELETE]
    system.race(
        lambda lane: system.replicate(events[:1], lane), lambda lane: system.replicate(events[1:], lane), commit=True
    )
    assert system.shown() == [{}, {}]
