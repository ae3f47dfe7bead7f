"""A catch-up of a table with a history: it has what the stream lost, and what comes late; the live row is newest."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.history import History
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.catch_up.catch_up import catch_up
from pipeline.jobs.load.load import load
from pipeline.jobs.services import Services
from tests.jobs.catch_up.test_catch_up import HOUR, MINUTE, START
from tests.jobs.past_table import PastServices, PastTable, records


@pytest.fixture
def employees(employees: TableMapping) -> TableMapping:
    (target,) = employees.targets
    return replace(employees, targets=(replace(target, history=History(timedelta(days=400))),))


@pytest.fixture
def past(tmp_path: Path) -> PastTable:
    return PastTable(tmp_path / "s3")


@pytest.fixture
def services(services: Services, database: str, past: PastTable, employees: TableMapping) -> Services:
    with closing(services.connect("test")) as connection:
        migrate(connection, [employees])
    return PastServices(database, past)


def shown(connection: Connection, number: int) -> list[tuple[Any, ...]]:
    return connection.execute(
        'SELECT "Name", source, deleted FROM "Employees_history" WHERE "Id" = %s ORDER BY valid_from, valid_to',
        [number],
    ).fetchall()


def test_what_the_stream_lost_is_a_version_and_the_live_row_stays_the_newest(
    past: PastTable, services: Services, employees: TableMapping, apply: Callable[..., Any], connection: Connection
) -> None:
    for number in range(1, 5):
        past.put(START, number, "loaded")
    load(services, employees, past.full(START + MINUTE))
    apply(*records([past.put(START + HOUR, number, "streamed") for number in (1, 2, 3, 5)]))
    lost = [past.put(START + 2 * HOUR, 1, "lost"), past.put(START + 2 * HOUR + MINUTE, 1, "lost too")]
    past.delete(START + 2 * HOUR, 2)
    late = past.put(START + 2 * HOUR, 6, "here and gone")
    past.delete(START + 2 * HOUR + MINUTE, 6)
    past.delete(START + 2 * HOUR, 5)
    catch_up(services, employees, START, START + 4 * HOUR)
    catch_up(services, employees, START, START + 4 * HOUR)
    apply(*records([*lost, late]))  # redriven after all
    assert shown(connection, 1) == [
        ("loaded", "snapshot", False), ("streamed", "stream", False), ("lost", "stream", False),
        ("lost too", "stream", False)]  # fmt: skip
    assert shown(connection, 2)[-2:] == [("streamed", "stream", False), (None, "snapshot", True)]
    assert shown(connection, 3) == [("loaded", "snapshot", False), ("streamed", "stream", False)]
    assert shown(connection, 5)[-1] == (None, "snapshot", True)
    assert shown(connection, 6) == [("here and gone", "stream", False), (None, "snapshot", True)]
    live = 'SELECT "Id", "Name" FROM "Employees"'
    newest = 'SELECT "Id", "Name" FROM "Employees_history" WHERE is_current AND NOT deleted'
    assert sorted(connection.execute(newest.encode())) == sorted(connection.execute(live.encode()))
    assert dict(connection.execute(live.encode()).fetchall()) == past.state()
