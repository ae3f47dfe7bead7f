"""Stores what we remember about a table's source, and the spans of time whose changes may be lost.

Invariant: only proof that every change of its span is in Aurora closes a loss (`pipeline.core.past.losses`). A load
alone does not close it, because a snapshot does not say what was deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.aurora.errors import translating
from pipeline.core.past.losses import Kind, Loss
from pipeline.core.past.lost_history import Remembered

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection

# Condition: reconciliation `r`, with a snapshot of this table, left nothing unrepaired or undecided.
LEFT_NOTHING = (
    "r.status = 'done' AND r.reason IS NULL AND COALESCE(r.undecided, 0) = 0"
    " AND COALESCE(r.missing + r.extra + r.different + COALESCE(r.stale, 0) - r.repaired, 1) = 0"
)


def recall(connection: Connection, table_name: str) -> Remembered:
    """Return the source as it was last seen."""
    with translating("recalling the source", table=table_name):
        row = connection.execute(
            "SELECT stream_label, streamed_at, mapping_ids, mapped_at, table_id, parallelization,"
            " batching_window_seconds FROM replication.source_states WHERE table_name = %s",
            [table_name],
        ).fetchone()
    return Remembered(row[0], row[1], tuple(row[2] or ()), *row[3:]) if row else Remembered()


def remember(connection: Connection, table_name: str, seen: Remembered, now: datetime) -> None:
    """Remember the source, inside the caller's transaction."""
    with translating("remembering the source", table=table_name):
        connection.execute(
            "INSERT INTO replication.source_states (table_name, seen_at, stream_label, streamed_at, mapping_ids,"
            " mapped_at, table_id, parallelization, batching_window_seconds)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (table_name) DO UPDATE SET"
            " seen_at = excluded.seen_at, stream_label = excluded.stream_label, streamed_at = excluded.streamed_at,"
            " mapping_ids = excluded.mapping_ids, mapped_at = excluded.mapped_at, table_id = excluded.table_id,"
            " parallelization = excluded.parallelization, batching_window_seconds = excluded.batching_window_seconds",
            [
                table_name,
                now,
                seen.stream_label,
                seen.streamed_at,
                list(seen.mapping_ids),
                seen.mapped_at,
                seen.table_id,
                seen.parallelization,
                seen.batching_window_seconds,
            ],
        )


def replace(connection: Connection, table_name: str, before: Sequence[Loss], after: Sequence[Loss]) -> None:
    """Store the open losses, one of each kind, and close the others, inside the caller's transaction.

    A loss that another session widened meanwhile stays as wide, unless its span follows from its kept keys.
    """
    gone = sorted({loss.kind.value for loss in before} - {loss.kind.value for loss in after})
    with translating("recording possible losses", table=table_name):
        if gone:
            connection.execute(
                "UPDATE replication.losses SET healed_at = clock_timestamp()"
                " WHERE table_name = %s AND healed_at IS NULL AND kind = ANY (%s)",
                [table_name, gone],
            )
        for loss in after:
            if loss not in before:
                connection.execute(_KEEP, [table_name, loss.kind.value, loss.since, loss.until, loss.keys_kept])


_KEEP = """
INSERT INTO replication.losses AS l (table_name, kind, since, until, keys_kept) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (table_name, kind) WHERE healed_at IS NULL DO UPDATE SET keys_kept = excluded.keys_kept,
   since = CASE WHEN excluded.keys_kept THEN excluded.since ELSE LEAST(l.since, excluded.since) END,
   until = CASE WHEN excluded.keys_kept THEN excluded.until ELSE GREATEST(l.until, excluded.until) END
"""


def note_caught_up(connection: Connection, table_name: str, since: datetime, until: datetime) -> None:
    """Record that a catch-up over a range has finished: every window, every seam, every item read again."""
    with translating("recording the caught-up range", table=table_name):
        connection.execute(
            "INSERT INTO replication.caught_up (table_name, since, until) VALUES (%s, %s, %s)"
            " ON CONFLICT (table_name, since, until) DO UPDATE SET finished_at = excluded.finished_at",
            [table_name, since, until],
        )


def open_losses(connection: Connection, table_name: str) -> list[Loss]:
    """Return the open losses, earliest first."""
    with translating("reading possible losses", table=table_name):
        return [
            Loss(Kind(kind), since, until, keys_kept, found_at)
            for kind, since, until, keys_kept, found_at in connection.execute(
                "SELECT kind, since, until, keys_kept, found_at FROM replication.losses"
                " WHERE table_name = %s AND healed_at IS NULL ORDER BY since, kind",
                [table_name],
            )
        ]
