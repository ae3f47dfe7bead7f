"""What people gave one of our views or storage tables: `migrate` keeps it, or names it as being in the way."""

from __future__ import annotations

from contextlib import closing
from string import Template
from typing import TYPE_CHECKING

import pytest

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.schema.plan import plan
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.errors import TerminalError
from tests.aurora.schema.test_plan import CITY, ID, NAME, mapping, rows, whats

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pipeline.core.model.mapping import TableMapping

WIDER = "Name: {attribute: empName, type: text}"
ADDED, WIDENED, LOST = mapping(ID, NAME, CITY), mapping(ID, WIDER), mapping(ID)


@pytest.fixture
def connection(database: str) -> Generator[Connection]:
    with closing(connect(database, application_name="test view belongings")) as opened:
        migrate(opened, [mapping()])
        yield opened


def run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        connection.execute(statement.encode())


def may(connection: Connection, role: str, privilege: str = "SELECT") -> bool:
    (found,) = rows(connection, f"SELECT has_table_privilege('{role}', '\"Employees\"', '{privilege}')")
    return found


@pytest.mark.parametrize("after", [ADDED, WIDENED], ids=["a column added", "a column widened"])
def test_a_reader_under_a_row_policy_sees_no_more_rows_after(
    connection: Connection, role: Callable[[str], str], after: TableMapping
) -> None:
    reader = role("reader")
    run(
        connection,
        'INSERT INTO replica."Employees" ("Id", _as_of) SELECT n, now() FROM generate_series(1, 100) n',
        'ALTER TABLE replica."Employees" ENABLE ROW LEVEL SECURITY',
        f'CREATE POLICY p ON replica."Employees" TO {reader} USING ("Id" <= 7)',
        f'GRANT USAGE ON SCHEMA replica TO {reader}; GRANT SELECT ON replica."Employees", "Employees" TO {reader}',
        'ALTER VIEW "Employees" SET (security_invoker = true, security_barrier = true, check_option = local)',
    )
    options = "SELECT reloptions FROM pg_class WHERE oid = '\"Employees\"'::regclass"
    before = rows(connection, options)
    assert migrate(connection, [after]).refusals == ()
    assert rows(connection, options) == before
    run(connection, f"SET ROLE {reader}")
    assert rows(connection, 'SELECT count(*) FROM "Employees"') == [7]


def test_a_role_revoked_from_the_view_stays_revoked_when_it_is_recreated(
    connection: Connection, role: Callable[[str], str]
) -> None:
    """Default privileges grant it every new table; this view was taken from it."""
    reader = role("reader")
    run(
        connection,
        f"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {reader}",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT INSERT ON TABLES TO PUBLIC",
    )
    assert not may(connection, reader), "there before the default was"
    migrate(connection, [WIDENED])
    assert not may(connection, reader)
    assert not may(connection, reader, "INSERT")


@pytest.mark.parametrize("creator_owns", [True, False])
def test_privileges_are_those_of_before_the_owners_too(
    connection: Connection, role: Callable[[str], str], *, creator_owns: bool
) -> None:
    reader, stranger, owner = role("reader"), role("stranger"), role("owner")
    run(
        connection,
        f"GRANT CREATE ON SCHEMA public TO {owner}",
        f'ALTER VIEW "Employees" OWNER TO {"CURRENT_USER" if creator_owns else owner}',
        'REVOKE INSERT, UPDATE ON "Employees" FROM CURRENT_USER' if creator_owns
        else f'REVOKE INSERT, UPDATE ON "Employees" FROM {owner}',
        f'GRANT SELECT ON "Employees" TO {reader} WITH GRANT OPTION',
        f'GRANT UPDATE ("Name"), SELECT ("Id") ON "Employees" TO {reader}',
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO {stranger}, {reader}",
    )  # fmt: skip
    state = (
        "SELECT array(SELECT a::text FROM unnest(relacl) a ORDER BY 1), array(SELECT attname || attacl::text"
        " FROM pg_attribute WHERE attrelid = c.oid AND attacl IS NOT NULL ORDER BY 1)"
        " FROM pg_class c WHERE oid = '\"Employees\"'::regclass"
    )
    before = rows(connection, state)
    migrate(connection, [WIDENED])
    assert rows(connection, state) == before


def test_defaults_comments_rules_and_triggers_of_the_view_are_kept(connection: Connection) -> None:
    run(
        connection,
        """ALTER VIEW "Employees" ALTER COLUMN "Name" SET DEFAULT '100% {new}; it''s'""",
        "COMMENT ON VIEW \"Employees\" IS 'all; of them'",
        'COMMENT ON COLUMN "Employees"."Name" IS \'family name\'',
        "CREATE TABLE seen (name text)",
        'CREATE RULE "my rule" AS ON UPDATE TO "Employees" DO INSTEAD INSERT INTO seen VALUES (NEW."Name")',
        'COMMENT ON RULE "my rule" ON "Employees" IS \'r\'',
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        ' $$ BEGIN INSERT INTO seen VALUES (NEW."Name"); RETURN NEW; END $$',
        'CREATE TRIGGER "my trigger" INSTEAD OF INSERT ON "Employees" FOR EACH ROW EXECUTE FUNCTION note()',
        'COMMENT ON TRIGGER "my trigger" ON "Employees" IS \'t\'',
    )
    assert whats(migrate(connection, [WIDENED])) == ['recreate view public.Employees: has wider column "Name"']
    run(connection, 'INSERT INTO "Employees" ("Id") VALUES (1)')
    assert rows(connection, "SELECT name FROM seen") == ["100% {new}; it's"]
    assert rows(
        connection,
        "SELECT objsubid, description FROM pg_description WHERE objoid IN (SELECT '\"Employees\"'::regclass UNION ALL"
        " SELECT oid FROM pg_rewrite WHERE rulename = 'my rule' UNION ALL"
        " SELECT oid FROM pg_trigger WHERE tgname = 'my trigger') ORDER BY description",
    ) == [(0, "all; of them"), (2, "family name"), (0, "r"), (0, "t")]


def test_a_security_label_is_given_to_the_new_view(connection: Connection) -> None:
    """No label provider is available here, so the test can only look at the statement."""
    run(
        connection,
        "INSERT INTO pg_seclabel SELECT '\"Employees\"'::regclass, 'pg_class'::regclass, n, 'guard', 'secret'"
        " FROM generate_series(0, 1) n",
    )
    (step,) = plan(connection, [WIDENED]).steps
    assert """SECURITY LABEL FOR "guard" ON VIEW "public"."Employees" IS 'secret';""" in step.sql
    assert """SECURITY LABEL FOR "guard" ON COLUMN "public"."Employees"."Id" IS 'secret';""" in step.sql


CANNOT_BE_KEPT = {
    "a column of its row type": ('CREATE TABLE w (e "Employees")', "column e of table w"),
    "a column of many": ('CREATE TABLE w (e "Employees"[])', "column e of table w"),
    "a function of its row type": (
        'CREATE FUNCTION f("Employees") RETURNS int LANGUAGE sql AS \'SELECT 1\'',
        'function f("Employees")',
    ),
    "a rule of a column that is lost": (
        'CREATE TABLE w (t text); CREATE RULE r AS ON UPDATE TO "Employees" DO INSTEAD INSERT INTO w'
        ' VALUES (NEW."Name")',
        'rule r on view "Employees"',
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CANNOT_BE_KEPT)
def test_what_cannot_be_kept_with_the_view_is_named(connection: Connection, what: str) -> None:
    statement, name = CANNOT_BE_KEPT[what]
    run(connection, statement)
    (refusal,) = migrate(connection, [LOST]).refusals
    assert refusal.what.endswith(f"which would also drop {name}")


FUNCTION = "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "


def written(statement: str) -> str:
    return Template(statement).substitute(stored='replica."Employees"', function=FUNCTION)


HINDERS_NOTHING = {
    "a policy on another column": 'CREATE POLICY p ON $stored USING ("Id" > 0)',
    "a trigger": "$function CREATE TRIGGER t BEFORE INSERT ON $stored FOR EACH ROW EXECUTE FUNCTION f()",
    "a trigger of another column": '$function CREATE TRIGGER t BEFORE UPDATE OF "Id" ON $stored FOR EACH ROW'
    ' WHEN (NEW."Id" > 0) EXECUTE FUNCTION f()',
    "a view of another column": 'CREATE VIEW w AS SELECT "Id" FROM $stored',
    "an index": 'CREATE INDEX ON $stored (lower("Name")) WHERE "Name" IS NOT NULL',
    "a constraint": "ALTER TABLE $stored ADD CHECK (\"Name\" <> '')",
    "statistics": 'CREATE STATISTICS replica.s ON "Name", "Id" FROM $stored',
    "a foreign key": 'CREATE TABLE w (i bigint REFERENCES $stored ("Id"))',
    "a default": "ALTER TABLE $stored ALTER COLUMN \"Name\" SET DEFAULT 'x'",
    "a grant": 'GRANT SELECT ("Name") ON $stored TO PUBLIC',
    "an identity": 'ALTER TABLE $stored ALTER COLUMN "Id" ADD GENERATED BY DEFAULT AS IDENTITY',
}


@pytest.mark.parametrize("what", HINDERS_NOTHING)
def test_what_postgresql_widens_with_is_no_reason_to_refuse(connection: Connection, what: str) -> None:
    run(connection, written(HINDERS_NOTHING[what]))
    assert migrate(connection, [WIDENED]).refusals == ()
    assert plan(connection, [WIDENED]).empty


BARS = {
    "a policy": ('CREATE POLICY p ON $stored USING ("Name" <> \'x\')', "policy p on table"),
    "a trigger's condition": (
        "$function CREATE TRIGGER t BEFORE INSERT ON $stored FOR EACH ROW WHEN (NEW.\"Name\" <> '')"
        " EXECUTE FUNCTION f()",
        "trigger t on table",
    ),
    "a trigger's column": (
        '$function CREATE TRIGGER t BEFORE UPDATE OF "Name" ON $stored FOR EACH ROW EXECUTE FUNCTION f()',
        "trigger t on table",
    ),
    "a view": ('CREATE VIEW w AS SELECT "Name" FROM $stored', "view public.w"),
    "a materialized view": ('CREATE MATERIALIZED VIEW w AS SELECT "Name" FROM $stored', "materialized view public.w"),
    "a rule": (
        'CREATE TABLE w (t text); CREATE RULE r AS ON UPDATE TO $stored DO ALSO INSERT INTO w VALUES (NEW."Name")',
        "rule on replica.Employees",
    ),
    "a function": (
        'CREATE FUNCTION g() RETURNS bigint BEGIN ATOMIC SELECT count("Name") FROM $stored; END',
        "function g()",
    ),
    "a generated column": (
        'ALTER TABLE $stored ADD COLUMN n int GENERATED ALWAYS AS (length("Name")) STORED',
        "default value for column n of table",
    ),
    "a publication": (
        "ALTER TABLE $stored REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR TABLE $stored WHERE (\"Name\" <> 'x')",
        "publication of table",
    ),
    "a child that has the column, too": (
        'CREATE TABLE w (LIKE $stored); ALTER TABLE w INHERIT $stored;'
        ' CREATE VIEW x AS SELECT "Name" FROM w',
        "view x",
    ),
    "a column of its row type": ("CREATE TABLE w (e $stored)", '"w.e"'),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # the server's own, of wal_level and publications
@pytest.mark.parametrize("what", BARS)
def test_what_bars_a_widening_is_named_and_all_is_as_before(connection: Connection, what: str) -> None:
    """Where the catalog does not show it in advance, PostgreSQL reports it within the step's transaction."""
    statement, name = BARS[what]
    run(
        connection,
        written(statement),
        'INSERT INTO replica."Employees" ("Id", "Name", _as_of) VALUES (1, \'x\', now())',
    )
    try:
        told = "".join(refusal.what for refusal in migrate(connection, [WIDENED]).refusals)
    except TerminalError as error:
        told = str(error)
    assert name in told
    assert rows(connection, 'SELECT * FROM "Employees"') == [(1, "x")]
