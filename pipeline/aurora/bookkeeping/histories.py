"""Records of histories: how long each keeps versions, from when on it answers, and how far it was filled.

Invariant: a record is written in the transaction that creates, alters or purges what it speaks of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.core.model import history

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target


@dataclass(frozen=True, slots=True)
class Recorded:
    """A history as it is recorded."""

    keep: timedelta
    partition_days: int
    kept_from: datetime
    view_digest: str
    filled_at: datetime | None
    filled_xid: str | None
    stopped_at: datetime | None


def read(connection: Connection, target: Target) -> Recorded | None:
    """Return the record of a target's history; None if it never had one."""
    with translating("reading the histories"):
        there = connection.execute("SELECT to_regclass('replication.histories') IS NOT NULL").fetchone()
        if not there or not there[0]:
            return None
        row = connection.execute(
            "SELECT keep, partition_days, kept_from, view_digest, filled_at, filled_xid::text, stopped_at"
            " FROM replication.histories WHERE history_name = %s AND storage_name = %s",
            [history.table_name(target), target.storage_name],
        ).fetchone()
    return Recorded(*row) if row else None


def add_gap(connection: Connection, history_name: str, since: datetime, reason: str) -> None:
    """Record that versions may be missing from `since` until now, inside the caller's transaction."""
    connection.execute(
        "INSERT INTO replication.history_gaps (history_name, since, until, reason)"
        " VALUES (%s, %s, clock_timestamp(), %s)",
        [history_name, since, reason],
    )


def recording(target: Target, mapping_name: str, *, kept_from: datetime, digest: str) -> sql.Composed:
    """Compose the statement that records a new history."""
    assert target.history is not None  # noqa: S101 - the caller's condition
    return sql.SQL(
        "INSERT INTO replication.histories (history_name, storage_name, table_name, keep, partition_days, kept_from,"
        " view_digest) VALUES ({})"
    ).format(
        sql.SQL(", ").join(
            map(
                sql.Literal,
                (
                    history.table_name(target),
                    target.storage_name,
                    mapping_name,
                    target.history.keep,
                    target.history.partition_days,
                    kept_from,
                    digest,
                ),
            )
        )
    )


def stopping(target: Target) -> sql.Composed:
    """Compose the statement that records that the mapping gave the history up."""
    return sql.SQL("UPDATE replication.histories SET stopped_at = clock_timestamp() WHERE history_name = {}").format(
        _name(target)
    )


def keeping(target: Target) -> sql.Composed:
    """Compose the statement that records how long versions are kept now."""
    assert target.history is not None  # noqa: S101 - the caller's condition
    return sql.SQL("UPDATE replication.histories SET keep = {} WHERE history_name = {}").format(
        sql.Literal(target.history.keep), _name(target)
    )


def viewing(target: Target, digest: str, *, again: bool) -> sql.Composed:
    """Compose the statement that records a new view; `again`: after the history was stopped, which leaves a gap."""
    gap = sql.SQL(
        "WITH gap AS (INSERT INTO replication.history_gaps SELECT history_name, stopped_at, clock_timestamp(),"
        " 'the mapping had no history' FROM replication.histories WHERE history_name = {} AND stopped_at IS NOT NULL)"
        " "
    ).format(_name(target))
    return sql.SQL(
        "{}UPDATE replication.histories SET view_digest = {}, stopped_at = NULL WHERE history_name = {}"
    ).format(gap if again else sql.SQL(""), sql.Literal(digest), _name(target))


def removing(target: Target) -> sql.Composed:
    """Compose the statement that removes the record."""
    return sql.SQL("DELETE FROM replication.histories WHERE history_name = {}").format(_name(target))


def _name(target: Target) -> sql.Literal:
    return sql.Literal(history.table_name(target))
