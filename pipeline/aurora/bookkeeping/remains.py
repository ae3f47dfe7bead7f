"""Removes leftovers: rows of writers that are gone, and records that nobody needs any more.

Invariant: nothing that affects decisions about rows is removed. The newest fully loaded snapshot stays, windows stay
while they could be requested again, and a writer's counts stay in the totals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import export_requests
from pipeline.aurora.bookkeeping.watermarks import GONE_WRITERS, WRITERS_NOT_LIVE
from pipeline.aurora.errors import translating
from pipeline.aurora.rows import build_aside
from pipeline.aurora.sessions.connection import trusted

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection

_COUNTS = ("batches", "records", "applied", "stale", "deleted", "expired", "rejected", "refused")

_FOLD = f"""
WITH gone AS (
    DELETE FROM replication.watermarks WHERE table_name = %(table)s AND {{which}} RETURNING *), sums AS (
    SELECT {", ".join(f"COALESCE(sum({name}), 0)::bigint AS {name}" for name in _COUNTS)},
           max(as_of) AS as_of, max(applied_at) AS applied_at FROM gone HAVING count(*) > 0), folded AS (
    INSERT INTO replication.watermarks AS w (table_name, writer, as_of, applied_at, {", ".join(_COUNTS)})
    SELECT %(table)s, %(sum)s, as_of, applied_at, {", ".join(_COUNTS)} FROM sums
        ON CONFLICT (table_name, writer) DO UPDATE SET as_of = GREATEST(w.as_of, excluded.as_of),
           applied_at = GREATEST(w.applied_at, excluded.applied_at),
           {", ".join(f"{name} = w.{name} + excluded.{name}" for name in _COUNTS)})
SELECT count(*) FROM gone
"""  # noqa: S608 - constants only
_SILENT = """applied_at < %(before)s AND writer <> ALL (%(kept)s)
       AND applied_at < (SELECT max(applied_at) FROM replication.watermarks
                          WHERE table_name = %(table)s AND writer <> ALL (%(kept)s))"""


def fold_all_writers(connection: Connection, table_name: str) -> None:
    """Merge the watermarks of all writers into one, which says nothing about a stream."""
    with translating("merging the watermarks of the old source", table=table_name):
        connection.execute(trusted(_FOLD.format(which="writer <> %(sum)s")), {"table": table_name, "sum": GONE_WRITERS})


def fold_writers(connection: Connection, table_name: str, before: datetime) -> int:
    """Merge the watermarks of writers silent since `before` into one; return how many. The newest stays.

    A writer is one execution environment of the Lambda function. There are many in a year, each lives for hours.
    """
    with translating("merging the watermarks of writers that are gone", table=table_name):
        row = connection.execute(
            trusted(_FOLD.format(which=_SILENT)),
            {"table": table_name, "before": before, "kept": list(WRITERS_NOT_LIVE), "sum": GONE_WRITERS},
        ).fetchone()
    return row[0] if row else 0


def drop_reconciliations(connection: Connection, table_name: str, before: datetime) -> int:
    """Remove reconciliations that began before this time, with their drift, except the table's last one and the last
    that succeeded. Returns how many.
    """
    with translating("removing old reconciliations", table=table_name):
        return connection.execute(
            "DELETE FROM replication.reconciliations AS r WHERE table_name = %(table)s AND started_at < %(before)s"
            " AND status <> 'comparing' AND id <> ALL (ARRAY(SELECT max(id) FROM replication.reconciliations"
            " WHERE table_name = %(table)s GROUP BY status = 'done'))",
            {"table": table_name, "before": before},
        ).rowcount


def drop_exports(connection: Connection, table_name: str, before: datetime) -> int:
    """Remove exports, and builds that nobody resumed, that began before this time; return how many. Needs the load
    lock.

    The newest fully loaded snapshot stays, because it makes loads refuse older ones; a window stays while its range
    could be exported again.
    """
    with translating("removing old loads", table=table_name):
        old = connection.execute(
            "SELECT id FROM replication.exports WHERE table_name = %(table)s AND started_at < %(before)s"
            " AND snapshot_time < %(before)s AND id <> COALESCE((SELECT id FROM replication.exports"
            " WHERE table_name = %(table)s AND status = 'loaded' AND kind <> 'incremental'"
            " ORDER BY as_of DESC, id DESC LIMIT 1), 0)",
            {"table": table_name, "before": before},
        ).fetchall()
        numbers = [number for (number,) in old]
        build_aside.discard(connection, numbers, table_name)
        connection.execute("DELETE FROM replication.exports WHERE id = ANY (%s)", [numbers])
    export_requests.drop_ended(connection, table_name, before)
    return len(numbers)
