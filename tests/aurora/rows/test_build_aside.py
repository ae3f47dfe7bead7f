"""Tables built aside: what a swap keeps, what it refuses, and that no row written meanwhile is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import errors, sql

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.rows import build_aside, build_indexes, purge
from pipeline.aurora.rows.apply import ApplyStatement
from pipeline.aurora.rows.build_aside import Build
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.schema.plan import plan
from pipeline.aurora.schema.standard_form import beyond_standard
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.errors import DataError, TerminalError, TransientError
from pipeline.core.model.change import Change
from pipeline.core.model.mapping import Column, TableMapping, Target
from pipeline.core.ordering import Position
from pipeline.core.types.sql_types import parse_sql_type

AS_OF = datetime(2026, 5, 14, 11, 0, tzinfo=UTC)
TARGET = Target(
    "public",
    "Orders",
    ("Id", "Line"),
    (
        Column("Line", "Line", ("Line",), parse_sql_type("text")),
        Column("Id", "Id", ("Id",), parse_sql_type("bigint")),
        Column("Name", "Name", ("Name",), parse_sql_type("varchar(20)")),
    ),
    "rest",
)
MAPPING = TableMapping("orders", "Orders", {"Id": "N", "Line": "S"}, (TARGET,))
STATEMENT = ApplyStatement(TARGET, "orders", "Orders")


@pytest.fixture
def connection(database: str) -> Generator[Connection]:
    with closing(connect(database, application_name="test")) as opened:
        migrate(opened, [MAPPING])
        yield opened


@pytest.fixture
def other(database: str, connection: Connection) -> Generator[Connection]:
    assert not connection.closed  # it has migrated
    with closing(connect(database, application_name="other")) as opened:
        yield opened


def begin(connection: Connection) -> Build:
    record = loads.begin(
        connection,
        "orders",
        loads.Export(
            kind="full",
            location="here",
            export_arn=None,
            snapshot_time=AS_OF,
            as_of=AS_OF,
            item_count=1,
            file_count=1,
            size_bytes=1,
        ),
        strategy="aside",
    )
    (build,) = build_aside.create(connection, record.id, "orders", MAPPING.targets, AS_OF)
    return build


def fill(connection: Connection, build: Build, numbers: Sequence[int], name: str = "exported") -> None:
    connection.execute(
        sql.SQL(
            'INSERT INTO {} ("Id", "Line", "Name", rest) SELECT n, \'a\', %s, \'{{}}\' FROM unnest(%s::int[]) n'
        ).format(build.identifier),
        [name, list(numbers)],
    )


def write(connection: Connection, number: int, name: str | None, version: int, seconds: int = 60) -> None:
    """Apply a streamed change, `seconds` after the snapshot; a name of None deletes."""
    row = None if name is None else ("a", str(number), name, "{}")
    change = Change((str(number), "a"), row, Position(AS_OF + timedelta(seconds=seconds), version))
    connection.execute(STATEMENT.query, STATEMENT.parameters([change]), prepare=True)


def put_in_place(connection: Connection, build: Build) -> None:
    build_indexes.build(connection, build)
    copied = build_aside.copy_over(connection, build)
    build_aside.swap(connection, build, copied, stopped=threading.Event())


def shown(connection: Connection) -> dict[int, str]:
    return dict(connection.execute('SELECT "Id", "Name" FROM public."Orders"').fetchall())


def overtaken(connection: Connection) -> int:
    row = connection.execute("SELECT overtaken FROM replication.builds").fetchone()
    return row[0] if row else -1


def test_the_built_table_takes_the_place_of_the_stored_one(connection: Connection) -> None:
    write(connection, 1, "newer", 1)
    write(connection, 2, None, 1)
    write(connection, 3, "older", 1, seconds=-60)
    write(connection, 9, "not exported", 1)
    build = begin(connection)
    fill(connection, build, range(1, 6))
    put_in_place(connection, build)
    assert shown(connection) == {1: "newer", 3: "exported", 4: "exported", 5: "exported", 9: "not exported"}
    assert overtaken(connection) == 2
    assert not any(beyond_standard(connection, TARGET))
    assert connection.execute("SELECT to_regclass(%s)", [build.identifier.as_string()]).fetchone() == (None,)
    tombstone = connection.execute('SELECT "Name", rest, _deleted FROM replica."Orders" WHERE "Id" = 2').fetchone()
    assert tombstone == (None, None, True)
    # A change from the future is inserted like any other: nothing of the build's own default is left.
    with pytest.raises(errors.NotNullViolation):
        connection.execute('INSERT INTO replica."Orders" ("Id", "Line") VALUES (100, \'x\')')


def test_the_new_table_has_what_belonged_to_the_name(connection: Connection) -> None:
    connection.execute("DROP ROLE IF EXISTS dynaurora_reader")
    connection.execute("DROP ROLE IF EXISTS dynaurora_stranger")
    connection.execute("CREATE ROLE dynaurora_reader; CREATE ROLE dynaurora_stranger")
    connection.execute('GRANT SELECT, INSERT ON replica."Orders" TO dynaurora_reader WITH GRANT OPTION')
    connection.execute('GRANT SELECT ON public."Orders" TO PUBLIC')
    connection.execute('GRANT SELECT ("Id") ON public."Orders" TO dynaurora_reader')
    connection.execute('ALTER VIEW public."Orders" SET (security_barrier = true)')
    connection.execute("COMMENT ON VIEW public.\"Orders\" IS 'orders''s view'")
    connection.execute("COMMENT ON TABLE replica.\"Orders\" IS '100 %s {braces}; {}'")
    connection.execute('COMMENT ON COLUMN replica."Orders"."Name" IS \'c\'')
    connection.execute('ALTER TABLE replica."Orders" ALTER COLUMN "Name" SET STORAGE EXTERNAL')
    connection.execute('ALTER TABLE replica."Orders" RENAME CONSTRAINT "Orders_pkey" TO "my key"')
    connection.execute('CREATE VIEW public.over AS SELECT "Id" FROM public."Orders"')
    connection.execute(
        "ALTER DEFAULT PRIVILEGES IN SCHEMA replica GRANT SELECT ON TABLES TO dynaurora_stranger, PUBLIC"
    )
    try:
        before = description(connection)
        build = begin(connection)
        fill(connection, build, [1])
        put_in_place(connection, build)
        assert description(connection) == before
        assert connection.execute("SELECT * FROM public.over").fetchall() == [(1,)]
    finally:
        connection.execute("DROP OWNED BY dynaurora_reader, dynaurora_stranger")
        connection.execute("DROP ROLE dynaurora_reader, dynaurora_stranger")


def test_what_was_revoked_stays_revoked_from_owner_and_roles(connection: Connection) -> None:
    connection.execute("DROP ROLE IF EXISTS dynaurora_stranger; CREATE ROLE dynaurora_stranger")
    connection.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO dynaurora_stranger WITH GRANT OPTION")
    connection.execute('REVOKE TRUNCATE, REFERENCES ON replica."Orders" FROM CURRENT_USER')
    connection.execute('REVOKE DELETE ON public."Orders" FROM CURRENT_USER')
    connection.execute('ALTER VIEW public."Orders" SET (security_invoker = true, check_option = cascaded)')
    connection.execute('COMMENT ON COLUMN public."Orders"."Name" IS \'c\'')
    connection.execute('ALTER VIEW public."Orders" ALTER COLUMN "Name" SET DEFAULT \'d\'')
    try:
        before = description(connection)
        build = begin(connection)
        fill(connection, build, [1])
        put_in_place(connection, build)
        assert description(connection) == before
    finally:
        connection.execute("DROP OWNED BY dynaurora_stranger; DROP ROLE dynaurora_stranger")


def test_default_privileges_reach_no_table_that_had_none(connection: Connection) -> None:
    connection.execute("DROP ROLE IF EXISTS dynaurora_stranger; CREATE ROLE dynaurora_stranger")
    connection.execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO dynaurora_stranger, PUBLIC")
    try:
        build = begin(connection)
        fill(connection, build, [1])
        put_in_place(connection, build)
        for relation in ('replica."Orders"', 'public."Orders"'):
            may = connection.execute("SELECT has_table_privilege('dynaurora_stranger', %s, 'SELECT')", [relation])
            assert may.fetchone() == (False,)
    finally:
        connection.execute("DROP OWNED BY dynaurora_stranger; DROP ROLE dynaurora_stranger")


def description(connection: Connection) -> list[tuple[object, ...]]:
    return connection.execute(
        "SELECT relname, relkind, relowner, (SELECT array_agg(a::text ORDER BY a::text) FROM aclexplode(relacl) a),"
        " reloptions, obj_description(c.oid), (SELECT array_agg((attname, atttypid, atttypmod, attnotnull,"
        " attcollation, attstorage, attacl, col_description(c.oid, attnum),"
        " pg_get_expr(adbin, adrelid))::text ORDER BY attname)"
        "  FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
        "  WHERE attrelid = c.oid AND attnum > 0)"
        " FROM pg_class c WHERE relnamespace IN ('replica'::regnamespace, 'public'::regnamespace) AND relkind <> 'S'"
        " ORDER BY 1, 2"
    ).fetchall()


LOST = {
    "a trigger": "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
    ' CREATE TRIGGER t AFTER INSERT ON replica."Orders" FOR EACH STATEMENT EXECUTE FUNCTION f()',
    "an index that is not valid": "CREATE INDEX bad ON replica.\"Orders\" (\"Name\");"
    " UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'replica.bad'::regclass",
    "an exclusion": 'ALTER TABLE replica."Orders" ADD EXCLUDE USING btree ("Name" WITH =)',
    "forced row security": 'ALTER TABLE replica."Orders" ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY',
    "a policy of another table": "CREATE TABLE w (i bigint);"
    ' CREATE POLICY p ON w USING (i IN (SELECT "Id" FROM replica."Orders"))',
    "a rule": 'CREATE RULE r AS ON INSERT TO replica."Orders" DO ALSO NOTHING',
    "a publication": 'CREATE PUBLICATION p FOR TABLE replica."Orders"',
    "a publication of the schema": "CREATE PUBLICATION p FOR TABLES IN SCHEMA replica",
    "a publication of all": "CREATE PUBLICATION p FOR ALL TABLES",
    "no log": 'ALTER TABLE replica."Orders" SET UNLOGGED',
    "a child": 'CREATE TABLE child () INHERITS (replica."Orders")',
    "a materialized view": 'CREATE MATERIALIZED VIEW w AS SELECT 1 FROM replica."Orders"',
    "a function": "CREATE FUNCTION f() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM replica.\"Orders\"; END",
    "its row type": 'CREATE TABLE w (o replica."Orders")',
    "an array of its row type": 'CREATE TABLE w (o replica."Orders"[])',
    "a foreign key": 'CREATE TABLE w (i bigint, l text COLLATE "C",'
    ' FOREIGN KEY (i, l) REFERENCES replica."Orders" ("Id", "Line"))',
    "an identity": 'ALTER TABLE replica."Orders" ALTER COLUMN "Id" ADD GENERATED BY DEFAULT AS IDENTITY',
    "a sequence of its own": 'CREATE SEQUENCE replica.s OWNED BY replica."Orders"."Id"',
    "a column of its own": 'ALTER TABLE replica."Orders" ADD COLUMN extra int',
    "a view of its own": 'CREATE OR REPLACE VIEW public."Orders" AS SELECT "Line", "Id", "Name" FROM replica."Orders"',
    "no view": 'DROP VIEW public."Orders"',
    "no table": 'DROP TABLE replica."Orders" CASCADE',
}  # fmt: skip


def test_a_persons_generated_column_and_expression_index_survive_a_swap(connection: Connection) -> None:
    connection.execute(
        'ALTER TABLE replica."Orders" ADD COLUMN shouted text GENERATED ALWAYS AS (upper("Name")) STORED;'
        ' CREATE INDEX by_hand ON replica."Orders" (lower("Name"), shouted);'
        ' CREATE VIEW public.shouts AS SELECT "Id", shouted FROM replica."Orders"'
    )
    write(connection, 1, "newer", 1)
    build = begin(connection)
    fill(connection, build, range(1, 4))
    put_in_place(connection, build)
    write(connection, 2, "streamed", 1)
    write(connection, 3, None, 1)
    found = connection.execute('SELECT * FROM public.shouts ORDER BY "Id"').fetchall()
    assert found == [(1, "NEWER"), (2, "STREAMED"), (3, None)]
    assert plan(connection, [MAPPING]).steps == ()
    assert connection.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'by_hand'").fetchone() == (
        'CREATE INDEX by_hand ON replica."Orders" USING btree (lower(("Name")::text), shouted)',
    )


@pytest.mark.filterwarnings("ignore")  # the server's own, of wal_level and publications
@pytest.mark.parametrize("what", LOST)
def test_what_a_swap_would_lose_is_named(connection: Connection, what: str) -> None:
    assert beyond_standard(connection, TARGET) == ()
    connection.execute(LOST[what].encode())
    assert beyond_standard(connection, TARGET)


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("a trigger", "trigger t fires for rows that are loaded"),
        ("an index that is not valid", "index bad is not valid: REINDEX or drop it"),
        ("a materialized view", "rule _RETURN on materialized view w depends on it"),
        ("a function", "function f() depends on it"),
        ("a foreign key", "constraint w_i_l_fkey on table w depends on it"),
        ("a rule", 'rule r on table replica."Orders" depends on it'),
        ("a policy of another table", "policy p on table w depends on it"),
    ],
)
def test_the_object_that_makes_a_load_merge_is_named(connection: Connection, what: str, named: str) -> None:
    connection.execute(LOST[what].encode())
    assert beyond_standard(connection, TARGET) == (named,)


def test_a_user_who_may_not_replace_the_table_merges(connection: Connection) -> None:
    connection.execute("DROP ROLE IF EXISTS dynaurora_loader")
    connection.execute("CREATE ROLE dynaurora_loader; GRANT USAGE ON SCHEMA replica, replication TO dynaurora_loader")
    try:
        connection.execute("SET ROLE dynaurora_loader")
        (reason,) = beyond_standard(connection, TARGET)
        assert "may not replace" in reason
    finally:
        connection.execute("RESET ROLE; DROP OWNED BY dynaurora_loader; DROP ROLE dynaurora_loader")


def test_a_user_from_whom_row_security_hides_rows_merges(connection: Connection) -> None:
    """A swap would drop the rows that the user cannot see, tombstones among them."""
    connection.execute(
        "CREATE ROLE dynaurora_half; GRANT USAGE ON SCHEMA replica TO dynaurora_half;"
        ' GRANT ALL ON replica."Orders" TO dynaurora_half; ALTER TABLE replica."Orders" ENABLE ROW LEVEL SECURITY;'
        ' CREATE POLICY p ON replica."Orders" TO dynaurora_half USING (NOT _deleted) WITH CHECK (true)'
    )
    try:
        assert beyond_standard(connection, TARGET) == (), "a superuser sees all rows"
        connection.execute("SET ROLE dynaurora_half")
        assert "row security may hide rows from the load" in beyond_standard(connection, TARGET)
    finally:
        connection.execute("RESET ROLE; DROP OWNED BY dynaurora_half; DROP ROLE dynaurora_half")


def test_a_pass_looks_the_rows_of_the_build_up_by_key(connection: Connection) -> None:
    """Under the swap's lock it would otherwise read all of the build, while writers wait."""
    connection.execute(
        'INSERT INTO replica."Orders" ("Id", "Line", rest, _version, _as_of)'
        " SELECT n, 'a', '{}', n, %s FROM generate_series(1, 20000) AS n",
        [AS_OF - timedelta(hours=1)],
    )
    connection.execute('ANALYZE replica."Orders"')
    build = begin(connection)
    fill(connection, build, range(1, 20_000))
    build_indexes.build(connection, build)
    copied = build_aside.copy_over(connection, build)
    write(connection, 3, "later", 30_000)
    connection.execute("SELECT pg_stat_force_next_flush()")
    before = scans(connection, build)
    assert build_aside.copy_over(connection, build, copied).rows == 1
    connection.execute("SELECT pg_stat_force_next_flush()")
    assert scans(connection, build) == before
    assert overtaken(connection) == 1


def scans(connection: Connection, build: Build) -> int:
    row = connection.execute("SELECT pg_stat_get_numscans(%s::regclass)", [build.identifier.as_string()]).fetchone()
    return row[0] if row else 0


def test_of_a_full_table_only_the_rows_that_the_build_needs_are_copied(connection: Connection) -> None:
    for number in range(1, 30):
        write(connection, number, "older", number, seconds=-60)
    write(connection, 3, "newer", 100)
    write(connection, 40, None, 101, seconds=-60)
    build = begin(connection)
    fill(connection, build, range(1, 29))
    build_indexes.build(connection, build)
    assert build_aside.copy_over(connection, build).rows == 3, "a newer row, one that was not exported, a tombstone"
    assert overtaken(connection) == 1


def test_a_load_that_resumes_copies_a_row_again_by_its_version_and_not_by_its_time(
    connection: Connection, other: Connection
) -> None:
    """The build has a version from before the load was killed. The next one was created on a clock that runs late."""
    build = begin(connection)
    fill(connection, build, [1])
    build_indexes.build(connection, build)
    write(connection, 1, "first", 1)
    build_aside.copy_over(connection, build)
    write(connection, 1, "second", 2, seconds=-60)
    copied = build_aside.copy_over(other, build)
    build_aside.swap(other, build, copied, stopped=threading.Event())
    assert shown(connection) == {1: "second"}


@pytest.mark.parametrize("resumed", [False, True])
def test_what_a_promotion_fills_between_the_passes_and_the_swap_comes_over(
    connection: Connection, other: Connection, *, resumed: bool
) -> None:
    """A promotion gives a row no new position. It fills rows of the stream and of later snapshots; the export's own row
    has the value already.
    """
    for number in (1, 2, 3):
        write(connection, number, None if number == 3 else "as streamed", number)
    later = AS_OF + timedelta(seconds=90)
    connection.execute('UPDATE replica."Orders" SET _version = NULL, _as_of = %s WHERE "Id" = 2', [later])
    connection.execute(
        'INSERT INTO replica."Orders" ("Id", "Line", rest, _as_of) VALUES (4, \'a\', \'{}\', %s)', [AS_OF]
    )
    build = begin(connection)
    fill(connection, build, [1, 2, 4])
    build_indexes.build(connection, build)
    copied = build_aside.copy_over(connection, build)
    other.execute('UPDATE replica."Orders" SET "Name" = \'promoted\' WHERE NOT _deleted AND "Id" < 4')
    other.execute('UPDATE replica."Orders" SET "Line" = "Line" WHERE "Id" = 4')
    if resumed:
        connection, copied = other, build_aside.copy_over(other, build)
    build_aside.swap(connection, build, copied, stopped=threading.Event())
    assert shown(connection) == {1: "promoted", 2: "promoted", 4: "exported"}


def test_what_was_written_between_the_passes_and_the_swap_comes_over(connection: Connection, other: Connection) -> None:
    """Changes committed after the last pass, begun before it or after it; also rows frozen meanwhile."""
    build = begin(connection)
    fill(connection, build, range(1, 8))
    build_indexes.build(connection, build)
    write(other, 1, "before", 1)
    with other.transaction():
        write(other, 2, "begun before", 1)
        write(other, 8, "begun, unknown", 1)
        copied = build_aside.copy_over(connection, build)
    write(other, 3, "after", 1)
    write(other, 4, None, 1)
    write(other, 1, "before, and again", 2)
    with other.transaction(), other.transaction():  # a savepoint writes under a transaction id of its own
        write(other, 5, "in a savepoint", 1)
    write(other, 6, "frozen", 1)
    connection.execute('VACUUM (FREEZE) replica."Orders"')
    build_aside.swap(connection, build, copied, stopped=threading.Event())
    assert shown(connection) == {
        1: "before, and again",
        2: "begun before",
        3: "after",
        5: "in a savepoint",
        6: "frozen",
        7: "exported",
        8: "begun, unknown",
    }
    assert overtaken(connection) == 6


def test_the_swap_looks_only_at_rows_written_since(connection: Connection, other: Connection) -> None:
    build = begin(connection)
    build_indexes.build(connection, build)
    write(other, 1, "copied over", 1)
    copied = build_aside.copy_over(connection, build)
    connection.execute(sql.SQL("DELETE FROM {}").format(build.identifier))  # so that it shows
    write(other, 2, "since", 1)
    build_aside.swap(connection, build, copied, stopped=threading.Event())
    assert shown(connection) == {2: "since"}


def test_a_transaction_that_stays_open_makes_the_swap_look_at_no_more_rows(
    connection: Connection, other: Connection, database: str
) -> None:
    """What others have committed since it began is copied once, and not again under the lock."""
    build = begin(connection)
    build_indexes.build(connection, build)
    with closing(connect(database, application_name="writer")) as writer, other.transaction():
        other.execute("SELECT pg_current_xact_id()")
        for number in range(1, 101):
            write(writer, number, "copied over", 1)
        copied = build_aside.copy_over(connection, build)
        assert copied.rows == 100
        connection.execute(sql.SQL("DELETE FROM {}").format(build.identifier))  # so that it shows
        write(writer, 200, "since", 1)
        write(writer, 1, "written again since", 2)
        copied = build_aside.copy_over(connection, build, copied)
        assert copied.rows == 2
        build_aside.swap(connection, build, copied, stopped=threading.Event())
    assert shown(connection) == {1: "written again since", 200: "since"}


def test_savepoints_released_before_a_pass_and_committed_after_it_come_over(
    connection: Connection, other: Connection, database: str
) -> None:
    """A snapshot does not list running subtransactions, so only the rows that were seen identify them."""
    build = begin(connection)
    fill(connection, build, range(1, 5))
    build_indexes.build(connection, build)
    with closing(connect(database, application_name="writer")) as writer:
        with other.transaction():
            other.execute("SELECT pg_current_xact_id()")
            with other.transaction():
                write(other, 1, "in a savepoint", 1)
            write(writer, 2, "meanwhile", 1)
            with other.transaction():
                write(other, 3, "in another", 1)
            copied = build_aside.copy_over(connection, build)
            assert copied.rows == 1
        build_aside.swap(connection, build, copied, stopped=threading.Event())
    assert shown(connection) == {1: "in a savepoint", 2: "meanwhile", 3: "in another", 4: "exported"}


def test_passes_go_on_until_one_takes_few_rows(
    connection: Connection, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_aside, "FEW_ROWS", 10)
    build = begin(connection)
    build_indexes.build(connection, build)
    taken: list[int] = []
    real = build_aside._pass  # pyright: ignore[reportPrivateUsage]

    def passing(*arguments: Any) -> build_aside.Copied:  # noqa: ANN401 - handed on
        copied = real(*arguments)
        taken.append(copied.rows)
        for number in range(20 // len(taken)):  # while it was at work
            write(other, 100 * len(taken) + number, "meanwhile", 1)
        return copied

    for number in range(30):
        write(other, number, "streamed", 1)
    monkeypatch.setattr(build_aside, "_pass", passing)
    build_aside.copy_over(connection, build)
    assert taken == [30, 20, 10]


def test_writers_that_wait_for_the_swap_go_on_in_the_new_table(
    connection: Connection, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their statement was prepared for the old table: PostgreSQL plans it again."""
    for name, value in (("LOCK_WAIT_SECONDS", 0.1), ("LOOKS", 1)):  # the writer below stays until the swap is done
        monkeypatch.setattr(build_aside, name, value)
    for number in range(10):  # from the sixth on PostgreSQL may keep one plan for all
        write(other, 1, f"{number}", number + 1)
    build = begin(connection)
    fill(connection, build, [1, 2])
    build_indexes.build(connection, build)
    copied = build_aside.copy_over(connection, build)
    with connection.transaction():
        connection.execute('LOCK TABLE replica."Orders" IN SHARE ROW EXCLUSIVE MODE')
        writing = threading.Thread(target=write, args=(other, 2, "waited", 20))
        writing.start()
        while connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() == (0,):
            assert writing.is_alive()
        build_aside.swap(connection, build, copied, stopped=threading.Event())
    writing.join()
    assert shown(connection) == {1: "9", 2: "waited"}


def test_readers_of_the_view_wait_and_never_fail(connection: Connection, database: str) -> None:
    stop, failures, counts = threading.Event(), list[BaseException](), list[int]()

    def read() -> None:
        try:
            with closing(connect(database, application_name="reader")) as reader:
                while not stop.is_set():
                    row = reader.execute('SELECT count(*) FROM public."Orders"', prepare=True).fetchone()
                    counts.append(row[0] if row else -1)
        except BaseException as error:  # noqa: BLE001 - looked at below, in the test's own thread
            failures.append(error)

    for number in range(20):
        write(connection, number, "streamed", 1)
    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(15):  # the swap of a swap: every one is the first for its export
        connection.execute("DELETE FROM replication.exports")
        build = begin(connection)
        fill(connection, build, range(10, 30))
        put_in_place(connection, build)
    stop.set()
    for reader in readers:
        reader.join()
    assert failures == []
    assert set(counts) == {20, 30}
    assert counts == sorted(counts) or len(readers) > 1


def test_a_transaction_that_reads_the_table_is_waited_for_without_queueing(
    connection: Connection, other: Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else waits meanwhile: it requests neither the lock that keeps writers out nor the exclusive one."""
    monkeypatch.setattr(build_aside, "LOCK_WAIT_SECONDS", 0.1)
    build = begin(connection)
    fill(connection, build, [1])
    build_indexes.build(connection, build)
    copied = build_aside.copy_over(connection, build)
    told: list[str] = []
    swapping = threading.Thread(
        target=build_aside.swap,
        args=(connection, build, copied),
        kwargs={"stopped": threading.Event(), "tell": told.append},
    )
    with closing(connect(database, application_name="writer")) as writer:
        with other.transaction():
            other.execute('SELECT FROM public."Orders"')
            swapping.start()
            for number in range(10):
                write(writer, 2, f"{number}", number + 1)
                assert writer.execute(
                    "SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype = 'relation' AND relation ="
                    " 'replica.\"Orders\"'::regclass AND mode <> 'AccessShareLock'",
                    [connection.info.backend_pid],
                ).fetchone() == (0,)
                time.sleep(0.05)
            assert swapping.is_alive()
        swapping.join()
    assert shown(connection) == {1: "exported", 2: "9"}
    (who,) = told
    assert who.startswith(f"pid {other.info.backend_pid} (idle in transaction, since 2")
    assert who.endswith("UTC, application other)")


def test_it_tries_once_when_patience_ends_and_names_who_holds_the_table(
    connection: Connection, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOCK_WAIT_SECONDS", 0.05), ("LOOKS", 2)):
        monkeypatch.setattr(build_aside, name, value)
    build = begin(connection)
    tried = 0
    real = build_aside._swap  # pyright: ignore[reportPrivateUsage]

    def counting(*arguments: Any) -> None:  # noqa: ANN401 - handed on
        nonlocal tried
        tried += 1
        real(*arguments)

    monkeypatch.setattr(build_aside, "_swap", counting)
    with other.transaction():
        other.execute('SELECT FROM public."Orders"')
        with pytest.raises(TransientError) as caught:
            put_in_place(connection, build)
    assert f"pid {other.info.backend_pid} (idle in transaction, since" in str(caught.value)
    assert tried == 1
    put_in_place(connection, build)


def test_a_swap_that_is_stopped_while_it_waits_tries_no_more(
    connection: Connection, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_aside, "LOCK_WAIT_SECONDS", 0.05)
    build = begin(connection)
    build_indexes.build(connection, build)
    copied = build_aside.copy_over(connection, build)
    stopped = threading.Event()
    with other.transaction():
        other.execute('SELECT FROM public."Orders"')
        with pytest.raises(TransientError, match="it was stopped"):
            build_aside.swap(connection, build, copied, stopped=stopped, tell=lambda _: stopped.set())


def test_a_purge_past_the_snapshot_is_refused_under_the_lock(connection: Connection, other: Connection) -> None:
    build = begin(connection)
    fill(connection, build, [1])
    build_indexes.build(connection, build)
    copied = build_aside.copy_over(connection, build)
    write(other, 1, None, 1)
    assert purge.purge_chunk(other, TARGET, "orders", AS_OF + timedelta(hours=1)) == 1
    with pytest.raises(TerminalError, match="tombstones were purged through"):
        build_aside.swap(connection, build, copied, stopped=threading.Event())
    assert shown(connection) == {}


def test_a_purge_before_the_snapshot_is_not(connection: Connection, other: Connection) -> None:
    build = begin(connection)
    fill(connection, build, [1])
    build_indexes.build(connection, build)
    write(other, 1, None, 1, seconds=-10)
    copied = build_aside.copy_over(connection, build)
    purge.purge_chunk(other, TARGET, "orders", AS_OF - timedelta(seconds=1))
    build_aside.swap(connection, build, copied, stopped=threading.Event())
    assert shown(connection) == {1: "exported"}


def test_a_table_altered_meanwhile_is_not_replaced(connection: Connection, other: Connection) -> None:
    build = begin(connection)
    build_indexes.build(connection, build)
    copied = build_aside.copy_over(connection, build)
    other.execute('ALTER TABLE replica."Orders" ADD COLUMN extra int')
    with pytest.raises(TerminalError, match="was altered during the load"):
        build_aside.swap(connection, build, copied, stopped=threading.Event())
    assert build_aside.find(connection, build.export_id, "orders", MAPPING.targets, AS_OF) is None


def test_of_repeated_keys_one_is_kept_and_the_rest_are_counted(connection: Connection) -> None:
    build = begin(connection)
    fill(connection, build, [1, 2, 1, 3, 1])
    put_in_place(connection, build)
    assert shown(connection) == {1: "exported", 2: "exported", 3: "exported"}
    assert overtaken(connection) == 2


def test_a_key_that_cannot_be_indexed_is_a_data_error(connection: Connection) -> None:
    build = begin(connection)
    connection.execute(
        sql.SQL(
            'INSERT INTO {} ("Id", "Line") SELECT 1, string_agg(md5(n::text), \'\') FROM generate_series(1, 200) n'
        ).format(build.identifier)
    )
    with pytest.raises(DataError):
        build_indexes.build(connection, build)


def test_every_step_can_be_done_again(connection: Connection) -> None:
    write(connection, 1, "newer", 1)
    build = begin(connection)
    fill(connection, build, [1, 2, 2])
    build_indexes.build(connection, build)
    build_aside.copy_over(connection, build)
    build_indexes.build(connection, build)
    copied = build_aside.copy_over(connection, build)
    build_aside.swap(connection, build, copied, stopped=threading.Event())
    assert overtaken(connection) == 2
    found = build_aside.find(connection, build.export_id, "orders", MAPPING.targets, AS_OF)
    assert found is not None
    assert found[0].swapped


def test_builds_of_other_exports_are_discarded_and_those_loads_begin_again(connection: Connection) -> None:
    build = begin(connection)
    loads.mark_file(connection, build.export_id, "a", loads.FileCounts(1, 1, 0, 0, 1))
    build_aside.discard_abandoned(connection, build.export_id + 1, "another table")
    assert build_aside.find(connection, build.export_id, "orders", MAPPING.targets, AS_OF) == (build,)
    build_aside.discard_abandoned(connection, build.export_id + 1, "orders")
    assert build_aside.find(connection, build.export_id, "orders", MAPPING.targets, AS_OF) is None
    assert loads.totals(connection, build.export_id) == (0, loads.FileCounts())
    assert connection.execute("SELECT strategy FROM replication.exports").fetchone() == ("merge",)
    assert connection.execute("SELECT to_regclass(%s)", [build.identifier.as_string()]).fetchone() == (None,)
