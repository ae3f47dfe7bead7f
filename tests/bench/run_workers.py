"""How a load scales over run workers: `python -m tests.bench.run_workers`, about eight minutes; build/run-workers.json.

A real Dagster (webserver, daemon, queue, run launcher) launches the load with 1, 2 and 3 run workers, each with one
file at a time. The rate covers the files that were begun while all run workers were running, so it does not depend on
how long a run takes to start; that time is stated beside it.

There are two loads. The processor limits one of them: run workers and PostgreSQL share the machine's cores. In the
other each file waits for half a second, as if run workers had processors and networks of their own: it shows the cost
of sharing the files.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import connect
from pipeline.core.model.attributes import Item
from pipeline.local.dagster_ui import DagsterHome, DagsterWebserver
from pipeline.mappings import load_mappings
from tests.bench.contestant import ROOT
from tests.bench.server import BenchServer, running
from tests.dagster_project.graphql import ask, wait_until
from tests.dynamodb.export_fixture import ExportFactory, Layout

RUN_WORKERS = (1, 2, 3)
ATTRIBUTES = 40
WAITING = """CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$;
CREATE TRIGGER wait BEFORE INSERT ON replica."Employees" FOR EACH STATEMENT EXECUTE FUNCTION wait()"""
LAUNCH = """mutation ($form: RunConfigData!) { launchRun(executionParams: {
  selector: {repositoryLocationName: "dynaurora", repositoryName: "__repository__", jobName: "employees_full_load"},
  runConfigData: $form }) { __typename ... on LaunchRunSuccess { run { runId } } } }"""


@dataclass(frozen=True)
class Part:
    """One of the two loads."""

    name: str
    items: int
    files: int
    wide: bool
    waiting: bool


PARTS = (
    Part("processor", 250_000, 100, wide=True, waiting=False),
    Part("waiting", 2_400, 120, wide=False, waiting=True),
)


def items(part: Part) -> Iterator[Item]:
    """Items of the seed's table; wide ones have many attributes that no column takes."""
    for number in range(part.items):
        more = {f"attribute{n:02}": {"S": f"value {n} of item {number}"} for n in range(ATTRIBUTES * part.wide)}
        yield {"Id": {"N": str(number)}, "empName": {"S": f"name {number}"}, **more}


class Measurement:
    """One server and one Dagster, for every load."""

    def __init__(self, server: BenchServer, folder: Path) -> None:
        self._server, self._folder = server, folder
        self.url = server.fresh("bench_run_workers")
        self.home = DagsterHome(
            folder, {"DATABASE_URL": self.url, "DYNAURORA_TABLES": str(ROOT / "tables"), "PYTHONPATH": str(ROOT)}
        )

    def load(self, web: DagsterWebserver, part: Part, location: str, run_workers: int) -> dict[str, Any]:
        """Load once into an empty table."""
        self._empty(part)
        self._server.settle()
        others = os.getloadavg()[0]
        form = {"manifest": location, "workers": 1, "run_workers": run_workers}
        run_id = ask(web, LAUNCH, form=form)["launchRun"]["run"]["runId"]
        with dg.DagsterInstance.from_config(str(self.home.folder)) as instance:

            def all_ended() -> bool:
                return all(run.is_finished for run in instance.get_runs())

            wait_until(all_ended, 600, "the load has ended")
            runs = [
                record
                for record in instance.get_run_records()
                if run_id in {record.dagster_run.run_id, record.dagster_run.tags.get("dynaurora/load_run")}
            ]
            loaded = instance.get_latest_materialization_event(dg.AssetKey(["employees", "aurora_table"]))
        if loaded is None or loaded.asset_materialization is None or loaded.run_id != run_id:
            raise RuntimeError(f"{part.name}, {run_workers} run workers: the load failed")
        metadata = loaded.asset_materialization.metadata
        began = sorted(record.start_time or 0.0 for record in runs)
        return {
            "run_workers": run_workers,
            "seconds": metadata["seconds"].value,
            "last_run_joined_after_seconds": round(began[-1] - began[0], 1),
            "exact": self._count() == part.items,
            "load_average_before": round(others, 1),
            **self._rate(part, began[-1]),
        }

    def _rate(self, part: Part, all_at_work: float) -> dict[str, Any]:
        """Items a second of the files that were begun when all run workers were running, until the last was begun."""
        with psycopg.connect(self.url) as connection:
            rows = connection.execute("SELECT extract(epoch FROM loaded_at) FROM replication.export_files ORDER BY 1")
            begun = [float(moment) for (moment,) in rows if moment > all_at_work + 1]
        rate = (len(begun) - 1) * part.items / part.files / (begun[-1] - begun[0])
        return {"files_in_the_span": len(begun), "items_per_second": round(rate)}

    def _empty(self, part: Part) -> None:
        with connect(self.url, application_name="bench") as connection:
            connection.execute("DROP SCHEMA IF EXISTS replica, replication CASCADE; DROP FUNCTION IF EXISTS wait")
            migrate(connection, load_mappings(ROOT / "tables"))
            if part.waiting:
                connection.execute(WAITING)

    def _count(self) -> int:
        with psycopg.connect(self.url) as connection:
            row = connection.execute('SELECT count(*) FROM "Employees"').fetchone()
        return row[0] if row else 0


def main() -> int:
    """Measure, print, and write build/run-workers.json. Returns 1 when a load was not exact."""
    found: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "cores": os.cpu_count()}
    with running() as server, tempfile.TemporaryDirectory(prefix="dynaurora-bench-") as name:
        measurement, exports = Measurement(server, Path(name)), ExportFactory.in_folder(Path(name) / "s3")
        with DagsterWebserver(measurement.home) as web:
            for part in PARTS:
                export = exports.full(items(part), Layout(files=part.files, empty_files=0))
                loads: list[dict[str, Any]] = []
                for run_workers in RUN_WORKERS:
                    loads.append(measurement.load(web, part, export.location, run_workers))
                    loads[-1]["ratio"] = round(loads[-1]["items_per_second"] / loads[0]["items_per_second"], 2)
                    sys.stdout.write(f"{part.name}: {json.dumps(loads[-1])}\n")
                    sys.stdout.flush()
                found[part.name] = loads
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "run-workers.json").write_text(json.dumps(found, indent=2) + "\n")
    return 0 if all(load["exact"] for part in PARTS for load in found[part.name]) else 1


if __name__ == "__main__":
    sys.exit(main())
