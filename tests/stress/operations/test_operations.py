"""Operations that go wrong, the quick form: a hundred histories or so, and a few mutations. `make stress` runs all."""

from __future__ import annotations

import pytest

from tests.stress.operations.histories import Counts, run_history
from tests.stress.operations.mutations import EQUIVALENT, MUTATIONS
from tests.stress.operations.oracle import Wrong

HISTORIES, TO_CATCH = 150, 150
QUICK = (
    "claim: open losses left out",
    "claim: what waits left out",
    "settled: what is on its way left out",
    "settled: held back by what is lost and stuck",
    "state: passed never",
    "changed: not noticed",
    "gap: not noticed",
    "claim: made of a table that is not proven",
)


def test_what_is_believed_of_the_past_holds_when_operations_go_wrong() -> None:
    counts = Counts()
    for seed in range(HISTORIES):
        try:
            counts.add(run_history(seed))
        except Wrong as found:
            pytest.fail(f"{found}\nagain: python -m tests.stress --operation {seed}")
    assert counts.ticks > 10 * HISTORIES
    assert {"restore", "recreate", "repoint", "stream_off", "kill", "away", "clock"} <= counts.faults.keys()


@pytest.mark.parametrize("name", QUICK)
def test_a_mutation_of_what_is_believed_is_found_out(name: str) -> None:
    mutation = next(mutation for mutation in MUTATIONS if mutation.name == name)
    with mutation.applied(), pytest.raises(Wrong):
        run_some()


def run_some() -> None:
    for seed in range(TO_CATCH):
        run_history(seed)


def test_the_same_seed_gives_the_same_history() -> None:
    told: list[list[str]] = [[], []]
    for lines in told:
        run_history(7, lines.append)
    assert told[0] == told[1]


def test_every_mutation_alters_the_code_that_it_names() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names)
    assert not EQUIVALENT.keys() & set(names)
    for mutation in MUTATIONS:
        with mutation.applied():
            pass
