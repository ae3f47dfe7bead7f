"""Switching a mapping's source of record to another table, in one transaction.

Invariant: every writer under the mapping's name either committed before the switch or sees it. Knowledge about the old
table says nothing about the new one, so the switch removes it: loads (the baseline, and the bound for purges),
caught-up ranges, the progress of writers and probe. `purged_through` stays, because tombstones up to there are gone
whatever the source. Rows stay too, until a load and a reconciliation replace them; until then, an open loss says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping import remains
from pipeline.aurora.errors import translating
from pipeline.aurora.rows import build_aside
from pipeline.aurora.rows.purge import LOCK_SECONDS
from pipeline.aurora.schema import catalog, tables
from pipeline.core.errors import TerminalError
from pipeline.core.model.mapping import STORAGE_SCHEMA
from pipeline.core.past.losses import Kind

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.aurora.bookkeeping.sources import SourceOfRecord
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping

# Tables that describe one source table: its stream, exports and event source mappings.
_FORGOTTEN = ("probes", "probe_shards", "probe_waiting", "source_states", "caught_up")


@dataclass(frozen=True, slots=True)
class Known:
    """What we know about the current source of record, and a switch would remove."""

    loads: int
    rejects: int
    """Waiting rejects."""
    newest_label: str | None
    """The label of the newest stream from which changes were applied."""


def known(connection: Connection, name: str) -> Known:
    """Return what a switch would remove."""
    with translating("reading the records of the source", table=name):
        row = connection.execute(
            "SELECT (SELECT count(*) FROM replication.exports WHERE table_name = %(name)s AND kind <> 'incremental'),"
            " (SELECT count(*) FROM replication.rejects WHERE table_name = %(name)s AND replayed_at IS NULL),"
            " (SELECT max(stream_label) FROM replication.watermarks WHERE table_name = %(name)s)",
            {"name": name},
        ).fetchone()
    return Known(*row) if row else Known(0, 0, None)


def discard_builds(connection: Connection, name: str) -> None:
    """Drop the tables that unfinished loads of the old table built aside. Needs the load lock."""
    with translating("looking for unfinished loads", table=name):
        numbers = connection.execute(
            "SELECT DISTINCT b.export_id FROM replication.builds AS b JOIN replication.exports AS e ON e.id = export_id"
            " WHERE e.table_name = %s AND b.swapped_at IS NULL",
            [name],
        ).fetchall()
    build_aside.discard(connection, [number for (number,) in numbers], name)


def switch(connection: Connection, mapping: TableMapping, before: SourceOfRecord, now: SourceOfRecord) -> datetime:
    """Make `now` the source of record instead of `before`; return when. Needs the load lock.

    Raises TransientError if writers hold the tables for too long, TerminalError if another switch came first.
    """
    name, old = mapping.name, f"of {before.arn or before.table}, which is no longer the source of record: "
    with translating("switching the source of record", table=name), connection.transaction():
        _keep_writers_out(connection, mapping)
        row = connection.execute(
            "UPDATE replication.tables SET source_table = %(table)s, source_arn = %(arn)s, source_table_id = %(id)s,"
            " source_since = clock_timestamp(), stream_label = %(label)s, proven = NULL WHERE name = %(name)s"
            " AND source_table = %(before)s AND source_arn IS NOT DISTINCT FROM %(before_arn)s RETURNING source_since",
            {
                "table": now.table,
                "arn": now.arn,
                "id": now.table_id,
                "label": now.first_label,
                "name": name,
                "before": before.table,
                "before_arn": before.arn,
            },
        ).fetchone()
        if row is None:
            raise TerminalError("switching the source of record: another run switched it meanwhile", table=name)
        for table in _FORGOTTEN:
            connection.execute(
                sql.SQL("DELETE FROM replication.{} WHERE table_name = %s").format(sql.SQL(table)), [name]
            )
        connection.execute("DELETE FROM replication.exports WHERE table_name = %s", [name])
        connection.execute(  # it proves nothing about the new table
            "UPDATE replication.reconciliations SET status = 'abandoned', reason = %s"
            " WHERE table_name = %s AND status IN ('comparing', 'done')",
            [old.removesuffix(": "), name],
        )
        connection.execute(
            "UPDATE replication.export_requests SET outcome = 'superseded', ended_at = clock_timestamp()"
            " WHERE table_name = %s AND ended_at IS NULL",
            [name],
        )
        remains.fold_all_writers(connection, name)
        connection.execute(
            "UPDATE replication.rejects SET replayed_at = clock_timestamp(), reason = %s || reason"
            " WHERE table_name = %s AND replayed_at IS NULL",
            [old, name],
        )
        connection.execute(
            "UPDATE replication.losses SET healed_at = clock_timestamp() WHERE table_name = %s AND healed_at IS NULL",
            [name],
        )
        connection.execute(
            "INSERT INTO replication.losses (table_name, kind, since, until) VALUES (%s, %s, %s, %s)",
            [name, Kind.REPOINTED.value, row[0], row[0]],
        )
    return row[0]


def _keep_writers_out(connection: Connection, mapping: TableMapping) -> None:
    """Wait for the statements that are writing now; later ones see this transaction's changes (as in `purge`)."""
    connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(int(LOCK_SECONDS * 1000))))
    for target in mapping.tables:
        if catalog.stored_table(connection, STORAGE_SCHEMA, target.storage_name):
            connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(tables.storage(target)))
