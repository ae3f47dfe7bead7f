"""An unknown option and an unknown type, through load, stream, catch-up and the staging of a reconciliation."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.mapping import Column, TableMapping
from pipeline.core.types.sql_types import TYPES, SqlType
from pipeline.jobs.catch_up.catch_up import apply_export
from pipeline.jobs.load.load import load
from pipeline.jobs.reconcile.reconcile import Bounds, reconcile
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.services import Services
from tests.core.types.test_step_aside import INET, MarkedColumn, marking
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, WindowChange
from tests.jobs.conftest import record

THREADS = 10**9  # with this many items there would be processes, which do not know the types of this test


@pytest.fixture
def employees(employees: TableMapping, monkeypatch: pytest.MonkeyPatch) -> TableMapping:
    """The seed's mapping with an option on one column, and a column of another type."""
    monkeypatch.setitem(TYPES, "varchar", marking(TYPES["varchar"]))
    monkeypatch.setitem(TYPES, "inet", INET)
    (target,) = employees.targets
    columns = [
        MarkedColumn(c.name, c.attribute, c.path, c.type, c.default, mark="*") if c.name == "Name" else c
        for c in target.columns
    ]
    columns.append(Column("Host", "host", ("host",), SqlType("inet")))
    return replace(employees, targets=(replace(target, columns=tuple(columns)),))


def item(number: int) -> dict[str, Any]:
    return {"Id": {"N": str(number)}, "empName": {"S": f"name {number}"}, "host": {"S": "localhost"}}


def rows(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute('SELECT "Id", "Name", "Host"::text FROM public."Employees" ORDER BY 1').fetchall()


@pytest.mark.parametrize("aside_from", [0, 10**9], ids=["aside", "merge"])
def test_every_way_into_a_table_honours_them(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection, aside_from: int
) -> None:
    full = exports.full(map(item, range(3))).location
    assert load(services, employees, full, aside_from=aside_from, processes_from=THREADS).applied == 3
    with closing(Replicator([employees], lambda: services.connect("test"), writer="test")) as replicator:
        new = record(3, 1, at=EXPORT_TIME.timestamp() + 60, **{k: v for k, v in item(3).items() if k != "Id"})
        replicator.replicate({"Records": [new]}, deadline=time.monotonic() + 60)
    assert rows(connection) == [(number, f"*name {number}", "127.0.0.1/32") for number in range(4)]
    changes = [WindowChange({"Id": {"N": str(number)}}, item(number)) for number in (3, 4)]
    window = exports.incremental(changes, window=(EXPORT_TIME, EXPORT_TIME + timedelta(hours=1)))
    assert apply_export(services, employees, location=window.location).applied == 2
    assert rows(connection) == [(number, f"*name {number}", "127.0.0.1/32") for number in range(5)]


def test_a_reconciliation_stages_what_a_load_stores(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    full = exports.full(map(item, range(3))).location
    load(services, employees, full, processes_from=THREADS)
    report = reconcile(services, employees, full, bounds=Bounds(patience=timedelta(0)), processes_from=THREADS)
    assert (report.compared, report.drift) == (3, 0)
    assert [name for _, name, _ in rows(connection)] == ["*name 0", "*name 1", "*name 2"]


def test_a_table_with_them_is_migrated_once(
    services: Services, employees: TableMapping, connection: Connection
) -> None:
    assert services.settings.database_url  # migrated
    plan = migrate(connection, [employees])
    assert (plan.steps, plan.refusals) == ((), ())
