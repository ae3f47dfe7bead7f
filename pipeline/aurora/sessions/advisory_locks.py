"""All advisory locks that Dynaurora takes, by name, and the few ways to take one.

Invariant: operations that exclude each other use the same lock here. The keys are the same in every version, because an
old version may still run beside a new one. A session lock needs a session of our own
(`pipeline.aurora.sessions.pooler`).
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, LiteralString

import psycopg

if TYPE_CHECKING:
    from collections.abc import Generator
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection

LOAD = "dynaurora.load"


@dataclass(frozen=True, slots=True)
class AdvisoryLock:
    """A lock, held by a session or a transaction, exclusive or shared. `key` is SQL for it, `values` its parameters."""

    key: LiteralString
    values: tuple[str | int, ...]

    def take(self, connection: Connection) -> None:
        """Take it until the session ends. Waits, as `lock_timeout` allows."""
        self._ask(connection, "pg_advisory_lock")

    def take_for_transaction(self, connection: Connection) -> None:
        """Take it until the transaction ends. Waits, as `lock_timeout` allows."""
        self._ask(connection, "pg_advisory_xact_lock")

    def try_take(self, connection: Connection, *, shared: bool = False) -> bool:
        """Take it until the session ends, unless another session holds it; return whether that succeeded."""
        return self._ask(connection, "pg_try_advisory_lock_shared" if shared else "pg_try_advisory_lock")

    def try_take_for_transaction(self, connection: Connection, *, shared: bool = False) -> bool:
        """Take it until the transaction ends, unless another session holds it; return whether that succeeded."""
        return self._ask(connection, "pg_try_advisory_xact_lock_shared" if shared else "pg_try_advisory_xact_lock")

    def give_back(self, connection: Connection, *, shared: bool = False) -> None:
        """Release it, if the session still exists.

        The server may release a closed session's lock too late for the next job.
        """
        if not connection.closed:
            self._ask(connection, "pg_advisory_unlock_shared" if shared else "pg_advisory_unlock")

    def holder(self, connection: Connection) -> tuple[int, datetime | None, str] | None:
        """Return who holds a lock of two words: its process id, when it began (None if the user may not see it), its
        name.
        """
        return connection.execute(_HOLDER, self.values).fetchone()

    def _ask(self, connection: Connection, function: LiteralString) -> bool:
        row = connection.execute(f"SELECT {function}({self.key})", self.values).fetchone()
        return bool(row and row[0])


_HOLDER = (
    "SELECT a.pid, a.backend_start, a.application_name FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
    " WHERE l.locktype = 'advisory' AND l.granted AND l.classid = hashtext(%s)::bigint & 4294967295"
    " AND l.objid = hashtext(%s)::bigint & 4294967295"
)


def _named(purpose: str, table_name: str) -> AdvisoryLock:
    return AdvisoryLock("hashtext(%s), hashtext(%s)", (purpose, table_name))


def load(table_name: str) -> AdvisoryLock:
    """Held by a load of a table, or by work that no load may run beside; shared by work that only excludes loads."""
    return _named(LOAD, table_name)


def load_files(table_name: str) -> AdvisoryLock:
    """Shared by the files of a table's load that are being loaded; taken exclusively to wait for them."""
    return _named("dynaurora.load files", table_name)


def load_lead(ticket: int) -> AdvisoryLock:
    """Shows that the session which leads a load is alive; `ticket` is a random number for this run."""
    return AdvisoryLock("%s", (ticket,))


def file_of_load(export_id: int, file_key: str) -> AdvisoryLock:
    """Held while a file of an export is loaded."""
    return AdvisoryLock("hashtextextended(%s, %s)", (file_key, export_id))


def reconciliation(table_name: str) -> AdvisoryLock:
    """Held while a table is reconciled."""
    return _named("dynaurora.reconcile", table_name)


def file_of_reconciliation(run_id: int, file_key: str) -> AdvisoryLock:
    """Held while a file of a reconciliation's snapshot is staged."""
    return AdvisoryLock("hashtextextended(%s, %s)", (f"dynaurora.reconcile {file_key}", run_id))


def scan(table_name: str) -> AdvisoryLock:
    """Held while a DynamoDB table is scanned."""
    return _named("dynaurora.scan", table_name)


def promotion(table_name: str) -> AdvisoryLock:
    """Held while columns of a table are filled from its jsonb column."""
    return _named("dynaurora.promote", table_name)


MIGRATION = AdvisoryLock("hashtext(%s)", ("dynaurora.migrate",))
"""Held while the database is migrated or the bookkeeping installed."""


@contextmanager
def giving_locks_back(connection: Connection) -> Generator[None]:
    """Release the session's advisory locks at the end of the block.

    The server may release a closed connection's locks too late for the next job.
    """
    try:
        yield
    finally:
        if not connection.closed:
            with suppress(psycopg.Error):  # a lost connection has already lost its locks
                connection.execute("SELECT pg_advisory_unlock_all()")
