"""Histories hold every version, whatever the order, repetition and mixture: a state machine, and mutations of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from psycopg import sql

from pipeline.local.postgres import PostgresServer
from tests.stress.versions.generate import STATES, run_versions
from tests.stress.versions.mutations import EQUIVALENT, MUTATIONS
from tests.stress.versions.world import PAST_SECONDS, SPAN_SECONDS, Side, System, Unequal, Version

QUICK = (
    "stream: only the newest of a batch",
    "record: a delete is a live version",
    "merge: only rows that were taken",
    "late: nothing ends it",
    "view: at one time, a snapshot comes first",
    "view: times alone",
    "purge: only the last version outlives",
)
RUNS = 8
KEYS = 3


@pytest.fixture(scope="session")
def versions(postgres: PostgresServer) -> Iterator[System]:
    name = f"versions_{uuid4().hex}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    system = System(postgres.url_of(name))
    yield system
    system.close()


@pytest.mark.parametrize("seed", range(3))
def test_histories_are_equal_whatever_the_order(versions: System, seed: int) -> None:
    assert run_versions(versions, seed, keys=40).checks == 4


@pytest.mark.parametrize("name", QUICK)
def test_a_mutation_is_found_out(versions: System, name: str) -> None:
    mutation = next(mutation for mutation in MUTATIONS if mutation.name == name)
    with mutation.applied(), pytest.raises(Unequal):
        run_some(versions)


def run_some(system: System) -> None:
    for seed in range(RUNS):
        run_versions(system, seed, keys=80)


def test_no_mutation_counts_as_equivalent_too() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names)
    assert not EQUIVALENT.keys() & set(names)


seconds = st.integers(0, 4) | st.integers(0, SPAN_SECONDS)
states = st.sampled_from(STATES)


class Machine(RuleBasedStateMachine):
    """Versions come in any way to either target; after each, both are what their versions say."""

    system: System

    def __init__(self) -> None:
        super().__init__()
        self.sides: tuple[Side, ...] = ()
        self.versions: list[Version] = []

    @initialize()
    def begin(self) -> None:
        self.sides = self.system.reset()

    @rule(
        side=st.integers(0, 1),
        key=st.integers(0, KEYS - 1),
        second=seconds,
        state=states,
        step=st.sampled_from([1, 10**30]),
    )
    def write(self, side: int, key: int, second: int, state: str | None, step: int) -> None:
        numbers = [version.number for version in self.versions if version.key == key]
        self.versions.append(Version(key, second, max(numbers, default=0) + step, state))
        self.sides[side].stream([self.versions[-1]])

    @rule(side=st.integers(0, 1), drawn=st.lists(st.integers(0, 10**6), min_size=1, max_size=6), as_batch=st.booleans())
    def write_again(self, side: int, drawn: list[int], as_batch: bool) -> None:
        if self.versions:
            chosen = [self.versions[number % len(self.versions)] for number in drawn]
            (self.sides[side].stream if as_batch else self.sides[side].repair)(chosen)

    @rule(
        side=st.integers(0, 1),
        second=seconds,
        chosen=st.lists(states, min_size=KEYS, max_size=KEYS),
        killed=st.booleans(),
    )
    def snapshot(self, side: int, second: int, chosen: list[str | None], killed: bool) -> None:
        known = {version.key: version for version in self.versions if (version.number, version.seconds) == (0, second)}
        made = [known.get(key) or Version(key, second, 0, state) for key, state in enumerate(chosen)]
        self.versions += [version for version in made if version.key not in known]
        self.sides[side].merge(made, killed=killed)

    @rule(
        side=st.integers(0, 1), second=seconds, drawn=st.lists(st.integers(0, 10**6), max_size=3), killed=st.booleans()
    )
    def load_aside(self, side: int, second: int, drawn: list[int], killed: bool) -> None:
        known = [
            version for version in self.versions if (version.number, version.seconds) == (0, second) and version.state
        ]
        if known and second < PAST_SECONDS:
            others = [self.versions[number % len(self.versions)] for number in drawn if self.versions]
            self.sides[side].build_aside(known, others, killed=killed)

    @rule(side=st.integers(0, 1))
    def fill(self, side: int) -> None:
        self.sides[side].fill()

    @invariant()
    def holds_what_it_was_given(self) -> None:
        for side in self.sides:
            side.check()

    def teardown(self) -> None:
        """Give both what the other has: then they are equal."""
        for side in self.sides:
            if missing := sorted(
                set(self.versions) - side.given, key=lambda version: (version.state or "", version.key)
            ):
                side.repair(missing)
            side.check()
        assert len({frozenset(side.given) for side in self.sides}) <= 1


@pytest.mark.timeout(600)
def test_both_targets_hold_the_same_history(versions: System) -> None:
    Machine.system = versions
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=15,
            stateful_step_count=15,
            deadline=timedelta(seconds=60),
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )
