"""`make stress`: the long form. Thousands of generated histories, then every mutation; figures as JSON.

There are three kinds: histories of the ordering rule, of operations (`tests.stress.operations`: what the product
concludes when restores, recreated tables, dead functions and clocks get in the way), and of targets that keep every
version (`tests.stress.versions`). It exits with 1 if any history ends unequal, if anything wrong was reported, or if
any mutation survives. It prints the seed of a failure. `python -m tests.stress --run SEED` repeats a run of the rule,
`--versions-run SEED` one of versions, `--operation SEED` a history of operations, step by step.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import secrets
import sys
import tempfile
import time
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from pipeline.local.postgres import PostgresServer
from tests.stress import worker
from tests.stress.generate import KEYS
from tests.stress.mutations import EQUIVALENT, MUTATIONS
from tests.stress.operations import mutations as operations_mutations
from tests.stress.operations.histories import run_history
from tests.stress.operations.oracle import Wrong
from tests.stress.versions import world as versions_world
from tests.stress.versions.generate import run_versions
from tests.stress.versions.long_form import long_form
from tests.stress.versions.world import System
from tests.stress.world import Counts

PROCESSES = 2
AT_ONCE = 100
"""Histories of operations that a process runs before it reports on them."""
TO_CATCH = 10_000
"""The most histories of operations that are run for each mutation."""


def main(arguments: list[str]) -> int:
    """Run the long form, or one run again."""
    options = _options(arguments)
    if options.operation is not None:
        return _tell_operation(options.operation)
    if options.versions_run is not None:
        return _repeat_versions(options.versions_run)
    started = time.monotonic()
    with _server() as server:
        urls = multiprocessing.get_context("spawn").SimpleQueue()
        for number in range(PROCESSES):
            urls.put(_database(server, f"stress_{number}"))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(PROCESSES, context, initializer=worker.open_system, initargs=(urls,)) as pool:
            if options.run is not None:
                outcome = pool.submit(worker.run, options.run).result()
                print(outcome.unequal or f"equal: {asdict(outcome.counts)}")
                return 1 if outcome.unequal else 0
            print(f"stress: seed {options.seed}, {options.histories} histories, {len(MUTATIONS)} mutations", flush=True)
            runs = _histories(pool, options.seed, options.histories)
            caught = {} if any(run.unequal for run in runs) else _mutations(pool, options.seed)
            operations = _operations(pool, options.seed, options.operations)
        databases = [_database(server, f"versions_{number}") for number in range(PROCESSES)]
        operations |= long_form(databases, options.seed, options.versions, partial(print, flush=True))
    return _report(options.seed, runs, caught, operations, time.monotonic() - started)


def _repeat_versions(seed: int) -> int:
    with _server() as server:
        try:
            print(run_versions(System(server.url), seed))
        except versions_world.Unequal as found:
            print(f"UNEQUAL: {found}")
            return 1
    return 0


def _tell_operation(seed: int) -> int:
    try:
        print(run_history(seed, print))
    except Wrong as found:
        print(f"WRONG: {found}")
        return 1
    return 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--histories", type=int, default=24_000, help="histories to generate, at least")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="the same seed, the same histories")
    parser.add_argument("--operations", type=int, default=20_000, help="histories of operations to generate")
    parser.add_argument("--operation", type=int, metavar="SEED", help="show one history of operations step by step")
    parser.add_argument("--versions", type=int, default=20_000, help="histories of versions to generate, at least")
    parser.add_argument("--versions-run", type=int, metavar="SEED", help="repeat the one run of versions of this seed")
    parser.add_argument("--run", type=int, help="repeat the one run of this seed")
    return parser.parse_args(arguments)


@contextmanager
def _server() -> Generator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="dynaurora-stress-") as name:
        Path(name).chmod(0o711)
        with PostgresServer(Path(name) / "postgres", durable=False) as server:
            yield server


def _database(server: PostgresServer, name: str) -> str:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(name)))
    return server.url_of(name)


def _histories(pool: ProcessPoolExecutor, seed: int, histories: int) -> list[worker.Outcome]:
    runs = -(-histories // KEYS)
    pending = [pool.submit(worker.run, seed * 10**6 + number) for number in range(runs)]
    outcomes: list[worker.Outcome] = []
    for done in as_completed(pending):
        outcome = done.result()
        outcomes.append(outcome)
        if outcome.unequal:
            print(f"  UNEQUAL: {outcome.unequal}; again: python -m tests.stress --run {outcome.seed}", flush=True)
        if len(outcomes) % max(1, runs // 10) == 0:
            print(f"  {len(outcomes) * KEYS} histories", flush=True)
    return outcomes


def _mutations(pool: ProcessPoolExecutor, seed: int) -> dict[str, dict[str, object]]:
    pending = [pool.submit(worker.try_mutation, index, seed * 10**6) for index in range(len(MUTATIONS))]
    found: dict[str, dict[str, object]] = {}
    for done in as_completed(pending):
        index, runs, outcome = done.result()
        name = MUTATIONS[index].name
        found[name] = {"caught": outcome.unequal is not None, "histories": runs * KEYS, "seen": outcome.unequal}
        print(f"  {'caught' if outcome.unequal else 'SURVIVED'} after {runs * KEYS:5d} histories: {name}", flush=True)
    return {mutation.name: found[mutation.name] for mutation in MUTATIONS}


def _operations(pool: ProcessPoolExecutor, seed: int, histories: int) -> dict[str, Any]:
    """Run the histories of operations, then the mutations; returns their part of the figures."""
    started, first, total = time.monotonic(), seed * 10**6, worker.Operations()
    chunks = [range(first + at, first + min(at + AT_ONCE, histories)) for at in range(0, histories, AT_ONCE)]
    for number, done in enumerate(as_completed([pool.submit(worker.run_operations, chunk) for chunk in chunks]), 1):
        part = done.result()
        total.histories += part.histories
        total.counts.add(part.counts)
        total.wrong |= part.wrong
        for failed, what in part.wrong.items():
            print(f"  WRONG: {what}; again: python -m tests.stress --operation {failed}", flush=True)
        if number % max(1, len(chunks) // 10) == 0:
            print(f"  {total.histories} histories of operations", flush=True)
    seconds = time.monotonic() - started
    caught = {} if total.wrong else _operations_mutations(pool, first)
    return {
        "operations": total.histories,
        "operations_wrong": len(total.wrong),
        "operations_mutations": len(operations_mutations.MUTATIONS),
        "operations_mutations_caught": sum(bool(found["caught"]) for found in caught.values()),
        "operations_seconds": round(seconds, 1),
        "operations_counts": asdict(total.counts)
        | {"faults": dict(total.counts.faults)},  # asdict would recount a Counter
        "operations_by_mutation": caught,
        "operations_equivalent": operations_mutations.EQUIVALENT,
    }


def _operations_mutations(pool: ProcessPoolExecutor, first: int) -> dict[str, dict[str, object]]:
    mutations, seeds = operations_mutations.MUTATIONS, range(first, first + TO_CATCH)
    pending = [pool.submit(worker.try_operations_mutation, index, seeds) for index in range(len(mutations))]
    found: dict[str, dict[str, object]] = {}
    for done in as_completed(pending):
        index, histories, seen = done.result()
        name = mutations[index].name
        found[name] = {"caught": seen is not None, "histories": histories, "seen": seen}
        print(f"  {'caught' if seen else 'SURVIVED'} after {histories:5d} histories: {name}", flush=True)
    return {mutation.name: found[mutation.name] for mutation in mutations}


def _report(
    seed: int,
    runs: list[worker.Outcome],
    mutations: dict[str, dict[str, object]],
    operations: dict[str, Any],
    seconds: float,
) -> int:
    total = Counts()
    for run in runs:
        total.add(run.counts)
    unequal = sum(run.unequal is not None for run in runs)
    caught = sum(bool(found["caught"]) for found in mutations.values())
    figures = {
        "histories": sum(KEYS for run in runs if run.unequal is None),
        "unequal": unequal,
        "mutations": len(MUTATIONS),
        "mutations_caught": caught,
        "seconds": round(seconds, 1),
        "seed": seed,
        "runs": len(runs),
        "counts": asdict(total),
        "by_mutation": mutations,
        "equivalent": EQUIVALENT,
        **operations,
    }
    Path("build").mkdir(exist_ok=True)
    Path("build/stress.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(
        f"{figures['histories']} histories in {len(runs)} runs: {total.writes} writes, {total.deliveries} records"
        f" delivered, {total.merges} files merged, {total.loads} loads, {total.purges} purges, {total.races} races\n"
        f"{unequal} runs unequal; {caught} of {len(MUTATIONS)} mutations caught\n"
        f"{operations['versions']} histories of versions, {operations['versions_unequal']} runs unequal;"
        f" {operations['versions_mutations_caught']} of {operations['versions_mutations']} mutations caught\n"
        f"{operations['operations']} histories of operations, {operations['operations_wrong']} told wrong;"
        f" {operations['operations_mutations_caught']} of {operations['operations_mutations']} mutations caught;"
        f" {seconds:.0f} s; build/stress.json"
    )
    equal = unequal == 0 and caught == len(MUTATIONS)
    right = operations["operations_wrong"] == 0
    right = right and operations["operations_mutations_caught"] == operations["operations_mutations"]
    kept = operations["versions_unequal"] == 0
    kept = kept and operations["versions_mutations_caught"] == operations["versions_mutations"]
    return 0 if equal and right and kept else 1


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
