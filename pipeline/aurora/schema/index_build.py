"""Runs one CREATE or DROP INDEX CONCURRENTLY, and reports what it waits for.

Invariant: it does not run in a transaction. A failed build leaves no invalid index, which every writer would have to
maintain. A killed build leaves one, and the next migration drops and rebuilds it.
"""

from __future__ import annotations

import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

import psycopg

from pipeline.aurora.errors import translate
from pipeline.aurora.schema import lock_holders
from pipeline.aurora.schema.indexes import drop_index
from pipeline.core.errors import DataError, ReplicationError, TerminalError
from pipeline.core.model.mapping import STORAGE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pipeline.aurora.sessions.connection import Connection

BUILD_MEMORY = "256MB"
LOOK_SECONDS = 2.0


def run(
    connection: Connection,
    statement: str,
    index: str,
    *,
    what: str,
    table: str,
    watch: Callable[[], Connection] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Run the statement, which builds or drops `index`. `watch` opens another connection, to find out what it waits
    for.

    Raises TransientError if it may be run again, TerminalError if a person must change something.
    """
    try:
        with _telling(connection.info.backend_pid, watch, lambda text: tell(f"{what}: {text}")):
            connection.execute(f"SET maintenance_work_mem = '{BUILD_MEMORY}'".encode())
            connection.execute(statement.encode())
    except psycopg.Error as error:
        raise _explained(error, what, table) from None
    finally:
        _drop_invalid(connection, index)


def _explained(error: psycopg.Error, what: str, table: str) -> ReplicationError:
    found = translate(error, f"migrating: {what}", table=table)
    if isinstance(found, DataError) and error.sqlstate == "54000":
        return TerminalError(
            found.message,
            table=table,
            hint="a stored value is longer than an index row may be (2,704 bytes): index a shorter column, or remove"
            " the index from the mapping",
        )
    return found


def _drop_invalid(connection: Connection, index: str) -> None:
    if connection.closed:
        return
    with suppress(psycopg.Error):  # the next migration finds it
        connection.execute("RESET maintenance_work_mem")
        if connection.execute(_INVALID, [STORAGE_SCHEMA, index]).fetchone() is not None:
            connection.execute(drop_index(index))


@contextmanager
def _telling(pid: int, watch: Callable[[], Connection] | None, tell: Callable[[str], None]) -> Generator[None]:
    if watch is None:
        yield
        return
    ended = threading.Event()
    watching = threading.Thread(target=_watch, args=(watch, pid, ended, tell), name="index build", daemon=True)
    watching.start()
    try:
        yield
    finally:
        ended.set()
        watching.join()


def _watch(watch: Callable[[], Connection], pid: int, ended: threading.Event, tell: Callable[[str], None]) -> None:
    if ended.wait(LOOK_SECONDS):
        return
    told = ""
    with suppress(psycopg.Error, ReplicationError), closing(watch()) as connection:
        while True:
            if (text := _state(connection, pid)) and text != told:
                told = text
                tell(text)
            if ended.wait(LOOK_SECONDS):
                return


def _state(connection: Connection, pid: int) -> str:
    held = [lock_holders.Holder(*row) for row in connection.execute(_BLOCKING, [pid])]
    if held:
        return f"waits until a transaction has ended: {lock_holders.named(held)}"
    row = connection.execute(_PROGRESS, [pid]).fetchone()
    if row is None:
        return ""
    phase, percent = row
    return phase if percent is None else f"{phase}, {percent} %"


_INVALID = """
SELECT FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s AND NOT i.indisvalid
"""

_BLOCKING = """
SELECT COALESCE(a.backend_xid::text, ''), NULLIF(b.pid, 0), a.state, a.xact_start, COALESCE(a.application_name, '')
  FROM unnest(pg_blocking_pids(%s)) AS b (pid) LEFT JOIN pg_stat_activity AS a USING (pid)
"""

_PROGRESS = """
SELECT phase, CASE WHEN blocks_total > 0 THEN 10 * (10 * blocks_done / blocks_total) END
  FROM pg_stat_progress_create_index WHERE pid = %s
"""
