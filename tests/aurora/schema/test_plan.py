"""Plan and migrate against a real server: every change of a mapping, and what is refused."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pipeline.aurora.schema import catalog
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.schema.plan import Plan, plan
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.errors import TransientError
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping

if TYPE_CHECKING:
    from collections.abc import Generator

ID = "Id: {attribute: Id, type: bigint}"
NAME = "Name: {attribute: empName, type: varchar(20)}"
CITY = "City: {attribute: city, type: text}"


def mapping(*columns: str, target: str = "Employees", table: str = "Employees", **keys: str) -> TableMapping:
    body = "".join(f"      {column}\n" for column in columns or (ID, NAME))
    rest = "".join(f"    {key}: {value}\n" for key, value in ({"primary_key": "[Id]"} | keys).items())
    return read_mapping(
        f"name: employees\nsource: {{table: {table}, key: {{Id: N}}}}\n"
        f"targets:\n  {target}:\n{rest}    columns:\n{body}",
        "employees.yaml",
    )


@pytest.fixture
def connection(database: str) -> Generator[Connection]:
    with closing(connect(database, application_name="test plan")) as opened:
        yield opened


def rows(connection: Connection, query: str) -> list[Any]:
    return [row[0] if len(row) == 1 else row for row in connection.execute(query.encode()).fetchall()]


def whats(made: Plan) -> list[str]:
    return [step.what for step in made.steps]


def store(connection: Connection, names: str, values: str) -> None:
    statement = f'INSERT INTO replica."Employees" ({names}, _as_of) VALUES ({values}, now())'  # noqa: S608 - constants
    connection.execute(statement.encode())


def view_columns(connection: Connection) -> list[str]:
    return rows(
        connection,
        "SELECT column_name::text FROM information_schema.columns WHERE table_schema = 'public'"
        " AND table_name = 'Employees' ORDER BY ordinal_position",
    )


def test_a_new_database_is_planned_made_and_then_as_planned(connection: Connection) -> None:
    planned = plan(connection, [mapping()])
    assert whats(planned)[1:] == [
        "register table Employees as employees",
        "create storage table replica.Employees",
        "create view public.Employees",
    ]
    assert whats(planned)[0].startswith("create or complete schema replication: 0001")
    assert rows(connection, "SELECT count(*) FROM pg_namespace WHERE nspname IN ('replica', 'replication')") == [0]
    assert migrate(connection, [mapping()]) == planned
    assert plan(connection, [mapping()]).empty
    assert migrate(connection, [mapping()]).empty
    assert rows(connection, "SELECT name, source_table FROM replication.tables") == [("employees", "Employees")]
    store(connection, '"Id", "Name", _deleted', "1, 'Ada', false")
    store(connection, '"Id", "Name", _deleted', "2, NULL, true")
    assert rows(connection, 'SELECT * FROM public."Employees"') == [(1, "Ada")]


def test_the_sql_that_plan_shows_is_what_makes_the_database(connection: Connection) -> None:
    for step in plan(connection, [mapping()]).steps:
        connection.execute(step.sql.encode())
    assert rows(connection, 'SELECT count(*) FROM public."Employees"') == [0]
    assert plan(connection, [mapping()]).empty


def test_targets_in_other_schemas_and_names_that_need_quotes(connection: Connection) -> None:
    odd = mapping(ID, '"select \\"x\\" . y": {attribute: a, type: text}', target='"hr dept.Sta\'ff"')
    migrate(connection, [odd])
    assert plan(connection, [odd]).empty
    assert rows(connection, """SELECT count(*) FROM "hr dept"."Sta'ff" """) == [0]


def test_a_column_at_the_end_replaces_the_view_in_place(connection: Connection) -> None:
    migrate(connection, [mapping()])
    store(connection, '"Id", "Name"', "1, 'Ada'")
    connection.execute('CREATE VIEW public.report AS SELECT "Name" FROM public."Employees"')
    done = migrate(connection, [mapping(ID, NAME, CITY)])
    assert whats(done) == [
        'add column "City" to replica.Employees',
        'replace view public.Employees: gains column "City"',
    ]
    assert done.steps[0].note == (
        "existing rows have no value there until `dynaurora promote employees` fills them from the jsonb column, once"
        " every replicator knows them"
    )
    assert rows(connection, 'SELECT * FROM public."Employees"') == [(1, "Ada", None)]
    assert rows(connection, "SELECT * FROM public.report") == ["Ada"]
    assert plan(connection, [mapping(ID, NAME, CITY)]).empty


def test_a_column_without_a_jsonb_column_to_fill_it_from_waits_for_a_load(connection: Connection) -> None:
    migrate(connection, [mapping(unmapped="ignore")])
    (step, _) = plan(connection, [mapping(ID, NAME, CITY, unmapped="ignore")]).steps
    assert step.note == "existing rows have no value there until the table is loaded or reconciled again"


def test_a_columns_default_is_what_rows_have_that_no_writer_gave_a_value(connection: Connection) -> None:
    migrate(connection, [mapping()])
    store(connection, '"Id", "Name"', "1, 'Ada'")
    before = rows(connection, """SELECT pg_relation_filenode('replica."Employees"')""")
    grown = mapping(ID, NAME, "City: {attribute: city, type: varchar(9), default: It's NA}")
    migrate(connection, [grown])
    store(connection, '"Id", "Name"', "2, 'Bo'")  # from a replicator that does not know the column
    store(connection, '"Id", "City"', "3, NULL")  # from one that does
    assert rows(connection, 'SELECT "City" FROM public."Employees" ORDER BY "Id"') == ["It's NA", "It's NA", None]
    assert rows(connection, """SELECT pg_relation_filenode('replica."Employees"')""") == before, "the catalog alone"
    assert plan(connection, [grown]).empty


def test_a_recreated_view_keeps_owner_grants_options_and_comment(connection: Connection) -> None:
    migrate(connection, [mapping(ID, NAME, CITY)])
    roles = [f"{role}_{connection.info.dbname}" for role in ("owner", "reader", "clerk")]
    for role in roles:
        connection.execute(f"CREATE ROLE {role}".encode())
    owner, reader, clerk = roles
    for statement in (
        f'ALTER VIEW "Employees" OWNER TO {owner}',
        f'GRANT SELECT ON "Employees" TO {reader} WITH GRANT OPTION',
        'GRANT SELECT ON "Employees" TO PUBLIC',
        f'GRANT UPDATE ("Name"), SELECT ("City") ON "Employees" TO {clerk}',
        """COMMENT ON VIEW "Employees" IS 'the 100% staff''s own'""",
        'ALTER VIEW "Employees" SET (security_barrier = true)',
    ):
        connection.execute(statement.encode())
    state = (
        "SELECT pg_get_userbyid(relowner), reloptions, obj_description(oid),"
        " (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(relacl) AS a) FROM pg_class"
        " WHERE oid = 'public.\"Employees\"'::regclass"
    )
    before = rows(connection, state)
    done = migrate(connection, [mapping(ID, NAME)])
    assert whats(done) == ['recreate view public.Employees: loses column "City"']
    assert done.steps[0].note == 'column "City" stays in storage and is no longer kept up to date'
    assert rows(connection, state) == before
    grants = "SELECT attname::text, attacl::text FROM pg_attribute WHERE attrelid = '\"Employees\"'::regclass"
    assert rows(connection, f"{grants} AND attacl IS NOT NULL") == [("Name", f"{{{clerk}=w/{owner}}}")]
    assert plan(connection, [mapping(ID, NAME)]).empty
    for role in roles:
        connection.execute(f"DROP OWNED BY {role} CASCADE".encode())
        connection.execute(f"DROP ROLE {role}".encode())


def test_an_unmapped_column_stays_and_is_found_again(connection: Connection) -> None:
    migrate(connection, [mapping(ID, NAME, CITY)])
    store(connection, '"Id", "City"', "1, 'Accra'")
    migrate(connection, [mapping(ID, NAME)])
    assert view_columns(connection) == ["Id", "Name"]
    assert rows(connection, 'SELECT "City" FROM replica."Employees"') == ["Accra"]
    done = migrate(connection, [mapping(ID, NAME, CITY)])
    assert whats(done) == ['replace view public.Employees: gains column "City"']
    assert 'column "City" was already in storage: rows that changed since are out of date' in done.steps[0].note
    assert rows(connection, 'SELECT "City" FROM public."Employees"') == ["Accra"]


def test_columns_in_another_order_recreate_the_view(connection: Connection) -> None:
    migrate(connection, [mapping(ID, NAME)])
    done = migrate(connection, [mapping(NAME, ID)])
    assert whats(done) == ["recreate view public.Employees: its columns are in another order"]
    assert view_columns(connection) == ["Name", "Id"]


def test_widening_keeps_the_rows_and_the_collation_of_a_key(connection: Connection) -> None:
    def keyed(key_type: str, name_type: str) -> TableMapping:
        return read_mapping(
            "name: employees\nsource: {table: Employees, key: {Id: S}}\ntargets:\n  Employees:\n    primary_key: [Id]\n"
            f"    columns: {{Id: {{attribute: Id, type: {key_type}}}, Name: {{attribute: n, type: '{name_type}'}}}}\n",
            "e.yaml",
        )

    migrate(connection, [keyed("varchar(5)", "smallint")])
    store(connection, '"Id", "Name"', "'a', 7")
    done = migrate(connection, [keyed("text", "numeric(9,2)")])
    assert whats(done) == ['recreate view public.Employees: has wider columns "Id", "Name"']
    assert [(i, str(n)) for i, n in rows(connection, 'SELECT * FROM public."Employees"')] == [("a", "7.00")]
    assert rows(
        connection,
        "SELECT collname::text FROM pg_attribute JOIN pg_collation c ON c.oid = attcollation"
        " WHERE attrelid = 'replica.\"Employees\"'::regclass AND attname = 'Id'",
    ) == ["C"]
    assert plan(connection, [keyed("text", "numeric(9,2)")]).empty


@pytest.mark.parametrize(
    ("before", "after", "reason", "way_out"),
    [
        (mapping(), mapping(ID, "Name: {attribute: empName, type: varchar(10)}"),
         'column "Name" of replica.Employees is character varying(20) and the mapping wants varchar(10), which is not a'
         " widening: stored values might not fit, or might differ from what a load would store",
         "map the attribute to a column with another name and load the table, then drop the old column"),
        (mapping(ID, NAME, CITY), mapping(ID, NAME, unmapped="City"),
         'column "City" of replica.Employees is text and the mapping wants jsonb, which is not a widening:'
         " stored values might not fit, or might differ from what a load would store",
         "map the attribute to a column with another name and load the table, then drop the old column"),
        (mapping(), mapping("Nr: {attribute: Id, type: bigint}", primary_key="[Nr]"),
         "the primary key of replica.Employees is (Id) and the mapping wants (Nr); rows stored under one key cannot be"
         " found under another",
         "give the target another name, migrate and load it, then drop the old view and storage table"),
        (mapping(), mapping(table="Staff"),
         "the mapping's table is not its source of record: table Staff, not Employees",
         "if the new table takes the place of Employees, run `dynaurora repoint employees`; if it is a table of its"
         " own, give its mapping another name and other targets"),
    ],
    ids=["narrowing", "another type", "key", "source"],
)  # fmt: skip
def test_refused_with_the_way_out(
    connection: Connection, before: TableMapping, after: TableMapping, reason: str, way_out: str
) -> None:
    migrate(connection, [before])
    state = rows(connection, "SELECT attrelid, attname::text, atttypid FROM pg_attribute ORDER BY 1, 2")
    (refusal,) = migrate(connection, [after]).refusals
    assert (refusal.mapping, refusal.what, refusal.way_out) == ("employees", reason, way_out)
    assert rows(connection, "SELECT attrelid, attname::text, atttypid FROM pg_attribute ORDER BY 1, 2") == state


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ('CREATE TABLE "Employees" ("Id" int PRIMARY KEY, "Name" varchar(20))', "table public.Employees"),
        ('CREATE VIEW "Employees" AS SELECT 1 AS "Id"', "view public.Employees"),
        ('CREATE MATERIALIZED VIEW "Employees" AS SELECT 1 AS "Id"', "materialized view public.Employees"),
    ],
)
def test_what_is_in_the_way_and_not_ours_is_left_alone(connection: Connection, statement: str, what: str) -> None:
    connection.execute(statement.encode())
    other = read_mapping(
        "name: other\nsource: {table: Other, key: {Id: N}}\ntargets:\n  Other:\n    primary_key: [Id]\n"
        "    columns: {Id: {attribute: Id, type: bigint}}\n",
        "other.yaml",
    )
    done = migrate(connection, [mapping(), other])
    assert [refusal.what for refusal in done.refusals] == [f"{what} is in the way and is not one of Dynaurora's"]
    assert "rename it" in done.refusals[0].way_out
    assert rows(connection, 'SELECT count(*) FROM "Other"') == [0]
    assert rows(connection, "SELECT to_regclass('replica.\"Employees\"')") == [None]


def test_a_storage_table_that_is_not_ours_is_left_alone(connection: Connection) -> None:
    connection.execute('CREATE SCHEMA replica; CREATE TABLE replica."Employees" ("Id" bigint PRIMARY KEY)')
    (refusal,) = migrate(connection, [mapping()]).refusals
    assert refusal.what == "table replica.Employees is in the way and is not one of Dynaurora's"


def test_what_would_fall_with_the_view_is_named(connection: Connection) -> None:
    migrate(connection, [mapping(ID, NAME, CITY)])
    connection.execute('CREATE VIEW report AS SELECT "City" FROM "Employees"')
    connection.execute('CREATE MATERIALIZED VIEW totals AS SELECT count(*) FROM "Employees"')
    (refusal,) = migrate(connection, [mapping(ID, NAME)]).refusals
    assert refusal.what == (
        'view public.Employees must be recreated (loses column "City"), which would also drop materialized view'
        " public.totals, view public.report"
    )
    assert view_columns(connection) == ["Id", "Name", "City"]


def test_what_reads_storage_itself_bars_a_widening(connection: Connection) -> None:
    migrate(connection, [mapping()])
    connection.execute('CREATE VIEW deleted AS SELECT "Name" FROM replica."Employees" WHERE _deleted')
    (refusal,) = migrate(connection, [mapping(ID, "Name: {attribute: empName, type: text}")]).refusals
    assert refusal.what == 'widening column "Name" of replica.Employees is prevented by view public.deleted'


def test_a_view_that_someone_altered_is_put_right(connection: Connection) -> None:
    migrate(connection, [mapping()])
    connection.execute(
        'CREATE OR REPLACE VIEW "Employees" AS SELECT "Id", "Name" FROM replica."Employees" WHERE _deleted'
    )
    done = migrate(connection, [mapping()])
    assert whats(done) == ["replace view public.Employees: its definition differs"]
    store(connection, '"Id"', "1")
    assert rows(connection, 'SELECT "Id" FROM "Employees"') == [1]


def test_views_compare_alike_however_postgresql_prints_them() -> None:
    """Version 15 and before print the relation before each column; 16 and later do not (release notes)."""
    before = (
        ' SELECT "Employees"."Id",\n    "Employees".name\n   FROM replica."Employees"\n'
        '  WHERE NOT "Employees"._deleted;'
    )
    since = ' SELECT "Id",\n    name\n   FROM replica."Employees"\n  WHERE NOT _deleted;'
    assert catalog.normal_definition(before, '"Employees"') == catalog.normal_definition(since, '"Employees"')


def test_two_migrations_at_once_are_one(database: str) -> None:
    done: list[Plan] = []
    start = threading.Barrier(4)

    def run() -> None:
        with closing(connect(database, application_name="test migrate")) as connection:
            start.wait()
            done.append(migrate(connection, [mapping()]))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(made.steps) for made in done) == [0, 0, 0, 4]


def test_a_long_reader_is_waited_for_without_queueing(database: str, connection: Connection) -> None:
    """Whoever waits for an exclusive lock holds up everyone behind, so it looks first who holds the table."""
    migrate(connection, [mapping()])
    with psycopg.connect(database) as reader, closing(connect(database, application_name="writer")) as writer:
        reader.execute('SELECT * FROM "Employees"')
        turns: list[float] = []

        def write_meanwhile(seconds: float) -> None:
            turns.append(seconds)
            store(writer, '"Id"', str(len(turns)))
            if len(turns) == 2:
                reader.rollback()

        done = migrate(connection, [mapping(ID, NAME, CITY)], sleep=write_meanwhile)
    assert len(done.steps) == 2
    assert len(turns) == 2
    assert rows(connection, 'SELECT count("Id"), count("City") FROM "Employees"') == [(2, 0)]


def test_a_reader_that_never_ends_is_named_and_what_was_done_stays(
    database: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.aurora.schema.migrate.LOCK_WAIT_SECONDS", 0.01)
    migrate(connection, [mapping()])
    with psycopg.connect(database) as reader:
        reader.execute('SELECT * FROM "Employees"')
        with pytest.raises(
            TransientError,
            match=r"someone held the table: wait until it has ended: pid \d+ \(idle in transaction, since",
        ):
            migrate(connection, [mapping(ID, NAME, CITY)], sleep=lambda _: None)
    assert view_columns(connection) == ["Id", "Name"]
    assert len(migrate(connection, [mapping(ID, NAME, CITY)]).steps) == 2


def named(name: str, *targets: str, table: str) -> TableMapping:
    body = "".join(
        f"  {target}:\n    primary_key: [Id]\n    columns: {{Id: {{attribute: Id, type: bigint}}}}\n"
        for target in targets
    )
    source = f"name: {name}\nsource: {{table: {table}, key: {{Id: N}}}}\n"
    return read_mapping(f"{source}targets:\n{body}", f"{name}.yaml")


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "from before it was recorded"])
def test_a_mapping_under_another_name_is_not_migrated_onto_rows_of_a_mapping(
    connection: Connection, *, recorded: bool
) -> None:
    """Both used to write into one table, each taking the other's rows for its own, without an error."""
    migrate(connection, [mapping()])
    if not recorded:
        connection.execute("UPDATE replication.tables SET storage_tables = '{}'")
    done = migrate(connection, [named("staff", "Employees", "Wages", table="Staff")])
    assert [refusal.what.partition(", which")[0] for refusal in done.refusals] == ["replica.Employees"]
    whose = "mapping employees" if recorded else "a mapping of another name"
    assert f"belongs to {whose}: staff would mix its rows with those" in done.refusals[0].what
    assert "(registered: employees)" in done.refusals[0].way_out
    assert rows(connection, "SELECT storage_tables FROM replication.tables WHERE name = 'staff'") == [["Wages"]]
    assert plan(connection, [mapping()]).empty is recorded


def test_a_target_that_a_mapping_gains_is_not_one_of_another_mapping(connection: Connection) -> None:
    migrate(connection, [mapping(), named("staff", "Wages", table="Staff")])
    done = migrate(connection, [named("staff", "Wages", "Employees", table="Staff")])
    assert (done.steps, len(done.refusals)) == ((), 1)
    assert "belongs to mapping employees" in done.refusals[0].what


def test_a_target_that_a_mapping_lost_is_its_own_when_it_is_back(connection: Connection) -> None:
    both, one = named("staff", "Wages", "Bonuses", table="Staff"), named("staff", "Wages", table="Staff")
    for wanted in (both, one, both):
        assert migrate(connection, [wanted]).refusals == ()
    assert plan(connection, [both]).empty


def test_which_tables_a_mapping_of_an_earlier_version_writes_is_recorded(connection: Connection) -> None:
    migrate(connection, [mapping()])
    connection.execute("ALTER TABLE replication.tables DROP COLUMN storage_tables")
    connection.execute("DELETE FROM replication.migrations WHERE name LIKE '0012 %'")
    assert whats(migrate(connection, [mapping()]))[1:] == ["record that employees writes Employees"]
    assert plan(connection, [mapping()]).empty
