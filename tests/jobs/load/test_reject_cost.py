"""The cost of many rejects in units that do not depend on the machine: round trips."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from pipeline.aurora.bookkeeping import rejects
from pipeline.aurora.bookkeeping.load_lead import Lead
from pipeline.aurora.rows import isolating
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import connect
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.ordering import snapshot_position
from pipeline.dynamodb.exports.manifest import read_manifest
from pipeline.jobs.load.load_file import FileLoader, LoadWork
from pipeline.jobs.services import Services
from pipeline.settings import Settings
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, Layout
from tests.jobs.load.test_load_counts import begun, ignore
from tests.wire import Wire

MAPPING = """\
name: things
source: {table: Employees, key: {Id: N}}
targets:
  Things:
    primary_key: [Id]
    columns:
      Id: {attribute: Id, type: bigint}
      Marks: {attribute: marks, type: "numeric[]"}
      Size: {attribute: size, type: double precision}
    unmapped: attributes
"""
LIST = {"marks": {"L": [{"L": [{"N": "1"}]}, {"N": "2"}]}}
# Only PostgreSQL finds that a double cannot hold it.
TOO_SMALL = {"size": {"N": "1e-400"}}


def loaded(database: str, exports: ExportFactory, count: int, value: dict[str, Any]) -> tuple[Wire, int]:
    """Load a file of `items` items with the value; return the cost and the number of rejects."""
    mapping = read_mapping(MAPPING, "things.yaml")
    services = Services(Settings.from_environment({"DATABASE_URL": database}))
    with closing(services.connect("test")) as connection:
        migrate(connection, [mapping])
        written = exports.full([{"Id": {"N": str(n)}, **value} for n in range(count)], Layout(files=1, empty_files=0))
        manifest = read_manifest(services.store(written.location), written.location, expected_table=None)
        work = LoadWork(services, mapping, "", written.location, snapshot_position(EXPORT_TIME), Lead(0, 0))
        loader = FileLoader(begun(connection, work, build=False))
        with Wire(connection) as wire:
            counts = loader.load(connection, manifest.files[0], ignore)
    assert counts
    return wire, counts.rejected


@pytest.mark.parametrize("count", [1, 5_000])
def test_a_numeric_array_that_meets_lists_costs_the_same_few_round_trips(
    database: str, exports: ExportFactory, count: int
) -> None:
    wire, rejected = loaded(database, exports, count, LIST)
    assert rejected == count
    assert wire.round_trips <= 18


@pytest.mark.parametrize("count", [1, 5_000])
def test_rows_that_postgresql_refuses_cost_the_same_few_round_trips(
    database: str, exports: ExportFactory, count: int
) -> None:
    wire, rejected = loaded(database, exports, count, TOO_SMALL)
    assert rejected == count
    assert wire.round_trips <= 60


def test_rows_that_an_older_postgresql_refuses_cost_no_truncation(
    database: str, exports: ExportFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolating, "FIRST_VERSION", 10_000_000)
    count = 200
    wire, rejected = loaded(database, exports, count, TOO_SMALL)
    assert rejected == count
    # Twice as many tries as rows: a savepoint, a COPY and its end, and going back.
    assert wire.round_trips <= 2 * count * 5 + 30


def test_rejects_of_more_than_one_statement_are_each_kept_once(
    database: str, exports: ExportFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejects, "STATEMENT_CHARACTERS", 1_000)
    _, rejected = loaded(database, exports, 50, LIST)
    with closing(connect(database, application_name="test")) as connection:
        kept = connection.execute(
            "SELECT count(DISTINCT record->'Item'->'Id'->>'N'), count(*) FROM replication.rejects"
        )
        assert kept.fetchone() == (50, rejected) == (50, 50)
