"""Migrates the database to match the mappings, one step at a time, without blocking anyone.

Invariant: each step is one transaction, or one statement that builds or drops an index without blocking writers. No
transaction waits for a lock longer than LOCK_WAIT_SECONDS, and none queues while somebody holds the table for longer,
because whoever waits for an exclusive lock makes everyone behind it wait, including the replicator. One migration runs
at a time.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from pipeline.aurora.bookkeeping import bookkeeping, protected_rejects
from pipeline.aurora.errors import translating
from pipeline.aurora.schema import history_tables, index_build, lock_holders, tables
from pipeline.aurora.schema.plan import Plan, Step, plan
from pipeline.aurora.sessions import advisory_locks
from pipeline.core.errors import TerminalError, TransientError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping, Target

LOCK_WAIT_SECONDS = 1.0
_ATTEMPTS = 5
# How often to look whether the table is free, each LOCK_WAIT_SECONDS.
_LOOKS = 60
_OTHER_MIGRATION_SECONDS = 120
# `bookkeeping.install` takes the same lock for its transaction; a session may take a lock again that it has.


def migrate(
    connection: Connection,
    mappings: Iterable[TableMapping],
    *,
    sleep: Callable[[float], None] = time.sleep,
    progress: Callable[[Step], None] = lambda _: None,
    watch: Callable[[], Connection] | None = None,
    tell: Callable[[str], None] = lambda _: None,
    new_key: bool = False,
) -> Plan:
    """Apply the plan and return it: its steps are done, its refusals are not.

    Finished steps stay done if a later step fails; run it again to resume. `watch` opens another connection, which
    finds out what the build of an index waits for; `tell` reports it. `new_key` is as for `plan`. Raises TransientError
    if a lock cannot be taken, or another migration does not end.
    """
    mappings = tuple(mappings)
    relations = {
        mapping.name: [name for target in mapping.tables for name in relations_of(target)] for mapping in mappings
    }
    with _alone(connection):
        planned = plan(connection, mappings, new_key=new_key)
        for step in planned.steps:
            progress(step)
            if step.index:
                index_build.run(
                    connection, step.sql, step.index, what=step.what, table=step.mapping, watch=watch, tell=tell
                )
            elif step.rejects:
                protected_rejects.protect(connection, next(each for each in mappings if each.name == step.mapping))
            elif step.mapping:
                _apply(connection, step, [] if step.only_records else relations[step.mapping], sleep)
            else:
                bookkeeping.install(connection)
    return planned


def relations_of(target: Target) -> list[sql.Identifier]:
    """Return the tables and views that a migration may lock."""
    of_history = [history_tables.versions(target), history_tables.base(target)] if target.history else []
    return [tables.storage(target), tables.view(target), *of_history]


@contextmanager
def _alone(connection: Connection) -> Generator[None]:
    with translating("waiting for another migration to finish"):
        connection.execute(f"SET lock_timeout = '{_OTHER_MIGRATION_SECONDS}s'".encode())
        try:
            advisory_locks.MIGRATION.take(connection)
        finally:
            connection.execute("SET lock_timeout = 0")  # RESET would restore the role's own setting
    try:
        yield
    finally:
        advisory_locks.MIGRATION.give_back(connection)


def _apply(
    connection: Connection, step: Step, relations: Sequence[sql.Identifier], sleep: Callable[[float], None]
) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        held = lock_holders.wait_until_free(connection, relations, pause=lambda: sleep(LOCK_WAIT_SECONDS), looks=_LOOKS)
        try:
            with translating(f"migrating: {step.what}", table=step.mapping), connection.transaction():
                connection.execute(
                    sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(int(LOCK_WAIT_SECONDS * 1000)))
                )
                return _execute(connection, step)
        except UnreachableError:
            raise
        except TransientError as error:
            if held or attempt == _ATTEMPTS:
                held = lock_holders.holders(connection, relations)
                raise TransientError(error.message, table=step.mapping, hint=lock_holders.way_out(held)) from None
    raise AssertionError  # pragma: no cover - the last attempt returns or raises


def _execute(connection: Connection, step: Step) -> None:
    """Run a step's statements. If something outside the plan prevents it, the error names it as PostgreSQL does.

    These two errors name objects of the schema and no values, unlike most.
    """
    try:
        connection.execute(step.sql.encode())
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.DependentObjectsStillExist) as error:
        said = "; ".join(filter(None, (error.diag.message_primary, error.diag.message_detail)))
        raise TerminalError(
            f"migrating: {step.what}: PostgreSQL refuses it: {' '.join(said.split())}",
            table=step.mapping,
            hint="drop what depends on it, run this again, and create it again afterwards",
        ) from None
