"""Connection poolers (PgBouncer, RDS Proxy, pgcat …): detection when connecting, and what each kind of work needs from
one.

A pooler in transaction mode gives each transaction any free server connection. Session state (prepared statements,
settings, session locks, temporary tables) then stays on connections that others use, and we find theirs. So the
replicator keeps no session state, and works through any pooler. A job refuses a pooler, unless it is known to give each
client its own server connection.

A pooler gives a client a cancel key of its own, while the server's key names the process that serves. If the two
differ, something pools. A plain TCP proxy or load balancer passes the server's key through.
"""

from __future__ import annotations

import time
from contextlib import closing
from select import select
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from psycopg import Connection
    from psycopg.pq.abc import PGconn

# How long a pool in session mode may let the second connection wait before it counts as full.
_SECOND_SECONDS = 5.0
_WAY_OUT = "let DATABASE_URL or the secret name PostgreSQL itself (on Aurora, the cluster's writer endpoint)"


def refuse() -> ConfigurationError:
    """Return the refusal of work that needs a session, if a pooler answered."""
    return ConfigurationError(
        "connecting to the database: a connection pooler answered (such as PgBouncer or RDS Proxy), and this needs a"
        " session of its own: its locks and temporary tables would end up on other clients' connections",
        hint=f"{_WAY_OUT}; or, if the pooler pools whole sessions (PgBouncer: pool_mode = session), set"
        " DATABASE_POOLER=session",
    )


def check_sessions(first: PGconn, served_by: int, open_second: Callable[[], Connection]) -> None:
    """Check the claim that a pooler pools whole sessions, with a second connection.

    In transaction mode a second client gets the server connection that the first has just released, or the first gets
    another one while the second is in a transaction. Neither can happen in session mode. Raises ConfigurationError. A
    busy pool in transaction mode may pass; a pool in session mode never fails.
    """
    with closing(open_second()) as second:
        other = _served_by(second.pgconn, b"BEGIN; SELECT pg_backend_pid()")
        # If the second already has the first's, we know the answer, and asking the first would wait for the second.
        again = _served_by(first, b"SELECT pg_backend_pid()") if other not in (None, served_by) else served_by
    if other == served_by or again != served_by:
        raise ConfigurationError(
            "connecting to the database: DATABASE_POOLER says that the pooler pools whole sessions, but two connections"
            " were given the same server connection: it pools transactions",
            hint=f"{_WAY_OUT}; or set PgBouncer's pool_mode = session for this database",
        )


def _served_by(connection: PGconn, query: bytes) -> int | None:
    """Return the server process that answers, or None if none was free in time."""
    connection.send_query(query)
    until = time.monotonic() + _SECOND_SECONDS
    while True:
        while connection.is_busy():
            if not select([connection.socket], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            connection.consume_input()
        result = connection.get_result()
        if result is None:
            return None
        value = result.get_value(0, 0) if result.ntuples else None
        if value is not None:
            while connection.get_result() is not None:
                pass
            return int(value)
