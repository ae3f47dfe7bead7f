"""The primary key and the indexes of a table built aside: built when it is full, several at once.

Invariant: each is one transaction, and what is done is read from the database, so a killed load resumes. Afterwards the
build has exactly the indexes and checks that the storage table has (`carried_indexes`).
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.schema import carried_indexes, tables
from pipeline.core.errors import TransientError
from pipeline.core.model.mapping import STORAGE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.aurora.rows.build_aside import Build
    from pipeline.aurora.schema.carried_indexes import Carried
    from pipeline.aurora.sessions.connection import Connection

BUILD_MEMORY = "256MB"
# Processes that PostgreSQL may add for each index; `max_parallel_workers` limits them for all.
BUILD_WORKERS = 2
_LOOK_SECONDS = 0.2


def build(
    connection: Connection,
    build: Build,
    *,
    sessions: int = 1,
    connect: Callable[[], Connection] | None = None,
    stopped: threading.Event | None = None,
) -> None:
    """Build the primary key and the indexes of the filled table and of its children; nothing twice.

    Of several rows with equal keys one is kept, unless there are children: nothing says which of them a child belongs
    to. Up to `sessions` are built at once; `connect` opens the connections for that, and setting `stopped` ends it.
    Raises DataError if a row cannot be indexed, or violates a constraint of the storage table.
    """
    stopped = stopped or threading.Event()
    # The largest first: children have more rows than their parent.
    each = list(reversed(build.tables))
    for one in each:
        with translating("building the primary key", table=build.table_name), connection.transaction():
            # If an earlier run was killed, its server process may still be building an index.
            connection.execute(sql.SQL("LOCK TABLE {} IN ROW EXCLUSIVE MODE").format(one.identifier))
    missing = [(one, index) for one in each for index in _matched(connection, one)]
    keys = [partial(_index_key, one, build) for one in each if not _is_keyed(connection, one)]
    # Repeated keys would violate unique indexes, so these come after the key, which keeps one row of each key.
    plain = [partial(_create, one, index) for one, index in missing if not index.restricts]
    restricting = [partial(_create, one, index) for one, index in missing if index.restricts]
    for jobs in ([*keys, *plain], restricting):
        _run(jobs, connection, connect, sessions if connect else 1, stopped)
    if stopped.is_set():
        raise TransientError("building the indexes: it was stopped", table=build.table_name)
    for one in each:
        _attach_key(connection, one)


def complete(connection: Connection, build: Build) -> tuple[Carried, ...] | None:
    """Return what the build has beside its key; None unless the storage table has just that, too, now."""
    wanted, there = carried_indexes.carried(connection, build.target.storage_name, build.name)
    return wanted if {one.on(build.name) for one in wanted} == there else None


def count_overtaken(connection: Connection, build: Build, rows: int) -> None:
    """Count rows of the export that a newer row took the place of."""
    connection.execute(
        "UPDATE replication.builds SET overtaken = overtaken + %s WHERE export_id = %s AND storage_name = %s",
        [rows, build.export_id, build.target.storage_name],
    )


def _matched(connection: Connection, build: Build) -> list[Carried]:
    """Drop what the storage table no longer has; return what is missing."""
    found, there = carried_indexes.carried(connection, build.target.storage_name, build.name)
    wanted = {one.on(build.name): one for one in found}
    with translating("dropping indexes of the table loaded aside", table=build.table_name):
        for name in there - wanted.keys():
            connection.execute(
                sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(build.identifier, sql.Identifier(name))
            )
            connection.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(STORAGE_SCHEMA, name)))
    return [one for name, one in wanted.items() if name not in there]


def _run(
    jobs: Sequence[Callable[[Connection], None]],
    connection: Connection,
    connect: Callable[[], Connection] | None,
    sessions: int,
    stopped: threading.Event,
) -> None:
    """Run the jobs, several at once; the first failure cancels the others."""
    waiting: SimpleQueue[Callable[[Connection], None]] = SimpleQueue()
    for job in jobs:
        waiting.put(job)
    failed = threading.Event()

    def work(session: Connection) -> None:
        while not (failed.is_set() or stopped.is_set()):
            try:
                job = waiting.get_nowait()
            except Empty:
                return
            job(session)

    with ExitStack() as opened:
        own = [connection]
        while connect and len(own) < min(len(jobs), sessions):
            try:
                own.append(opened.enter_context(closing(connect())))
            except TransientError:  # the server has no session to spare: the open ones are enough
                break
        pool = opened.enter_context(ThreadPoolExecutor(max_workers=len(own), thread_name_prefix="index"))
        _wait([pool.submit(work, session) for session in own], own, failed, stopped)


def _wait(
    doing: list[Future[None]], sessions: list[Connection], failed: threading.Event, stopped: threading.Event
) -> None:
    running = set(doing)
    while running:
        done, running = wait(running, timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED")
        if running and not failed.is_set() and (stopped.is_set() or any(one.exception() for one in done)):
            failed.set()
            for session in sessions:
                session.cancel_safe()
    errors = [error for one in doing if (error := one.exception())]
    # Cancelled jobs are a consequence of the one that failed, so its error comes first.
    for error in sorted(errors, key=lambda error: isinstance(error.__context__, psycopg.errors.QueryCanceled)):
        raise error


def _is_keyed(connection: Connection, build: Build) -> bool:
    """Whether the table has its key, or the index that becomes it."""
    with translating("building the primary key", table=build.table_name):
        found = connection.execute(
            "SELECT FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
            " WHERE i.indrelid = %s::regclass AND (i.indisprimary OR c.relname = %s)",
            [build.identifier.as_string(), build.key_name],
        ).fetchone()
    return found is not None


def _index_key(build: Build, root: Build, connection: Connection) -> None:
    add = sql.SQL("CREATE UNIQUE INDEX {} ON {} ({})").format(
        sql.Identifier(build.key_name), build.identifier, tables.identifiers(build.target.primary_key)
    )
    with translating("building the primary key", table=build.table_name):
        try:
            with connection.transaction():
                _set_up(connection)
                connection.execute(add)
        except psycopg.errors.UniqueViolation:
            if root.children:
                raise
            with connection.transaction():
                _set_up(connection)
                _remove_repeated(connection, build)
                connection.execute(add)


def _attach_key(connection: Connection, build: Build) -> None:
    with translating("building the primary key", table=build.table_name), connection.transaction():
        keyed = connection.execute(
            "SELECT FROM pg_index WHERE indisprimary AND indrelid = %s::regclass", [build.identifier.as_string()]
        ).fetchone()
        if keyed is None:
            connection.execute(
                sql.SQL("ALTER TABLE {0} ADD CONSTRAINT {1} PRIMARY KEY USING INDEX {1}").format(
                    build.identifier, sql.Identifier(build.key_name)
                )
            )


def _create(build: Build, one: Carried, connection: Connection) -> None:
    with translating(f"building {one.name}", table=build.table_name), connection.transaction():
        _set_up(connection)
        connection.execute(one.create(build.name))


def _set_up(connection: Connection) -> None:
    connection.execute(sql.SQL("SET LOCAL maintenance_work_mem = {}").format(sql.Literal(BUILD_MEMORY)))
    connection.execute(sql.SQL("SET LOCAL max_parallel_maintenance_workers = {}").format(sql.Literal(BUILD_WORKERS)))


def _remove_repeated(connection: Connection, build: Build) -> None:
    cursor = connection.execute(
        sql.SQL(
            "DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM (SELECT ctid,"
            " row_number() OVER (PARTITION BY {key} ORDER BY ctid) AS nth FROM {table}) AS r WHERE nth > 1))"
        ).format(table=build.identifier, key=tables.identifiers(build.target.primary_key))
    )
    count_overtaken(connection, build, cursor.rowcount)
