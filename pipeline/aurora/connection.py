"""Connections to Aurora PostgreSQL, all set up one way.

Invariant: statements outside a transaction block commit on their own, and every transaction is READ COMMITTED,
which the ordering rule's `ON CONFLICT … WHERE` needs to see the row that another writer has just committed. Text goes
over in UTF-8 to a database that keeps it so, and which refuses bytes that are none.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, LiteralString, cast

import psycopg
from psycopg import IsolationLevel
from psycopg.conninfo import make_conninfo

from pipeline import driver_logs
from pipeline.aurora.address import Address, from_url
from pipeline.aurora.connect_errors import translate_connecting
from pipeline.aurora.errors import translating
from pipeline.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

Connection = psycopg.Connection[tuple[Any, ...]]

# AWS advises these for failover (Aurora user guide, fast failover): notice a dead peer within about six seconds.
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 1, "keepalives_interval": 1, "keepalives_count": 5}


def connect(
    address: Address | str,
    *,
    application_name: str,
    statement_timeout_seconds: float | None = None,
    connect_timeout_seconds: int = 10,
    parameters: Mapping[str, str | int] | None = None,
) -> Connection:
    """Open a connection to an address, or to that of a URL; `parameters` of libpq win over the address's.

    Raises UnreachableError when nothing answers or the server takes no session now, LoginRefusedError when it refuses
    the password, ConfigurationError for what a person must change, a database in another encoding than UTF-8 included.
    """
    driver_logs.hold()
    place = from_url(address) if isinstance(address, str) else address
    given = {
        "application_name": application_name,
        "connect_timeout": connect_timeout_seconds,
        "target_session_attrs": "read-write",  # after a failover the cluster's name may lead to what is now a reader
        **_KEEPALIVES,
        **place.parameters,
        **(parameters or {}),
    }
    connection = _open(make_conninfo("", **given), place.source)
    with translating("connecting to the database"):
        try:
            _set_up(connection, statement_timeout_seconds)
        except (psycopg.Error, ConfigurationError):
            connection.close()
            raise
    connection.isolation_level = IsolationLevel.READ_COMMITTED
    return connection


def _open(conninfo: str, source: str) -> Connection:
    try:
        return psycopg.connect(conninfo, autocommit=True)
    except psycopg.Error as error:
        raise translate_connecting(error, conninfo, source) from None


def _set_up(connection: Connection, statement_timeout_seconds: float | None) -> None:
    """One statement once connected: RDS Proxy refuses start-up options (`options=-c …`)."""
    settings = {
        "default_transaction_isolation": "read committed",
        "TimeZone": "UTC",
        # Keys are read back as text, and must be the texts that were sent.
        "DateStyle": "ISO, MDY",
        "bytea_output": "hex",
        "client_min_messages": "warning",
        "client_encoding": "UTF8",  # PGCLIENTENCODING would say otherwise
    }
    if statement_timeout_seconds is not None:
        settings["statement_timeout"] = str(max(1, int(statement_timeout_seconds * 1000)))
    row = connection.execute(
        "SELECT set_config(name, value, false), current_setting('server_encoding')"
        " FROM unnest(%s::text[], %s::text[]) AS setting (name, value)",
        (list(settings), list(settings.values())),
    ).fetchone()
    if row and row[1] != "UTF8":
        raise ConfigurationError(
            f"connecting to the database: it keeps text in the encoding {row[1]}, which DynamoDB's text does not fit",
            hint="give a database that was created with ENCODING 'UTF8'",
        )


@contextmanager
def giving_locks_back(connection: Connection) -> Generator[None]:
    """Give the session's advisory locks back at the end of the block.

    The server would do so some time after the connection was closed: too late for the job that comes next.
    """
    try:
        yield
    finally:
        if not connection.closed:
            with suppress(psycopg.Error):  # a connection that is lost has lost its locks too
                connection.execute("SELECT pg_advisory_unlock_all()")


def literal(text: str) -> LiteralString:
    """Mark SQL text that this package composed from its own constants as safe for psycopg."""
    return cast("LiteralString", text)
