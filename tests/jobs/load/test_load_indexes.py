"""Loads of tables with indexes and constraints: built aside with them, killed while they are built, or merged."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable
from dataclasses import replace
from string import ascii_letters
from typing import Any

import pytest

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import DiskFullError
from pipeline.core.model.index import Index, IndexPart
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.load.load import load
from pipeline.jobs.replicate import ReplicationReport
from pipeline.jobs.services import Services
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, Layout
from tests.jobs.conftest import named, view

CHILDREN = multiprocessing.get_context("spawn")
AFTER = EXPORT_TIME.timestamp() + 60


def item(number: int, name: str = "") -> dict[str, Any]:
    return {"Id": {"N": str(number)}, "empName": {"S": name or f"name {number}"}}


def indexed(mapping: TableMapping, *indexes: Index) -> TableMapping:
    (target,) = mapping.targets
    return replace(mapping, targets=(replace(target, indexes=indexes),))


BY_NAME = Index((IndexPart("Name"), IndexPart("Id", descending=True, nulls_first=True)))


def names(connection: Connection) -> list[str]:
    rows = connection.execute(
        "SELECT c.relname FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
        " WHERE indrelid = 'replica.\"Employees\"'::regclass AND indisvalid ORDER BY 1"
    )
    return [name for (name,) in rows]


@pytest.mark.parametrize("processes_from", [0, 10**9], ids=["processes", "threads"])
def test_a_first_load_of_a_table_with_indexes_is_built_aside(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection, processes_from: int
) -> None:
    mapping = indexed(employees, BY_NAME)
    migrate(connection, [mapping])
    connection.execute('CREATE INDEX by_hand ON replica."Employees" ("Department")')
    export = exports.full([item(n) for n in range(300)], Layout(files=4, empty_files=1))
    report = load(services, mapping, export.location, aside_from=0, processes_from=processes_from)
    assert (report.strategy, report.merged_because, report.applied) == ("aside", (), 300)
    assert set(names(connection)) == {"Employees_pkey", BY_NAME.name("Employees"), "by_hand"}
    assert view(connection) == {n: (f"name {n}", "NA") for n in range(300)}


def test_a_load_stays_loaded_when_an_index_is_added(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    export = exports.full([item(1)])
    load(services, employees, export.location)
    mapping = indexed(employees, BY_NAME)
    migrate(connection, [mapping])
    assert load(services, mapping, export.location).already_loaded
    assert load(services, employees, export.location).already_loaded


@pytest.mark.parametrize("streamed", [False, True], ids=["in the export", "between export and stream"])
def test_a_row_that_a_persons_index_refuses_makes_the_load_merge_and_becomes_a_reject(
    services: Services,
    employees: TableMapping,
    exports: ExportFactory,
    connection: Connection,
    apply: Callable[..., ReplicationReport],
    *,
    streamed: bool,
) -> None:
    connection.execute('CREATE UNIQUE INDEX by_hand ON replica."Employees" ("Name")')
    if streamed:
        apply(named(9, 1, "same", at=AFTER))
    items = [item(1, "same"), item(3)] if streamed else [item(1, "same"), item(2, "same"), item(3)]
    report = load(services, employees, exports.full(items, Layout(files=1)).location, aside_from=0)
    assert (report.strategy, report.rejected) == ("merge", 1)
    assert sorted(name for name, _ in view(connection).values()) == ["name 3", "same"]


def test_a_build_that_fills_the_disk_is_dropped_and_the_next_run_loads_everything(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    """The server raises the error itself, while it builds an index; writers then need the disk."""
    connection.execute(
        "CREATE FUNCTION public.fill_disk(name text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = '53100'; END $$"
    )
    connection.execute('CREATE INDEX by_hand ON replica."Employees" (public.fill_disk("Name"))')
    export = exports.full([item(1), item(2)])
    with pytest.raises(DiskFullError, match=r"DiskFull \(53100.*the disk of the database server is full"):
        load(services, employees, export.location, aside_from=0)
    assert connection.execute("SELECT count(*) FROM replication.builds").fetchone() == (0,)
    assert connection.execute("SELECT count(*) FROM pg_class WHERE relname LIKE '\\_load%'").fetchone() == (0,)
    connection.execute("DROP INDEX replica.by_hand")
    report = load(services, employees, export.location, aside_from=0)
    assert (report.strategy, report.applied, report.files_resumed) == ("aside", 2, 0)


def test_a_value_too_long_for_an_index_row_becomes_a_reject(
    services: Services, exports: ExportFactory, connection: Connection, employees: TableMapping
) -> None:
    (target,) = employees.targets
    columns = tuple(
        replace(c, type=replace(c.type, name="text", params=())) if c.name == "Name" else c for c in target.columns
    )
    mapping = replace(employees, targets=(replace(target, columns=columns, indexes=(BY_NAME,)),))
    migrate(connection, [mapping])
    long = "".join(random.Random(1).choices(ascii_letters, k=9_000))  # which cannot be compressed enough
    report = load(services, mapping, exports.full([item(1, long), item(2)]).location, aside_from=0)
    assert (report.strategy, report.applied, report.rejected) == ("merge", 1, 1)


def load_to_be_killed(services: Services, mapping: TableMapping, location: str) -> None:
    load(services, mapping, location, aside_from=0, processes_from=10**9)


def test_a_load_that_is_killed_while_indexes_are_built_resumes(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    connection.execute(
        "CREATE FUNCTION public.slow(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(CASE current_setting(''application_name'') WHEN ''test'' THEN 0 ELSE 0.05 END);"
        " RETURN $1; END'"
    )
    connection.execute('CREATE INDEX by_hand ON replica."Employees" (public.slow("Name"))')
    export = exports.full([item(n) for n in range(200)], Layout(files=2, empty_files=0))
    process = CHILDREN.Process(target=load_to_be_killed, args=(services, employees, export.location))
    process.start()
    building = "SELECT FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX%' AND application_name LIKE 'dynaurora%'"
    for _ in range(1200):
        if connection.execute(building).fetchone() is not None:
            break
        time.sleep(0.05)
    process.kill()
    process.join()
    for _ in range(1200):  # the server notices within a second or two, and later on a busy machine
        if connection.execute("SELECT FROM pg_locks WHERE locktype = 'advisory'").fetchone() is None:
            break
        time.sleep(0.05)
    connection.execute(
        "CREATE OR REPLACE FUNCTION public.slow(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1'"
    )
    report = load(services, employees, export.location, aside_from=0, processes_from=10**9)
    assert (report.strategy, report.files_resumed, report.applied) == ("aside", 2, 200)
    assert names(connection) == ["Employees_pkey", "by_hand"]
