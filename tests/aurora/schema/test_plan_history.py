"""Plan and migrate of histories against a real server: created, completed, stopped and resumed, never dropped."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.schema.plan import Plan, plan
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping

if TYPE_CHECKING:
    from collections.abc import Generator

ID = "Id: {attribute: Id, type: bigint}"
NAME = "Name: {attribute: empName, type: varchar(20)}"
CITY = "City: {attribute: city, type: text, default: nowhere}"
LINES = """
  Lines:
    parent: Employees
    explode: lines
    element: {line: integer}
    columns: {sku: {attribute: sku, type: text}}
"""


def mapping(*columns: str, history: str = "{keep: 400d}", more: str = "") -> TableMapping:
    body = "".join(f"      {column}\n" for column in columns or (ID, NAME))
    kept = f"    history: {history}\n" if history else ""
    return read_mapping(
        "name: employees\nsource: {table: Employees, key: {Id: N}}\n"
        f"targets:\n  Employees:\n    primary_key: [Id]\n{kept}    columns:\n{body}{more.lstrip(chr(10))}",
        "employees.yaml",
    )


@pytest.fixture
def connection(database: str) -> Generator[Connection]:
    with closing(connect(database, application_name="test history")) as opened:
        yield opened


def rows(connection: Connection, query: str) -> list[Any]:
    return [row[0] if len(row) == 1 else row for row in connection.execute(query.encode()).fetchall()]


def whats(made: Plan) -> list[str]:
    return [step.what for step in made.steps]


def version(connection: Connection, names: str, values: str) -> None:
    statement = f'INSERT INTO replica."Employees_history" ({names}, _deleted) VALUES ({values}, false)'  # noqa: S608
    connection.execute(statement.encode())


def columns(connection: Connection, name: str) -> list[str]:
    return rows(
        connection,
        f"SELECT attname::text FROM pg_attribute WHERE attrelid = '{name}'::regclass AND attnum > 0"  # noqa: S608
        " ORDER BY attnum",
    )


def test_a_history_is_planned_made_and_then_as_planned(connection: Connection) -> None:
    planned = plan(connection, [mapping(more=LINES)])
    assert "create the history of public.Employees: replica.Employees_history, view public.Employees_history" in whats(
        planned
    )
    assert migrate(connection, [mapping(more=LINES)]) == planned
    assert plan(connection, [mapping(more=LINES)]).empty
    shown = columns(connection, 'public."Employees_history"')
    assert shown == ["valid_from", "valid_to", "is_current", "deleted", "source", "gap", "Id", "Name", "Lines"]
    partitions = rows(
        connection, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'replica.\"Employees_history\"'::regclass"
    )
    assert partitions == [6]  # the one before, this one, three ahead, and the default one
    version(connection, '"Id", "Name", _version, _as_of', "1, 'Ada', 0, now()")
    version(connection, '"Id", "Name", _version, _as_of', "1, 'Eve', 7, now() + interval '90 years'")
    assert rows(connection, 'SELECT count(*) FROM replica."_history_rest_Employees"') == [1]
    assert rows(connection, 'SELECT "Name", is_current, source FROM "Employees_history" ORDER BY valid_from') == [
        ("Ada", False, "snapshot"), ("Eve", True, "stream")]  # fmt: skip


def test_a_target_gets_a_history_later_and_its_column_is_added_to_both(connection: Connection) -> None:
    migrate(connection, [mapping(history="")])
    assert whats(plan(connection, [mapping()])) == [
        "create the history of public.Employees: replica.Employees_history, view public.Employees_history"
    ]
    migrate(connection, [mapping()])
    version(connection, '"Id", "Name", _version, _as_of', "1, 'Ada', 0, now()")
    connection.execute('GRANT SELECT ON public."Employees_history" TO PUBLIC')
    with_city = mapping(ID, CITY, NAME, more=LINES)
    assert plan(connection, [with_city]).refusals == ()
    migrate(connection, [with_city])
    assert plan(connection, [with_city]).empty
    assert rows(connection, 'SELECT "City", "Lines" FROM "Employees_history"') == [("nowhere", None)]
    granted = "SELECT has_table_privilege('public', 'public.\"Employees_history\"', 'SELECT')"
    assert rows(connection, granted) == [True]  # the view was recreated


def test_a_wider_column_is_wider_in_its_history_too(connection: Connection) -> None:
    migrate(connection, [mapping()])
    version(connection, '"Id", "Name", _version, _as_of', "1, 'Ada', 0, now()")
    wider = mapping(ID, "Name: {attribute: empName, type: text}")
    migrate(connection, [wider])
    assert plan(connection, [wider]).empty
    version(connection, '"Id", "Name", _version, _as_of', "1, repeat('x', 30), 0, now()")
    assert rows(connection, 'SELECT length("Name") FROM "Employees_history" ORDER BY valid_from') == [3, 30]


def test_without_its_history_the_view_goes_and_the_versions_stay(connection: Connection) -> None:
    migrate(connection, [mapping()])
    version(connection, '"Id", "Name", _version, _as_of', "1, 'Ada', 0, now() - interval '1 minute'")
    planned = migrate(connection, [mapping(history="")])
    assert whats(planned) == ["stop the history of public.Employees: drop view public.Employees_history"]
    assert 'DROP TABLE "replica"."Employees_history"' in planned.steps[0].note
    assert plan(connection, [mapping(history="")]).empty
    assert rows(connection, "SELECT to_regclass('public.\"Employees_history\"')") == [None]
    planned = migrate(connection, [mapping()])
    assert whats(planned) == ["resume the history of public.Employees: view public.Employees_history"]
    assert rows(connection, 'SELECT "Name", gap FROM "Employees_history"') == [("Ada", True)]
    assert plan(connection, [mapping()]).empty


def test_how_long_it_is_kept_may_change(connection: Connection) -> None:
    migrate(connection, [mapping()])
    planned = migrate(connection, [mapping(history="{keep: 30d}")])
    assert whats(planned) == ["keep public.Employees_history for 30 days instead of 400"]
    assert plan(connection, [mapping(history="{keep: 30d}")]).empty


def test_what_is_in_the_way_is_refused(connection: Connection) -> None:
    migrate(connection, [mapping(history="")])
    connection.execute('CREATE TABLE public."Employees_history" ()')
    planned = plan(connection, [mapping()])
    assert planned.steps == ()
    assert [refusal.what for refusal in planned.refusals] == [
        "table public.Employees_history is in the way of the history of public.Employees"
    ]


def test_what_depends_on_the_view_keeps_it(connection: Connection) -> None:
    migrate(connection, [mapping()])
    connection.execute('CREATE VIEW public.mine AS SELECT * FROM "Employees_history"')
    (refusal,) = plan(connection, [mapping(history="")]).refusals
    assert "would also drop view public.mine" in refusal.what


def test_readers_may_read_the_history(connection: Connection) -> None:
    role = f"reader_{connection.info.dbname}"
    connection.execute(f"CREATE ROLE {role}".encode())
    try:
        made = mapping(more=f"    readers: [{role}]\n")
        migrate(connection, [made])
        assert plan(connection, [made]).empty
        connection.execute(f"SET ROLE {role}".encode())
        assert rows(connection, 'SELECT count(*) FROM public."Employees_history"') == [0]
        connection.execute("RESET ROLE")
    finally:
        connection.execute("RESET ROLE")
        connection.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}".encode())
