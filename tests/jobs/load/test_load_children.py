"""Loads of a table with children, built aside: the rows, writes and kills meanwhile, and what makes one merge."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from psycopg import sql

from pipeline.aurora.rows import build_aside
from pipeline.aurora.schema import tables
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import TerminalError
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.load.load import LoadReport, load
from pipeline.jobs.replicate import ReplicationReport, Replicator
from pipeline.jobs.services import Services
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, Layout
from tests.jobs.conftest import record

BEFORE, AFTER = EXPORT_TIME.timestamp() - 3600, EXPORT_TIME.timestamp() + 60
NO_PROCESSES = 10**9
MAPPING = """
name: employees
source: {table: Employees, key: {Id: N}}
targets:
  Employees:
    primary_key: [Id]
    columns:
      Id: {attribute: Id, type: bigint}
      Name: {attribute: empName, type: text}
      tasks: {attribute: count, type: integer}
  Tasks:
    parent: Employees
    explode: tasks
    element: {task: integer}
    columns:
      title: {attribute: title, type: text}
      of: {attribute: of, type: text}
      more: {attribute: more, type: jsonb, json: parse}
  Badges:
    parent: Employees
    explode: badges
    element: {badge: text}
    columns:
      since: {attribute: since, type: date, on_error: "null"}
"""
Tasks = tuple[str, ...]
"""The titles of an employee's tasks."""


def attributes(name: str, titles: Tasks, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - attribute values
    elements = [{"M": {"title": {"S": title}, "of": {"S": name}}} for title in titles]
    return {"empName": {"S": name}, "count": {"N": str(len(titles))}, "tasks": {"L": elements}, **more}


def item(number: int, name: str, titles: Tasks, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - attribute values
    return {"Id": {"N": str(number)}, **attributes(name, titles, **more)}


@pytest.fixture
def employees() -> TableMapping:
    return read_mapping(MAPPING, "tables/employees.yaml")


@pytest.fixture
def run(services: Services, employees: TableMapping) -> Callable[[str], LoadReport]:
    return lambda location: load(services, employees, location, aside_from=0, processes_from=NO_PROCESSES)


def shown(connection: Connection) -> dict[int, tuple[str, Tasks]]:
    rows = connection.execute(
        'SELECT e."Id", e."Name",'
        " COALESCE(array_agg(t.title ORDER BY t.task) FILTER (WHERE t.task IS NOT NULL), '{}')"
        ' FROM "Employees" AS e LEFT JOIN "Tasks" AS t USING ("Id") GROUP BY 1, 2'
    )
    return {number: (name, tuple(tasks)) for number, name, tasks in rows}


def content(connection: Connection) -> list[list[tuple[Any, ...]]]:
    return [
        connection.execute(sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1").format(tables.storage(table))).fetchall()
        for table in read_mapping(MAPPING, "").tables
    ]


ODD = [
    item(1, "no tasks", ()),
    {"Id": {"N": "2"}, "empName": {"S": "missing"}},
    {"Id": {"N": "3"}, "empName": {"S": "null"}, "tasks": {"NULL": True}},
    item(4, 'tab\tand \\ and\nline \r "quote"', ("a\tb", "c\\d", "e\nf", "\\N", "")),
    item(5, "badges", ("t",), badges={"M": {"b\tx": {"M": {"since": {"S": "2026-01-31"}}}, "": {"M": {}}}}),
    item(6, "a bad date", (), badges={"M": {"b": {"M": {"since": {"S": "never"}}}}}),
    item(7, "documents", (), tasks={"L": [{"M": {"more": {"S": '{"a": [1.50, "\\"x"]}'}}}, {"M": {}}]}),
]
UNFIT = [
    item(8, "not a map", (), tasks={"L": [{"S": "x"}]}),
    item(9, "not a list", (), tasks={"M": {}}),
    item(10, "wrong type", (), tasks={"L": [{"M": {"title": {"N": "1"}}}]}),
]


def test_a_first_load_with_children_is_built_aside_and_gives_the_rows_of_a_merge(
    services: Services,
    employees: TableMapping,
    exports: ExportFactory,
    connection: Connection,
    run: Callable[[str], LoadReport],
) -> None:
    items = [*ODD, *UNFIT, *(item(n, f"name {n}", tuple(f"{n}.{t}" for t in range(n % 5))) for n in range(100, 3_000))]
    location = exports.full(items, Layout(files=3)).location
    merged = load(services, employees, location, aside_from=10**9)
    found = content(connection)
    connection.execute('DELETE FROM replication.exports; DELETE FROM replica."Employees"; DELETE FROM replica."Tasks"')
    connection.execute('DELETE FROM replica."Badges"; DELETE FROM replication.rejects')
    aside = run(location)
    assert (merged.strategy, aside.strategy, aside.merged_because) == ("merge", "aside", ())
    assert (aside.applied, aside.stale, aside.rejected) == (merged.applied, merged.stale, len(UNFIT))
    assert content(connection) == found


@pytest.mark.parametrize("processes_from", [0, NO_PROCESSES], ids=["processes", "threads"])
def test_an_element_that_only_postgresql_refuses_rejects_its_whole_item(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection, processes_from: int
) -> None:
    refused = {"tasks": {"L": [{"M": {"title": {"S": "first"}}}, {"M": {"more": {"S": "1e999999"}}}]}}
    items = [*(item(n, f"name {n}", ("a", "b")) for n in range(50)), item(50, "refused", (), **refused)]
    report = load(
        services, employees, exports.full(items, Layout(files=2)).location, aside_from=0, processes_from=processes_from
    )
    assert (report.strategy, report.applied, report.rejected) == ("aside", 50, 1)
    assert shown(connection) == {n: (f"name {n}", ("a", "b")) for n in range(50)}
    assert connection.execute('SELECT count(*) FROM replica."Tasks"').fetchone() == (100,)


def test_a_key_exported_twice_has_the_children_of_one_of_its_items(
    exports: ExportFactory, connection: Connection, run: Callable[[str], LoadReport]
) -> None:
    items = [item(1, "one", ("a", "b", "c")), item(2, "two", ("x",)), item(1, "one", ("d",))]
    report = run(exports.full(items, Layout(files=1)).location)
    assert (report.applied, report.stale) == (2, 1)
    found = shown(connection)
    assert found.pop(2) == ("two", ("x",))
    assert found in ({1: ("one", ("a", "b", "c"))}, {1: ("one", ("d",))})


def test_what_a_persons_check_on_the_child_refuses_becomes_a_reject(
    exports: ExportFactory, connection: Connection, run: Callable[[str], LoadReport]
) -> None:
    connection.execute("ALTER TABLE replica.\"Tasks\" ADD CHECK (title <> 'forbidden')")
    report = run(exports.full([item(1, "one", ("a", "forbidden")), item(2, "two", ("x",))]).location)
    assert (report.strategy, report.applied, report.rejected) == ("merge", 1, 1)
    assert shown(connection) == {2: ("two", ("x",))}


def test_an_object_that_a_swap_of_the_child_would_lose_is_named(
    exports: ExportFactory, connection: Connection, run: Callable[[str], LoadReport]
) -> None:
    connection.execute('CREATE MATERIALIZED VIEW public.m AS SELECT title FROM replica."Tasks"')
    report = run(exports.full([item(1, "one", ("a",))]).location)
    assert report.strategy == "merge"
    assert report.merged_because == ("public.Tasks: rule _RETURN on materialized view m depends on it",)


def test_what_was_added_to_the_child_by_hand_is_carried_over(
    exports: ExportFactory, connection: Connection, run: Callable[[str], LoadReport]
) -> None:
    connection.execute("DROP ROLE IF EXISTS dynaurora_reader; CREATE ROLE dynaurora_reader")
    try:
        connection.execute('CREATE INDEX by_hand ON replica."Tasks" (title)')
        connection.execute('GRANT SELECT (title) ON replica."Tasks" TO dynaurora_reader')
        connection.execute("COMMENT ON TABLE replica.\"Tasks\" IS 'by hand'")
        connection.execute('ALTER TABLE replica."Tasks" SET (autovacuum_enabled = false)')
        connection.execute(
            'CREATE VIEW public.both AS SELECT e."Name", t.title FROM replica."Employees" AS e'
            ' JOIN replica."Tasks" AS t USING ("Id")'
        )
        query = (
            "SELECT (SELECT array_agg(c.relname ORDER BY c.relname) FROM pg_index i"
            " JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = t.oid), obj_description(t.oid), t.reloptions, (SELECT array_agg(attacl::text)"
            " FROM pg_attribute WHERE attrelid = t.oid AND attacl IS NOT NULL), t.relowner, t.relacl::text"
            " FROM pg_class t WHERE t.oid = 'replica.\"Tasks\"'::regclass"
        )
        before = connection.execute(query.encode()).fetchone()
        assert run(exports.full([item(1, "one", ("a",))]).location).strategy == "aside"
        assert connection.execute(query.encode()).fetchone() == before
        assert connection.execute("SELECT * FROM public.both").fetchall() == [("one", "a")]
    finally:
        connection.execute("DROP OWNED BY dynaurora_reader; DROP ROLE dynaurora_reader")


def test_what_is_stored_brings_its_own_children_and_drops_those_of_the_export(
    exports: ExportFactory,
    connection: Connection,
    run: Callable[[str], LoadReport],
    apply: Callable[..., ReplicationReport],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also what is written between the passes and the swap."""
    apply(
        record(1, 1, at=AFTER, **attributes("newer", ("n1", "n2", "n3"))),
        record(2, 2, "REMOVE", at=AFTER),
        record(3, 3, at=BEFORE, **attributes("older", ("o1", "o2"))),
        record(9, 4, at=BEFORE, **attributes("not exported", ("x",))),
    )
    copy_over = build_aside.copy_over
    passes = list[int]()

    def between(opened: Connection, build: Any, *arguments: Any) -> Any:  # noqa: ANN401 - copy_over's own
        copied = copy_over(opened, build, *arguments)
        passes.append(copied.rows)
        if len(passes) == 2:  # the pass before the lock
            apply(
                record(1, 11, at=AFTER, **attributes("newest", ("z",))),
                record(4, 12, at=AFTER, **attributes("streamed", ("s", "t"))),
                record(5, 13, "REMOVE", at=AFTER),
            )
        return copied

    monkeypatch.setattr(build_aside, "copy_over", between)
    items = [item(n, "exported", ("a", "b")) for n in range(1, 7)]
    report = run(exports.full(items, Layout(files=2)).location)
    assert report.strategy == "aside"
    assert len(passes) == 2
    assert shown(connection) == {
        1: ("newest", ("z",)),
        3: ("exported", ("a", "b")),
        4: ("streamed", ("s", "t")),
        6: ("exported", ("a", "b")),
        9: ("not exported", ("x",)),
    }
    assert connection.execute('SELECT count(*) FROM replica."Tasks"').fetchone() == (8,)


def write(services: Services, mapping: TableMapping, seed: int, stop: threading.Event, wanted: dict[int, Any]) -> None:
    """Write the keys that are `seed` modulo 2, and note what each must be."""
    chance, batch = random.Random(seed), 0
    with closing(Replicator([mapping], lambda: services.connect("test writer"), writer=f"writer {seed}")) as replicator:
        while not stop.is_set() or batch < 2:
            batch += 1
            records: list[dict[str, Any]] = []
            for number in chance.sample(range(seed, 2_000, 2), 20):
                at = (batch * 100 + len(records)) * 2 + seed
                name, tasks = f"w{seed} b{batch}", tuple(f"{batch}.{n}" for n in range(chance.randrange(4)))
                if chance.random() < 0.2:
                    wanted[number] = None
                    records.append(record(number, at, "REMOVE", at=AFTER))
                else:
                    wanted[number] = (name, tasks)
                    records.append(record(number, at, at=AFTER, **attributes(name, tasks)))
            replicator.replicate({"Records": records}, deadline=time.monotonic() + 60)


def watch(services: Services, stop: threading.Event, faults: list[Any]) -> None:
    """Look for a parent that is shown with another state's children."""
    with closing(services.connect("test reader")) as reader:
        while not stop.is_set():
            faults += reader.execute(
                'SELECT "Id", e."Name", e.tasks, count(t.task), count(*) FILTER (WHERE t.of <> e."Name")'
                ' FROM "Employees" AS e LEFT JOIN "Tasks" AS t USING ("Id") GROUP BY 1, 2, 3'
                ' HAVING e.tasks <> count(t.task) OR count(*) FILTER (WHERE t.of <> e."Name") > 0',
                prepare=True,
            ).fetchall()


def test_nobody_ever_sees_a_parent_with_another_states_children_while_a_load_runs(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    export = exports.full([item(n, "exported", ("a", "b")) for n in range(1_500)], Layout(files=5))
    wanted: dict[int, Any] = dict.fromkeys(range(1_500), ("exported", ("a", "b")))
    stop, faults = threading.Event(), list[Any]()
    threads = [threading.Thread(target=write, args=(services, employees, n, stop, wanted)) for n in range(2)]
    threads.append(threading.Thread(target=watch, args=(services, stop, faults)))
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    try:
        report = load(services, employees, export.location, aside_from=0, processes_from=NO_PROCESSES)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert report.strategy == "aside"
    assert faults == []
    assert shown(connection) == {number: state for number, state in wanted.items() if state is not None}
    orphans = 'SELECT FROM "Tasks" AS t WHERE NOT EXISTS (SELECT FROM "Employees" AS e WHERE e."Id" = t."Id")'
    assert connection.execute(orphans).fetchone() is None


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def load_to_be_killed(services: Services, mapping: TableMapping, location: str) -> None:
    load(services, mapping, location, aside_from=0, processes_from=NO_PROCESSES)


def resumed(run: Callable[[str], LoadReport], location: str) -> LoadReport:
    """Run it again; the server takes a moment to notice that the killed load is gone."""
    for _ in range(200):
        try:
            return run(location)
        except TerminalError as error:
            if "another load" not in str(error):
                raise
            time.sleep(0.1)
    raise AssertionError("the killed load kept its lock")


def test_a_load_with_children_killed_at_any_moment_resumes(
    services: Services,
    employees: TableMapping,
    exports: ExportFactory,
    connection: Connection,
    apply: Callable[..., ReplicationReport],
    run: Callable[[str], LoadReport],
) -> None:
    """The last kill is certain to come while the swap waits for a reader."""
    export = exports.full([item(n, f"name {n}", ("a", f"{n}")) for n in range(2_000)], Layout(files=6))
    for turn in range(4):
        connection.execute("DELETE FROM replication.exports")
        connection.execute('TRUNCATE replica."Employees", replica."Tasks", replica."Badges"')
        apply(record(1, turn, at=AFTER, **attributes("streamed", ("s",))))
        with closing(services.connect("test reader")) as reader, reader.transaction():
            if turn == 3:
                reader.execute('SELECT FROM "Tasks"')
            process = PROCESSES.Process(target=load_to_be_killed, args=(services, employees, export.location))
            process.start()
            time.sleep(3 if turn == 3 else random.uniform(0, 2))
            process.kill()
            process.join()
        report = resumed(run, export.location)
        assert (report.strategy, report.items, report.applied) == ("aside", 2_000, 1_999)
        assert shown(connection) == {
            **{n: (f"name {n}", ("a", f"{n}")) for n in range(2_000)}, 1: ("streamed", ("s",))
        }  # fmt: skip
        left = "SELECT FROM pg_tables WHERE schemaname = 'replica' AND tablename LIKE '\\_load%'"
        assert connection.execute(left.encode()).fetchone() is None


def test_a_load_begins_again_when_a_child_is_added_meanwhile(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    (parent,) = employees.targets
    fewer = replace(employees, targets=(replace(parent, children=parent.children[:1]),))
    export = exports.full([item(n, "name", ("a",)) for n in range(50)], Layout(files=2))

    def stop(*_: object, **__: object) -> None:
        raise TerminalError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_aside, "swap", stop)
        with pytest.raises(TerminalError, match="stopped"):
            load(services, fewer, export.location, aside_from=0)
    migrate(connection, [employees])
    report = load(services, employees, export.location, aside_from=0)
    assert (report.strategy, report.files_resumed, report.applied) == ("aside", 0, 50)


def test_a_full_load_again_replaces_the_children_of_what_it_replaces(
    exports: ExportFactory,
    connection: Connection,
    run: Callable[[str], LoadReport],
    apply: Callable[..., ReplicationReport],
) -> None:
    run(exports.full([item(n, "first", ("a", "b", "c")) for n in range(1, 60)]).location)
    later = EXPORT_TIME + timedelta(days=1)
    apply(
        record(1, 1, at=later.timestamp() + 60, **attributes("streamed", ("s",))),
        record(2, 2, "REMOVE", at=later.timestamp() + 60),
        record(3, 3, at=AFTER, **attributes("overtaken", ("o", "o"))),
    )
    export = exports.full([item(n, "second", ("x",) * (n % 3)) for n in range(1, 50)], export_time=later)
    report = run(export.location)
    assert report.strategy == "aside"
    wanted = {n: ("second", ("x",) * (n % 3)) for n in range(3, 50)} | dict.fromkeys(
        range(50, 60), ("first", ("a", "b", "c"))
    )
    assert shown(connection) == wanted | {1: ("streamed", ("s",))}
    count = sum(len(tasks) for _, tasks in wanted.values()) + 1
    assert connection.execute('SELECT count(*) FROM replica."Tasks"').fetchone() == (count,)


def test_a_row_that_a_persons_generated_column_cannot_be_computed_for_becomes_a_reject(
    exports: ExportFactory, connection: Connection, run: Callable[[str], LoadReport]
) -> None:
    """Of a parent, and of a child: then the whole item."""
    connection.execute(
        'ALTER TABLE replica."Employees" ADD COLUMN share int GENERATED ALWAYS AS (12 / (tasks - 3)) STORED'
    )
    connection.execute(
        'ALTER TABLE replica."Tasks" ADD COLUMN size int GENERATED ALWAYS AS (1 / (length(title) - 2)) STORED'
    )
    items = [
        item(1, "one", ("a",)),
        item(2, "two", ("a", "b", "c")),
        item(3, "three", ("a", "bb")),
        item(4, "four", ()),
    ]
    report = run(exports.full(items, Layout(files=1)).location)
    assert (report.strategy, report.applied, report.rejected) == ("aside", 2, 2)
    assert shown(connection) == {1: ("one", ("a",)), 4: ("four", ())}
    assert connection.execute('SELECT share FROM replica."Employees" ORDER BY 1').fetchall() == [(-6,), (-4,)]
