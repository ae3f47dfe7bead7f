"""Removes what schema `replication` holds about one item: rejects, recorded drift, changes that are waited for.

Invariant: idempotent; each function is one transaction of its own, so a killed run is repeated whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping import rejects
from pipeline.aurora.errors import translating
from pipeline.aurora.rows import one_row
from pipeline.aurora.schema import catalog, tables
from pipeline.core.model.history import base_name, table_name
from pipeline.core.model.mapping import AS_OF, BOOKKEEPING_COLUMNS, DELETED, STORAGE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from pipeline.aurora.bookkeeping.rejects import StoredReject
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping, Target
    from pipeline.core.ordering import Position

_CHUNK = 500


def delete_rejects(connection: Connection, table_name: str, is_theirs: Callable[[StoredReject], bool]) -> int:
    """Delete the rejects that are the item's, replayed ones too; return how many."""
    seen, deleted = 0, 0
    while chunk := rejects.after(connection, table_name, seen, _CHUNK):
        seen = chunk[-1].id
        numbers = [reject.id for reject in chunk if is_theirs(reject)]
        if numbers:
            with translating("deleting rejects of an item", table=table_name):
                found = connection.execute("DELETE FROM replication.rejects WHERE id = ANY (%s)", [numbers])
                deleted += found.rowcount
    return deleted


def delete_records(
    connection: Connection, table_name: str, target: Target, key: Sequence[str], digest: str, position: Position
) -> int:
    """Delete the recorded drift of a row, and its key where a change was waited for; return how many records.

    A change newer than `position` stays: something new may be on its way.
    """
    with translating("deleting what is recorded about a row", table=table_name), connection.transaction():
        drift = connection.execute(
            "DELETE FROM replication.drift AS d USING replication.reconciliations AS r WHERE r.id = d.reconciliation_id"
            " AND r.table_name = %s AND d.target = %s AND d.key_digest = %s",
            [table_name, target.view_name, digest],
        ).rowcount
        waiting = connection.execute(
            "DELETE FROM replication.probe_waiting WHERE table_name = %s AND target = %s AND key = %s AND as_of <= %s",
            [table_name, target.view_name, list(key), position.as_of],
        ).rowcount
        connection.execute(  # the promotion begins again
            "UPDATE replication.promotions SET after_key = NULL"
            " WHERE table_name = %s AND target = %s AND after_key = %s",
            [table_name, target.view_name, list(key)],
        )
    return drift + waiting


def delete_from_builds(connection: Connection, mapping: TableMapping, target: Target, key: Sequence[str]) -> int:
    """Delete the row, and its children's, from tables that an unfinished load has built; return how many rows."""
    names = {table.storage_name for table in (target, *_below(target))}
    with translating("deleting a row of an unfinished load", table=mapping.name), connection.transaction():
        found = connection.execute(
            "SELECT build_name FROM replication.builds JOIN replication.exports AS e ON e.id = export_id"
            " JOIN pg_tables ON schemaname = %s AND tablename = build_name"
            " WHERE table_name = %s AND swapped_at IS NULL AND storage_name = ANY (%s)",
            [STORAGE_SCHEMA, mapping.name, list(names)],
        ).fetchall()
        return sum(
            one_row.execute(
                connection,
                sql.SQL("DELETE FROM {} AS t WHERE {}").format(
                    sql.Identifier(STORAGE_SCHEMA, name), one_row.same_key(target, "t")
                ),
                key,
            ).rowcount
            for (name,) in found
        )


def row_is_live(connection: Connection, target: Target, key: Sequence[str]) -> datetime | None:
    """Return the `as_of` of the row if it is live."""
    with translating("looking at a row"):
        row = one_row.execute(
            connection,
            sql.SQL("SELECT {} FROM {} AS t WHERE NOT {} AND {}").format(
                sql.Identifier(AS_OF), tables.storage(target), sql.Identifier(DELETED), one_row.same_key(target, "t")
            ),
            key,
        ).fetchone()
    return row[0] if row else None


def empty_tombstone(connection: Connection, target: Target, key: Sequence[str]) -> None:
    """Empty the columns of a tombstone that the mapping has no more, inside the caller's transaction."""
    known = [*target.stored_columns, *target.primary_key, *BOOKKEEPING_COLUMNS]
    with translating("emptying a tombstone"):
        found = connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"
            " AND attgenerated = '' AND attidentity = '' AND attname <> ALL (%s::text[])",
            [tables.storage(target).as_string(connection), known],
        ).fetchall()
        if found:
            assignments = [sql.SQL("{} = DEFAULT").format(sql.Identifier(name)) for (name,) in found]
            one_row.execute(
                connection,
                sql.SQL("UPDATE {} AS t SET {} WHERE {} AND {}").format(
                    tables.storage(target),
                    sql.SQL(", ").join(assignments),
                    sql.Identifier(DELETED),
                    one_row.same_key(target, "t"),
                ),
                key,
            )


def analyze(connection: Connection, target: Target) -> None:
    """Make the planner's statistics anew, which have values of columns: of a target's tables and its children's."""
    names = [table.storage_name for table in (target, *_below(target))]
    names += [table_name(target), base_name(target)]
    with translating("making statistics anew"):
        for name in names:
            if catalog.stored_table(connection, STORAGE_SCHEMA, name):
                connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(STORAGE_SCHEMA, name)))


def exports(connection: Connection, table_name: str) -> list[str]:
    """Return the snapshots and windows of the table that were loaded, by ARN or else location."""
    with translating("reading the exports of a table", table=table_name):
        rows = connection.execute(
            "SELECT DISTINCT COALESCE(export_arn, location) FROM replication.exports WHERE table_name = %s ORDER BY 1",
            [table_name],
        ).fetchall()
    return [name for (name,) in rows]


def _below(target: Target) -> list[Target]:
    return [table for child in target.children for table in (child, *_below(child))]
