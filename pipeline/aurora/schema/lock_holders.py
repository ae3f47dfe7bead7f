"""Finds out who holds a table that we want to lock exclusively, without queueing for that lock.

Whoever queues for an exclusive lock makes everyone who comes later wait too. So we look first, and look again after the
lock's timeout. If the same transaction is there both times, the lock would have timed out, and others would have waited
for nothing.

Invariant: looking takes no lock on the tables, and reads neither users nor the text of queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.aurora.errors import translating

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime

    from psycopg import sql

    from pipeline.aurora.sessions.connection import Connection


@dataclass(frozen=True, slots=True)
class Holder:
    """A transaction that holds a lock on one of the tables, or waits for one."""

    transaction: str
    """Its virtual id, which is different for each transaction of a session."""
    pid: int | None
    """None for a prepared transaction, which has no session."""
    state: str | None
    """`active`, `idle in transaction`; None if the user may not see it."""
    since: datetime | None
    """When it began; None if the user may not see it."""
    application: str

    def __str__(self) -> str:
        if self.pid is None:
            return "a prepared transaction (pg_prepared_xacts)"
        known = [
            self.state or "only members of pg_read_all_stats may see its state",
            f"since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else "",
            f"application {self.application}" if self.application else "",
        ]
        return f"pid {self.pid} ({', '.join(filter(None, known))})"


def named(held: Collection[Holder]) -> str:
    """Name the few that began first."""
    some = sorted(held, key=lambda holder: str(holder.since or "~"))[:3]
    more = f" and {len(held) - len(some)} more" if len(held) > len(some) else ""
    return ", ".join(map(str, some)) + more


def way_out(held: Collection[Holder]) -> str:
    """Say what a person can do about them, if the lock could not be taken."""
    who = (
        f"wait until it has ended: {named(held)}; or end it (`SELECT pg_terminate_backend(PID)`)"
        if held
        else "try again"
    )
    return f"someone held the table: {who}; then run this again: finished steps stay done"


def holders(connection: Connection, relations: Sequence[sql.Identifier], *, only_writers: bool = False) -> list[Holder]:
    """Return the transactions of others that hold or await a lock on these relations now.

    `only_writers` leaves out those that only read, because SHARE ROW EXCLUSIVE does not wait for them. Autovacuum is
    left out, because it makes way for whoever waits (PostgreSQL manual, Routine Vacuuming).
    """
    with translating("looking up who holds the table"):
        names = [relation.as_string(connection) for relation in relations]
        return [Holder(*row) for row in connection.execute(_HOLDERS, [names, not only_writers])]


# A session without a user is autovacuum's. Other columns of pg_stat_activity that show this are not visible to
# everyone.
_HOLDERS = """
SELECT DISTINCT ON (l.virtualtransaction) l.virtualtransaction, l.pid, a.state, a.xact_start,
       COALESCE(a.application_name, '')
  FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a USING (pid)
 WHERE l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND l.relation = ANY (SELECT to_regclass(name) FROM unnest(%s::text[]) AS name)
   AND l.pid IS DISTINCT FROM pg_backend_pid() AND (l.pid IS NULL OR a.usesysid IS NOT NULL)
   AND (%s OR l.mode NOT IN ('AccessShareLock', 'RowShareLock'))
"""


def wait_until_free(
    connection: Connection,
    relations: Sequence[sql.Identifier],
    *,
    pause: Callable[[], bool | None],
    looks: int,
    only_writers: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Holder]:
    """Return an empty list as soon as a lock would be granted within the time that `pause` takes.

    Otherwise return who holds the relations, after `looks` checks or when `pause` returns true. Calls `tell` with their
    names whenever these change.
    """
    before, reported = holders(connection, relations, only_writers=only_writers), ""
    while before:
        stop = pause()
        known, looks = {holder.transaction for holder in before}, looks - 1
        before = holders(connection, relations, only_writers=only_writers)
        staying = [holder for holder in before if holder.transaction in known]
        if not staying or stop or looks <= 0:
            return staying
        if (who := named(staying)) != reported:
            reported = who
            tell(who)
    return []
