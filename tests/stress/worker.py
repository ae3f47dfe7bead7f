"""One process of the long form: its database, and the runs that it gets.

Invariant: a run, or a history of operations, depends on its seed alone, so any process repeats it.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.stress.generate import run_histories
from tests.stress.mutations import MUTATIONS
from tests.stress.operations import mutations as operations_mutations
from tests.stress.operations.histories import Counts as OperationCounts
from tests.stress.operations.histories import run_history
from tests.stress.operations.oracle import Wrong
from tests.stress.target import ONE_TARGET, TWO_TARGETS, TargetSystem
from tests.stress.world import Counts, Unequal

RUNS_TO_CATCH = 300
"""The most runs for each mutation: they end with the first that comes out unequal.

The rarest mutation, a margin a second short, took from ten to ninety runs: with at most sixty it sometimes survived.
"""

TARGETS = [*ONE_TARGET.targets, *TWO_TARGETS.targets]
_systems: list[TargetSystem] = []


@dataclass(slots=True)
class Outcome:
    """One run: what it did, or how it came out unequal."""

    seed: int
    counts: Counts = field(default_factory=Counts)
    unequal: str | None = None


def open_system(urls: multiprocessing.SimpleQueue[str]) -> None:
    """Take a database for this process from the queue."""
    _systems.append(TargetSystem(urls.get()))


def run(seed: int) -> Outcome:
    """Do the run of this seed."""
    with tempfile.TemporaryDirectory(prefix="dynaurora-stress-exports-") as folder:
        try:
            return Outcome(seed, run_histories(_systems[0], seed, Path(folder)))
        except Unequal as found:
            return Outcome(seed, unequal=str(found))


def try_mutation(index: int, first_seed: int) -> tuple[int, int, Outcome]:
    """Run under a mutation until a run comes out unequal; returns how many runs that took."""
    system, outcome = _systems[0], Outcome(first_seed)
    with MUTATIONS[index].applied(system.connections[0], TARGETS):
        for attempt in range(RUNS_TO_CATCH):
            outcome = run(first_seed + attempt)
            if outcome.unequal:
                return index, attempt + 1, outcome
    return index, RUNS_TO_CATCH, outcome


@dataclass(slots=True)
class Operations:
    """Some histories of operations: what they did, and which of them reported something wrong."""

    counts: OperationCounts = field(default_factory=OperationCounts)
    histories: int = 0
    wrong: dict[int, str] = field(default_factory=dict[int, str])
    """By seed."""


def run_operations(seeds: range) -> Operations:
    """Do the histories of these seeds."""
    done = Operations()
    for seed in seeds:
        done.histories += 1
        try:
            done.counts.add(run_history(seed))
        except Wrong as found:
            done.wrong[seed] = str(found)
    return done


def try_operations_mutation(index: int, seeds: range) -> tuple[int, int, str | None]:
    """Run histories under a mutation until one reports something wrong; returns how many that took, and the report."""
    with operations_mutations.MUTATIONS[index].applied():
        for number, seed in enumerate(seeds, 1):
            try:
                run_history(seed)
            except Wrong as found:
                return index, number, f"{seed}: {found}"
    return index, len(seeds), None
