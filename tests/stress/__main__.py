"""`make stress`: the long form. Thousands of generated histories, then every mutation of the rule; figures as JSON.

Exits 1 when any history ends unequal or any mutation survives. A run's seed is printed when it fails, and
`python -m tests.stress --run SEED` repeats it.
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
from pathlib import Path

import psycopg
from psycopg import sql

from pipeline.local.postgres import PostgresServer
from tests.stress import worker
from tests.stress.generate import KEYS
from tests.stress.mutations import EQUIVALENT, MUTATIONS
from tests.stress.world import Counts

PROCESSES = 2


def main(arguments: list[str]) -> int:
    """Run the long form, or one run again."""
    options = _options(arguments)
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
    return _report(options.seed, runs, caught, time.monotonic() - started)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description=__doc__)
    parser.add_argument("--histories", type=int, default=24_000, help="histories to generate, at least")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="the same seed, the same histories")
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


def _report(seed: int, runs: list[worker.Outcome], mutations: dict[str, dict[str, object]], seconds: float) -> int:
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
    }
    Path("build").mkdir(exist_ok=True)
    Path("build/stress.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(
        f"{figures['histories']} histories in {len(runs)} runs: {total.writes} writes, {total.deliveries} records"
        f" delivered, {total.merges} files merged, {total.loads} loads, {total.purges} purges, {total.races} races\n"
        f"{unequal} runs unequal; {caught} of {len(MUTATIONS)} mutations caught; {seconds:.0f} s; build/stress.json"
    )
    return 0 if unequal == 0 and caught == len(MUTATIONS) else 1


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
