"""Reads what schema `replication` knows about one item: watermarks, drift found, purges, promotions, loads.

Invariant: reads only, and takes no lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg.rows import class_row

from pipeline.aurora.errors import translating

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection


@dataclass(frozen=True, slots=True)
class WriterMark:
    """How far one writer of a table has come."""

    writer: str
    as_of: datetime | None
    applied_at: datetime


@dataclass(frozen=True, slots=True)
class FoundDrift:
    """One occasion on which a row had drifted."""

    reconciliation_id: int
    target: str
    kind: str
    columns: list[str]
    repaired: bool
    found_at: datetime


@dataclass(frozen=True, slots=True)
class OpenPromotion:
    """A promotion that fills a column of a target; `finished_at` is None while it runs."""

    target: str
    attribute: str
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class TableState:
    """What we know about the whole table."""

    purged_through: datetime | None = None
    loaded_as_of: datetime | None = None
    """The `as_of` of the newest finished full load."""
    loading: bool = False
    """Whether a load has started but not finished."""


def writer_marks(connection: Connection, table_name: str) -> list[WriterMark]:
    """Return the watermarks of a table, newest first."""
    with (
        translating("reading the watermarks", table=table_name),
        connection.cursor(row_factory=class_row(WriterMark)) as c,
    ):
        return c.execute(
            "SELECT writer, as_of, applied_at FROM replication.watermarks WHERE table_name = %s"
            " ORDER BY applied_at DESC, writer",
            [table_name],
        ).fetchall()


def drift_of(connection: Connection, table_name: str, target: str, key_digests: Sequence[str]) -> list[FoundDrift]:
    """Return the drift recorded for a row, newest first."""
    with translating("reading the drift", table=table_name), connection.cursor(row_factory=class_row(FoundDrift)) as c:
        return c.execute(
            "SELECT d.reconciliation_id, d.target, d.kind, d.columns, d.repaired, d.found_at"
            " FROM replication.drift AS d"
            " JOIN replication.reconciliations AS r ON r.id = d.reconciliation_id"
            " WHERE r.table_name = %s AND d.target = %s AND d.key_digest = ANY (%s) ORDER BY d.found_at DESC",
            [table_name, target, list(key_digests)],
        ).fetchall()


def promotions_of(connection: Connection, table_name: str, target: str) -> list[OpenPromotion]:
    """Return the promotions of a target, newest first."""
    with (
        translating("reading the promotions", table=table_name),
        connection.cursor(row_factory=class_row(OpenPromotion)) as c,
    ):
        return c.execute(
            "SELECT target, attribute, started_at, finished_at FROM replication.promotions"
            " WHERE table_name = %s AND target = %s ORDER BY started_at DESC, attribute",
            [table_name, target],
        ).fetchall()


def table_state(connection: Connection, table_name: str) -> TableState:
    """Return what we know about the whole table."""
    with (
        translating("reading the table's state", table=table_name),
        connection.cursor(row_factory=class_row(TableState)) as c,
    ):
        found = c.execute(
            "SELECT t.purged_through,"
            " max(e.as_of) FILTER (WHERE e.status = 'loaded' AND e.kind = 'full') AS loaded_as_of,"
            " COALESCE(bool_or(e.status = 'loading'), false) AS loading FROM replication.tables AS t"
            " LEFT JOIN replication.exports AS e ON e.table_name = t.name WHERE t.name = %s GROUP BY t.purged_through",
            [table_name],
        ).fetchone()
    return found or TableState()
