"""Who holds a table: what each role can see of whom, and when a lock could be taken."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing

import pytest
from psycopg import sql

from pipeline.aurora.schema.lock_holders import holders, named, wait_until_free, way_out
from pipeline.aurora.sessions.connection import Connection, connect

TABLE = [sql.Identifier("public", "held")]


@pytest.fixture
def connection(database: str) -> Generator[Connection]:
    with closing(connect(database, application_name="test")) as opened:
        opened.execute("CREATE TABLE public.held (id int); INSERT INTO public.held VALUES (1)")
        yield opened


@pytest.fixture
def session(database: str, connection: Connection) -> Generator[Callable[[str], Connection]]:
    assert not connection.closed
    opened: list[Connection] = []

    def begin(statement: str, application_name: str = "report") -> Connection:
        made = connect(database, application_name=application_name)
        opened.append(made)
        made.execute("BEGIN")
        made.execute(statement.encode())
        return made

    yield begin
    for made in opened:
        made.close()


def test_readers_and_writers_are_named_and_bystanders_are_not(
    connection: Connection, session: Callable[..., Connection]
) -> None:
    reader = session("SELECT * FROM public.held")
    writer = session("UPDATE public.held SET id = 2", "batch")
    session("SELECT pg_current_xact_id()", "bystander")
    found = holders(connection, TABLE)
    assert {(holder.pid, holder.state, holder.application) for holder in found} == {
        (reader.info.backend_pid, "idle in transaction", "report"),
        (writer.info.backend_pid, "idle in transaction", "batch"),
    }
    assert [holder.pid for holder in holders(connection, TABLE, only_writers=True)] == [writer.info.backend_pid]
    text = way_out(found)
    assert f"pid {reader.info.backend_pid} (idle in transaction, since 2" in text
    assert "UPDATE" not in text
    assert reader.info.user not in text
    assert holders(connection, [sql.Identifier("public", "absent")]) == []


def test_a_role_without_rights_sees_who_and_not_since_when(
    connection: Connection, session: Callable[..., Connection]
) -> None:
    reader = session("SELECT * FROM public.held")
    connection.execute("DROP ROLE IF EXISTS dynaurora_looker; CREATE ROLE dynaurora_looker")
    try:
        connection.execute("SET ROLE dynaurora_looker")
        assert named(holders(connection, TABLE)) == (
            f"pid {reader.info.backend_pid} (only members of pg_read_all_stats may see its state, application report)"
        )
    finally:
        connection.execute("RESET ROLE; DROP ROLE dynaurora_looker")


def test_a_table_that_short_transactions_hold_in_turns_is_free(
    connection: Connection, session: Callable[..., Connection]
) -> None:
    """At every look someone holds it, but never the same one twice: a lock could be taken."""
    current = session("SELECT * FROM public.held")

    def pause() -> None:
        nonlocal current
        following = session("SELECT * FROM public.held")
        current.rollback()
        current = following

    assert wait_until_free(connection, TABLE, pause=pause, looks=1) == []


def test_one_that_stays_is_waited_for_and_told_once_whatever_its_state(
    connection: Connection, session: Callable[..., Connection]
) -> None:
    staying = session("SELECT * FROM public.held")
    told: list[str] = []
    (held,) = wait_until_free(connection, TABLE, pause=lambda: None, looks=5, tell=told.append)
    assert held.pid == staying.info.backend_pid
    assert told == [named([held])]
    again = iter([False, True])
    (held,) = wait_until_free(connection, TABLE, pause=lambda: next(again), looks=5)
    assert held.pid == staying.info.backend_pid


def test_many_are_named_by_the_first_few(connection: Connection, session: Callable[..., Connection]) -> None:
    first = session("SELECT * FROM public.held")
    for _ in range(4):
        session("SELECT * FROM public.held")
    text = named(holders(connection, TABLE))
    assert text.startswith(f"pid {first.info.backend_pid} ")
    assert text.endswith(" and 2 more")
