"""The long form: thousands of keys' versions, then every mutation, in processes with a database each.

Invariant: a run depends on its seed alone, so any process repeats it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from tests.stress.versions.generate import KEYS, Counts, run_versions
from tests.stress.versions.mutations import EQUIVALENT, MUTATIONS
from tests.stress.versions.world import System, Unequal

RUNS_TO_CATCH = 60
"""The most runs for each mutation: they end with the first that comes out unequal."""

_systems: list[System] = []


def open_system(urls: multiprocessing.SimpleQueue[str]) -> None:
    """Take a database for this process from the queue."""
    _systems.append(System(urls.get()))


def run(seed: int, mutation: int | None = None) -> tuple[int, Counts, str | None]:
    """Do the run of this seed; returns how it came out unequal, if it did."""
    applied = nullcontext() if mutation is None else MUTATIONS[mutation].applied()
    with applied:
        try:
            return seed, run_versions(_systems[0], seed), None
        except Unequal as found:
            return seed, Counts(), str(found)


def try_mutation(index: int, first_seed: int) -> tuple[int, int, str | None]:
    """Run under a mutation until a run comes out unequal; returns how many runs that took."""
    for attempt in range(RUNS_TO_CATCH):
        _, _, unequal = run(first_seed + attempt, index)
        if unequal:
            return index, attempt + 1, unequal
    return index, RUNS_TO_CATCH, None


def long_form(urls: list[str], seed: int, histories: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the histories and the mutations; returns their part of the figures."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    for url in urls:
        queue.put(url)
    with ProcessPoolExecutor(len(urls), context, initializer=open_system, initargs=(queue,)) as pool:
        counts, unequal = _histories(pool, seed, histories, say)
        caught = {} if unequal else _mutations(pool, seed, say)
    return {
        "versions": counts.histories,
        "versions_unequal": len(unequal),
        "versions_mutations": len(MUTATIONS),
        "versions_mutations_caught": sum(bool(found["caught"]) for found in caught.values()),
        "versions_counts": asdict(counts),
        "versions_by_mutation": caught,
        "versions_equivalent": EQUIVALENT,
    }


def _histories(
    pool: ProcessPoolExecutor, seed: int, histories: int, say: Callable[[str], None]
) -> tuple[Counts, dict[int, str]]:
    runs, total, unequal = -(-histories // KEYS), Counts(), dict[int, str]()
    pending = [pool.submit(run, seed * 10**6 + number) for number in range(runs)]
    for number, done in enumerate(as_completed(pending), 1):
        failed, counts, found = done.result()
        total.add(counts)
        if found:
            unequal[failed] = found
            say(f"  UNEQUAL: {found}; again: python -m tests.stress --versions-run {failed}")
        if number % max(1, runs // 10) == 0:
            say(f"  {total.histories} histories of versions")
    return total, unequal


def _mutations(pool: ProcessPoolExecutor, seed: int, say: Callable[[str], None]) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    pending = [pool.submit(try_mutation, index, seed * 10**6) for index in range(len(MUTATIONS))]
    for done in as_completed(pending):
        index, runs, unequal = done.result()
        name = MUTATIONS[index].name
        found[name] = {"caught": unequal is not None, "histories": runs * KEYS, "seen": unequal}
        say(f"  {'caught' if unequal else 'SURVIVED'} after {runs * KEYS:5d} histories: {name}")
    return {mutation.name: found[mutation.name] for mutation in MUTATIONS}
