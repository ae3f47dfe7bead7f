"""Purging tombstones: old ones go, and `purged_through` says how far, so that nothing older brings a row back.

Invariant: a tombstone is gone only when `purged_through` covers it, for every writer. Each chunk takes a lock that
waits for the writers of the table and keeps new ones waiting, sets `purged_through` and deletes, in one short
transaction: a writer's statement either saw the tombstone, or sees that it was purged. Without the lock a writer
whose snapshot still shows the tombstone and no new `purged_through` could insert an older change once it is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora import tables
from pipeline.aurora.errors import translating
from pipeline.core.errors import TerminalError
from pipeline.core.mapping import AS_OF, DELETED

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.aurora.connection import Connection
    from pipeline.core.mapping import Target

CHUNK_ROWS = 5_000
LOCK_TIMEOUT = "2s"


def purge_chunk(
    connection: Connection, target: Target, mapping_name: str, through: datetime, *, rows: int = CHUNK_ROWS
) -> int:
    """Delete up to `rows` tombstones whose `as_of` is not after `through`; returns how many.

    One transaction; run it until it returns 0. Raises TransientError when the lock is not had in time.
    """
    with translating("purging tombstones", table=mapping_name), connection.transaction():
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(LOCK_TIMEOUT)))
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(tables.storage(target)))
        marked = connection.execute(
            "UPDATE replication.tables SET purged_through = GREATEST(purged_through, %s) WHERE name = %s",
            [through, mapping_name],
        )
        if marked.rowcount != 1:
            raise TerminalError(
                "purging tombstones: the table is not registered, so nothing could say how far it was purged",
                table=mapping_name,
                hint="run `dynaurora migrate`",
            )
        cursor = connection.execute(
            sql.SQL(
                "DELETE FROM {storage} WHERE ctid = ANY (ARRAY("
                "SELECT ctid FROM {storage} WHERE {deleted} AND {as_of} <= %s LIMIT %s))"
            ).format(storage=tables.storage(target), deleted=sql.Identifier(DELETED), as_of=sql.Identifier(AS_OF)),
            [through, rows],
        )
        return cursor.rowcount


def newest_whole_snapshot(connection: Connection, table_name: str) -> datetime | None:
    """Return the `as_of` of the newest full export or scan that was loaded whole; None when none was.

    A purge that goes no further overtakes nothing: whatever is older and still to come, the snapshot held its outcome.
    """
    with translating("looking for the newest snapshot", table=table_name):
        row = connection.execute(
            "SELECT max(as_of) FROM replication.exports"
            " WHERE table_name = %s AND status = 'loaded' AND kind <> 'incremental'",
            [table_name],
        ).fetchone()
    return row[0] if row else None
