"""The load, by both strategies and both kinds of workers, against a real PostgreSQL."""

from __future__ import annotations

import gzip
import os
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.rows import purge
from pipeline.aurora.schema import tables
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import ConfigurationError, DataError, TerminalError, TransientError
from pipeline.core.exports.ways import Ways
from pipeline.core.model.mapping import Column, TableMapping, Target
from pipeline.core.model.mapping_digest import digests
from pipeline.core.types.sql_types import SqlType
from pipeline.jobs.load import way
from pipeline.jobs.load.load import LoadReport, load
from pipeline.jobs.load.load_progress import LoadProgress
from pipeline.jobs.load.load_worker import failure_from, failure_parts
from pipeline.jobs.services import Services
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, Layout, WrittenExport, md5_text
from tests.jobs.conftest import named, record, view

AFTER = EXPORT_TIME.timestamp() + 60
LONG_AGO = EXPORT_TIME.timestamp() - 3600
Load = Callable[..., LoadReport]


def item(number: int, name: str = "") -> dict[str, Any]:
    return {"Id": {"N": str(number)}, "empName": {"S": name or f"name {number}"}}


@pytest.fixture(params=["merge", "aside"])
def strategy(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def run(services: Services, employees: TableMapping, strategy: str) -> Load:
    """Load by the strategy of the test, with threads unless the test says otherwise."""

    def loading(location: str, *, mapping: TableMapping = employees, **options: Any) -> LoadReport:  # noqa: ANN401 - load's own
        options = {"processes_from": 10**9, "aside_from": 0 if strategy == "aside" else 10**9} | options
        return load(services, mapping, location, **options)

    return loading


def leftovers(connection: Connection) -> list[str]:
    """Tables that the load created for itself."""
    return [
        name
        for (name,) in connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'replica' AND tablename LIKE '\\_load%'"
        )
    ]


def add_up(report: LoadReport, targets: int = 1) -> bool:
    return report.applied + report.stale + report.rejected == report.items * targets


def file_path(export: WrittenExport, number: int) -> Path:
    location = Path(export.location.removeprefix("file://"))
    return next(
        parent / export.data_keys[number] for parent in location.parents if (parent / export.data_keys[number]).exists()
    )


@pytest.mark.parametrize("processes_from", [0, 10**9], ids=["processes", "threads"])
def test_loads_every_item_and_says_so(
    run: Load, exports: ExportFactory, connection: Connection, strategy: str, processes_from: int
) -> None:
    export = exports.full([item(n) for n in range(1, 301)], Layout(files=4, empty_files=2))
    told: list[LoadProgress] = []
    report = run(export.location, on_progress=told.append, processes_from=processes_from)
    assert view(connection) == {n: (f"name {n}", "NA") for n in range(1, 301)}
    assert (report.strategy, report.files, report.items, report.applied) == (strategy, 6, 300, 300)
    assert (report.stale, report.rejected, report.files_resumed, report.already_loaded) == (0, 0, 0, False)
    assert (told[0].files_done, told[-1].files_done, told[-1].rows_done) == (0, 6, 300)
    assert {progress.phase for progress in told} >= {"copying"}
    row = connection.execute("SELECT status, strategy, reason FROM replication.exports").fetchone()
    assert row == ("loaded", strategy, None)
    assert leftovers(connection) == []
    positions = connection.execute('SELECT DISTINCT _version, _as_of, _deleted FROM replica."Employees"').fetchall()
    assert positions == [(None, report.as_of, False)]


def test_again_changes_nothing(run: Load, exports: ExportFactory, connection: Connection) -> None:
    export = exports.full([item(n) for n in range(50)])
    first = run(export.location)
    before = connection.execute('SELECT *, xmin FROM replica."Employees" ORDER BY 1').fetchall()
    again = run(export.location)
    assert connection.execute('SELECT *, xmin FROM replica."Employees" ORDER BY 1').fetchall() == before
    assert again.already_loaded
    assert replace(again, seconds=0, already_loaded=False, files_resumed=0) == replace(
        first, seconds=0, ways=Ways(), merged_because=(), aside_because=()
    )


def test_a_loaded_export_stays_so_after_a_purge(
    run: Load, exports: ExportFactory, connection: Connection, employees: TableMapping
) -> None:
    export = exports.full([item(1)])
    run(export.location)
    purge.purge_chunk(connection, employees.targets[0], employees.name, EXPORT_TIME)
    assert run(export.location).already_loaded


def test_the_stream_before_the_load_counts_by_its_position(
    run: Load, exports: ExportFactory, connection: Connection, apply: Callable[..., Any]
) -> None:
    """Newer changes, deletes and keys that the export lacks stay; older ones are replaced."""
    apply(named(1, 1, "newer", at=AFTER), record(2, 2, "REMOVE", at=AFTER), named(9, 3, "not exported", at=AFTER))
    apply(named(3, 4, "older", at=LONG_AGO), record(4, 5, "REMOVE", at=LONG_AGO))
    report = run(exports.full([item(n) for n in range(1, 7)]).location)
    names = {number: name for number, (name, _) in view(connection).items()}
    assert names == {1: "newer", 3: "name 3", 4: "name 4", 5: "name 5", 6: "name 6", 9: "not exported"}
    assert (report.applied, report.stale, report.rejected) == (4, 2, 0)
    tombstone = connection.execute('SELECT "Name", _deleted FROM replica."Employees" WHERE "Id" = 2').fetchone()
    assert tombstone == (None, True)


def test_an_item_exported_twice_counts_once(run: Load, exports: ExportFactory, connection: Connection) -> None:
    export = exports.full([item(1), item(2), item(1), item(1)], Layout(files=2))
    report = run(export.location)
    assert set(view(connection)) == {1, 2}
    assert (report.items, report.applied, report.stale) == (4, 2, 2)


def test_what_cannot_be_converted_is_kept_whole(run: Load, exports: ExportFactory, connection: Connection) -> None:
    bad = {"Id": {"N": "2"}, "empName": {"S": "much too long for twenty characters"}}
    report = run(exports.full([item(1), bad, item(3)]).location)
    assert set(view(connection)) == {1, 3}
    assert (report.applied, report.rejected) == (2, 1)
    assert connection.execute("SELECT record->'Item' FROM replication.rejects").fetchall() == [(bad,)]


def test_what_only_postgresql_refuses_is_found_and_kept_whole(
    run: Load, exports: ExportFactory, connection: Connection
) -> None:
    """A domain represents everything that the database may refuse and decoding cannot know."""
    connection.execute("CREATE DOMAIN small AS bigint CHECK (VALUE < 1000)")
    connection.execute('DROP VIEW public."Employees"')
    connection.execute('DROP TABLE replica."Employees"')
    mapping = numbered()
    connection.execute(
        'CREATE TABLE replica."Employees" ("Id" bigint NOT NULL, "Size" small, _version numeric,'
        ' _as_of timestamptz NOT NULL, _deleted boolean NOT NULL DEFAULT false, PRIMARY KEY ("Id"))'
    )
    connection.execute(
        'CREATE VIEW public."Employees" AS SELECT "Id", "Size" FROM replica."Employees" WHERE NOT _deleted'
    )
    refused = {7, 8, 40}
    sizes = [{"Id": {"N": str(n)}, "Size": {"N": "5000" if n in refused else "5"}} for n in range(60)]
    report = run(exports.full(sizes, Layout(files=2)).location, mapping=mapping)
    assert {n for (n,) in connection.execute('SELECT "Id" FROM public."Employees"')} == set(range(60)) - refused
    assert (report.applied, report.stale, report.rejected) == (57, 0, 3)
    kept = connection.execute("SELECT record->'Item'->'Id'->>'N' FROM replication.rejects").fetchall()
    assert {int(n) for (n,) in kept} == refused


def numbered() -> TableMapping:
    columns = (Column("Id", "Id", ("Id",), SqlType("bigint")), Column("Size", "Size", ("Size",), SqlType("bigint")))
    return TableMapping("employees", "Employees", {"Id": "N"}, (Target("public", "Employees", ("Id",), columns),))


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda content: content[: len(content) // 2], "truncated"),
    "corrupt": (lambda content: content[:-4] + b"\0\0\0\0", "MD5"),
    "foreign": (lambda _: gzip.compress(b'{"Item":{"Id":{"N":"999"}}}\n'), "MD5"),
}


@pytest.mark.parametrize("damage", [*DAMAGES, "missing"])
@pytest.mark.parametrize("processes_from", [0, 10**9], ids=["processes", "threads"])
def test_a_damaged_file_stops_the_load_and_leaves_nothing(
    run: Load, exports: ExportFactory, connection: Connection, damage: str, processes_from: int
) -> None:
    export = exports.full([item(n) for n in range(200)], Layout(files=2, empty_files=0))
    path = file_path(export, 1)
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage][0](whole))
    with pytest.raises(TerminalError, match=path.name) as failure:
        run(export.location, workers=1, processes_from=processes_from)
    if damage != "missing":
        assert DAMAGES[damage][1] in str(failure.value)
    assert set(view(connection)) <= set(range(0, 200, 2))  # either the whole file's items, or none
    row = connection.execute("SELECT status, reason FROM replication.exports").fetchone()
    assert row is not None
    assert row[0] == "failed"
    assert path.name in row[1]
    path.write_bytes(whole)
    report = run(export.location)
    assert (report.files_resumed, report.applied) == (1, 200)
    assert set(view(connection)) == set(range(200))


def test_a_file_with_fewer_items_than_stated_is_refused(run: Load, exports: ExportFactory) -> None:
    export = exports.full([item(1), item(2)], Layout(files=1, empty_files=0))
    manifest = Path(export.location.removeprefix("file://"))
    for name in (Path(export.files_key).name, manifest.name):
        path = manifest.parent / name
        path.write_text(path.read_text().replace('"itemCount":2', '"itemCount":3'))
        path.with_suffix(".md5").unlink()
    with pytest.raises(TerminalError, match="has 2 lines, and the manifest states 3"):
        run(export.location)


@pytest.mark.parametrize("processes_from", [0, 10**9], ids=["processes", "threads"])
def test_bytes_that_are_no_utf_8_are_refused_by_their_line(
    run: Load, exports: ExportFactory, connection: Connection, processes_from: int
) -> None:
    export = exports.full([item(n, f"name {n}") for n in range(50)], Layout(files=1, empty_files=0))
    path = file_path(export, 0)
    whole = path.read_bytes()
    damaged = gzip.compress(gzip.decompress(whole).replace(b'"name 30"', b'"name \xe9"'))
    path.write_bytes(damaged)
    files = Path(export.location.removeprefix("file://")).with_name(Path(export.files_key).name)
    md5 = md5_text(whole).decode(), md5_text(damaged).decode()
    files.write_text(files.read_text().replace(*md5))
    files.with_suffix(".md5").unlink()
    with pytest.raises(TerminalError, match=rf"{path.name}.*line 31.*not JSON"):
        run(export.location, processes_from=processes_from)
    assert view(connection) == {}


def test_an_incremental_export_is_refused(run: Load, exports: ExportFactory) -> None:
    with pytest.raises(ConfigurationError, match="incremental"):
        run(exports.incremental([]).location)


def test_two_loads_of_a_table_exclude_each_other(run: Load, exports: ExportFactory) -> None:
    first, second = exports.full([item(1)]), exports.full([item(2)])
    met: list[str] = []

    def meanwhile(_: LoadProgress) -> None:
        if not met:
            with pytest.raises(TerminalError, match="another load of this table is running") as failure:
                run(second.location)
            met.append(str(failure.value))

    run(first.location, on_progress=meanwhile)
    assert met


class Interrupted(Exception):  # noqa: N818 - a signal of ours, not an error
    pass


@pytest.mark.parametrize("files_done", range(4))
def test_an_interrupted_load_resumes(
    run: Load, exports: ExportFactory, connection: Connection, files_done: int, apply: Callable[..., Any]
) -> None:
    export = exports.full([item(n) for n in range(40)], Layout(files=3, empty_files=0))

    def interrupt(progress: LoadProgress) -> None:
        if progress.files_done >= files_done:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(export.location, workers=1, on_progress=interrupt)
    apply(record(5, 1, "REMOVE", at=AFTER), named(6, 2, "newer", at=AFTER))
    report = run(export.location)
    assert report.files_resumed == files_done
    assert view(connection) == {n: ("newer" if n == 6 else f"name {n}", "NA") for n in range(40) if n != 5}
    assert add_up(report)
    assert leftovers(connection) == []


def test_a_purge_during_the_load_is_noticed(
    run: Load, exports: ExportFactory, connection: Connection, employees: TableMapping, apply: Callable[..., Any]
) -> None:
    """The item was deleted after the snapshot, and its tombstone purged before the load ended: it must not return."""
    export = exports.full([item(n) for n in range(20)], Layout(files=2))

    def purge_once(progress: LoadProgress) -> None:
        if progress.files_done == 1:
            apply(record(5, 1, "REMOVE", at=AFTER))
            while purge.purge_chunk(connection, employees.targets[0], employees.name, EXPORT_TIME + timedelta(hours=1)):
                pass

    with pytest.raises(TerminalError, match="tombstones were purged through"):
        run(export.location, on_progress=purge_once, workers=1)
    assert 5 not in view(connection)
    with pytest.raises(TerminalError, match="load a newer export"):
        run(export.location)
    newer = exports.full([item(n) for n in range(20) if n != 5], export_time=EXPORT_TIME + timedelta(hours=2))
    assert run(newer.location).applied == 19
    assert set(view(connection)) == set(range(20)) - {5}
    assert leftovers(connection) == []


def test_a_newer_export_is_loaded_the_same_way_and_leaves_what_it_lacks(
    run: Load, exports: ExportFactory, connection: Connection, strategy: str
) -> None:
    assert run(exports.full([item(1, "old"), item(2, "gone by now")]).location).strategy == strategy
    newer = exports.full([item(1, "new"), item(3)], export_time=EXPORT_TIME + timedelta(hours=1))
    report = run(newer.location)
    assert (report.strategy, report.applied) == (strategy, 2)
    assert {number: name for number, (name, _) in view(connection).items()} == {1: "new", 2: "gone by now", 3: "name 3"}


@pytest.mark.parametrize(("rows", "strategy"), [(6, "aside"), (7, "merge")])
def test_an_export_of_less_than_half_of_the_rows_is_merged(
    services: Services,
    employees: TableMapping,
    exports: ExportFactory,
    connection: Connection,
    rows: int,
    strategy: str,
) -> None:
    """The report says which way it went, and the two numbers."""
    load(services, employees, exports.full([item(n) for n in range(rows)]).location)
    newer = exports.full([item(n, "new") for n in range(3)], export_time=EXPORT_TIME + timedelta(hours=1))
    report = load(services, employees, newer.location, aside_from=0)
    assert report.strategy == strategy
    (why,) = report.merged_because or report.aside_because
    assert why.startswith(f"the export has 3 items, and the table about {rows} rows")
    assert len(view(connection)) == rows


def test_how_many_rows_a_large_table_has_is_not_counted(
    employees: TableMapping, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL's estimate decides."""
    connection.execute(
        'INSERT INTO replica."Employees" ("Id", "Name", _as_of) SELECT n, \'x\', now() FROM generate_series(1, 3000) n'
    )
    connection.execute('ANALYZE replica."Employees"')
    monkeypatch.setattr(way, "COUNTED_BYTES", 0)
    assert way.choose(connection, employees, 1499, aside_from=0).strategy == "merge"
    assert way.choose(connection, employees, 1500, aside_from=0).strategy == "aside"


def two_targets(mapping: TableMapping) -> TableMapping:
    first = mapping.targets[0]
    return replace(mapping, targets=(first, replace(first, name="Copies", unmapped=None)))


@pytest.mark.parametrize("processes_from", [0, 10**9], ids=["processes", "threads"])
def test_every_target_is_filled(
    run: Load, exports: ExportFactory, connection: Connection, employees: TableMapping, processes_from: int
) -> None:
    mapping = two_targets(employees)
    migrate(connection, [mapping])
    bad = {"Id": {"N": "2"}, "empName": {"S": "much too long for twenty characters"}}
    report = run(exports.full([item(1), bad, item(3)]).location, mapping=mapping, processes_from=processes_from)
    assert set(view(connection)) == {1, 3}
    assert {n for (n,) in connection.execute('SELECT "Id" FROM public."Copies"')} == {1, 3}
    assert (report.applied, report.stale, report.rejected) == (4, 0, 2)
    assert leftovers(connection) == []


def test_two_views_whose_names_begin_with_the_same_55_bytes(
    run: Load, exports: ExportFactory, connection: Connection, employees: TableMapping
) -> None:
    first = employees.targets[0]
    twins = tuple(replace(first, name=f"{'é' * 28}{end}") for end in "12")
    mapping = replace(employees, targets=twins)
    migrate(connection, [mapping])
    assert run(exports.full([item(n) for n in range(5)]).location, mapping=mapping).applied == 10
    for twin in twins:
        found = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(tables.view(twin))).fetchone()
        assert found == (5,)


def test_a_file_in_the_hands_of_another_worker_is_waited_for_and_not_loaded_twice(
    run: Load, services: Services, exports: ExportFactory, connection: Connection
) -> None:
    """The load that resumes takes as done what a worker that outlived its load commits."""
    export = exports.full([item(1), item(2)], Layout(files=1, empty_files=0))

    def fail(_: LoadProgress) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        run(export.location, on_progress=fail)
    (export_id,) = connection.execute("SELECT id FROM replication.exports").fetchone() or (0,)
    key = str(file_path(export, 0)).lstrip("/")  # as the manifest of a folder has it
    reports: list[LoadReport] = []
    resumed = threading.Thread(target=lambda: reports.append(run(export.location)))
    with services.connect("orphan") as orphan, orphan.transaction():
        assert loads.claim_file(orphan, export_id, key)
        resumed.start()
        resumed.join(1.0)
        assert resumed.is_alive()
        loads.mark_file(orphan, export_id, key, loads.FileCounts(2, 2, 0, 0, 10))
    resumed.join()
    assert view(connection) == {}  # the orphan's mark counts; it had no rows here, and the other worker added none
    assert (reports[0].items, reports[0].applied) == (2, 2)


def test_an_error_keeps_its_kind_on_the_way_from_a_worker() -> None:
    error = failure_from(*failure_parts(DataError("m", table="t", hint="h")))
    assert type(error) is DataError
    assert str(error) == "m (table t); h"


def test_a_snapshot_older_than_one_loaded_whole_is_refused(
    run: Load, exports: ExportFactory, connection: Connection
) -> None:
    older = exports.full([item(n) for n in range(3)], export_time=EXPORT_TIME - timedelta(hours=1))
    run(exports.full([item(n) for n in range(2)]).location)
    with pytest.raises(TerminalError, match=r"is already loaded: an item deleted between them could come back"):
        run(older.location)
    assert set(view(connection)) == {0, 1}


def test_a_worker_that_is_killed_is_named(run: Load, exports: ExportFactory, connection: Connection) -> None:
    export = exports.full([item(n) for n in range(30)], Layout(files=3))
    killed: list[int] = []

    def kill(_: LoadProgress) -> None:
        children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
        workers = [int(pid) for each in children for pid in each.read_text().split() if is_worker(int(pid))]
        if workers and not killed:
            killed.append(workers[0])
            os.kill(workers[0], 9)

    with pytest.raises(TransientError, match="signal 9"):
        run(export.location, processes_from=0, workers=1, on_progress=kill)
    assert killed
    assert run(export.location).items == 30
    assert len(view(connection)) == 30


def is_worker(pid: int) -> bool:
    return b"load_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_settings_reach_the_workers_and_no_command_line(services: Services) -> None:
    again = pickle.loads(pickle.dumps(services))  # noqa: S301 - our own
    assert again.settings == services.settings


def test_a_changed_mapping_does_not_take_loaded_files_for_its_own(
    run: Load, services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    export = exports.full([item(n) for n in range(3)])
    run(export.location)
    (target,) = employees.targets
    columns = tuple(replace(c, default="none") if c.name == "Department" else c for c in target.columns)
    changed = replace(employees, targets=(replace(target, columns=columns),))
    with pytest.raises(
        TerminalError, match=r"the mapping was changed since this export was loaded.*load a newer export"
    ):
        load(services, changed, export.location)
    newer = exports.full([item(n) for n in range(3)], export_time=EXPORT_TIME + timedelta(hours=1))
    assert load(services, changed, newer.location).applied == 3
    assert {department for _, department in view(connection).values()} == {"none"}


@pytest.mark.filterwarnings("ignore")  # the server's own, of wal_level
def test_a_load_that_merges_because_its_table_is_published_says_so(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    connection.execute('CREATE PUBLICATION reports FOR TABLE replica."Employees"')
    report = load(services, employees, exports.full([item(1, "one")]).location, aside_from=0)
    assert report.strategy == "merge"
    (why,) = report.merged_because
    assert why == "public.Employees: it is published by reports, and subscribers would miss its new rows"


def test_a_load_aside_that_was_killed_begins_again_under_a_changed_mapping(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    export = exports.full([item(n) for n in range(30)], Layout(files=3, empty_files=0))

    def stop(progress: LoadProgress) -> None:
        if progress.files_done:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        load(services, employees, export.location, workers=1, aside_from=0, on_progress=stop)
    (target,) = employees.targets
    columns = tuple(replace(c, default="none") if c.name == "Department" else c for c in target.columns)
    changed = replace(employees, targets=(replace(target, columns=columns),))
    report = load(services, changed, export.location, aside_from=0)
    assert (report.applied, report.files_resumed, report.strategy) == (30, 0, "aside")
    assert {department for _, department in view(connection).values()} == {"none"}


@pytest.mark.parametrize("aside_from", [0, 10**9])
def test_what_was_loaded_before_an_upgrade_counts_after_it(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection, aside_from: int
) -> None:
    export = exports.full([item(n) for n in range(30)], Layout(files=3, empty_files=0))

    def stop(progress: LoadProgress) -> None:
        if progress.files_done:
            raise InterruptedError

    def store_the_digest_of_the_older_version() -> None:
        older = digests(employees)[-1]
        assert connection.execute("UPDATE replication.exports SET shape = %s", [older]).rowcount == 1

    with pytest.raises(InterruptedError):
        load(services, employees, export.location, workers=1, aside_from=aside_from, on_progress=stop)
    store_the_digest_of_the_older_version()
    report = load(services, employees, export.location, workers=1, aside_from=aside_from)
    assert (report.files_resumed, report.applied) == (1, 30)
    store_the_digest_of_the_older_version()
    assert load(services, employees, export.location).already_loaded


@pytest.mark.parametrize("processes_from", [0, 10**9], ids=["processes", "threads"])
def test_the_report_says_how_many_lines_each_way_served(run: Load, exports: ExportFactory, processes_from: int) -> None:
    items = [item(n) for n in range(30)]
    items[3]["empName"] = {"S": "a name that is longer than twenty characters"}
    items[4]["of one line alone"] = {"S": "x"}
    report = run(exports.full(items, Layout(files=2, empty_files=0)).location, processes_from=processes_from)
    assert (report.applied, report.rejected) == (29, 1)
    assert report.ways == Ways(unparsed=28, parsed=1, general=1)
    assert str(report.ways) == "28 lines read without parsing, 1 parsed, 1 on the general path"


def test_a_file_that_is_read_again_with_savepoints_went_the_general_way(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    connection.execute("""ALTER TABLE replica."Employees" ADD CHECK ("Name" <> 'no')""")
    report = load(services, employees, exports.full([item(1), item(2, "no"), item(3)], Layout(files=1)).location)
    assert (report.applied, report.rejected) == (2, 1)
    assert report.ways == Ways(general=3)
