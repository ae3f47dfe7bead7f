"""Poolers, detected when connecting: who is refused, with which message, and that nothing is left behind."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Generator
from contextlib import closing

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pipeline.aurora.sessions.connection import connect, set_for_transaction
from pipeline.core.errors import ConfigurationError
from pipeline.local.process import LOOPBACK
from pipeline.settings import Pooler, Settings
from tests.pgbouncer import PgBouncer

Start = Callable[..., PgBouncer]
SETTINGS = "SELECT current_setting('statement_timeout'), current_setting('TimeZone'), current_setting('array_nulls')"


def left_on_servers(database: str) -> list[tuple[object, ...]]:
    """Session locks on the server connections of a database, read directly."""
    with psycopg.connect(database, autocommit=True) as connection:
        return connection.execute(
            "SELECT l.pid FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
            " WHERE l.locktype = 'advisory' AND a.datname = current_database()"
        ).fetchall()


@pytest.mark.parametrize("pool_size", [1, 5])
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_work_that_needs_a_session_is_refused_and_leaves_nothing(
    database: str, pgbouncer: Start, mode: str, pool_size: int
) -> None:
    pooler = pgbouncer(database, mode=mode, pool_size=pool_size)
    with closing(psycopg.connect(pooler.url, autocommit=True)) as before:
        untouched = before.execute(SETTINGS).fetchone()
    with pytest.raises(ConfigurationError, match=r"a connection pooler answered.*DATABASE_POOLER=session"):
        connect(pooler.url, application_name="test", statement_timeout_seconds=7)
    with closing(psycopg.connect(pooler.url, autocommit=True)) as after:
        assert after.execute(SETTINGS).fetchone() == untouched
    assert left_on_servers(database) == []


@pytest.mark.parametrize("pool_size", [1, 5])
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_settings_last_as_long_as_the_transaction(database: str, pgbouncer: Start, mode: str, pool_size: int) -> None:
    pooler = pgbouncer(database, mode=mode, pool_size=pool_size)
    opened = connect(pooler.url, application_name="test", statement_timeout_seconds=7, needs_session=False)
    with closing(opened) as connection:
        assert connection.pooled
        before = connection.execute(SETTINGS).fetchone()
        with connection.transaction():
            set_for_transaction(connection)
            assert connection.execute(SETTINGS).fetchone() == ("7s", "UTC", "on")
        assert connection.execute(SETTINGS).fetchone() == before
        for _ in range(8):
            connection.execute("SELECT %s::int", [1], prepare=True)
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


@pytest.mark.parametrize("pool_size", [1, 5])
def test_the_word_for_whole_sessions_is_not_taken_for_transactions(
    database: str, pgbouncer: Start, pool_size: int
) -> None:
    pooler = pgbouncer(database, mode="transaction", pool_size=pool_size)
    with pytest.raises(ConfigurationError, match=r"it pools transactions.*pool_mode = session"):
        connect(pooler.url, application_name="test", through=Pooler.SESSION)


def test_whole_sessions_are_taken_by_word_and_set_up(database: str, pgbouncer: Start) -> None:
    pooler = pgbouncer(database, mode="session")
    opened = connect(pooler.url, application_name="test", through=Pooler.SESSION, statement_timeout_seconds=7)
    with closing(opened) as connection:
        assert not connection.pooled
        assert connection.execute(SETTINGS).fetchone() == ("7s", "UTC", "on")
        connection.execute("SELECT pg_advisory_lock(7)")
        assert len(left_on_servers(database)) == 1
    # PgBouncer's server_reset_query, DISCARD ALL, runs before another client has the connection.
    with closing(psycopg.connect(pooler.url, autocommit=True)) as following:
        assert following.execute("SELECT pg_try_advisory_lock(7)").fetchone() == (True,)


def test_a_full_pool_of_sessions_is_no_pool_of_transactions(
    database: str, pgbouncer: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.aurora.sessions.pooler._SECOND_SECONDS", 0.3)
    pooler = pgbouncer(database, mode="session", pool_size=1)
    with closing(connect(pooler.url, application_name="test", through=Pooler.SESSION)) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_pooler_is_taken_for_granted_where_the_setting_says_so(database: str) -> None:
    opened = connect(database, application_name="test", through=Pooler.TRANSACTION, needs_session=False)
    with closing(opened) as connection:
        assert connection.pooled
        assert connection.prepare_threshold is None
    with pytest.raises(ConfigurationError, match="a connection pooler answered"):
        connect(database, application_name="test", through=Pooler.TRANSACTION)


def test_the_setting_is_read_and_checked() -> None:
    given = {"DATABASE_URL": "postgresql://", "DATABASE_POOLER": "session"}
    assert Settings.from_environment(given).pooler is Pooler.SESSION
    with pytest.raises(ConfigurationError, match="DATABASE_POOLER is neither"):
        Settings.from_environment(given | {"DATABASE_POOLER": "yes"})


@pytest.fixture
def forwarder(database: str) -> Generator[str]:
    """The URL of a plain TCP proxy before the database, for one connection."""
    to = conninfo_to_dict(database)
    with socket.create_server((LOOPBACK, 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection((LOOPBACK, int(str(to["port"])))) as server:
                ends = [threading.Thread(target=pump, args=pair) for pair in ((client, server), (server, client))]
                for each in ends:
                    each.start()
                for each in ends:
                    each.join()

        serving = threading.Thread(target=serve)
        serving.start()
        yield f"postgresql://{to['user']}:{to['password']}@{LOOPBACK}:{listener.getsockname()[1]}/{to['dbname']}"
        serving.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    while chunk := source.recv(65_536):
        sink.sendall(chunk)
    sink.shutdown(socket.SHUT_WR)


def test_a_plain_tcp_proxy_is_no_pooler(forwarder: str) -> None:
    with closing(connect(forwarder, application_name="test", statement_timeout_seconds=7)) as connection:
        assert not connection.pooled
        assert connection.execute(SETTINGS).fetchone() == ("7s", "UTC", "on")
