"""Connections to Aurora PostgreSQL, all set up in the same way.

Invariant: statements outside a transaction block commit on their own, and every transaction is READ COMMITTED, which
the ordering rule's `ON CONFLICT … WHERE` needs to see the row that another writer has just committed. Text is sent in
UTF-8 to a database in UTF-8, which refuses invalid bytes. Every setting that results depend on is fixed, whatever the
role or the database sets. Behind a pooler nothing outlives a transaction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString, cast

import psycopg
from psycopg import IsolationLevel
from psycopg.conninfo import make_conninfo

from pipeline import driver_logs
from pipeline.aurora.errors import translating
from pipeline.aurora.sessions import pooler
from pipeline.aurora.sessions.address import Address, from_url
from pipeline.aurora.sessions.connect_errors import not_writable, translate_connecting
from pipeline.core.errors import ConfigurationError
from pipeline.settings import Pooler

if TYPE_CHECKING:
    from collections.abc import Mapping

BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
# AWS advises these for failover (Aurora user guide, fast failover): notice a dead peer within about six seconds.
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 1, "keepalives_interval": 1, "keepalives_count": 5}
# Keepalives do not run while something that was sent is not acknowledged; the kernel then waits a quarter of an hour.
# Not shorter, because a server that is too busy to read what it is sent counts as lost too.
_LOST_SERVER = {"tcp_user_timeout": 25_000}
_SETTINGS = {
    # How values are read and written as text.
    "array_nulls": "on",
    "bytea_output": "hex",
    "DateStyle": "ISO, MDY",
    "extra_float_digits": "1",
    "IntervalStyle": "postgres",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "TimeZone": "UTC",
    # What a transaction sees, and that an acknowledged commit is durable.
    "default_transaction_isolation": "read committed",
    "synchronous_commit": "on",
    # No limits, because a load may take long; callers that want one pass it to `connect`.
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "lock_timeout": "0",
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "client_min_messages": "warning",
}
# A session that is meant to last: the server ends it within half a minute after its client's host is lost, also in a
# long statement and while it owes an answer, so that nothing stays locked. Not for the replicator: a function that is
# frozen between two batches answers no keepalives.
_LASTING = {
    "client_connection_check_interval": "1s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
# Settings that the server does not know (transaction_timeout before 17) are left out. For durability, `local` or a
# replica's answer is as good as `on`.
_SET = (
    "SELECT count(set_config(name, value, {local})) FROM unnest(%s::text[], %s::text[]) AS setting (name, value)"
    " WHERE current_setting(name, true) IS NOT NULL"
    " AND (name <> 'synchronous_commit' OR current_setting(name) = 'off')"
)


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that knows whether a pooler may give each of its transactions another session."""

    pooled: bool = False
    settings: Mapping[str, str] = _SETTINGS


def connect(
    address: Address | str,
    *,
    application_name: str,
    statement_timeout_seconds: float | None = None,
    connect_timeout_seconds: int = 10,
    parameters: Mapping[str, str | int] | None = None,
    settings: Mapping[str, str] | None = None,
    through: Pooler = Pooler.DETECT,
    needs_session: bool = True,
) -> Connection:
    """Open a connection to an address or URL; libpq's `parameters` win over the address's.

    `settings` are PostgreSQL's, besides those that every connection has.
    `needs_session=False` is for work that keeps nothing beyond a transaction, and begins each with
    `set_for_transaction`. Raises UnreachableError if nothing answers or the server accepts no session now,
    LoginRefusedError if it refuses the password, ConfigurationError for what a person must change: a database that is
    not in UTF-8, one that is set to read only, or a pooler if a session is needed.
    """
    driver_logs.hold()
    place = from_url(address) if isinstance(address, str) else address
    given = {
        "application_name": application_name,
        "connect_timeout": connect_timeout_seconds,
        # After a failover the cluster's name may lead to what is now a reader. Not `read-write`: it would mistake a
        # writer whose sessions start read-only for a reader, and wait forever.
        "target_session_attrs": "primary",
        "client_encoding": "UTF8",  # PGCLIENTENCODING would say otherwise
        **_KEEPALIVES,
        **_LOST_SERVER,
        **place.parameters,
        **(parameters or {}),
    }
    conninfo = make_conninfo("", **given)
    connection = _open(conninfo, place.source)
    with translating("connecting to the database"):
        try:
            lasting = _LASTING if needs_session else {}
            connection.settings = {**_SETTINGS, **_limits(statement_timeout_seconds), **lasting, **(settings or {})}
            connection.isolation_level = IsolationLevel.READ_COMMITTED
            _set_up(connection, conninfo, place.source, through, needs_session=needs_session)
        except BaseException:
            connection.close()
            raise
    return connection


def _limits(statement_timeout_seconds: float | None) -> dict[str, str]:
    """Limit statements, and as long the pauses between those of one transaction, whose locks would stay held."""
    if statement_timeout_seconds is None:
        return {}
    milliseconds = str(max(1, int(statement_timeout_seconds * 1000)))
    return {"statement_timeout": milliseconds, "idle_in_transaction_session_timeout": milliseconds}


def _open(conninfo: str, source: str) -> Connection:
    try:
        return Connection.connect(conninfo, autocommit=True)
    except psycopg.Error as error:
        raise translate_connecting(error, conninfo, source) from None


def _set_up(connection: Connection, conninfo: str, source: str, through: Pooler, *, needs_session: bool) -> None:
    """Set up the session in one statement after connecting, because RDS Proxy refuses start-up options (`options=-c
    …`).

    It sets nothing if the server process is not the one that the connection's key names, as behind a pooler.
    """
    own = 0 if through is Pooler.TRANSACTION else connection.pgconn.backend_pid
    row = connection.execute(
        f"SELECT pg_backend_pid(), current_setting('server_encoding'), pg_is_in_recovery(),"
        f" current_setting('transaction_read_only') = 'on', ({_SET.format(local='false')} AND pg_backend_pid() = %s)",
        (list(connection.settings), list(connection.settings.values()), own),
        prepare=False,
    ).fetchone()
    served_by, encoding, in_recovery, read_only, _ = row or (0, "", False, False, 0)
    if in_recovery or read_only:  # behind a pooler, libpq's answer from the server may be old
        raise not_writable(source, in_recovery=in_recovery)
    if encoding != "UTF8":
        raise ConfigurationError(
            f"connecting to the database: its encoding is {encoding}, which cannot hold all of DynamoDB's text",
            hint="use a database that was created with ENCODING 'UTF8'",
        )
    if served_by == own:
        return
    if not needs_session:
        connection.pooled = True
        # Nothing is prepared by name, because a pooler's server connection has the names of others. psycopg then sends
        # no DEALLOCATE ALL either.
        connection.prepare_threshold = None
    elif through is Pooler.SESSION:
        pooler.check_sessions(connection.pgconn, served_by, lambda: psycopg.connect(conninfo, autocommit=True))
        _set(connection, local=False)
    else:
        raise pooler.refuse()


def set_for_transaction(connection: Connection) -> None:
    """Begin a transaction with the settings that results depend on, because a pooler may have given it any session."""
    if connection.pooled:
        _set(connection, local=True)


def _set(connection: Connection, *, local: bool) -> None:
    connection.execute(
        trusted(_SET.format(local="true" if local else "false")),
        (list(connection.settings), list(connection.settings.values())),
        prepare=False,
    )


def trusted(text: str) -> LiteralString:
    """Make psycopg accept text as SQL, unquoted: this package wrote it, from its own constants and checked names.

    It must never contain a value: values are parameters, or `sql.Literal`, which quotes.
    """
    return cast("LiteralString", text)
