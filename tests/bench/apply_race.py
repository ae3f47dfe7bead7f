"""The replicator, against the seed's handler, over a network of one millisecond, from batches of 100 to 10,000.

It measures from an event's JSON to its commit. Each contestant has its own database, whose history continues from round
to round. After every run the table's rows are compared with the history.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg

from pipeline.aurora.sessions.connection import connect
from tests.bench.contest import Spec
from tests.bench.contestant import OURS_PYTHON, RIVALS_PYTHON, ROOT, ContestantError, migrate, run
from tests.bench.history import History
from tests.bench.network import Network
from tests.bench.rounds import EXACT, Entry, Outcome, Run, Say, interleave
from tests.bench.server import BenchServer
from tests.bench.shapes import NARROW, STAFF, Field, Shape

ROUND_TRIP_MS = 1.0
_FILL = "SELECT n, 'name ' || n, 'Dept ' || n % 999{more} FROM generate_series(1, {rows}) AS n"
_MORE = {
    "narrow": "",
    "staff": ", n % 90000 + 0.25, n % 5 <> 0, jsonb_build_object('city', 'Accra', 'score', n % 1000 + 0.5, 'tags',"
    " jsonb_build_array('x', n % 10))",
}

# Runs in a round for those on which the stated ratios depend: each takes a second or a few.
_CLOSE = 3
_ALSO = {"no-delay": "no delay", "synced": "commits wait for the disk"}


@dataclass(frozen=True)
class Scale:
    """How much is applied: batches by size, rows by table, and the fewer batches of the seed's handler."""

    batches: dict[int, int]
    rows: tuple[int, ...]
    seed_batches: int
    seed_batches_without_select: int


FULL = Scale({100: 100, 1_000: 30, 10_000: 6}, (100_000, 1_000_000, 10_000_000), 3, 20)
QUICK = Scale({100: 30, 1_000: 5, 10_000: 2}, (100_000,), 1, 3)


class ApplyRace:
    """The contest on one server, through one network."""

    def __init__(
        self,
        server: BenchServer,
        network: Network,
        folder: Path,
        shape: Shape,
        scale: Scale,
        say: Say,
        *,
        root: Path = ROOT,
    ) -> None:
        self._root = root
        self._server, self._network, self._folder, self._say = server, network, folder, say
        self._shape, self._scale = shape, scale
        self._histories: dict[str, History] = {}

    def rounds(self, rounds: int) -> dict[str, Outcome]:
        """Run every contestant in every round."""
        scale, first = self._scale, self._scale.rows[0]
        entries = [
            self._seed("seed", "the seed's handler", scale.seed_batches, select=True, log=True),
            self._seed(
                "seed_silent", "the seed's handler, its logging off", scale.seed_batches, select=True, log=False
            ),
            self._seed(
                "seed_without_select",
                "the seed's handler without its SELECT",
                scale.seed_batches_without_select,
                select=False,
                log=True,
            ),
            self._seed(
                "seed_silent_without_select",
                "the same without its SELECT, its logging off",
                scale.seed_batches_without_select,
                select=False,
                log=False,
            ),
            *(self.ours(first, size, count) for size, count in scale.batches.items()),
            *(self.ours(rows, 100, scale.batches[100]) for rows in scale.rows[1:]),
            self.ours(first, 100, scale.batches[100], also="no-delay"),
            self.ours(first, 100, scale.batches[100], also="synced"),
        ]
        return interleave(entries, rounds, self._say)

    def _seed(self, key: str, label: str, batches: int, *, select: bool, log: bool) -> Entry:
        rows = self._scale.rows[0]

        def contest() -> Run:
            if not RIVALS_PYTHON.exists():
                raise ContestantError("not installed: `make bench` sets up .venv-bench first")
            database = f"bench_{key}_{self._shape.name}"
            if database not in self._histories:
                url = self._server.fresh(database)
                with closing(psycopg.connect(url, autocommit=True)) as connection:
                    connection.execute(self._shape.create('public."Employees"').encode())
                    connection.execute(f'INSERT INTO public."Employees" {self._rows(rows)}'.encode())
                    connection.execute('VACUUM ANALYZE public."Employees"')
                self._histories[database] = History(rows, shape=self._shape)
            options = {"select": select, "log": log}
            return self._contest("tests.bench.rivals.seed_handler", database, 100, batches, options, RIVALS_PYTHON)

        return Entry(key, f"{label}, batch 100", "rival", contest, _CLOSE if log else 1)

    def ours(self, rows: int, size: int, batches: int, *, also: str = "") -> Entry:
        """Return the replicator of the checkout at `root`."""
        key = f"batch-{size}" + ("" if rows == self._scale.rows[0] else f"-rows-{rows}") + (f"-{also}" if also else "")
        label = f"dynaurora, batch {size:,}, {rows:,} rows" + (f", {_ALSO[also]}" if also else "")

        def contest() -> Run:
            database = f"bench_apply_{self._shape.name}_{rows}{'_there' if self._root != ROOT else ''}"
            if database not in self._histories:
                self._fill(database, rows)
                self._histories[database] = History(rows, shape=self._shape)
            direct = also == "no-delay"
            with self._server.synced(on=also == "synced"):
                return self._contest("tests.bench.ours.apply", database, size, batches, {}, OURS_PYTHON, direct=direct)

        return Entry(key, label, "ours", contest, _CLOSE if size == 100 and not also else 1)

    def _rows(self, rows: int) -> str:
        return _FILL.format(more=_MORE[self._shape.name], rows=rows)

    def _fill(self, database: str, rows: int) -> None:
        self._say(f"  filling a table of {rows:,} rows")
        url = self._server.fresh(database)
        migrate(url, self._shape, self._folder, self._root)
        with closing(connect(url, application_name="bench")) as connection:
            storage = 'replica."Employees"'
            ours, values = "_as_of", "'2024-05-14'::timestamptz"
            if self._shape.unmapped:
                ours, values = f'"{self._shape.unmapped}", {ours}', f"'{{}}'::jsonb, {values}"
            for statement in (
                f'ALTER TABLE {storage} DROP CONSTRAINT "Employees_pkey"',
                f"INSERT INTO {storage} ({', '.join(self._shape.columns)}, {ours})"
                f" SELECT f.*, {values} FROM ({self._rows(rows)}) AS f",
                f'ALTER TABLE {storage} ADD PRIMARY KEY ("Id")',
                f"VACUUM ANALYZE {storage}",
            ):
                connection.execute(statement.encode())

    def _contest(
        self,
        module: str,
        database: str,
        size: int,
        batches: int,
        options: dict[str, bool],
        python: Path,
        *,
        direct: bool = False,
    ) -> Run:
        history, url = self._histories[database], self._server.url_of(database)
        events = self._folder / "events.jsonl"
        events.write_bytes(b"\n".join(history.batch(size) for _ in range(batches + 1)))
        mappings = self._folder / "tables"
        mappings.mkdir(exist_ok=True)
        (mappings / "employees.yaml").write_text(self._shape.mapping)
        self._server.settle()
        spec = Spec(
            url if direct else self._network.url_of(url),
            self._shape.name,
            location=str(mappings),
            text_path=str(events),
            options=dict(options),
        )
        before = self._network.traffic()
        measured = run(module, spec, server_pid=self._server.pid, python=python, root=self._root)
        passed = self._network.traffic()
        measured.figures["round_trips_per_batch"] = (passed.round_trips - before.round_trips) / (batches + 1)
        measured.figures["bytes_per_event"] = (passed.bytes_in - before.bytes_in) / (batches + 1) / size
        # The server's share includes the first batch, which warms up and is not counted.
        counted = replace(measured, server_seconds=measured.server_seconds * batches / (batches + 1))
        return Run(size * batches, counted, self._verdict(url, history))

    def _verdict(self, url: str, history: History) -> str:
        """Compare the table with the history: the number of rows, and every row that was written."""
        written = list(history.written)
        columns = [f"{name}::text" if f.type == "jsonb" else name for name, f in self._named()]
        with closing(psycopg.connect(url)) as connection:
            counted = connection.execute('SELECT count(*) FROM public."Employees"').fetchone()
            query = f'SELECT {", ".join(columns)} FROM public."Employees" WHERE "Id" = ANY (%s)'
            rows = connection.execute(query.encode(), [written]).fetchall()
        shown = {
            row[0]: tuple(self._value(f, v) for f, v in zip(self._shape.fields[1:], row[1:], strict=True))
            for row in rows
        }
        wrong = sum(shown.get(number) != values for number, values in history.written.items())
        if wrong or counted != (history.live,):
            return f"wrong: {wrong} of {len(written)} written rows"
        return EXACT

    def _named(self) -> list[tuple[str, Field]]:
        return list(zip(self._shape.columns, self._shape.fields, strict=True))

    @staticmethod
    def _value(field: Field, value: Any) -> Any:  # noqa: ANN401 - of any column
        return json.loads(value, parse_float=Decimal, parse_int=Decimal) if field.type == "jsonb" else value


def races(
    server: BenchServer, folder: Path, *, quick: bool, rounds: int, say: Say
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the parts of the suite that apply, by name."""
    scale = QUICK if quick else FULL

    def part(shape: Shape, scale: Scale, suffix: str) -> dict[str, Any]:
        with server.synced(on=False), Network(server.postgres.url, ROUND_TRIP_MS) as network:
            say(f"  the network adds {network.added_ms:.2f} ms (the proxy by itself {network.overhead_ms:.2f} ms)")
            outcomes = ApplyRace(server, network, folder, shape, scale, say).rounds(rounds)
            return {
                "outcomes": [outcome.to_json() for outcome in outcomes.values()],
                "suffix": suffix,
                "network": {
                    "direct_ms": round(network.direct_ms, 3),
                    "added_ms": round(network.added_ms, 3),
                    "proxy_itself_ms": round(network.overhead_ms, 3),
                },
            }

    return {
        "apply": lambda: part(STAFF, scale, ""),
        "apply-narrow": lambda: part(NARROW, replace(scale, rows=scale.rows[:1]), "-three-columns"),
    }
