"""`make demo`: the whole product on real servers, in one run that a person can follow and that proves itself.

A table is loaded while it is being written and the stream is applied, three rows are damaged by hand, reconciliation
finds and repairs exactly those, and an independent comparison decides.

Invariant: exit 0 only if source and view are equal and reconciliation found exactly the damage. However it ends, no
process and no lock is left behind.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from pipeline.core.errors import ReplicationError, TerminalError
from pipeline.local.dagster_ui import DagsterHome, JobOutcome
from pipeline.local.equality import Equality, compare_employees
from pipeline.local.errors import LocalStackError
from pipeline.local.interrupts import unwind_on_signals
from pipeline.local.lag import LagMeter
from pipeline.local.playground import Playground
from pipeline.local.probing import Probing
from pipeline.local.screen import Screen
from pipeline.local.summary import show
from pipeline.local.writer import Writer, put_items

ITEMS = 20_000
# Low enough that reconciliation decides every row: with the five minutes of production, all would be in flight.
MARGIN_SECONDS = 2
CAUGHT_UP_WITHIN_SECONDS = 90.0
# The writer continues for at least this long, however fast the load is, so that the lag is measured over many writes.
WRITE_AT_LEAST_SECONDS = 20.0
RUN_DIR, RESULT = Path("build/demo"), Path("build/demo.json")
# Built by `make demo` for the Python that the emulator runs functions with.
ARCHIVE = Path("build/local/lambda_replicator.zip")


@dataclass
class Scene:
    """What the demo works with, and what it has found so far."""

    screen: Screen
    playground: Playground
    home: DagsterHome
    writer: Writer
    meter: LagMeter
    options: argparse.Namespace

    @property
    def database_url(self) -> str:
        """Where the view is."""
        return self.playground.stack.postgres.url

    def run_job(self, name: str, **config: Any) -> dict[str, Any]:  # noqa: ANN401 - a job's form
        """Run a Dagster job; return what it recorded for its last asset."""
        outcome: JobOutcome = self.home.execute_job(name, config, on_line=self.screen.note)
        if not outcome.success:
            raise TerminalError(f"running the Dagster job {name}: {'; '.join(outcome.failures)}")
        return {key: value for asset in outcome.assets.values() for key, value in asset.items()}


def run(screen: Screen, options: argparse.Namespace) -> bool:
    """Run the demo; return whether it proved what it should."""
    screen.step("starting PostgreSQL 17, ministack and the export service; deploying the replicator")
    ports = (options.postgres_port, options.aws_port)
    with Playground(options.run_dir, options.archive, ports=ports, progress=screen.note) as playground:
        screen.step(f"putting {options.items:,} items into the DynamoDB table Employees")
        identifiers = range(1, options.items + 1)
        put_items(playground.dynamodb, "Employees", identifiers)
        writer = Writer(playground.dynamodb, "Employees", identifiers)
        meter = LagMeter(playground.stack.postgres.url, writer.samples)
        home = DagsterHome(options.run_dir, playground.environment())
        scene = Scene(screen, playground, home, writer, meter, options)
        with Probing(playground.services, playground.mapping):
            loaded = _load_under_live_writes(scene)
            return _prove(scene, loaded)


def _load_under_live_writes(scene: Scene) -> dict[str, Any]:
    scene.screen.step("loading from a point-in-time export, while a writer inserts, updates and deletes")
    scene.writer.start()
    scene.meter.start()
    try:
        loaded = scene.run_job("employees_full_load", margin_seconds=MARGIN_SECONDS)
        time.sleep(max(0.0, scene.options.write_seconds - scene.writer.seconds))
    finally:
        scene.writer.stop()
    scene.screen.note(
        f"the writer made {scene.writer.written.total:,} changes meanwhile, {scene.writer.rate:.0f} a second"
    )
    scene.screen.step("the writer has stopped; waiting until the whole stream is applied")
    _wait_until_caught_up(scene)
    scene.meter.stop()
    return loaded


def _wait_until_caught_up(scene: Scene) -> None:
    """Wait until the last write is visible; the local stream has one shard, so everything before it is applied too."""
    scene.writer.write_sentinel()
    until = time.monotonic() + CAUGHT_UP_WITHIN_SECONDS
    with psycopg.connect(scene.database_url, autocommit=True) as connection:
        query = 'SELECT FROM public."Employees" WHERE "Id" = %s'
        while connection.execute(query, [scene.writer.sentinel_id]).fetchone() is None:
            if time.monotonic() > until:
                raise TerminalError(
                    f"waiting for the replicator: the last write is not in the view after {CAUGHT_UP_WITHIN_SECONDS} s",
                    hint=f"see the function's log in {scene.options.run_dir}/ministack.log",
                )
            time.sleep(0.05)


def _prove(scene: Scene, loaded: dict[str, Any]) -> bool:
    scene.screen.step("altering one stored row by hand, deleting one, inventing one")
    _damage(scene.database_url)
    time.sleep(MARGIN_SECONDS)
    scene.screen.step("reconciling with a fresh export, and repairing")
    reconciled = scene.run_job("employees_reconcile", margin_seconds=MARGIN_SECONDS, repair=True)
    scene.screen.step("comparing independently: a plain scan of DynamoDB against a plain SELECT on the view")
    equality = compare_employees(scene.playground.dynamodb, scene.database_url)
    summary = _summary(scene, loaded, reconciled, equality)
    scene.options.result.write_text(json.dumps(summary, indent=2) + "\n")
    show(scene.screen.console, summary, scene.options.result)
    return bool(summary["equal"]) and bool(summary["found_exactly_the_damage"])


def _damage(database_url: str) -> None:
    """Alter one row, delete one, invent one, behind the back of everything that replicates.

    The deleted row is the one that was written longest ago. For one that was just written, nobody could know for a
    while that its change is not still on its way.
    """
    with psycopg.connect(database_url) as connection:
        connection.execute(
            """UPDATE replica."Employees" SET "Name" = 'altered by hand'
               WHERE "Id" = (SELECT min("Id") FROM public."Employees")"""
        )
        connection.execute(
            """DELETE FROM replica."Employees" WHERE "Id" = (
                 SELECT "Id" FROM replica."Employees"
                 WHERE NOT _deleted AND "Id" <> (SELECT min("Id") FROM public."Employees")
                 ORDER BY _as_of, "Id" LIMIT 1)"""
        )
        connection.execute(
            """INSERT INTO replica."Employees" ("Id", "Name", _as_of) VALUES (999999999, 'invented', now())"""
        )


def _summary(scene: Scene, loaded: dict[str, Any], reconciled: dict[str, Any], equality: Equality) -> dict[str, Any]:
    with psycopg.connect(scene.database_url) as connection:
        row = connection.execute(
            "SELECT sum(records), sum(applied), sum(stale), sum(deleted), sum(rejected) FROM replication.watermarks"
        ).fetchone()
    records, applied, stale, deleted, rejected = map(int, row or (0,) * 5)
    kinds = {kind: int(reconciled[kind]) for kind in ("missing", "extra", "different")}
    return {
        "items_put": scene.options.items,
        "items_loaded": loaded["items"],
        "rows_taken_by_load": loaded["applied"],
        "writes_during_load": scene.writer.written.total,
        "writes_per_second": round(scene.writer.rate, 1),
        "stream_records": records,
        "changes_applied": applied,
        "stale": stale + int(loaded["stale"]),
        "deletes": deleted,
        "rejected": rejected,
        "lag_seconds": scene.meter.percentiles(),
        "drift": sum(kinds.values()),
        "drift_by_kind": kinds,
        "repaired": reconciled["repaired"],
        "in_flight": reconciled["in_flight"],
        "found_exactly_the_damage": kinds == {"missing": 1, "extra": 1, "different": 1} and reconciled["repaired"] == 3,
        "items": equality.items,
        "rows": equality.rows,
        "equal": equality.equal,
        "seconds": round(scene.screen.seconds, 1),
    }


def main() -> int:
    """Run the demo; exit code 0 proved, 1 not proved, 2 could not run, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="make demo")
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--write-seconds", type=float, default=WRITE_AT_LEAST_SECONDS, help="at least")
    parser.add_argument("--run-dir", type=Path, default=RUN_DIR)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--archive", type=Path, default=ARCHIVE, help="the replicator's zip")
    parser.add_argument("--postgres-port", type=int)
    parser.add_argument("--aws-port", type=int)
    options = parser.parse_args()
    unwind_on_signals()
    screen = Screen()
    try:
        return 0 if run(screen, options) else 1
    except (LocalStackError, ReplicationError) as error:
        screen.console.print(f"demo: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        screen.console.print("demo: interrupted; everything it had started has ended", style="yellow", markup=False)
        return 130


if __name__ == "__main__":
    sys.exit(main())
