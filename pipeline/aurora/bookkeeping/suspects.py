"""Finds rows that an incremental export should have mentioned but did not.

Invariant: reads only. If the stream or a read by key wrote a live row with a change in the window, and the window's
export did not replace it, the export omits its item: it was inserted and deleted within the window, and the stream lost
the delete. Differing clocks and unconvertible lines add a few suspects whose rows are correct. A snapshot's rows do not
say when they were written, but the export mentions them if they were deleted, because a window begins where the
snapshot ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.schema import tables
from pipeline.core.model.mapping import AS_OF, DELETED, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

_FETCH_ROWS = 1_000


def unmentioned_keys(
    connection: Connection, target: Target, table_name: str, start: datetime, end: datetime
) -> Iterator[tuple[str, ...]]:
    """Yield the keys (texts) of live rows with an `as_of` in [start, end) that come from no recorded snapshot.

    One pass over the table, in its own transaction on `connection`, with bounded memory.
    """
    key = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in target.primary_key)
    query = sql.SQL(
        "SELECT {key} FROM {storage} WHERE NOT {deleted} AND {as_of} >= %(start)s AND {as_of} < %(end)s"
        " AND ({version} IS NOT NULL OR {as_of} <> ALL (ARRAY("
        "SELECT as_of FROM replication.exports WHERE table_name = %(table)s)))"
    ).format(
        key=key,
        storage=tables.storage(target),
        deleted=sql.Identifier(DELETED),
        version=sql.Identifier(VERSION),
        as_of=sql.Identifier(AS_OF),
    )
    with (
        translating("looking for rows that no export mentioned"),
        connection.transaction(),
        connection.cursor("untold") as cursor,
    ):
        cursor.itersize = _FETCH_ROWS
        cursor.execute(query, {"start": start, "end": end, "table": table_name})
        yield from cursor
