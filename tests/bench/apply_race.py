"""The replicator, against the seed's handler, over a network of one millisecond, from batches of 100 to 10,000.

It measures from an event's JSON to its commit. Each contestant has its own database, whose history continues from round
to round. After every run the table's rows are compared with the history.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from pipeline.aurora.sessions.connection import connect
from tests.bench.contest import Spec
from tests.bench.contestant import OURS_PYTHON, RIVALS_PYTHON, ROOT, ContestantError, migrate, run
from tests.bench.history import History
from tests.bench.items import Item
from tests.bench.network import Network
from tests.bench.reference import elements, expected, shown
from tests.bench.rounds import EXACT, Entry, Run, Say, interleave
from tests.bench.server import BenchServer
from tests.bench.shapes import CHILDREN, EMBEDDINGS, NARROW, STAFF, STAFF_HISTORY, WIDE, Shape

ROUND_TRIP_MS = 1.0
# The values of a row `n` that is there before, in the order of the shape's columns.
_THREE = "n, 'name ' || n, 'Dept ' || n % 999"
_VALUES = {
    "narrow": _THREE,
    "staff": _THREE + ", n % 90000 + 0.25, n % 5 <> 0,"
    " jsonb_build_object('city', 'Accra', 'score', n % 1000 + 0.5, 'tags', jsonb_build_array('x', n % 10))",
    "wide": "'item#' || n, 'someone' || n || '@example.com', 'Akua Mensah', 'ACTIVE', 'Accra', '2024-05-14T11:14:20Z',"
    " repeat('lorem ipsum ', 9), '12345678-1234', n % 1000, n / 100.0, 12345678901234567890123456789012345678, 1.5, n,"
    " true, false, decode(repeat('00', 48), 'hex'), ARRAY['a', 'b'],"
    """ '["lorem", 1.5, true, null, {"sku": "SKU-123456", "qty": 5, "unit": 1.5}]'::jsonb,"""
    """ '{"address": {"street": "1 Main St", "zip": "12345", "geo": [1.5, 2.5]}, "score": 12.5}'::jsonb, NULL""",
    "children": "n, 'Akua Mensah ' || n % 1000, '2024-05-14T11:14:20Z'::timestamptz, n / 100.0",
    "embeddings": "n, array_fill(0.1::double precision, ARRAY[1536])",
}

_CHILD_VALUES = "n, place, 'SKU-' || n % 1000, n % 50, n / 100.0"

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

    def everything(self) -> list[Entry]:
        """Return the replicator with batches and tables of all sizes, and all its rivals."""
        scale, first = self._scale, self._scale.rows[0]
        return [
            self._seed("seed", "the seed's handler", scale.seed_batches, select=True, log=True),
            self._seed(
                "seed_silent", "the seed's handler, its logging off", scale.seed_batches, select=True, log=False
            ),
            self.by_hand(),
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

    def batches_of_100(self) -> list[Entry]:
        """Return the replicator with batches of 100, and the same rows written by hand."""
        return [self.by_hand(), self.ours(self._scale.rows[0], 100, self._scale.batches[100])]

    def beside(self, other: ApplyRace) -> list[Entry]:
        """Return the replicator with batches of 100, another's with the same rows, and the same rows by hand."""
        plain = replace(other.batches_of_100()[1], key="without-history", label="dynaurora without the history")
        return [other.by_hand(), plain, self.batches_of_100()[1]]

    def by_hand(self) -> Entry:
        """Return the seed's handler without its SELECT."""
        label, batches = "the seed's handler without its SELECT", self._scale.seed_batches_without_select
        return self._seed("seed_without_select", label, batches, select=False, log=True)

    def _seed(self, key: str, label: str, batches: int, *, select: bool, log: bool) -> Entry:
        rows = self._scale.rows[0]

        def contest() -> Run:
            if not RIVALS_PYTHON.exists():
                raise ContestantError("not installed: `make bench` sets up .venv-bench first")
            database = f"bench_{key}_{self._shape.name}"
            if database not in self._histories:
                url = self._server.fresh(database)
                with closing(psycopg.connect(url, autocommit=True)) as connection:
                    connection.execute(self._shape.create(self._view).encode())
                    connection.execute(f"INSERT INTO {self._view} {self._rows(rows)}".encode())
                    if self._shape.child:
                        child = self._shape.child_of(self._view)
                        connection.execute(self._shape.child.create(child).encode())
                        connection.execute(f"INSERT INTO {child} {self._child_rows(rows)}".encode())
                    connection.execute(b"VACUUM ANALYZE")
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
        return f"SELECT {_VALUES[self._shape.items_of or self._shape.name]} FROM generate_series(1, {rows}) AS n"

    def _child_rows(self, rows: int) -> str:
        return f"SELECT {_CHILD_VALUES} FROM generate_series(1, {rows}) AS n, generate_series(0, 3) AS place"

    def _fill(self, database: str, rows: int) -> None:
        self._say(f"  filling a table of {rows:,} rows")
        url = self._server.fresh(database)
        migrate(url, self._shape, self._folder, self._root)
        with closing(connect(url, application_name="bench")) as connection:
            table, key = self._shape.table, self._shape.key.column
            storage = f'replica."{table}"'
            ours, values = "_as_of", "'2024-05-14'::timestamptz"
            if self._shape.unmapped:
                ours, values = f'"{self._shape.unmapped}", {ours}', f"'{{}}'::jsonb, {values}"
            for statement in (
                f'ALTER TABLE {storage} DROP CONSTRAINT "{table}_pkey"',
                f"INSERT INTO {storage} ({', '.join(self._shape.columns)}, {ours})"
                f" SELECT f.*, {values} FROM ({self._rows(rows)}) AS f",
                f'ALTER TABLE {storage} ADD PRIMARY KEY ("{key}")',
                *self._child_statements(storage, rows),
                "VACUUM ANALYZE",
            ):
                connection.execute(statement.encode())

    def _child_statements(self, storage: str, rows: int) -> list[str]:
        child = self._shape.child
        if child is None:
            return []
        return [
            f"INSERT INTO {self._shape.child_of(storage)} ({', '.join(child.columns)}, _as_of)"
            f" SELECT f.*, '2024-05-14'::timestamptz FROM ({self._child_rows(rows)}) AS f"
        ]

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
        if self._shape.history:
            measured.figures["bytes_per_version"] = self._bytes_per_version(url)
        if parsing := measured.figures.pop("json_loads_seconds", None):
            measured.figures["json_loads_us_per_item"] = parsing / batches / size * 1e6
            measured.figures["client_to_json_loads"] = measured.client_seconds / parsing
        # The server's share includes the first batch, which warms up and is not counted.
        counted = replace(measured, server_seconds=measured.server_seconds * batches / (batches + 1))
        return Run(size * batches, counted, self._verdict(url, history))

    def _verdict(self, url: str, history: History) -> str:
        """Compare the table with the history: the number of rows, and every row that was written."""
        fields, key = self._shape.fields, self._shape.key
        named = [f'"{f.column}"::text' if f is key or f.type == "jsonb" else f'"{f.column}"' for f in fields]
        keys = {history.key(number)[key.tag]: item for number, item in history.written.items()}
        with closing(psycopg.connect(url)) as connection:
            counted = connection.execute(f"SELECT count(*) FROM {self._view}".encode()).fetchone()
            query = f'SELECT {", ".join(named)} FROM {self._view} WHERE "{key.column}" = ANY (%s::{key.type}[])'
            rows = connection.execute(query.encode(), [list(keys)]).fetchall()
            unrecorded = (
                connection.execute(self._unrecorded.encode(), [list(keys)] * 2).fetchall()
                if self._shape.history
                else []
            )
        table = {row[0]: [shown(f, value) for f, value in zip(fields[1:], row[1:], strict=True)] for row in rows}
        wrong = sum(table.get(k) != (item and [expected(f, item) for f in fields[1:]]) for k, item in keys.items())
        wrong += self._wrong_children(url, keys)
        if wrong or counted != (history.live,):
            return f"wrong: {wrong} of {len(keys)} written rows"
        return f"wrong: the newest versions of {len(unrecorded)} rows" if unrecorded else EXACT

    @property
    def _unrecorded(self) -> str:
        """SQL for the written rows whose newest version is another."""
        columns, key = ", ".join(self._shape.columns), self._shape.key
        mine = f'"{key.column}" = ANY (%s::{key.type}[])'
        return (
            f"SELECT {columns} FROM {self._view} WHERE {mine} EXCEPT SELECT {columns}"
            f' FROM public."{self._shape.table}_history" WHERE is_current AND NOT deleted AND {mine}'
        )

    def _bytes_per_version(self, url: str) -> float:
        """Return the size of the history's tables, indexes included, for each of its versions."""
        name = f'replica."{self._shape.table}_history"'
        with closing(psycopg.connect(url)) as connection:
            row = connection.execute(
                f"SELECT (SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree('{name}'))"
                f" / GREATEST(1, (SELECT count(*) FROM {name}))".encode()
            ).fetchone()
        return round(float(row[0]), 1) if row else 0.0

    def _wrong_children(self, url: str, keys: dict[str, Item | None]) -> int:
        """Count the items that were written and whose elements are not in the child's table as they should be."""
        child = self._shape.child
        if child is None:
            return 0
        with closing(psycopg.connect(url)) as connection:
            query = f"SELECT {', '.join(child.columns)} FROM {self._shape.child_of(self._view)} ORDER BY 1, 2"
            found: dict[str, list[list[Any]]] = {}
            for key, *values in connection.execute(query.encode()):
                found.setdefault(str(key), []).append(values)
        wanted = {
            key: [[expected(f, element) for f in child.fields[1:]] for element in elements(self._shape, item)]
            for key, item in keys.items() if item
        }  # fmt: skip
        return sum(found.get(key, []) != wanted.get(key, []) for key in keys)

    @property
    def _view(self) -> str:
        return f'public."{self._shape.table}"'


def _everything(race: ApplyRace, _: Network) -> list[Entry]:
    return race.everything()


def _batches_of_100(race: ApplyRace, _: Network) -> list[Entry]:
    return race.batches_of_100()


def races(
    server: BenchServer, folder: Path, *, quick: bool, rounds: int, say: Say
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the parts of the suite that apply, by name."""
    scale = QUICK if quick else FULL

    def part(shape: Shape, scale: Scale, suffix: str, entries: Callable[[ApplyRace, Network], list[Entry]]) -> Any:  # noqa: ANN401 - JSON
        with server.synced(on=False), Network(server.postgres.url, ROUND_TRIP_MS) as network:
            say(f"  the network adds {network.added_ms:.2f} ms (the proxy by itself {network.overhead_ms:.2f} ms)")
            race = ApplyRace(server, network, folder, shape, scale, say)
            outcomes = interleave(entries(race, network), rounds, say)
            return {
                "outcomes": [outcome.to_json() for outcome in outcomes.values()],
                "suffix": suffix,
                "network": {
                    "direct_ms": round(network.direct_ms, 3),
                    "added_ms": round(network.added_ms, 3),
                    "proxy_itself_ms": round(network.overhead_ms, 3),
                },
            }

    def with_history() -> dict[str, Any]:
        def entries(race: ApplyRace, network: Network) -> list[Entry]:
            return race.beside(ApplyRace(server, network, folder, STAFF, small, say))

        return part(STAFF_HISTORY, small, "-history", entries)

    small = replace(scale, rows=scale.rows[:1])
    few = replace(scale, rows=(2_000,), batches={100: 5}, seed_batches_without_select=2)
    return {
        "apply": lambda: part(STAFF, scale, "", _everything),
        "apply-narrow": lambda: part(NARROW, small, "-three-columns", _everything),
        "apply-wide": lambda: part(WIDE, small, "-wide", _batches_of_100),
        "apply-children": lambda: part(CHILDREN, small, "-children", _batches_of_100),
        "apply-embeddings": lambda: part(EMBEDDINGS, few, "-embeddings", _batches_of_100),
        "apply-history": with_history,
    }
