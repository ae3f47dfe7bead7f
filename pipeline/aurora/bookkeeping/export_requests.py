"""Records requested exports, so that nobody pays for one twice.

Invariant: a request is recorded, with its client token, before DynamoDB is asked. At most one request per table and
window is open. The next run finds it and asks with the same token, which DynamoDB treats as the same export. A request
ends when its export was loaded, compared or applied, or can never be.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.aurora.errors import translating
from pipeline.core.errors import TerminalError, UnusableSnapshotError

if TYPE_CHECKING:
    from collections.abc import Generator
    from datetime import datetime, timedelta

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.exports.windows import Window

Outcome = Literal["used", "refused", "failed", "superseded"]


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """An open request."""

    id: int
    request: str
    """The table and the destination of the request. A token is bound to these permanently."""
    client_token: str
    export_arn: str | None
    """None if it is not known whether DynamoDB received the request."""
    requested_at: datetime
    age: timedelta
    """By the database's clock."""


def record(
    connection: Connection, table_name: str, window: Window | None, *, request: str, client_token: str
) -> ExportRequest:
    """Record a request (for a full export if there is no window), or return the one that is already open."""
    values = _key(table_name, window) | {"request": request, "token": client_token}
    with translating("recording an export request", table=table_name):
        connection.execute(
            "INSERT INTO replication.export_requests (table_name, from_time, to_time, request, client_token)"
            " VALUES (%(table)s, %(start)s, %(end)s, %(request)s, %(token)s) ON CONFLICT DO NOTHING",
            values,
        )
    found = find(connection, table_name, window)
    if found is None:
        raise TerminalError("recording an export request: another run ended it", table=table_name)
    return found


def find(connection: Connection, table_name: str, window: Window | None) -> ExportRequest | None:
    """Return the open request, if any."""
    with translating("looking for an export in progress", table=table_name):
        row = connection.execute(
            "SELECT id, request, client_token, export_arn, requested_at, clock_timestamp() - requested_at"
            " FROM replication.export_requests WHERE table_name = %(table)s AND ended_at IS NULL"
            " AND from_time IS NOT DISTINCT FROM %(start)s::timestamptz"
            " AND to_time IS NOT DISTINCT FROM %(end)s::timestamptz",
            _key(table_name, window),
        ).fetchone()
    return ExportRequest(*row) if row else None


def note_arn(connection: Connection, request_id: int, export_arn: str) -> None:
    """Record which export DynamoDB made for a request."""
    with translating("recording an export request"):
        connection.execute(
            "UPDATE replication.export_requests SET export_arn = %s WHERE id = %s", [export_arn, request_id]
        )


def end(connection: Connection, request_id: int, outcome: Outcome) -> None:
    """Record that a request must no longer be resumed."""
    with translating("ending an export request"):
        connection.execute(
            "UPDATE replication.export_requests SET outcome = %s, ended_at = clock_timestamp()"
            " WHERE id = %s AND ended_at IS NULL",
            [outcome, request_id],
        )


@contextmanager
def ending(connection: Connection, table_name: str, export_arn: str) -> Generator[None]:
    """End the request of the export that the block uses, as used or refused; another error leaves it open."""
    try:
        yield
    except UnusableSnapshotError:
        if not connection.closed:
            _end_of(connection, table_name, export_arn, "refused")
        raise
    _end_of(connection, table_name, export_arn, "used")


def drop_ended(connection: Connection, table_name: str, before: datetime) -> None:
    """Remove requests that ended before this time."""
    with translating("removing old export requests", table=table_name):
        connection.execute(
            "DELETE FROM replication.export_requests WHERE table_name = %s AND ended_at < %s", [table_name, before]
        )


def _end_of(connection: Connection, table_name: str, export_arn: str, outcome: Outcome) -> None:
    with translating("ending an export request", table=table_name):
        connection.execute(
            "UPDATE replication.export_requests SET outcome = %s, ended_at = clock_timestamp()"
            " WHERE table_name = %s AND export_arn = %s AND ended_at IS NULL",
            [outcome, table_name, export_arn],
        )


def _key(table_name: str, window: Window | None) -> dict[str, object]:
    return {"table": table_name, "start": window and window.start, "end": window and window.end}
