"""Fills a history from a table of rows: from the storage table, or from one that was built aside, before its swap.

Invariant: a stored row is a version, at its own position, that whoever wrote the row has recorded too, if it knew of
the history. So filling adds only what is missing, may be interrupted and repeated, and needs no lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping import histories
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.history import record, stored
from pipeline.aurora.schema import history_tables, tables
from pipeline.aurora.sessions.clock import database_now
from pipeline.core.model.history import table_name
from pipeline.core.model.mapping import AS_OF, VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pipeline.aurora.rows.build_aside import Build
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

# Pages of the source that one transaction reads: 64 MB.
PAGES_AT_ONCE = 8_192


def fill(connection: Connection, mapping_name: str, target: Target, *, pages: int = PAGES_AT_ONCE) -> int:
    """Record every stored row that has no version yet; return how many had none.

    The first time they are the rows of before the history. Later a writer that did not know of the history has written
    them, and may have written more versions than the last: that span becomes a gap. Rows that an earlier call has seen
    are not looked up again. Does nothing before `migrate` has created the history.
    """
    recorded = histories.read(connection, target)
    if recorded is None or recorded.stopped_at is not None:
        return 0
    seen = sql.SQL("age(c.xmin) <= age({}::xid8::xid)").format(sql.Literal(recorded.filled_xid or "0"))
    since = seen if recorded.filled_xid else sql.SQL("true")
    begun, oldest_running = database_now(connection), _oldest_running(connection)
    kept = sql.SQL("c.{} >= {} AND {}").format(sql.Identifier(AS_OF), sql.Literal(recorded.kept_from), since)
    # What a late writer recorded waits in the default partition until a purge moves it to the base.
    older = sql.SQL("c.{} < {} AND {} AND NOT EXISTS (SELECT FROM {} AS v WHERE {})").format(
        sql.Identifier(AS_OF),
        sql.Literal(recorded.kept_from),
        since,
        history_tables.versions(target),
        sql.SQL(" AND ").join(
            [
                *(sql.SQL("v.{0} = c.{0}").format(sql.Identifier(name)) for name in (*target.primary_key, AS_OF)),
                sql.SQL("v.{0} = COALESCE(c.{0}, 0)").format(sql.Identifier(VERSION)),
            ]
        ),
    )
    # The storage table's rows have the system column that `xmin` names; no column of a mapping can have its name.
    added = 0
    for rows in _ranges(connection, tables.storage(target), pages, "*, xmin"):
        with translating("filling the history", table=mapping_name), connection.transaction():
            for condition, into in ((kept, history_tables.versions(target)), (older, history_tables.base(target))):
                added += connection.execute(
                    record(target, rows, stored(target, "c"), condition=condition, into=into)
                ).rowcount
    with translating("filling the history", table=mapping_name), connection.transaction():
        if added and recorded.filled_at:
            histories.add_gap(
                connection, table_name(target), recorded.filled_at, "rows were written without their versions"
            )
        connection.execute(
            "UPDATE replication.histories SET filled_at = %s, filled_xid = %s::xid8 WHERE history_name = %s",
            [begun, oldest_running, table_name(target)],
        )
    return added


def record_build(
    connection: Connection,
    build: Build,
    *,
    stopped: Callable[[], bool] = lambda: False,
    check: Callable[[], None] = lambda: None,
    pages: int = PAGES_AT_ONCE,
) -> None:
    """Record the rows of a table built aside, before rows of the storage table take their places.

    The children's tables must have their keys. Setting `stopped` ends it; it may be repeated. `check` comes last in
    each transaction, when its locks keep `migrate` out, and raises if the rows must not be stored any more.
    """
    target = build.target
    if not target.history:
        return
    snapshot = sql.SQL("c.{} IS NULL AND c.{} = {}").format(
        sql.Identifier(VERSION), sql.Identifier(AS_OF), sql.Literal(build.as_of)
    )
    children = stored(target, "c", [child.identifier for child in build.children])
    for rows in _ranges(connection, build.identifier, pages, "*"):
        if stopped():
            return
        with translating("recording the versions of the snapshot", table=build.table_name), connection.transaction():
            connection.execute(record(target, rows, children, condition=snapshot))
            check()


def _ranges(connection: Connection, table: sql.Identifier, pages: int, columns: str) -> Generator[sql.Composed]:
    """Yield the rows of a table, as relations `c`, in ranges of pages (PostgreSQL manual, TID range scans)."""
    row = connection.execute(
        "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::bigint", [table.as_string(connection)]
    ).fetchone()
    last: int = row[0] if row else 0
    for first in range(0, last + 1, pages):
        yield sql.SQL(
            "(SELECT {columns} FROM {table} WHERE ctid >= '({first},0)'::tid AND ctid < '({end},0)'::tid) AS c"
        ).format(
            columns=sql.SQL(columns),  # type: ignore[arg-type]  # constants of this module
            table=table,
            first=sql.SQL(str(first)),  # type: ignore[arg-type]  # a number
            end=sql.SQL(str(first + pages)),  # type: ignore[arg-type]  # a number
        )


def _oldest_running(connection: Connection) -> str:
    row = connection.execute("SELECT pg_snapshot_xmin(pg_current_snapshot())::text").fetchone()
    return row[0] if row else "0"
