"""The indexes of a mapping on a real server: built beside writers, resumed, replaced, dropped; only ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing

import pytest

from pipeline.aurora.schema import index_build
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.schema.plan import Plan, plan
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.errors import TerminalError
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping

BY_NAME = "{columns: [Name, {column: Id, order: desc}]}"
TEXT = """\
name: employees
source: {{table: Employees, key: {{Id: N}}}}
targets:
  Employees:
    primary_key: [Id]
    columns:
      Id: {{attribute: Id, type: bigint}}
      Name: {{attribute: empName, type: text}}
      tags: {{attribute: tags, type: "text[]"}}
    indexes: [{indexes}]
  Lines:
    parent: Employees
    explode: lines
    element: {{line: integer}}
    columns:
      sku: {{attribute: sku, type: text}}
    indexes: [{of_child}]
"""


def text(*indexes: str, of_child: str = "") -> str:
    return TEXT.format(indexes=", ".join(indexes), of_child=of_child)


def mapping(*indexes: str, of_child: str = "") -> TableMapping:
    return read_mapping(text(*indexes, of_child=of_child), "employees.yaml")


@pytest.fixture
def connection(database: str) -> Generator[Connection]:
    with closing(connect(database, application_name="test indexes")) as opened:
        yield opened


@pytest.fixture
def other(database: str) -> Generator[Connection]:
    with closing(connect(database, application_name="other")) as opened:
        yield opened


def indexes(connection: Connection, table: str = "Employees") -> dict[str, tuple[str, bool]]:
    """Definition, without what they have in common, and validity by name, of all but the key's."""
    rows = connection.execute(
        "SELECT c.relname, pg_get_indexdef(c.oid), indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid"
        " WHERE indrelid = to_regclass(%s) AND NOT indisprimary ORDER BY 1",
        [f'replica."{table}"'],
    )
    return {name: (definition.partition(" USING ")[2], valid) for name, definition, valid in rows}


def whats(made: Plan) -> list[str]:
    return [step.what for step in made.steps]


def write(connection: Connection, number: int, name: str) -> None:
    connection.execute('INSERT INTO replica."Employees" ("Id", "Name", _as_of) VALUES (%s, %s, now())', [number, name])


def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(what)


EVERY_KIND = {
    BY_NAME: 'btree ("Name", "Id" DESC)',
    "{columns: [{column: Name, nulls: first}, {column: Id, order: desc, nulls: last}]}":
        'btree ("Name" NULLS FIRST, "Id" DESC NULLS LAST)',
    "{columns: [Id, Name], unique: true}": 'btree ("Id", "Name")',
    "{columns: [tags], method: gin}": "gin (tags)",
    "{columns: [attributes], method: gin}": "gin (attributes)",
    "{columns: [Id], method: brin}": 'brin ("Id")',
    "{columns: [{path: \"attributes.card.it's[0]\"}]}":
        "btree (((((attributes -> 'card'::text) -> 'it''s'::text) ->> 0)))",
    "{columns: [{path: attributes.card.tags}], method: gin}":
        "gin ((((attributes -> 'card'::text) -> 'tags'::text)))",
    "{columns: [Id], where: {Name: [b, \"10% 'a'\"], tags: null}}":
        'btree ("Id") WHERE ((NOT _deleted) AND ("Name" = ANY (ARRAY[\'10% \'\'a\'\'\'::text, \'b\'::text]))'
        " AND (tags IS NULL))",
    "{columns: [Name], where: {Name: {not: null}, Id: 5}}":
        'btree ("Name") WHERE ((NOT _deleted) AND ("Id" = \'5\'::bigint) AND ("Name" IS NOT NULL))',
}  # fmt: skip


def test_a_new_table_has_its_indexes_and_so_has_a_child(connection: Connection) -> None:
    wanted = mapping(*EVERY_KIND, of_child="{columns: [sku, Id]}")
    migrate(connection, [wanted])
    found = indexes(connection)
    assert sorted(definition for definition, _ in found.values()) == sorted(EVERY_KIND.values())
    assert list(found) == sorted(index.name("Employees") for index in wanted.targets[0].indexes)
    assert [definition for definition, _ in indexes(connection, "Lines").values()] == ['btree (sku, "Id")']
    assert plan(connection, [wanted]).empty


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_an_index_is_added_to_a_table_with_rows(connection: Connection, kind: str) -> None:
    migrate(connection, [mapping()])
    write(connection, 1, "Ada")
    done = migrate(connection, [mapping(kind)])
    (index,) = mapping(kind).targets[0].indexes
    name = index.name("Employees")
    assert whats(done) == [
        "record the indexes of replica.Employees as Dynaurora's",
        f"build index {name} on replica.Employees {index}",
    ]
    assert "CREATE" in done.steps[1].sql
    assert "CONCURRENTLY" in done.steps[1].sql
    assert indexes(connection) == {name: (EVERY_KIND[kind], True)}
    assert plan(connection, [mapping(kind)]).empty


def test_the_statements_that_plan_shows_build_the_indexes(connection: Connection) -> None:
    migrate(connection, [mapping()])
    for step in plan(connection, [mapping(BY_NAME, of_child="{columns: [sku]}")]).steps:
        connection.execute(step.sql.encode())
    assert plan(connection, [mapping(BY_NAME, of_child="{columns: [sku]}")]).empty


def test_the_view_reads_by_a_partial_index(connection: Connection) -> None:
    wanted = mapping("{columns: [Name], where: {Name: {not: null}}}")
    migrate(connection, [wanted])
    (index,) = wanted.targets[0].indexes
    connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
    shown = connection.execute('EXPLAIN SELECT * FROM public."Employees" WHERE "Name" = \'Ada\'').fetchall()
    assert index.name("Employees") in str(shown)


def test_writers_write_while_an_index_is_built_and_it_tells_whom_it_waits_for(
    connection: Connection, other: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_build, "LOOK_SECONDS", 0.05)
    migrate(connection, [mapping()])
    told: list[str] = []
    building = threading.Thread(
        target=migrate,
        args=(connection, [mapping(BY_NAME)]),
        kwargs={"watch": lambda: connect(database, application_name="watch"), "tell": told.append},
    )
    who = f"waits until a transaction has ended: pid {other.info.backend_pid} (idle in transaction, since 2"
    with closing(connect(database, application_name="writer")) as writer:
        with other.transaction():
            write(other, 1, "in an open transaction")
            building.start()
            until(lambda: any(who in line for line in told), "it tells whom it waits for")
            for number in range(2, 20):
                write(writer, number, "meanwhile")
            assert building.is_alive()
        building.join()
    ((_, valid),) = indexes(connection).values()
    assert valid
    counted = connection.execute('SELECT count(*) FROM replica."Employees" WHERE "Name" = \'meanwhile\'').fetchone()
    assert counted == (18,)


MIGRATE = """
import sys
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import connect
from pipeline.core.mapping_files.mapping_file import read_mapping
migrate(connect(sys.argv[1], application_name="killed"), [read_mapping(sys.argv[2], "employees.yaml")])
"""


def test_a_build_that_is_killed_is_built_again(connection: Connection, other: Connection, database: str) -> None:
    migrate(connection, [mapping()])
    with other.transaction():
        write(other, 1, "in an open transaction")
        process = subprocess.Popen([sys.executable, "-c", MIGRATE, database, text(BY_NAME)])
        until(lambda: bool(indexes(connection)), "the index is there, and not valid yet")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        running = "SELECT FROM pg_stat_activity WHERE application_name = 'killed'"
        until(lambda: connection.execute(running).fetchone() is None, "the server notices that the client is gone")
    ((name, (_, valid)),) = indexes(connection).items()
    assert not valid
    done = migrate(connection, [mapping(BY_NAME)])
    assert [what.partition(" on ")[0] for what in whats(done)] == [
        f"drop index {name}, whose build did not end",
        f"build index {name}",
    ]
    assert indexes(connection) == {name: (EVERY_KIND[BY_NAME], True)}
    assert plan(connection, [mapping(BY_NAME)]).empty


def test_an_index_that_another_session_is_building_is_waited_for_and_not_dropped(
    connection: Connection, other: Connection, database: str
) -> None:
    """Somebody runs the statements that `plan` has shown."""
    migrate(connection, [mapping()])
    wanted = mapping(BY_NAME, "{columns: [Id, Name]}")
    record, build, _ = plan(connection, [wanted]).steps
    connection.execute(record.sql.encode())
    with closing(connect(database, application_name="by hand")) as builder:
        building = threading.Thread(target=builder.execute, args=(build.sql.encode(),))
        with other.transaction():
            write(other, 1, "in an open transaction")
            building.start()
            until(lambda: bool(indexes(connection)), "the index is there, and not valid yet")
            ((name, _),) = indexes(connection).items()
            done = migrate(connection, [wanted])
            assert [refusal.what for refusal in done.refusals] == [
                f"index {name} of replica.Employees is being built by another session"
            ]
            assert done.steps == ()
            assert building.is_alive()
        building.join()
    assert indexes(connection)[name] == (EVERY_KIND[BY_NAME], True)
    (step,) = migrate(connection, [wanted]).steps
    assert step.what.startswith("build index")
    assert plan(connection, [wanted]).empty


def test_a_changed_index_is_there_before_the_old_one_goes_and_a_persons_own_stays(connection: Connection) -> None:
    migrate(connection, [mapping(BY_NAME)])
    connection.execute('CREATE INDEX by_hand ON replica."Employees" ("Name", "Id" DESC)')
    (old,) = mapping(BY_NAME).targets[0].indexes
    changed = mapping("{columns: [Name]}")
    (new,) = changed.targets[0].indexes
    done = migrate(connection, [changed])
    assert whats(done) == [
        "record the indexes of replica.Employees as Dynaurora's",
        f"build index {new.name('Employees')} on replica.Employees (Name)",
        f"drop index {old.name('Employees')}, which is no longer in the mapping",
        "forget dropped indexes of replica.Employees",
    ]
    assert "DROP INDEX CONCURRENTLY" in done.steps[2].sql
    assert list(indexes(connection)) == [new.name("Employees"), "by_hand"]
    assert whats(migrate(connection, [mapping()]))[0].startswith(f"drop index {new.name('Employees')}")
    assert list(indexes(connection)) == ["by_hand"]
    assert plan(connection, [mapping()]).empty


def test_a_persons_index_under_the_name_is_neither_adopted_nor_dropped(connection: Connection) -> None:
    migrate(connection, [mapping()])
    name = mapping(BY_NAME).targets[0].indexes[0].name("Employees")
    connection.execute(f'CREATE INDEX "{name}" ON replica."Employees" ("Id", tags)'.encode())
    made = migrate(connection, [mapping(BY_NAME)])
    assert [refusal.what for refusal in made.refusals] == [
        f"replica.{name} is in the way of an index of replica.Employees and is not one of Dynaurora's"
    ]
    assert indexes(connection) == {name: ('btree ("Id", tags)', True)}
    assert migrate(connection, [mapping()]).empty


def test_a_value_that_no_index_holds_is_said_and_leaves_no_invalid_index(connection: Connection) -> None:
    migrate(connection, [mapping()])
    long = "SELECT string_agg(md5(n::text), '') FROM generate_series(1, 500) AS n"
    connection.execute(f'INSERT INTO replica."Employees" ("Id", "Name", _as_of) SELECT 1, ({long}), now()'.encode())
    with pytest.raises(TerminalError, match="longer than an index row may be") as caught:
        migrate(connection, [mapping(BY_NAME)])
    assert "index a shorter column" in str(caught.value)
    assert indexes(connection) == {}
    assert whats(migrate(connection, [mapping()])) == ["forget dropped indexes of replica.Employees"]


def test_names_of_long_tables_and_columns_fit(connection: Connection) -> None:
    long = textwrap.dedent(f"""\
        name: employees
        source: {{table: Employees, key: {{Id: N}}}}
        targets:
          {"é" * 31}:
            primary_key: [Id]
            columns:
              Id: {{attribute: Id, type: bigint}}
              {"c" * 63}: {{attribute: a, type: text}}
              {"d" * 63}: {{attribute: b, type: text}}
            indexes: [{{columns: [{"c" * 63}]}}, {{columns: [{"d" * 63}]}}]
        """)
    wanted = read_mapping(long, "employees.yaml")
    migrate(connection, [wanted])
    assert len(indexes(connection, "é" * 31)) == 2
    assert plan(connection, [wanted]).empty
