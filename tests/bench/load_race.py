"""The load and the reconciliation, against other tools and against the limits of COPY."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
from psycopg import sql

from pipeline.aurora.schema import tables
from pipeline.aurora.sessions.connection import connect
from pipeline.core.mapping_files.mapping_file import read_mapping
from tests.bench.contest import Spec
from tests.bench.contestant import OURS_PYTHON, RIVALS_PYTHON, ROOT, ContestantError, migrate, run
from tests.bench.export import Data, generate
from tests.bench.rounds import EXACT, Entry, Outcome, Run, Say, interleave
from tests.bench.server import BenchServer
from tests.bench.shapes import LOADED, SHAPES, Shape


@dataclass(frozen=True)
class Sizes:
    """How many items each kind of contestant gets: the slow ones get fewer, as the report says."""

    items: int
    slow: int
    duckdb: int


FULL = {
    "narrow": Sizes(1_000_000, 50_000, 1_000_000),
    "narrow-3-indexes": Sizes(1_000_000, 0, 0),
    "wide": Sizes(500_000, 10_000, 20_000),
    "varied": Sizes(200_000, 0, 0),
    "children": Sizes(300_000, 0, 0),
    "embeddings": Sizes(4_000, 0, 0),
}
QUICK = {
    "narrow": Sizes(100_000, 10_000, 100_000),
    "narrow-3-indexes": Sizes(100_000, 0, 0),
    "wide": Sizes(10_000, 1_000, 2_000),
    "varied": Sizes(10_000, 0, 0),
    "children": Sizes(20_000, 0, 0),
    "embeddings": Sizes(200, 0, 0),
}
MEMORY_ITEMS = {"full": (100_000, 1_000_000), "quick": (20_000, 100_000)}
WORKERS = {"narrow": (1, 4), "wide": (1,)}
"""Besides two."""
TWO = 2
"""A load's default."""
# Runs in a round for those on which the stated ratios depend, because the machine's speed varies by the minute.
_CLOSE = 3
_WITHOUT_ISAL = Path(__file__).with_name("without_isal")


class LoadRace:
    """The contest of one shape on one server."""

    def __init__(self, server: BenchServer, folder: Path, shape: str, sizes: Sizes, *, root: Path = ROOT) -> None:
        self._server, self._folder, self._shape, self._sizes = server, folder, SHAPES[shape], sizes
        self._root = root
        self._wanted: dict[int, tuple[str, ...]] = {}

    def rounds(self, rounds: int, say: Say) -> dict[str, Outcome]:
        """Run every contestant in every round."""
        sizes = self._sizes
        entries = [
            *self._closest(),
            self.limit("copy_indexed", "psql \\copy of ready text, key first", key_after=False),
            *(self.ours(workers) for workers in WORKERS[self._shape.name]),
            self._reconciliation(),
            self._rival("boto3_executemany", "boto3 TypeDeserializer, executemany", sizes.slow, times=_CLOSE),
            self._rival("pandas_to_sql", "pandas to_sql", sizes.slow),
            self._rival("pandas_copy", "pandas, COPY of CSV", sizes.slow),
            self._rival("duckdb_adbc", "DuckDB, Arrow, ADBC", sizes.duckdb),
        ]
        return interleave(entries, rounds, say)

    def closest(self, rounds: int, say: Say) -> dict[str, Outcome]:
        """Run only those that are closest to each other: the limit, and ours with two workers."""
        return interleave(self._closest(), rounds, say)

    def by_size(self, counts: tuple[int, ...], say: Say) -> list[dict[str, object]]:
        """Load exports of several sizes once: the rate, and the most memory that one process had."""
        found: list[dict[str, object]] = []
        for count in counts:
            run = self._run_ours(2, count)
            rate, rss = round(count / run.measured.wall_seconds), round(run.measured.rss_mb, 1)
            say(f"  {count:,} {self._shape.name} items: {rate:,}/s, {rss} MB, {run.verdict}")
            found.append({"items": count, "items_per_s": rate, "rss_mb": rss, "verdict": run.verdict})
        return found

    def with_indexes(self, rounds: int, say: Say) -> dict[str, Outcome]:
        """Run ours beside the limit, both with the shape's indexes."""
        label = "psql \\copy of ready text, key and indexes built after"
        return interleave([self.limit("copy_then_index", label, key_after=True), self.ours(TWO)], rounds, say)

    def beside_copy(self, rounds: int, say: Say) -> dict[str, Outcome]:
        """Run ours beside the limit alone."""
        return interleave(self._closest()[:2], rounds, say)

    def _closest(self) -> list[Entry]:
        limit = self.limit("copy_then_index", "psql \\copy of ready text, key built after", key_after=True)
        return [limit, self.ours(TWO), self._ours_without_isal()]

    def limit(self, key: str, label: str, *, key_after: bool) -> Entry:
        """Return the limit: ready-made text into the product's own table."""

        def contest() -> Run:
            data = self._data(self._sizes.items)
            url, relation = self._storage("bench_limit", data, keyed=not key_after)
            options = {"key_after": key_after, "child_path": data.child_path}
            spec = self._spec(data, url, table=relation, options=options)
            found = self._judged("tests.bench.rivals.psql_copy", spec, data, relation, OURS_PYTHON)
            self._server.drop("bench_limit")  # nobody should share the machine with the vacuum of another's table
            return found

        return Entry(key, label, "limit", contest, _CLOSE if key_after else 1)

    def _rival(self, key: str, label: str, count: int, *, times: int = 1) -> Entry:
        def contest() -> Run:
            if not RIVALS_PYTHON.exists():
                raise ContestantError("not installed: `make bench` sets up .venv-bench first")
            data, url = self._data(count), self._server.fresh("bench_rival")
            with psycopg.connect(url) as connection:
                connection.execute(self._shape.create("rival").encode())
            found = self._judged(f"tests.bench.rivals.{key}", self._spec(data, url), data, "rival", RIVALS_PYTHON)
            self._server.drop("bench_rival")
            return found

        return Entry(key, label, "rival", contest, times)

    def ours(self, workers: int = TWO) -> Entry:
        """Return the load of the checkout at `root`."""
        label = f"dynaurora load, {workers} worker{'s' if workers > 1 else ''}"
        times = _CLOSE if workers == TWO else 1
        return Entry(f"load_{workers}", label, "ours", lambda: self._run_ours(workers, self._sizes.items), times)

    def _ours_without_isal(self) -> Entry:
        def contest() -> Run:
            return self._run_ours(2, self._sizes.items, first_on_path=_WITHOUT_ISAL)

        return Entry("load_2_without_isal", "dynaurora load, 2 workers, without isal", "ours", contest)

    def _run_ours(self, workers: int, count: int, *, first_on_path: Path | None = None) -> Run:
        data = self._data(count)
        url, _ = self._storage("bench_ours", data, keyed=True)
        spec = self._spec(data, url, workers=workers)
        found = self._judged("tests.bench.ours.load", spec, data, self._view(), first_on_path=first_on_path)
        if found.verdict == EXACT and not self._has_its_indexes(url):
            found = replace(found, verdict="wrong: indexes")
        found.measured.figures["stored_bytes_per_item"] = self._stored_bytes(url) / count
        self._server.drop("bench_ours")
        return found

    def _stored_bytes(self, url: str) -> int:
        with psycopg.connect(url) as connection:
            row = connection.execute(
                "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relkind = 'r'"
                " AND relnamespace = 'replica'::regnamespace"
            ).fetchone()
        return row[0] if row else 0

    def _has_its_indexes(self, url: str) -> bool:
        with psycopg.connect(url) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_index WHERE indisvalid AND indrelid = %s::regclass",
                [f'replica."{self._shape.table}"'],
            ).fetchone()
        return row == (1 + len(self._shape.indexes),)

    def _reconciliation(self) -> Entry:
        loaded: list[str] = []

        def contest() -> Run:
            data = self._data(self._sizes.items)
            if not loaded:
                url, _ = self._storage("bench_reconcile", data, keyed=True)
                self._judged("tests.bench.ours.load", self._spec(data, url, workers=2), data, self._view())
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute("VACUUM ANALYZE")
                loaded.append(url)
            self._server.settle()
            spec = self._spec(data, loaded[0], workers=2)
            measured = run("tests.bench.ours.reconcile", spec, server_pid=self._server.pid, python=OURS_PYTHON)
            found = (measured.figures["compared"], measured.figures["drift"])
            return Run(data.count, measured, EXACT if found == (data.count, 0) else f"wrong: compared, drift = {found}")

        return Entry("reconcile_2", "dynaurora reconcile, 2 workers", "ours", contest)

    def _data(self, count: int) -> Data:
        return generate(self._folder, self._shape.items_of or self._shape.name, count)

    def _spec(
        self,
        data: Data,
        url: str,
        *,
        table: str = "rival",
        workers: int = 1,
        options: dict[str, bool | str] | None = None,
    ) -> Spec:
        return Spec(
            url,
            self._shape.name,
            table,
            data.files,
            data.location,
            data.text_path,
            self._server.psql,
            workers,
            dict(options or {}),
        )

    def _view(self) -> str:
        return f'public."{self._shape.table}"'

    def _storage(self, database: str, data: Data, *, keyed: bool) -> tuple[str, str]:
        """Create the product's own table in a fresh database; without its key if that is built afterwards."""
        url = self._server.fresh(database)
        migrate(url, self._shape, self._folder, self._root)
        parent, *children = read_mapping(self._shape.mapping, "bench.yaml").tables
        with connect(url, application_name="bench") as connection:
            for target in (parent, *children):
                table = tables.storage(target)
                if data.text_path and database == "bench_limit":
                    connection.execute(sql.SQL("ALTER TABLE {} ALTER _as_of SET DEFAULT '2024-05-14'").format(table))
                if not keyed:
                    name = sql.Identifier(f"{target.storage_name}_pkey")
                    connection.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(table, name))
                    for index in target.indexes:
                        found = sql.Identifier("replica", index.name(target.storage_name))
                        connection.execute(sql.SQL("DROP INDEX {}").format(found))
            return url, tables.storage(parent).as_string(connection)

    def _judged(
        self,
        module: str,
        spec: Spec,
        data: Data,
        relation: str,
        python: Path = OURS_PYTHON,
        first_on_path: Path | None = None,
    ) -> Run:
        wanted = self._reference(data)
        self._server.settle()
        measured = run(
            module, spec, server_pid=self._server.pid, python=python, first_on_path=first_on_path, root=self._root
        )
        return Run(data.count, measured, verdict(checksum(spec.url, self._shape, relation), wanted))

    def _reference(self, data: Data) -> tuple[str, ...]:
        """Return the checksum that the table must have, by the reference."""
        if data.count not in self._wanted:
            url = self._server.fresh("bench_reference")
            with psycopg.connect(url) as connection:
                connection.execute(self._shape.create("reference", keyed=False).encode())
                if self._shape.unmapped:
                    connection.execute(f'ALTER TABLE reference ADD "{self._shape.unmapped}" jsonb'.encode())
                if self._shape.child:
                    connection.execute(self._shape.child.create("reference_child", keyed=False).encode())
            copies = [("reference", data.text_path), ("reference_child", data.child_path)]
            for table, path in copies[: 2 if self._shape.child else 1]:
                copy = f"\\copy {table} FROM '{path}'"
                subprocess.run([self._server.psql, "-X", "-q", url, "-c", copy], check=True)
            self._wanted[data.count] = checksum(url, self._shape, "reference")
            self._server.drop("bench_reference")
        return self._wanted[data.count]


def checksum(url: str, shape: Shape, relation: str) -> tuple[str, ...]:
    """Return the sums of a relation's content."""
    with psycopg.connect(url) as connection:
        sums = [connection.execute(shape.checksum(relation).encode()).fetchone()]
        if shape.child:
            child = shape.child.checksum(shape.child_of(relation))
            sums.append(connection.execute(child.encode()).fetchone())
    return tuple(value for row in sums for value in row or ())


def verdict(found: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """Return EXACT, or what differs."""
    names = ("count", "scalar values", "nested values and arrays")
    names += tuple(f"{name} of the children" for name in names)
    wrong = [name for name, mine, its in zip(names, found, wanted, strict=False) if mine != its]
    return f"wrong: {', '.join(wrong)}" if wrong else EXACT


def races(
    server: BenchServer, folder: Path, *, quick: bool, rounds: int, say: Say
) -> dict[str, Callable[[], dict[str, object]]]:
    """Return the parts of the suite that load, by name."""

    def part(shape: str) -> dict[str, object]:
        race = LoadRace(server, folder, shape, (QUICK if quick else FULL)[shape])
        if SHAPES[shape].indexes:
            outcomes = race.with_indexes(rounds, say)
        else:
            ways = {"varied": race.closest, "children": race.beside_copy, "embeddings": race.beside_copy}
            outcomes = ways.get(shape, race.rounds)(rounds, say)
        found: dict[str, object] = {"outcomes": [outcome.to_json() for outcome in outcomes.values()]}
        if shape == "narrow":
            found["by_size"] = race.by_size(MEMORY_ITEMS["quick" if quick else "full"], say)
        return found

    return {f"load-{shape}": lambda shape=shape: part(shape) for shape in LOADED}
