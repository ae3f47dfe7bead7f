"""Loads of a table with a history: one version of every item as of the snapshot, merged or built aside alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.aurora.rows import build_aside
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.load.load import load
from pipeline.jobs.replicate import ReplicationReport
from pipeline.jobs.services import Services
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, Layout
from tests.jobs.conftest import record

BEFORE, AFTER = EXPORT_TIME.timestamp() - 3600, EXPORT_TIME.timestamp() + 60
MAPPING = """
name: employees
source: {table: Employees, key: {Id: N}}
targets:
  Employees:
    primary_key: [Id]
    history: {keep: 3650d}
    columns:
      Id: {attribute: Id, type: bigint}
      Name: {attribute: empName, type: text}
  Tasks:
    parent: Employees
    explode: tasks
    element: {task: integer}
    columns:
      title: {attribute: title, type: text}
"""


def attributes(name: str, *titles: str) -> dict[str, Any]:
    return {"empName": {"S": name}, "tasks": {"L": [{"M": {"title": {"S": title}}} for title in titles]}}


@pytest.fixture
def employees() -> TableMapping:
    return read_mapping(MAPPING, "tables/employees.yaml")


def versions(connection: Connection) -> list[str]:
    return [text for (text,) in connection.execute('SELECT h::text FROM replica."Employees_history" AS h ORDER BY 1')]


@pytest.mark.parametrize("aside_from", [0, 10**9], ids=["aside", "merge"])
@pytest.mark.parametrize("first", ["load", "stream"])
def test_every_item_is_a_version_whatever_came_first_and_however_it_is_loaded(
    services: Services,
    employees: TableMapping,
    exports: ExportFactory,
    connection: Connection,
    apply: Callable[..., ReplicationReport],
    aside_from: int,
    first: str,
) -> None:
    items = [{"Id": {"N": str(n)}, **attributes(f"name {n}", "a", str(n))} for n in range(1, 300)]
    location = exports.full(items, Layout(files=3)).location

    def stream() -> None:
        apply(
            record(1, 1, at=BEFORE, **attributes("older", "o")),
            record(1, 2, at=AFTER, **attributes("newer", "n1", "n2")),
            record(2, 3, "REMOVE", at=AFTER),
            record(900, 4, at=AFTER, **attributes("new")),
        )

    if first == "stream":
        stream()
    report = load(services, employees, location, aside_from=aside_from, processes_from=10**9)
    assert report.strategy == ("merge" if aside_from else "aside")
    if first == "load":
        stream()
    assert len(versions(connection)) == 299 + 4
    shown = connection.execute(
        'SELECT "Id", "Name", source, is_current, deleted, "Tasks" FROM "Employees_history"'
        ' WHERE "Id" IN (1, 2, 8, 900) ORDER BY "Id", valid_from'
    ).fetchall()
    assert shown == [
        (1, "older", "stream", False, False, [{"task": 0, "title": "o"}]),
        (1, "name 1", "snapshot", False, False, [{"task": 0, "title": "a"}, {"task": 1, "title": "1"}]),
        (1, "newer", "stream", True, False, [{"task": 0, "title": "n1"}, {"task": 1, "title": "n2"}]),
        (2, "name 2", "snapshot", False, False, [{"task": 0, "title": "a"}, {"task": 1, "title": "2"}]),
        (2, None, "stream", True, True, None),
        (8, "name 8", "snapshot", True, False, [{"task": 0, "title": "a"}, {"task": 1, "title": "8"}]),
        (900, "new", "stream", True, False, []),
    ]
    assert (
        connection.execute(
            'SELECT count(*) FROM "Employees_history" h JOIN "Employees" USING ("Id", "Name") WHERE h.is_current'
        ).fetchone()
        == connection.execute('SELECT count(*) FROM "Employees"').fetchone()
        == (299,)
    )


def test_a_load_that_was_killed_after_rows_were_brought_over_has_recorded_theirs(
    services: Services,
    employees: TableMapping,
    exports: ExportFactory,
    connection: Connection,
    apply: Callable[..., ReplicationReport],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    location = exports.full([{"Id": {"N": str(n)}, **attributes("exported")} for n in range(1, 9)]).location
    apply(record(1, 2, at=AFTER, **attributes("newer")))
    copy_over = build_aside.copy_over

    def killed(*arguments: Any) -> Any:  # noqa: ANN401 - copy_over's own
        copy_over(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(build_aside, "copy_over", killed)
        with pytest.raises(KeyboardInterrupt):
            load(services, employees, location, aside_from=0, processes_from=10**9)
    assert load(services, employees, location, aside_from=0, processes_from=10**9).strategy == "aside"
    assert len(versions(connection)) == 9
