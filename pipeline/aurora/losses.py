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


_HEAL = """
UPDATE replication.losses AS l SET healed_at = clock_timestamp()
 WHERE l.table_name = %(table)s AND l.healed_at IS NULL
   AND (EXISTS (SELECT FROM replication.reconciliations AS r
                 WHERE r.table_name = l.table_name AND r.status = 'done' AND r.as_of >= l.until
                   AND COALESCE(r.missing + r.extra + r.different + COALESCE(r.stale, 0) - r.repaired, 1) = 0
                   AND COALESCE(r.undecided, 0) = 0)
        OR COALESCE((SELECT range_agg(tstzrange(c.since, c.until)) FROM replication.caught_up AS c
                      WHERE c.table_name = l.table_name)
                    @> tstzrange(l.since - %(margin)s, l.until + %(margin)s), false))
"""


def note_caught_up(connection: Connection, table_name: str, since: datetime, until: datetime) -> None:
    """Record that a catch-up over a range has come to its end: every window, every seam, every item read again."""
    with translating("recording the range that was caught up", table=table_name):
        connection.execute(
            "INSERT INTO replication.caught_up (table_name, since, until) VALUES (%s, %s, %s)"
            " ON CONFLICT (table_name, since, until) DO UPDATE SET finished_at = excluded.finished_at",
            [table_name, since, until],
        )


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
