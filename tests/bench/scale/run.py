"""One size of the scale run: exports, load, catch-up, reconciliation and purge, through the command line.

After each step that changes rows, PostgreSQL checks every row of the view (`rows.check`).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from tests.bench import processes
from tests.bench.contestant import ROOT
from tests.bench.scale import exports, rows, source
from tests.bench.scale.footprint import Footprint
from tests.bench.server import BenchServer
from tests.bench.shapes import NARROW

Say = Callable[[str], None]
STEPS = ("load", "catch-up", "reconcile", "purge")
_CLI = "from pipeline.cli import main; raise SystemExit(main())"
_GIB = 1 << 30
# Bytes for each item, measured and rounded up: table and key; the reconciliation's staging table and key; log; the
# exports, compressed; what sorting the key spills.
_TABLE, _STAGED, _LOG, _EXPORTS, _SORT = 110, 110, 130, 30, 30
_MOST_LOG = 18 * _GIB
"""`max_wal_size`, and what is written until a checkpoint that it asks for is done."""


class ScaleError(Exception):
    """A step did not end as it should; the text says how."""


def needed_bytes(items: int) -> int:
    """Return the disk space that a size needs, all of it at once."""
    return items * (_TABLE + _STAGED + _EXPORTS + _SORT) + min(items * _LOG, _MOST_LOG) + _GIB


@dataclass
class Size:
    """The run of one number of items on one server, in a folder of its own."""

    server: BenchServer
    folder: Path
    items: int
    say: Say
    keep: bool = False

    def measure(self, record: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Take every step, and give `record` what there is after each; what did not work is `failure`."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._tables = self.folder / "tables"
        self._tables.mkdir(parents=True)
        (self._tables / "employees.yaml").write_text(NARROW.mapping)
        found: dict[str, Any] = {"items": self.items, "steps": {}}
        self._url = self.server.fresh("bench_scale")
        try:
            began = time.monotonic()
            made = {
                each.state: exports.write(self.folder, each, self.items) for each in exports.exports(datetime.now(UTC))
            }
            found["generating_seconds"] = round(time.monotonic() - began, 1)
            self.say(f"  exports of {self.items:,} items: {found['generating_seconds']} s")
            with source.serving(self.items) as endpoint:
                self._endpoint = endpoint
                for name, step in self._steps(made):
                    found["steps"][name] = step()
                    record(found)
        except ScaleError as error:
            self.say(f"  failed: {error}")
            found["failure"] = str(error)
        finally:
            self.server.drop("bench_scale")
            if not self.keep:
                shutil.rmtree(self.folder)
        return found

    def _steps(self, made: dict[str, str]) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
        per_thousand = self.items // rows.EVERY
        return [
            ("load", lambda: self._load(made["first"])),
            ("catch-up", lambda: self._catch_up(made["changes"], per_thousand * rows.CHANGES)),
            ("reconcile", lambda: self._reconcile(made["second"], per_thousand * rows.DAMAGED)),
            ("purge", lambda: self._purge(made["later"], per_thousand * rows.DELETES)),
        ]

    def _load(self, location: str) -> dict[str, Any]:
        self._dynaurora("migrate")
        found, report = self._step("load", self.items, "load", "narrow", "--manifest", location)
        return found | self._checked(
            second=False, wrong={"applied": (report["applied"], self.items), "rejected": (report["rejected"], 0)}
        ) | {"strategy": report["strategy"]}  # fmt: skip

    def _catch_up(self, location: str, changes: int) -> dict[str, Any]:
        found, report = self._step("catch-up", changes, "catch-up", "narrow", "--manifest", location)
        return found | self._checked(second=True, wrong={"applied": (report["applied"], changes)})

    def _reconcile(self, location: str, damaged: int) -> dict[str, Any]:
        with psycopg.connect(self._url, autocommit=True) as connection:
            for statement in rows.damage(self.items):
                connection.execute(statement.encode())
        found, report = self._step("reconcile", self.items, "reconcile", "narrow", "--repair", "--manifest", location)
        drift = report["missing"] + report["extra"] + report["different"]
        wrong = {name: (report[name], 0) for name in ("undecided", "rejected", "in_flight")}
        wrong |= {"drift": (drift, damaged), "repaired": (report["repaired"], damaged)}
        return found | self._checked(second=True, wrong=wrong) | {"drift": drift}

    def _purge(self, location: str, deleted: int) -> dict[str, Any]:
        self._dynaurora("load", "narrow", "--manifest", location)  # tombstones wait for a later snapshot
        found, report = self._step("purge", deleted, "purge", "narrow", "--retention", "1h")
        return found | self._checked(second=True, wrong={"tombstones": (report["tombstones"], deleted)})

    def _step(self, name: str, count: int, *command: str) -> tuple[dict[str, Any], dict[str, Any]]:
        self.server.settle()
        server_before, client_before = processes.cpu_seconds(self.server.pid), _children_seconds()
        began = time.monotonic()
        with ExitStack() as stack:
            process = stack.enter_context(self._process(*command))
            watch = stack.enter_context(Footprint(process.pid, self.server.pid, self.server.postgres.data_dir))
            report = self._answer(process, command)
        wall = time.monotonic() - began
        seconds = report["seconds"]
        self.say(f"  {name}: {count:,} in {seconds:.1f} s, {count / seconds:,.0f} a second")
        return {
            "items": count,
            "seconds": round(seconds, 3),
            "command_seconds": round(wall, 2),
            "items_per_s": round(count / seconds),
            "client_cpu_seconds": round(_children_seconds() - client_before, 2),
            "server_cpu_seconds": round(processes.cpu_seconds(self.server.pid) - server_before, 2),
            **watch.figures(),
            **self._sizes(),
        }, report

    def _dynaurora(self, *command: str) -> None:
        with self._process(*command) as process:
            self._answer(process, command)

    def _process(self, *command: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "DATABASE_URL": self._url,
            "DYNAURORA_TABLES": str(self._tables),
            "AWS_ENDPOINT_URL": self._endpoint,
            "AWS_REGION": "eu-central-1",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
        }
        words = [sys.executable, "-c", _CLI, *command, "--json"]
        out, told = subprocess.PIPE, (self.folder / "told.txt").open("a+")
        with told:
            return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=out, stderr=told, text=True)

    def _answer(self, process: subprocess.Popen[str], command: tuple[str, ...]) -> dict[str, Any]:
        try:
            answer, _ = process.communicate()
        except BaseException:
            process.kill()
            raise
        if process.returncode:
            told = (self.folder / "told.txt").read_text().strip()[-500:]
            raise ScaleError(f"dynaurora {command[0]} ended with status {process.returncode}: {told or answer[-500:]}")
        report: dict[str, Any] = json.loads(answer)
        return report

    def _checked(self, *, second: bool, wrong: dict[str, tuple[int, int]]) -> dict[str, Any]:
        """Compare the view with the source, and the command's own counts with what they must be."""
        with psycopg.connect(self._url) as connection:
            row = connection.execute(rows.check(self.items, second=second).encode()).fetchone()
        counted, right = row or (0, 0)
        wrong = wrong | {"rows": (counted, self.items), "right rows": (right, self.items)}
        told = [f"{name}: {found:,}, not {must:,}" for name, (found, must) in wrong.items() if found != must]
        if told:
            self.say(f"    WRONG: {'; '.join(told)}")
        return {"verdict": f"wrong: {'; '.join(told)}" if told else "exact"}

    def _sizes(self) -> dict[str, Any]:
        query = """SELECT pg_table_size(t), pg_indexes_size(t), pg_database_size(current_database())
                     FROM (SELECT 'replica."Employees"'::regclass) AS t(t)"""
        with psycopg.connect(self._url) as connection:
            found = connection.execute(query).fetchone() or (0, 0, 0)
        names = ("table_mb", "indexes_mb", "database_mb")
        return {name: round(size / (1 << 20)) for name, size in zip(names, found, strict=True)}


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
