"""Stores which changes are proven to be in Aurora, by their creation times: `replication.tables.proven`.

Invariant: it contains a time only once every change made then is in Aurora, was superseded there, or is a reject. The
statement that applies the stream checks it (`pipeline.aurora.rows.upsert.admitted_late`), so a late change undoes
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping.losses import LEFT_NOTHING
from pipeline.aurora.errors import translating
from pipeline.aurora.sessions.connection import trusted

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from pipeline.aurora.sessions.connection import Connection


def prove_caught_up(
    connection: Connection, table_name: str, since: datetime, until: datetime, margin: timedelta
) -> None:
    """Count a range as proven, except a margin at both ends, once all its windows are applied.

    Not the second in which the later margin begins: of two changes in it, a streamed row of the first would stay.
    It is merged with adjoining ranges of earlier catch-ups.
    """
    with translating("recording a caught-up range as proven", table=table_name):
        connection.execute(_CAUGHT_UP, {"table": table_name, "since": since, "until": until, "margin": margin})


_CAUGHT_UP = """
UPDATE replication.tables SET proven = COALESCE(proven, '{}') + COALESCE((
       SELECT range_agg(tstzrange(lower(whole) + %(margin)s, upper(whole) - %(margin)s, '[)'))
         FROM unnest((SELECT range_agg(tstzrange(since, until, '[]')) FROM (
              SELECT since, until FROM replication.caught_up WHERE table_name = %(table)s
              UNION ALL SELECT %(since)s, %(until)s) AS ranges)) AS whole
        WHERE upper(whole) - lower(whole) > 2 * %(margin)s), '{}')
 WHERE name = %(table)s
"""


def prove_reconciled(connection: Connection, run_id: int) -> None:
    """Count all up to a reconciliation's `as_of` as proven, if it left nothing to do; in the caller's transaction."""
    with translating("recording a reconciliation as proof"):
        connection.execute(_RECONCILED, [run_id])


_RECONCILED = trusted(f"""
UPDATE replication.tables AS t SET proven = COALESCE(proven, '{{}}') + tstzmultirange(tstzrange(NULL, r.as_of, '[]'))
  FROM replication.reconciliations AS r WHERE r.id = %s AND r.table_name = t.name AND {LEFT_NOTHING}
""")  # noqa: S608 - constants only
