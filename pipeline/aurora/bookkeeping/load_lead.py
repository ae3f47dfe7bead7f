"""Which session leads a load, and whether a file may still be loaded for it, by this run or by another.

Invariant: a file's rows and mark commit only while the session that began the load is alive and holds the table's load
lock, and only with the load's strategy. Whoever takes that lock next, or discards the tables built aside, first waits
for the files still being loaded, so none commits late, wherever its worker runs.

A load's *lead* is the one run that begins and ends it. It holds the load lock, and a lock on a random number for this
run, the *ticket*. If one session holds both, the load is running. The server releases both locks when the session ends,
for whatever reason.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.aurora.errors import translating
from pipeline.aurora.sessions import advisory_locks
from pipeline.core.errors import ReplicationError, TransientError

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection

# The server ends the session of a worker whose host was lost within half a minute (`connection.connect`).
WAIT_SECONDS = 40


@dataclass(frozen=True, slots=True)
class Lead:
    """What another run needs to join a load."""

    export_id: int
    ticket: int


@dataclass(frozen=True, slots=True)
class LedLoad:
    """A running load, as a run that joins it finds it."""

    location: str
    strategy: str
    mapping_digest: str
    as_of: datetime
    snapshot_time: datetime


class LoadEndedError(TransientError):
    """The load that a file belongs to has ended, or continues with another strategy."""


def take_lead(connection: Connection, export_id: int) -> Lead:
    """Mark this session, which holds the table's load lock, as the lead of a load."""
    ticket = secrets.randbits(52)  # a number that every JSON reader keeps exactly
    with translating("taking the lead of the load"):
        advisory_locks.load_lead(ticket).take(connection)
        connection.execute("UPDATE replication.exports SET lead = %s WHERE id = %s", [ticket, export_id])
    return Lead(export_id, ticket)


def led_load(connection: Connection, table_name: str, lead: Lead) -> LedLoad | None:
    """Return the load that `lead` leads; None if it has ended, or its session is gone."""
    with translating("looking for the load", table=table_name):
        row = connection.execute(
            _LED_LOAD,
            {"space": advisory_locks.LOAD, "table": table_name, "ticket": lead.ticket, "export": lead.export_id},
        ).fetchone()
    return LedLoad(*row) if row else None


def current_lead(connection: Connection, table_name: str) -> tuple[Lead, LedLoad] | None:
    """Return the load of the table that a session leads now, and its lead; None if there is none."""
    with translating("looking for a load that runs", table=table_name):
        row = connection.execute(
            "SELECT id, lead FROM replication.exports WHERE table_name = %s AND status = 'loading' AND lead IS NOT NULL"
            " AND EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted"
            " AND classid::bigint = lead >> 32 AND objid::bigint = lead & 4294967295)",
            [table_name],
        ).fetchone()
    lead = Lead(*row) if row else None
    found = led_load(connection, table_name, lead) if lead else None
    return (lead, found) if lead and found else None


def take_part(connection: Connection, table_name: str, lead: Lead, strategy: str) -> None:
    """Join a load for the rest of the transaction. Raises LoadEndedError if it has ended or changed its strategy."""
    with translating("joining the load", table=table_name):
        taken = advisory_locks.load_files(table_name).try_take_for_transaction(connection, shared=True)
    # A separate statement, so that it sees what the previous holders of the lock have done.
    found = led_load(connection, table_name, lead) if taken else None
    if found is None or found.strategy != strategy:
        raise LoadEndedError(
            "loading: the load that this file belongs to has ended or started over",
            table=table_name,
            hint="run the load again; what is loaded stays loaded",
        )


def wait_for_files(connection: Connection, table_name: str) -> None:
    """Wait for the files being loaded, then block the loading of files for the rest of the transaction.

    Raises TransientError.
    """
    with translating("waiting for the files that a load of this table is loading", table=table_name):
        connection.execute("SELECT set_config('lock_timeout', %s, true)", [f"{WAIT_SECONDS}s"])
        advisory_locks.load_files(table_name).take_for_transaction(connection)
        connection.execute("SET LOCAL lock_timeout = 0")


def await_files(connection: Connection, table_name: str, *, shared: bool = False) -> None:
    """Wait until no file of the previous load is being loaded.

    If one still is after the wait, release the load lock (held exclusively or shared), and raise TransientError.
    """
    try:
        with connection.transaction():
            wait_for_files(connection, table_name)
    except ReplicationError:
        advisory_locks.load(table_name).give_back(connection, shared=shared)
        raise


# One session in this database must hold both locks.
_LED_LOAD = """
SELECT location, strategy, shape, as_of, snapshot_time FROM replication.exports
 WHERE id = %(export)s AND table_name = %(table)s AND status = 'loading' AND EXISTS (
    SELECT FROM pg_locks AS load JOIN pg_locks AS lead USING (pid, database)
     WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database())
       AND load.locktype = 'advisory' AND load.granted AND load.mode = 'ExclusiveLock' AND load.objsubid = 2
       AND load.classid::bigint = hashtext(%(space)s)::bigint & 4294967295
       AND load.objid::bigint = hashtext(%(table)s)::bigint & 4294967295
       AND lead.locktype = 'advisory' AND lead.granted AND lead.mode = 'ExclusiveLock' AND lead.objsubid = 1
       AND lead.classid::bigint = %(ticket)s::bigint >> 32 AND lead.objid::bigint = %(ticket)s::bigint & 4294967295)
"""
