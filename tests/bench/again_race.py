"""Loads into a table that has rows: the same export again, counted as newer, or a small one; beside an upsert by hand.

Every run gets its own copy of a table that was prepared once. The rival's is plain: the columns, their key, the same
indexes. In a hundredth of the stored rows a value differs from the export's, so a load that leaves one of them is found
by its content, and one that leaves any other by its position.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import psycopg

from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.jobs.load.load import PROCESSES_FROM_BYTES, load
from pipeline.jobs.services import Services
from pipeline.settings import Settings
from tests.bench.contest import Spec
from tests.bench.contestant import OURS_PYTHON, migrate, run
from tests.bench.export import Data, generate
from tests.bench.load_race import checksum, verdict
from tests.bench.rounds import EXACT, Entry, Outcome, Run, Say, interleave
from tests.bench.server import BenchServer
from tests.bench.shapes import SHAPES

_EARLIER = timedelta(hours=1)
"""The margin of the load that fills the table, so that its rows are older."""


@dataclass(frozen=True)
class Again:
    """What is loaded into what. Runs in a round: more where the runs are short."""

    shape: str
    stored: int
    items: int
    strategy: str
    times: int


FULL = {
    "narrow-again": Again("narrow", 1_000_000, 1_000_000, "aside", 2),
    "narrow-again-index": Again("narrow-index", 1_000_000, 1_000_000, "aside", 2),
    "wide-again": Again("wide", 200_000, 200_000, "aside", 2),
    "narrow-merge": Again("narrow", 1_000_000, 100_000, "merge", 3),
}
QUICK = {
    "narrow-again": Again("narrow", 100_000, 100_000, "aside", 1),
    "narrow-again-index": Again("narrow-index", 100_000, 100_000, "aside", 1),
    "wide-again": Again("wide", 10_000, 10_000, "aside", 1),
    "narrow-merge": Again("narrow", 100_000, 10_000, "merge", 1),
}


class AgainRace:
    """The contest of one case on one server."""

    def __init__(self, server: BenchServer, folder: Path, case: Again) -> None:
        self._server, self._folder, self._case, self._shape = server, folder, case, SHAPES[case.shape]
        self._stored, self._data = (
            generate(folder, self._shape.items_of or self._shape.name, count) for count in (case.stored, case.items)
        )
        self._wanted: tuple[str, ...] = ()

    def rounds(self, rounds: int, say: Say) -> dict[str, Outcome]:
        """Prepare both tables, and run both contestants in every round."""
        self._prepare()
        entries = [
            Entry("load_2", "dynaurora load, 2 workers", "ours", self._ours, self._case.times),
            Entry(
                "upsert_by_hand",
                "\\copy to an unlogged table, then one upsert",
                "limit",
                self._by_hand,
                self._case.times,
            ),
        ]
        found = interleave(entries, rounds, say)
        for database in ("bench_ours_before", "bench_hand_before"):
            self._server.drop(database)
        return found

    def _prepare(self) -> None:
        shape, url = self._shape, self._server.fresh("bench_ours_before")
        migrate(url, shape, self._folder)
        services = Services(Settings.from_environment({"DATABASE_URL": url}))
        mapping = read_mapping(shape.mapping, "bench.yaml")
        load(services, mapping, self._stored.location, margin=_EARLIER, aside_from=0)
        self._finish(url, f'replica."{shape.table}"')
        url = self._server.fresh("bench_hand_before")
        with psycopg.connect(url) as connection:
            for table in ("rival", "staged_for_reference"):
                connection.execute(shape.create(table, keyed=False).encode())
                if shape.unmapped:
                    connection.execute(f'ALTER TABLE {table} ADD "{shape.unmapped}" jsonb'.encode())
        self._copy(url, "rival", self._stored)
        self._copy(url, "staged_for_reference", self._data)
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f'ALTER TABLE rival ADD PRIMARY KEY ("{shape.key.column}")'.encode())
            for columns in shape.indexes:
                names = ", ".join(f'"{column}"' for column in columns)
                connection.execute(f"CREATE INDEX ON rival ({names})".encode())
        self._finish(url, "rival")
        with psycopg.connect(url) as connection:
            key = f'"{shape.key.column}"'
            connection.execute(
                "CREATE VIEW reference AS SELECT * FROM staged_for_reference UNION ALL SELECT * FROM rival AS r"
                f" WHERE NOT EXISTS (SELECT FROM staged_for_reference AS s WHERE s.{key} = r.{key})".encode()
            )
        self._wanted = checksum(url, shape, "reference")
        with psycopg.connect(url) as connection:
            connection.execute("DROP VIEW reference; DROP TABLE staged_for_reference")

    def _finish(self, url: str, table: str) -> None:
        """Let a hundredth of the rows differ, and leave the table as autovacuum would."""
        column = self._shape.columns[1]
        with psycopg.connect(url, autocommit=True) as connection:
            some = f'hashtext("{self._shape.key.column}"::text) % 100 = 0'
            connection.execute(f"UPDATE {table} SET {column} = 'before' WHERE {some}".encode())
            connection.execute(f"VACUUM ANALYZE {table}".encode())

    def _copy(self, url: str, table: str, data: Data) -> None:
        subprocess.run(
            [self._server.psql, "-X", "-q", url, "-c", f"\\copy {table} FROM '{data.text_path}'"], check=True
        )

    def _ours(self) -> Run:
        found = self._measured("tests.bench.ours.load", "bench_ours", "", f'public."{self._shape.table}"')
        if found.verdict == EXACT and found.measured.figures["strategy"] != self._case.strategy:
            return replace(found, verdict=f"wrong: {found.measured.figures['strategy']}")
        return found

    def _by_hand(self) -> Run:
        return self._measured("tests.bench.rivals.upsert_by_hand", "bench_hand", "rival", "rival")

    def _measured(self, module: str, database: str, table: str, relation: str) -> Run:
        url = self._server.fresh(database, like=f"{database}_before")
        data = self._data
        spec = Spec(
            url,
            self._shape.name,
            table,
            data.files,
            data.location,
            data.text_path,
            self._server.psql,
            workers=2,
            options={"processes_from": PROCESSES_FROM_BYTES},
        )
        self._server.settle()
        measured = run(module, spec, server_pid=self._server.pid, python=OURS_PYTHON)
        found = verdict(checksum(url, self._shape, relation), self._wanted)
        if found == EXACT and not table:
            found = self._positions(url)
        self._server.drop(database)
        return Run(data.count, measured, found)

    def _positions(self, url: str) -> str:
        """Say whether as many rows as were loaded have the newer position."""
        with psycopg.connect(url) as connection:
            row = connection.execute(
                f'SELECT count(*) FROM replica."{self._shape.table}"'
                f" WHERE _as_of = (SELECT max(as_of) FROM replication.exports)".encode()
            ).fetchone()
        return EXACT if row == (self._data.count,) else "wrong: positions"


def races(
    server: BenchServer, folder: Path, *, quick: bool, rounds: int, say: Say
) -> dict[str, Callable[[], dict[str, object]]]:
    """Return the parts of the suite that load into full tables, by name."""

    def part(case: Again) -> dict[str, object]:
        outcomes = AgainRace(server, folder, case).rounds(rounds, say)
        return {"outcomes": [outcome.to_json() for outcome in outcomes.values()]}

    cases = QUICK if quick else FULL
    return {f"load-{name}": lambda case=case: part(case) for name, case in cases.items()}
