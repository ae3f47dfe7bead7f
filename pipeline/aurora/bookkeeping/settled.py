"""Counts *settled* values: those that a column could not hold, and that its `on_error` made NULL or cut.

Invariant: the counts commit with the rows that they describe. They count deliveries, not records: a record delivered
twice counts twice, as in the watermarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg.rows import class_row

from pipeline.aurora.errors import translating

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection


@dataclass(frozen=True, slots=True)
class SettledValues:
    """The count of one column."""

    table: str
    target: str
    column: str
    settled: int
    first_at: datetime
    last_at: datetime


def add(connection: Connection, table_name: str, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Add counts, by target and column, inside the caller's transaction."""
    # In a fixed order, so that two writers never deadlock.
    rows = sorted((target, column, count) for target, of in counts.items() for column, count in of.items())
    if not rows:
        return
    with translating("counting settled values", table=table_name):
        connection.execute(
            "INSERT INTO replication.settled_values AS s (table_name, target, column_name, settled)"
            " SELECT %s, u.* FROM unnest(%s::text[], %s::text[], %s::bigint[]) AS u"
            " ON CONFLICT (table_name, target, column_name) DO UPDATE"
            " SET settled = s.settled + excluded.settled, last_at = excluded.last_at",
            [table_name, *map(list, zip(*rows, strict=True))],
        )


def read(connection: Connection, table_names: Sequence[str] | None = None) -> list[SettledValues]:
    """Return the counts of the tables; None: of all."""
    with translating("reading the settled values"), connection.cursor(row_factory=class_row(SettledValues)) as cursor:
        return cursor.execute(
            'SELECT table_name AS "table", target, column_name AS "column", settled, first_at, last_at'
            " FROM replication.settled_values WHERE %s::text[] IS NULL OR table_name = ANY (%s)"
            " ORDER BY table_name, target, column_name",
            [None if table_names is None else list(table_names)] * 2,
        ).fetchall()
