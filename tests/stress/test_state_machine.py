"""The state machine: Hypothesis chooses every step and shrinks what it finds; the source model is the oracle.

The same world as the long form's (`make stress`), a few keys at a time.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.stress.source import SECOND, SourceTable
from tests.stress.target import MARGIN_MICROSECONDS, ONE_TARGET, TWO_TARGETS, TargetSystem
from tests.stress.world import LARGEST_BLUR, LARGEST_LAG, LARGEST_LEAD, Snapshot, World

KEYS = 3
EXAMPLES = int(os.environ.get("STRESS_EXAMPLES", "40"))

keys = st.integers(0, KEYS - 1)
number_steps = st.sampled_from([1, 10**6, 10**19, 10**21, 10**30])
pauses = st.sampled_from([1, SECOND // 2, SECOND, 3 * SECOND, MARGIN_MICROSECONDS, 20 * SECOND])
picks = st.integers(0, 10**6)


class Machine(RuleBasedStateMachine):
    """Rules are what can happen; the invariant is checked after each; `teardown` delivers the rest and compares."""

    system: TargetSystem
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None

    @property
    def now(self) -> World:
        assert self.world is not None
        return self.world

    @initialize(
        two=st.booleans(), offsets=st.lists(st.integers(-LARGEST_LAG, LARGEST_LEAD), min_size=KEYS, max_size=KEYS)
    )
    def begin(self, two: bool, offsets: list[int]) -> None:
        mapping = TWO_TARGETS if two else ONE_TARGET
        self.world = World(self.system, mapping, SourceTable(mapping.table, KEYS, offsets), self.folder)

    @rule(key=keys, step=number_steps, times=st.integers(1, 3))
    def put(self, key: int, step: int, times: int) -> None:
        for _ in range(times):
            self.now.source.put(key, step)

    @rule(key=keys, step=number_steps, expired=st.booleans())
    def delete(self, key: int, step: int, expired: bool) -> None:
        self.now.source.delete(key, step, expired=expired)

    @rule(pause=pauses, whole=st.booleans())
    def pause(self, pause: int, whole: bool) -> None:
        self.now.source.tick(pause)
        if whole:
            self.now.source.tick(-self.now.source.now % SECOND)

    @precondition(lambda self: self.now.source.streaming)
    @rule()
    def disable_stream(self) -> None:
        self.now.source.disable_stream()

    @precondition(lambda self: not self.now.source.streaming)
    @rule()
    def enable_stream(self) -> None:
        self.now.source.enable_stream()

    def next_batch(self, pick: int, size: int) -> list[int]:
        shards = self.now.shards_waiting()
        return self.now.poll(shards[pick % len(shards)], size) if shards else []

    def deliver_batch(self, batch: list[int], lane: int = 0) -> None:
        if batch:
            self.now.deliver(batch, lane)
            self.now.batches.append(batch)

    @rule(pick=picks, size=st.integers(1, 8))
    def deliver(self, pick: int, size: int) -> None:
        self.deliver_batch(self.next_batch(pick, size))

    @rule(pick=picks, size=st.integers(1, 4))
    def set_aside(self, pick: int, size: int) -> None:
        if batch := self.next_batch(pick, size):
            self.now.aside.append(batch)

    @rule(pick=picks, size=st.integers(1, 3))
    def lose(self, pick: int, size: int) -> None:
        self.now.lose(self.next_batch(pick, size))

    @precondition(lambda self: self.now.aside)
    @rule(pick=picks)
    def redrive(self, pick: int) -> None:
        self.deliver_batch(self.now.aside.pop(pick % len(self.now.aside)))

    @precondition(lambda self: self.now.batches)
    @rule(pick=picks, drawn=st.lists(picks, max_size=6))
    def redeliver(self, pick: int, drawn: list[int]) -> None:
        self.now.deliver(self.old_records(pick, drawn))

    def old_records(self, pick: int, drawn: list[int]) -> list[int]:
        """Deliver a batch again, or any records in any order."""
        known = sorted(self.now.delivered)
        return [known[n % len(known)] for n in drawn] or self.now.batches[pick % len(self.now.batches)]

    @rule(blur=st.sampled_from([0, LARGEST_BLUR]), ages=st.lists(st.integers(0, 2 * LARGEST_BLUR), min_size=KEYS))
    def export(self, blur: int, ages: list[int]) -> None:
        self.now.take_snapshot(blur, lambda key: ages[key], lambda key: key)

    def snapshot(self, pick: int) -> Snapshot:
        return self.now.snapshots[pick % len(self.now.snapshots)]

    @precondition(lambda self: self.now.snapshots)
    @rule(pick=picks, file=keys)
    def merge_file(self, pick: int, file: int) -> None:
        self.now.merge(self.snapshot(pick), file)

    @precondition(lambda self: self.now.snapshots)
    @rule(pick=picks, interrupt=st.none() | st.integers(0, 2))
    def load(self, pick: int, interrupt: int | None) -> None:
        self.now.load(self.snapshot(pick), interrupt_after=interrupt)

    @rule(back=pauses)
    def export_window(self, back: int) -> None:
        self.now.export_window(self.now.source.now - back)

    @rule(key=keys)
    def read_again(self, key: int) -> None:
        self.now.read_again(key)

    @precondition(lambda self: self.now.batches or self.now.reads)
    @rule(pick=picks, drawn=st.lists(picks, max_size=4), reads=st.lists(picks, max_size=4))
    def apply_mixed(self, pick: int, drawn: list[int], reads: list[int]) -> None:
        known = self.now.reads
        records = self.old_records(pick, drawn) if self.now.batches else []
        self.now.apply_mixed(records, [known[n % len(known)] for n in reads] if known else [])

    @rule(back=pauses, whole=st.booleans())
    def purge(self, back: int, whole: bool) -> None:
        through = self.now.source.now - back
        self.now.purge(through - through % SECOND if whole else through)

    @precondition(lambda self: self.now.batches and self.now.snapshots)
    @rule(pick=picks, drawn=st.lists(picks, max_size=4), file=keys, commit=st.booleans(), merge_first=st.booleans())
    def race(self, pick: int, drawn: list[int], file: int, commit: bool, merge_first: bool) -> None:
        records, snapshot = self.old_records(pick, drawn), self.snapshot(pick)

        def deliver(lane: int) -> None:
            self.now.deliver(records, lane)

        def merge(lane: int) -> None:
            self.now.merge(snapshot, file, lane)

        first, second = (merge, deliver) if merge_first else (deliver, merge)
        self.system.race(first, second, commit=commit)

    @invariant()
    def shows_what_was_true(self) -> None:
        if self.world:
            self.world.check_step()

    def teardown(self) -> None:
        if self.world is None:
            return
        self.world.settle()
        if self.world.in_doubt:
            self.world.heal()
        self.world.purge(self.world.latest_creation())
        self.world.repeat([sorted(self.world.delivered)[::2], sorted(self.world.delivered)[1::3]])
        self.world.replay(lambda records: [records[::-1]], except_keys=self.world.in_doubt)
        self.world.purge(self.world.heal())
        self.world.replay(lambda records: [records], except_keys=set())


@pytest.mark.timeout(600)
def test_source_and_target_end_equal(shared_system: TargetSystem, tmp_path: Path) -> None:
    Machine.system, Machine.folder = shared_system, tmp_path
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=timedelta(seconds=60),
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )
