"""The stress run detects mutations of the rule, each within a few runs. `make stress` tries all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stress.generate import run_histories
from tests.stress.mutations import EQUIVALENT, MUTATIONS
from tests.stress.target import ONE_TARGET, TWO_TARGETS, TargetSystem
from tests.stress.world import Unequal

QUICK = (
    "SQL: streamed, > becomes <",
    "SQL: otherwise, > becomes <",
    "SQL: tie dropped",
    "SQL: deletes remove the row",
    "SQL: new keys, > becomes <",
    "Python: streamed, > becomes <",
    "version: sequence numbers sort as text",
    "margin: ignored",
)
RUNS = 12


def test_the_runs_come_out_equal_without_a_mutation(shared_system: TargetSystem, tmp_path: Path) -> None:
    assert sum(run_histories(shared_system, seed, tmp_path, keys=40).writes for seed in range(3)) > 100


@pytest.mark.parametrize("name", QUICK)
def test_a_mutation_is_found_out(shared_system: TargetSystem, tmp_path: Path, name: str) -> None:
    mutation = next(mutation for mutation in MUTATIONS if mutation.name == name)
    targets = [*ONE_TARGET.targets, *TWO_TARGETS.targets]
    with mutation.applied(shared_system.connections[0], targets), pytest.raises(Unequal):
        run_some(shared_system, tmp_path)


def run_some(system: TargetSystem, folder: Path) -> None:
    for seed in range(RUNS):
        run_histories(system, seed, folder, keys=60)


def test_no_mutation_counts_as_equivalent_too() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names)
    assert not EQUIVALENT.keys() & set(names)
