"""Purge: what it may remove, what it must not, and that nothing comes back afterwards.

`PURGE_KILLS` sets how many purges are killed (3 unless set).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.bookkeeping.status import read_status
from pipeline.aurora.rows import purge
from pipeline.aurora.sessions.connection import Connection
from pipeline.cli import main
from pipeline.core.errors import ConfigurationError, TerminalError, TransientError
from pipeline.core.model.mapping import TableMapping, Target
from pipeline.jobs.load.load import load
from pipeline.jobs.purge import PurgeReport, purge_table
from pipeline.jobs.services import Services
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory
from tests.jobs.conftest import CREATED, named, record, view
from tests.jobs.past_table import item

KILLS = int(os.environ.get("PURGE_KILLS", "3"))
DAY = timedelta(days=1)
NOW = EXPORT_TIME + 40 * DAY
Apply = Callable[..., Any]
Run = Callable[..., PurgeReport]


@pytest.fixture
def run(connection: Connection, employees: TableMapping) -> Run:
    def purging(now: datetime = NOW, **options: Any) -> PurgeReport:  # noqa: ANN401 - purge_table's own
        return purge_table(connection, employees, now=now, **options)

    return purging


@pytest.fixture
def loaded(services: Services, employees: TableMapping, exports: ExportFactory) -> datetime:
    """A full snapshot that was loaded whole; returns the time it counts as of."""
    return load(services, employees, exports.full([item(n, f"name {n}") for n in range(5)]).location).as_of


def tombstones(connection: Connection) -> list[int]:
    return [n for (n,) in connection.execute('SELECT "Id" FROM replica."Employees" WHERE _deleted ORDER BY 1')]


def test_without_a_snapshot_no_tombstone_goes(run: Run, apply: Apply, connection: Connection) -> None:
    apply(record(1, 1, "REMOVE"))
    report = run()
    assert (report.through, report.bound, report.tombstones) == (None, "no snapshot", 0)
    assert tombstones(connection) == [1]
    assert connection.execute("SELECT purged_through FROM replication.tables").fetchone() == (None,)


def test_it_goes_no_further_than_the_newest_whole_snapshot(
    run: Run, apply: Apply, connection: Connection, loaded: datetime
) -> None:
    at = loaded.timestamp()
    apply(record(11, 1, "REMOVE", at=at), record(12, 2, "REMOVE", at=at + 1), record(13, 3, "REMOVE", at=at - 1000))
    report = run()
    assert (report.through, report.bound, report.tombstones) == (loaded, "snapshot", 2)
    assert tombstones(connection) == [12]
    assert connection.execute("SELECT purged_through FROM replication.tables").fetchone() == (loaded,)
    assert set(view(connection)) == set(range(5))


def test_it_goes_no_further_than_its_retention(
    run: Run, apply: Apply, connection: Connection, loaded: datetime
) -> None:
    apply(record(11, 1, "REMOVE", at=CREATED), record(12, 2, "REMOVE", at=CREATED + 600))
    through = datetime.fromtimestamp(CREATED + 300, UTC)
    assert through < loaded
    report = run(retention=NOW - through)
    assert (report.through, report.bound, report.tombstones) == (through, "retention", 1)
    assert tombstones(connection) == [12]


def test_what_comes_late_is_refused_and_counted_apart_from_stale(
    run: Run, apply: Apply, connection: Connection, loaded: datetime, employees: TableMapping
) -> None:
    at = loaded.timestamp()
    apply(record(11, 5, "REMOVE", at=at - 10), named(1, 6, "newer", at=at + 50))
    run()
    report = apply(
        named(11, 4, "back again", at=at - 20), named(1, 3, "older", at=at - 30), named(12, 7, "new", at=at + 1)
    )
    assert (report.applied, report.stale, report.refused) == (1, 2, 1)
    assert {n: name for n, (name, _) in view(connection).items() if n > 4} == {12: "new"}
    status = read_status(connection, [employees])["employees"]
    assert (status.stale, status.refused, status.purged_through) == (2, 1, loaded)


def test_in_chunks_it_removes_as_much(run: Run, apply: Apply, connection: Connection, loaded: datetime) -> None:
    assert loaded
    apply(*[record(n, n, "REMOVE") for n in range(100, 200)])
    told: list[int] = []
    assert run(rows=30, on_progress=told.append).tombstones == 100
    assert told == [30, 60, 90, 100]
    assert tombstones(connection) == []
    assert run().tombstones == 0


def test_chunks_search_the_table_once_and_without_its_lock(
    run: Run, apply: Apply, connection: Connection, loaded: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search from the beginning for each chunk takes time with the square of the rows, and writers wait for it."""
    assert loaded
    apply(*[named(n, n, "here" * 5) for n in range(100, 1100)])
    apply(*[record(n, n + 2000, "REMOVE") for n in range(100, 1100, 2)])
    searched, real = list[tuple[str, list[str]]](), purge.find

    def find(searching: Connection, target: Target, through: datetime, after: str, rows: int) -> list[str]:
        searched.append((after, real(searching, target, through, after, rows)))
        locked = searching.execute("SELECT count(*) FROM pg_locks WHERE mode = 'ShareRowExclusiveLock'")
        assert locked.fetchone() == (0,)
        return searched[-1][1]

    monkeypatch.setattr(purge, "find", find)
    connection.execute("SET synchronize_seqscans = on; SET enable_tidscan = off")
    assert run(rows=70).tombstones == 500
    assert [after for after, _ in searched] == ["(0,0)", *(places[-1] for _, places in searched[:-1])]
    pages = [tuple(map(int, place.strip("()").split(","))) for _, places in searched for place in places]
    assert len(pages) == 500
    assert pages == sorted(pages)
    assert pages[0] < pages[-1]
    assert tombstones(connection) == []


def test_a_row_that_lives_again_when_the_chunk_has_its_lock_stays(
    run: Run, apply: Apply, connection: Connection, loaded: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded
    apply(record(11, 1, "REMOVE"), record(12, 2, "REMOVE"), record(13, 3, "REMOVE"))
    real = purge.find

    def find(*arguments: Any) -> list[str]:  # noqa: ANN401 - handed on
        found = real(*arguments)
        if found:
            apply(named(12, 4, "again"))
            connection.execute("""UPDATE replica."Employees" SET _as_of = '2099-01-01' WHERE "Id" = 13""")
        return found

    monkeypatch.setattr(purge, "find", find)
    assert run().tombstones == 1
    assert view(connection)[12] == ("again", "NA")
    assert tombstones(connection) == [13]


def test_writers_that_are_gone_are_folded_and_the_totals_stay(
    run: Run, connection: Connection, employees: TableMapping
) -> None:
    for number, days in ((1, 50), (2, 45), (3, 31), (4, 2), (5, 0)):
        connection.execute(
            "INSERT INTO replication.watermarks (table_name, writer, as_of, applied_at, batches, records, applied,"
            " stale, deleted, expired, rejected, refused) VALUES ('employees', %s, %s, %s, 1, 10, 7, 3, 2, 1, 0, 1)",
            [f"environment {number}", NOW - days * DAY, NOW - days * DAY],
        )
    before = read_status(connection, [employees])["employees"]
    assert run().writers_folded == 3
    after = read_status(connection, [employees])["employees"]
    assert (after.writers, after.records, after.applied, after.refused) == (2, 50, 35, 5)
    assert (after.records, after.lag_seconds, after.newest_change) == (
        before.records,
        before.lag_seconds,
        before.newest_change,
    )
    assert run(now=NOW + 31 * DAY).writers_folded == 1  # the last one stays, however long it is silent
    assert run(now=NOW + 99 * DAY).writers_folded == 0
    assert read_status(connection, [employees])["employees"].records == 50


def test_old_bookkeeping_goes_and_what_decides_stays(
    run: Run, connection: Connection, loaded: datetime, services: Services, employees: TableMapping
) -> None:
    assert loaded
    for status, days in (("done", 90), ("failed", 80), ("done", 70), ("failed", 60)):
        connection.execute(
            "INSERT INTO replication.reconciliations (table_name, snapshot, snapshot_time, as_of, status, started_at)"
            " VALUES ('employees', '', now(), now(), %s, %s)",
            [status, NOW - days * DAY],
        )
    connection.execute('CREATE TABLE replica."_reconcile_1_0" (n int)')
    connection.execute('CREATE TABLE replica."_load_999_0" (n int)')
    for kind, days, status in (
        ("full", 400, "loaded"),
        ("full", 300, "loading"),
        ("incremental", 36, "loaded"),
        ("incremental", 34, "loaded"),
    ):
        at = NOW - days * DAY
        connection.execute(
            "INSERT INTO replication.exports (table_name, kind, location, snapshot_time, as_of, item_count, file_count,"
            " size_bytes, status, started_at) VALUES ('employees', %s, %s, %s, %s, 0, 0, 0, %s, %s)",
            [kind, str(days), at, at, status, at],
        )
    connection.execute(
        "INSERT INTO replication.builds (export_id, storage_name, build_name)"
        " SELECT id, 'Employees', '_load_999_0' FROM replication.exports WHERE location = '300'"
    )
    connection.execute("UPDATE replication.exports SET started_at = %s WHERE location LIKE 'file:%%'", [NOW - 39 * DAY])
    report = run()
    assert (report.reconciliations, report.exports) == (2, 3)
    rows = connection.execute("SELECT status FROM replication.reconciliations ORDER BY id").fetchall()
    assert rows == [("done",), ("failed",)]
    kept = [location for (location,) in connection.execute("SELECT location FROM replication.exports ORDER BY id")]
    assert len(kept) == 2  # the newest that was loaded whole, however old, and the window that could come again
    assert kept[1] == "34"
    left = connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'replica' AND tablename LIKE '\\_%'"
    ).fetchall()
    assert left == []
    with closing(services.connect("test")) as holder:
        loads.lock_table(holder, employees.name)
        with pytest.raises(TerminalError, match="another load"):
            run()


REFUSING = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$;" + (
    ' CREATE TRIGGER refuse BEFORE DELETE ON replica."Employees" FOR EACH ROW WHEN (OLD."Id" % 10 = 0)'
    " EXECUTE FUNCTION refuse()"
)
REFERRING = (
    'CREATE TABLE badges (employee bigint CONSTRAINT worn_by REFERENCES replica."Employees" {});'
    " INSERT INTO badges SELECT n FROM generate_series(100, 190, 10) n"
)
KEEPING = {
    "a foreign key": (REFERRING.format(""), "ForeignKeyViolation (23503, table badges, constraint worn_by)"),
    "a foreign key that restricts": (
        REFERRING.format("ON DELETE RESTRICT"),
        "(23001|23503), table badges, constraint worn_by",
    ),
    "a foreign key that is looked at on commit": (
        REFERRING.format("DEFERRABLE INITIALLY DEFERRED"),
        "ForeignKeyViolation (23503, table badges, constraint worn_by)",
    ),
    "a trigger that raises": (REFUSING.format("RAISE 'mine: 4711';"), "RaiseException (P0001)"),
    "a trigger that raises like a missing grant": (
        REFUSING.format("RAISE 'mine' USING ERRCODE = '42501';"),
        "InsufficientPrivilege (42501)",
    ),
    "a trigger that passes the delete over": (REFUSING.format("RETURN NULL;"), "a trigger or rule"),
    "a rule": (
        'CREATE RULE r AS ON DELETE TO replica."Employees" WHERE OLD."Id" % 10 = 0 DO INSTEAD NOTHING',
        "a trigger or rule",
    ),
}


@pytest.mark.parametrize("rows", [30, 5000])
@pytest.mark.parametrize("what", KEEPING)
def test_tombstones_that_are_refused_are_kept_counted_and_hinder_no_other(
    run: Run, apply: Apply, connection: Connection, loaded: datetime, what: str, rows: int
) -> None:
    statement, reason = KEEPING[what]
    apply(*[named(n, n, "here") for n in range(100, 200)])
    connection.execute(statement.encode())
    apply(*[record(n, n + 1000, "REMOVE") for n in range(100, 200)])
    report = run(rows=rows)
    assert (report.through, report.tombstones) == (loaded, 90)
    assert tombstones(connection) == list(range(100, 200, 10))
    ((why, count),) = report.kept.items()
    assert count == 10
    assert why.endswith(reason) or re.search(reason, why)
    assert "4711" not in why
    assert connection.execute("SELECT purged_through FROM replication.tables").fetchone() == (loaded,)
    connection.execute(
        "DROP TABLE IF EXISTS badges; DROP FUNCTION IF EXISTS refuse CASCADE;"
        ' DROP RULE IF EXISTS r ON replica."Employees"'
    )
    report = run(rows=rows)
    assert (report.tombstones, report.kept) == (10, {})


def test_a_trigger_that_alters_tombstones_instead_is_refused(
    run: Run, apply: Apply, connection: Connection, loaded: datetime
) -> None:
    assert loaded
    apply(record(11, 1, "REMOVE"))
    body = 'UPDATE replica."Employees" SET _deleted = true WHERE "Id" = OLD."Id"; RETURN NULL;'
    connection.execute(REFUSING.format(body).replace(' WHEN (OLD."Id" % 10 = 0)', "").encode())
    with pytest.raises(TerminalError, match="alters tombstones instead of removing them"):
        run()


@pytest.mark.parametrize(
    ("policies", "hidden"),
    [
        ([], True),
        (["p ON {} USING (true)"], False),
        (["p ON {} TO CURRENT_USER USING (true)"], False),
        (["p ON {} FOR SELECT USING (true)", "q ON {} FOR DELETE USING (true)", "u ON {} FOR UPDATE USING (true)"],
         False),
        (["p ON {} FOR SELECT USING (true)", "u ON {} FOR UPDATE USING (true)"], True),
        (['p ON {} USING (true)', 'q ON {} AS RESTRICTIVE USING ("Id" > 5)'], True),
        (["p ON {} TO pg_monitor USING (true)"], True),
    ],
)  # fmt: skip
def test_a_row_policy_that_hides_tombstones_from_the_user_is_refused(
    run: Run, apply: Apply, connection: Connection, loaded: datetime, policies: list[str], *, hidden: bool
) -> None:
    assert loaded
    apply(record(11, 1, "REMOVE"))
    purger = f"purger_{connection.info.dbname}"
    connection.execute(
        f"CREATE ROLE {purger}; GRANT ALL ON ALL TABLES IN SCHEMA replica, replication TO {purger};"
        f" GRANT USAGE, CREATE ON SCHEMA replica, replication TO {purger};"
        ' ALTER TABLE replica."Employees" ENABLE ROW LEVEL SECURITY'.encode()
    )
    for policy in policies:
        made = "CREATE POLICY " + policy.format('replica."Employees"').replace("CURRENT_USER", purger)
        connection.execute(made.encode())
    connection.execute(f"SET ROLE {purger}".encode())
    try:
        if hidden:
            with pytest.raises(TerminalError, match="row-level security") as raised:
                run()
            assert "BYPASSRLS" in str(raised.value)
        else:
            assert run().tombstones == 1
    finally:
        connection.execute(f"RESET ROLE; DROP OWNED BY {purger}; DROP ROLE {purger}".encode())


def test_a_wrong_retention_is_refused(run: Run) -> None:
    with pytest.raises(ConfigurationError, match="above 0"):
        run(retention=timedelta(0))


def test_the_command_and_its_exit_codes(
    services: Services,
    apply: Apply,
    employees: TableMapping,
    exports: ExportFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment = {
        "DATABASE_URL": services.settings.database_url or "",
        "DYNAURORA_TABLES": str(Path(employees.path).parent),
    }
    apply(record(1, 1, "REMOVE"))
    assert main(["purge", "employees"], environment) == 1
    assert "run `dynaurora load employees` first" in capsys.readouterr().out
    load(services, employees, exports.full([item(2, "two")]).location)
    assert main(["purge", "employees", "--retention", "12h", "--json"], environment) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tombstones"], found["bound"]) == (1, "snapshot")
    assert main(["status", "employees"], environment) == 0
    assert "purged          through 2026-05-14 11:09:20 UTC" in capsys.readouterr().out
    assert main(["purge", "employees", "--retention", "soon"], environment) == 2


def test_the_command_says_what_was_kept_and_why(
    services: Services,
    apply: Apply,
    connection: Connection,
    employees: TableMapping,
    exports: ExportFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment = {
        "DATABASE_URL": services.settings.database_url or "",
        "DYNAURORA_TABLES": str(Path(employees.path).parent),
    }
    apply(*[named(n, n, "here") for n in range(100, 200)])
    connection.execute(REFERRING.format("").encode())
    apply(*[record(n, n + 1000, "REMOVE") for n in range(100, 200)])
    load(services, employees, exports.full([item(2, "two")]).location)
    assert main(["purge", "employees", "--retention", "12h"], environment) == 1
    told = capsys.readouterr().out
    assert "employees: 90 tombstones removed" in told
    assert "  ! 10 tombstones kept: ForeignKeyViolation (23503, table badges, constraint worn_by)" in told
    assert "delete the rows that refer to them" in told
    assert main(["purge", "employees", "--json"], environment) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["kept"] == {"ForeignKeyViolation (23503, table badges, constraint worn_by)": 10}


def test_a_writer_that_stays_is_waited_for_without_queueing_and_then_named(
    run: Run,
    apply: Apply,
    services: Services,
    connection: Connection,
    loaded: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert loaded
    apply(named(100, 1, "old", at=CREATED))
    apply(record(100, 2, "REMOVE", at=CREATED + 1))
    monkeypatch.setattr("pipeline.aurora.rows.purge.LOCK_SECONDS", 0.05)
    monkeypatch.setattr("pipeline.jobs.purge._LOOKS", 3)
    queued = 0
    real = purge.purge_chunk

    def counting(*arguments: Any, **options: Any) -> int:  # noqa: ANN401 - handed on
        nonlocal queued
        queued += 1
        return real(*arguments, **options)

    monkeypatch.setattr(purge, "purge_chunk", counting)
    with closing(services.connect("batch")) as writer:
        with writer.transaction():
            writer.execute('LOCK TABLE replica."Employees" IN ROW EXCLUSIVE MODE')
            with pytest.raises(TransientError, match=rf"pid {writer.info.backend_pid} \(idle in transaction, since"):
                run()
        assert queued == 2
    run()
    assert tombstones(connection) == []


CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload([__name__])


def purge_to_be_killed(begun: Any, services: Services, mapping: TableMapping) -> None:  # noqa: ANN401 - an event
    with closing(services.connect("test purge")) as connection:
        begun.set()
        purge_table(connection, mapping, now=NOW, rows=20)


@pytest.mark.timeout(300)
def test_purges_killed_at_any_moment_bring_nothing_back(
    services: Services, employees: TableMapping, run: Run, apply: Apply, connection: Connection, loaded: datetime
) -> None:
    assert loaded
    old = [named(n, n, "old", at=CREATED) for n in range(100, 900)]
    apply(*old)
    apply(*[record(n, n + 1000, "REMOVE", at=CREATED + 1) for n in range(100, 900)])
    for _ in range(KILLS):
        begun = CHILDREN.Event()
        process = CHILDREN.Process(target=purge_to_be_killed, args=(begun, services, employees))
        process.start()
        assert begun.wait(60)
        time.sleep(random.uniform(0, 0.6))
        process.kill()
        process.join()
        apply(*old)
        assert set(view(connection)) == set(range(5))
    for _ in range(100):
        try:
            run()
            break
        except TerminalError as error:
            if "another load" not in str(error):
                raise
            time.sleep(0.1)
    apply(*old)
    assert set(view(connection)) == set(range(5))
    assert tombstones(connection) == []
