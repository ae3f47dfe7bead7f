"""The readers of a mapping: what they may and may not read, what is revoked, and what keeps it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
import pytest

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.rows import build_aside
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.schema.plan import Plan, plan
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.errors import ConfigurationError
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.schema import schema_report
from pipeline.jobs.services import Services
from pipeline.settings import Settings
from tests.aurora.rows.test_build_aside import put_in_place
from tests.aurora.schema.test_plan import CITY, ID, NAME, mapping, rows, whats

AS_OF = datetime(2026, 5, 14, tzinfo=UTC)
WIDER = "Name: {attribute: empName, type: text}"


@pytest.fixture
def connection(database: str) -> Generator[Connection]:
    with closing(connect(database, application_name="test readers")) as opened:
        migrate(opened, [mapping()])
        yield opened


def read_by(found: TableMapping, *roles: str) -> TableMapping:
    return replace(found, targets=tuple(replace(target, readers=roles) for target in found.targets))


def may(connection: Connection, role: str, relation: str = 'public."Employees"', privilege: str = "SELECT") -> bool:
    return rows(connection, f"SELECT has_table_privilege('{role}', '{relation}', '{privilege}')") == [True]


def run(connection: Connection, statement: str) -> None:
    connection.execute(statement.encode())


def done(connection: Connection, found: TableMapping) -> Plan:
    """Migrate, which is what `plan` showed, and leaves nothing to do."""
    planned = plan(connection, [found])
    assert migrate(connection, [found]) == planned
    assert not plan(connection, [found]).steps
    return planned


def test_a_reader_reads_the_view_and_nothing_else(connection: Connection, role: Callable[[str], str]) -> None:
    reader = role("reader")
    connection.execute('INSERT INTO replica."Employees" ("Id", _as_of) VALUES (1, now())')
    planned = done(connection, read_by(mapping(), reader))
    assert whats(planned) == [f"let {reader} read public.Employees"]
    assert f'GRANT SELECT ON "public"."Employees" TO "{reader}";' in planned.steps[0].sql
    connection.execute(f"SET ROLE {reader}".encode())
    assert rows(connection, 'SELECT "Id" FROM "Employees"') == [1]
    for denied in ('SELECT FROM replica."Employees"', "SELECT FROM replication.rejects", 'DELETE FROM "Employees"'):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(denied.encode())


def test_who_is_taken_out_loses_it_and_what_a_person_granted_stays(
    connection: Connection, role: Callable[[str], str]
) -> None:
    ours, theirs, stranger = role("ours"), role("theirs"), role("stranger")
    connection.execute(f'GRANT SELECT ON "Employees" TO {theirs}, {stranger}'.encode())
    connection.execute(f'GRANT INSERT ON "Employees" TO {ours}'.encode())
    assert whats(done(connection, read_by(mapping(), ours, theirs))) == [f"let {ours} read public.Employees"]
    taken = done(connection, read_by(mapping()))
    assert whats(taken) == [f"revoke public.Employees from {ours}, no longer a reader in the mapping"]
    assert not may(connection, ours)
    assert may(connection, ours, privilege="INSERT")
    assert may(connection, theirs)
    assert may(connection, stranger)


def test_what_was_revoked_by_hand_is_granted_again_or_forgotten(
    connection: Connection, role: Callable[[str], str]
) -> None:
    reader = role("reader")
    done(connection, read_by(mapping(), reader))
    run(connection, f'REVOKE ALL ON "Employees" FROM {reader}')
    assert whats(done(connection, read_by(mapping(), reader))) == [f"let {reader} read public.Employees"]
    run(connection, f'REVOKE ALL ON "Employees" FROM {reader}')
    assert whats(done(connection, read_by(mapping()))) == [f"forget that {reader} could read public.Employees"]


@pytest.mark.parametrize("after", [mapping(ID, NAME, CITY), mapping(ID, WIDER)], ids=["replaced", "recreated"])
def test_a_view_that_is_replaced_or_recreated_keeps_its_readers(
    connection: Connection, role: Callable[[str], str], after: TableMapping
) -> None:
    reader = role("reader")
    done(connection, read_by(mapping(), reader))
    planned = done(connection, read_by(after, reader))
    assert not any("read public" in what for what in whats(planned))
    assert may(connection, reader)


def test_a_swap_keeps_the_readers(connection: Connection, role: Callable[[str], str]) -> None:
    reader = role("reader")
    read = read_by(mapping(), reader)
    done(connection, read)
    export = loads.Export(
        kind="full", location="here", export_arn=None, snapshot_time=AS_OF, as_of=AS_OF, item_count=1, file_count=1,
        size_bytes=1,
    )  # fmt: skip
    record = loads.begin(connection, read.name, export, strategy="aside")
    (build,) = build_aside.create(connection, record.id, read.name, read.targets, AS_OF)
    run(connection, f'INSERT INTO replica.{build.name} ("Id") VALUES (7)')  # noqa: S608 - a name of ours
    put_in_place(connection, build)
    assert plan(connection, [read]).empty
    connection.execute(f"SET ROLE {reader}".encode())
    assert rows(connection, 'SELECT "Id" FROM "Employees"') == [7]


def test_a_role_that_does_not_exist_is_named_with_its_remedy_and_the_others_get_theirs(
    connection: Connection, role: Callable[[str], str]
) -> None:
    reader = role("reader")
    grown = read_by(mapping(ID, NAME, CITY), reader, "No such role")
    planned = migrate(connection, [grown])
    (refusal,) = planned.refusals
    assert refusal.what == 'role "No such role" does not exist, and is a reader of public.Employees'
    assert 'create it (CREATE ROLE "No such role"; with LOGIN if it is no group)' in refusal.way_out
    assert "correct `readers` in" in refusal.way_out
    assert may(connection, reader)
    assert [what for what in whats(planned) if "City" in what], "the target is migrated all the same"
    assert plan(connection, [grown]).steps == ()


def test_a_schema_is_used_as_long_as_one_of_its_views_is_read(
    connection: Connection, role: Callable[[str], str]
) -> None:
    reader = role("reader")
    first, second = (
        replace(mapping(target=f"hr.{name}"), name=name, table=name.title()) for name in ("staff", "leavers")
    )
    done(connection, read_by(first, reader))
    done(connection, read_by(second, reader))
    assert may(connection, reader, "hr.staff")
    assert may(connection, reader, "hr.leavers")
    done(connection, read_by(first))
    usage = f"SELECT has_schema_privilege('{reader}', 'hr', 'USAGE')"
    assert rows(connection, usage) == [True]
    assert whats(done(connection, read_by(second))) == [
        f"revoke hr.leavers from {reader}, no longer a reader in the mapping",
        f"revoke schema hr from {reader}, no longer a reader in the mapping",
    ]
    assert rows(connection, usage) == [False]
    assert rows(connection, "SELECT count(*) FROM replication.reader_grants") == [0]


def test_a_schema_that_the_user_may_not_share_is_named_with_who_can(
    connection: Connection, role: Callable[[str], str]
) -> None:
    """On a database whose public is closed, and belongs to somebody else."""
    reader, owner = role("reader"), role("owner")
    for statement in (
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
        f"GRANT USAGE, CREATE ON SCHEMA public, replication, replica TO {owner}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA replication TO {owner}",
        f'ALTER VIEW "Employees" OWNER TO {owner}',
        f'ALTER TABLE replica."Employees" OWNER TO {owner}',
        f"SET ROLE {owner}",
    ):
        connection.execute(statement.encode())
    planned = migrate(connection, [read_by(mapping(), reader)])
    (refusal,) = planned.refusals
    assert refusal.what == f'role "{reader}" may not use schema public, and this user may not grant it'
    assert f'let the schema\'s owner run GRANT USAGE ON SCHEMA "public" TO "{reader}"' in refusal.way_out
    connection.execute(
        f"RESET ROLE; GRANT USAGE ON SCHEMA public TO {owner} WITH GRANT OPTION; SET ROLE {owner}".encode()
    )
    assert done(connection, read_by(mapping(), reader)).refusals == ()
    assert whats(planned) == [f"let {reader} read public.Employees"]


def test_no_load_waits_for_a_grant_to_a_reader(database: str, connection: Connection) -> None:
    assert not connection.closed  # it has migrated
    services = Services(Settings.from_environment({"DATABASE_URL": database}))
    nobody = schema_report(services, read_by(mapping(), "No such role"))
    assert (nobody.matches, nobody.ready, "does not exist" in nobody.what) == (False, True, True)
    nobody.require()
    with pytest.raises(ConfigurationError, match="not as the mapping says"):
        schema_report(services, read_by(mapping(ID, NAME, CITY), "No such role")).require()
