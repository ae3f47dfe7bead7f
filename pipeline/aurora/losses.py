"""What is remembered of a table's source, and the spans of time whose changes may be lost, in schema `replication`.

Invariant: a loss is closed only by what shows every change of its span to be in Aurora: catch-ups that cover it
without a hole, or a reconciliation as of a later time that left no drift. A load alone does not close it, because a
snapshot does not say what was deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.aurora.errors import translating
from pipeline.core.lost_history import Kind, Loss, Remembered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from pipeline.aurora.connection import Connection


def recall(connection: Connection, table_name: str) -> Remembered:
    """Return the source as it was last seen."""
    with translating("recalling the source", table=table_name):
        row = connection.execute(
            "SELECT stream_label, streamed_at, mapping_ids, mapped_at FROM replication.source_states"
            " WHERE table_name = %s",
            [table_name],
        ).fetchone()
    return Remembered(row[0], row[1], tuple(row[2] or ()), row[3]) if row else Remembered()


def keep(
    connection: Connection,
    table_name: str,
    remembered: Remembered,
    losses: Sequence[Loss],
    *,
    now: datetime,
    margin: timedelta,
) -> list[Loss]:
    """Remember the source and keep new losses, in one transaction; returns all losses that are still open.

    A loss of a kind that is open already widens that one. `margin` is how far beyond a loss catch-ups must reach.
    """
    with translating("keeping what may be lost", table=table_name), connection.transaction():
        for loss in losses:
            connection.execute(
                "INSERT INTO replication.losses AS l (table_name, kind, since, until) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (table_name, kind) WHERE healed_at IS NULL"
                " DO UPDATE SET since = LEAST(l.since, excluded.since), until = GREATEST(l.until, excluded.until)",
                [table_name, loss.kind.value, loss.since, loss.until],
            )
        connection.execute(
            "INSERT INTO replication.source_states (table_name, seen_at, stream_label, streamed_at, mapping_ids,"
            " mapped_at) VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (table_name) DO UPDATE SET"
            " seen_at = excluded.seen_at, stream_label = excluded.stream_label, streamed_at = excluded.streamed_at,"
            " mapping_ids = excluded.mapping_ids, mapped_at = excluded.mapped_at",
            [
                table_name,
                now,
                remembered.stream_label,
                remembered.streamed_at,
                list(remembered.mapping_ids),
                remembered.mapped_at,
            ],
        )
        connection.execute(_HEAL, {"table": table_name, "margin": margin})
        return open_losses(connection, table_name)


# Columns that a later migration adds are read by name, so that a database which lacks it can be looked at too: the
# beginning of an incremental export's window, whether it only joins two windows, and what a reconciliation left open.
_HEAL = """
UPDATE replication.losses AS l SET healed_at = clock_timestamp()
 WHERE l.table_name = %(table)s AND l.healed_at IS NULL
   AND (EXISTS (SELECT FROM replication.reconciliations AS r
                 WHERE r.table_name = l.table_name AND r.status = 'done' AND r.as_of >= l.until
                   AND COALESCE(r.missing + r.extra + r.different - r.repaired, 1) = 0
                   AND COALESCE((to_jsonb(r)->>'stale')::bigint, 0) = 0
                   AND COALESCE((to_jsonb(r)->>'undecided')::bigint, 0) = 0)
        OR COALESCE((SELECT range_agg(tstzrange((to_jsonb(e)->>'from_time')::timestamptz, e.snapshot_time))
                       FROM replication.exports AS e
                      WHERE e.table_name = l.table_name AND e.kind = 'incremental' AND e.status = 'loaded'
                        AND to_jsonb(e)->>'from_time' IS NOT NULL AND (to_jsonb(e)->>'is_seam') IS DISTINCT FROM 'true')
                    @> tstzrange(l.since - %(margin)s, l.until + %(margin)s), false))
"""


def open_losses(connection: Connection, table_name: str) -> list[Loss]:
    """Return the losses that nothing has healed, the earliest first."""
    with translating("reading what may be lost", table=table_name):
        return [
            Loss(Kind(kind), since, until)
            for kind, since, until in connection.execute(
                "SELECT kind, since, until FROM replication.losses WHERE table_name = %s AND healed_at IS NULL"
                " ORDER BY since, kind",
                [table_name],
            )
        ]
