"""What is recorded of reconciliations: each run with its counts, and the drift it settled.

Invariant: a run's counts and its drift commit together when it is done. Drift is named by key digest and columns,
never by value.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.core.errors import TerminalError
from pipeline.core.mapping import STORAGE_SCHEMA

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.aurora.connection import Connection

_LOCK_SPACE = "dynaurora.reconcile"


@dataclass(frozen=True, slots=True)
class Drift:
    """One settled difference of one target."""

    target: str
    key_digest: str
    kind: str
    columns: tuple[str, ...]
    repaired: bool


@dataclass(slots=True)
class Counts:
    """Counts of one run, over all targets."""

    compared: int = 0
    in_flight: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    repaired: int = 0
    rejected: int = 0


def lock_table(connection: Connection, table_name: str) -> None:
    """Take the table's reconciliation lock for as long as the connection lives."""
    with translating("taking the reconciliation lock", table=table_name):
        row = connection.execute(
            "SELECT pg_try_advisory_lock(hashtext(%s), hashtext(%s))", [_LOCK_SPACE, table_name]
        ).fetchone()
    if not (row and row[0]):
        raise TerminalError(
            "reconciling: another reconciliation of this table is running",
            table=table_name,
            hint="wait for it, or end it, then run this again",
        )


@contextmanager
def table_locked(connection: Connection, table_name: str) -> Generator[None]:
    """Hold the reconciliation lock for the block. Raises TerminalError when it is taken."""
    lock_table(connection, table_name)
    try:
        yield
    finally:
        if not connection.closed:
            with translating("giving the reconciliation lock back", table=table_name):
                connection.execute("SELECT pg_advisory_unlock(hashtext(%s), hashtext(%s))", [_LOCK_SPACE, table_name])


def drop_leftovers(connection: Connection, table_name: str) -> None:
    """Drop the staging tables that earlier runs of the table left when they were killed; needs the table's lock."""
    with translating("dropping what an earlier reconciliation left", table=table_name):
        left = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'replica' AND tablename ~ '^_reconcile_[0-9]+_[0-9]+$'"
            " AND split_part(tablename, '_', 3)::bigint IN"
            " (SELECT id FROM replication.reconciliations WHERE table_name = %s)",
            [table_name],
        ).fetchall()
        for (name,) in left:
            connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(STORAGE_SCHEMA, name)))


def begin(connection: Connection, table_name: str, *, snapshot: str, snapshot_time: datetime, as_of: datetime) -> int:
    """Record that a reconciliation has begun; returns its id."""
    with translating("recording the reconciliation", table=table_name):
        row = connection.execute(
            "INSERT INTO replication.reconciliations (table_name, snapshot, snapshot_time, as_of)"
            " VALUES (%s, %s, %s, %s) RETURNING id",
            [table_name, snapshot, snapshot_time, as_of],
        ).fetchone()
    return row[0] if row else 0


def finish(
    connection: Connection, run_id: int, counts: Counts, by_column: Mapping[str, int], drift: Sequence[Drift]
) -> None:
    """Record the outcome of a run and its drift."""
    with translating("recording the reconciliation"), connection.transaction():
        connection.execute(
            "UPDATE replication.reconciliations SET status = 'done', finished_at = clock_timestamp(), compared = %s,"
            " in_flight = %s, missing = %s, extra = %s, different = %s, repaired = %s, rejected = %s, by_column = %s"
            " WHERE id = %s",
            [
                counts.compared,
                counts.in_flight,
                counts.missing,
                counts.extra,
                counts.different,
                counts.repaired,
                counts.rejected,
                json.dumps(by_column),
                run_id,
            ],
        )
        connection.cursor().executemany(
            "INSERT INTO replication.drift (reconciliation_id, target, key_digest, kind, columns, repaired)"
            " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [(run_id, d.target, d.key_digest, d.kind, list(d.columns), d.repaired) for d in drift],
        )


def fail(connection: Connection, run_id: int) -> None:
    """Record that a run did not come to an end."""
    with translating("recording the reconciliation"):
        connection.execute(
            "UPDATE replication.reconciliations SET status = 'failed', finished_at = clock_timestamp() WHERE id = %s",
            [run_id],
        )
