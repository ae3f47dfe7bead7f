"""Purges old tombstones; `purged_through` records how far, so that no older change brings a row back.

Invariant: every writer sees either a tombstone or a `purged_through` that covers it. Each chunk is one short
transaction: it takes a lock that waits for the table's writers and makes new ones wait, sets `purged_through`, and
deletes. Without the lock, a writer whose snapshot still shows the tombstone and the old `purged_through` could insert
an older change once the tombstone is gone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from pipeline.aurora.errors import describe, translate, translating
from pipeline.aurora.schema import tables
from pipeline.core.errors import TerminalError, TransientError
from pipeline.core.model.mapping import AS_OF, DELETED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

CHUNK_ROWS = 5_000
LOCK_SECONDS = 2.0
# If a chunk is refused, this many of it are tried by halving under one lock; each kept tombstone costs a dozen
# statements.
_HALVED_ROWS = 200
_PASSED_OVER = "a trigger or rule suppresses their deletion"


@dataclass(slots=True)
class Kept:
    """Tombstones that users' constraints, triggers or rules keep from being deleted, and how many for each reason."""

    places: list[str] = field(default_factory=list[str])
    """Their ctids; the next chunk leaves them out."""
    reasons: Counter[str] = field(default_factory=Counter[str])

    def keep(self, places: Sequence[str], reason: str) -> None:
        """Note tombstones that stay."""
        self.places += places
        self.reasons[reason] += len(places)


def purge_chunk(
    connection: Connection,
    target: Target,
    mapping_name: str,
    through: datetime,
    *,
    rows: int = CHUNK_ROWS,
    kept: Kept | None = None,
) -> int:
    """Delete up to `rows` tombstones whose `as_of` is not after `through`; returns how many.

    Tombstones that a foreign key, trigger or rule protects are noted in `kept`; pass it to the next chunk, which leaves
    them out. One transaction; run it until it returns 0 and keeps no more. Raises TransientError if it does not get the
    lock in time, TerminalError if row-level security hides tombstones from the user.
    """
    kept = kept or Kept()
    noted = Kept()
    with translating("purging tombstones", table=mapping_name), connection.transaction():
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(int(LOCK_SECONDS * 1000))))
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(tables.storage(target)))
        _refuse_hidden(connection, target, mapping_name)
        marked = connection.execute(
            "UPDATE replication.tables SET purged_through = GREATEST(purged_through, %s) WHERE name = %s",
            [through, mapping_name],
        )
        if marked.rowcount != 1:
            raise TerminalError(
                "purging tombstones: the table is not registered, so `purged_through` could not be recorded",
                table=mapping_name,
                hint="run `dynaurora migrate`",
            )
        found = connection.execute(
            sql.SQL(
                "SELECT ctid::text FROM {storage}"
                " WHERE {deleted} AND {as_of} <= %s AND ctid <> ALL (%s::tid[]) LIMIT %s"
            ).format(storage=tables.storage(target), deleted=sql.Identifier(DELETED), as_of=sql.Identifier(AS_OF)),
            [through, kept.places, rows],
        ).fetchall()
        # Deferred constraints would otherwise refuse the chunk at commit, after its last savepoint.
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        removed = _Removal(connection, target, mapping_name, noted).remove([place for (place,) in found])
    kept.places += noted.places
    kept.reasons += noted.reasons
    return removed


@dataclass(frozen=True, slots=True)
class _Removal:
    """The deletes of one chunk, within its transaction."""

    connection: Connection
    target: Target
    table_name: str
    kept: Kept

    def remove(self, places: Sequence[str]) -> int:
        """Delete all the tombstones at once; if one is refused, delete the first few by halving."""
        try:
            return self._delete(places)
        except psycopg.Error as error:
            if not _refused(error):
                raise
            return self._halve(places[:_HALVED_ROWS], error)

    def _halve(self, places: Sequence[str], error: psycopg.Error) -> int:
        if len(places) == 1:
            self.kept.keep(places, describe(error, error.sqlstate or ""))
            return 0
        removed, middle = 0, (len(places) + 1) // 2
        for part in (places[:middle], places[middle:]):
            try:
                removed += self._delete(part)
            except psycopg.Error as refusal:
                if not _refused(refusal):
                    raise
                removed += self._halve(part, refusal)
        return removed

    def _delete(self, places: Sequence[str]) -> int:
        storage = tables.storage(self.target)
        with self.connection.transaction():
            deleted = self.connection.execute(
                sql.SQL("DELETE FROM {} WHERE ctid = ANY (%s::tid[])").format(storage), [places]
            ).rowcount
            if deleted == len(places):
                return deleted
            left = self.connection.execute(
                sql.SQL("SELECT ctid::text FROM {} WHERE ctid = ANY (%s::tid[])").format(storage), [places]
            ).fetchall()
        if deleted + len(left) != len(places):
            raise TerminalError(
                f"purging tombstones: a trigger or rule of {storage.as_string()} alters tombstones instead of removing"
                " them",
                table=self.table_name,
                hint="change it to leave rows with _deleted alone, then purge again",
            )
        self.kept.keep([place for (place,) in left], _PASSED_OVER)
        return deleted


def _refused(error: psycopg.Error) -> bool:
    """Whether a constraint refused the rows, or a trigger raised an error (then there is a context)."""
    state = error.sqlstate or ""
    if isinstance(translate(error, ""), TransientError):
        return False
    return state[:2] in {"23", "P0"} or bool(error.diag.context)


def _refuse_hidden(connection: Connection, target: Target, table_name: str) -> None:
    storage = tables.storage(target).as_string()
    if connection.execute(_HIDDEN, {"table": storage}).fetchone() != (False,):
        raise TerminalError(
            f"purging tombstones: row-level security of {storage} may hide rows from the database user, and hidden"
            " tombstones would stay unnoticed",
            table=table_name,
            hint="purge as the table's owner or as a role with BYPASSRLS, or give the user a policy with USING (true)",
        )


# All rows are visible if an unconditional permissive policy applies, for reading and for deleting, and no restrictive
# one does (PostgreSQL manual, CREATE POLICY).
_HIDDEN = """
WITH applies AS (
  SELECT polcmd, polpermissive, pg_get_expr(polqual, polrelid) = 'true' AS takes_all FROM pg_policy
   WHERE polrelid = %(table)s::regclass
     AND EXISTS (SELECT FROM unnest(polroles) AS r(role) WHERE CASE WHEN role = 0 THEN true
                                                                     ELSE pg_has_role(role, 'USAGE') END)
)
SELECT row_security_active(%(table)s::regclass)
   AND (EXISTS (SELECT FROM applies WHERE NOT polpermissive AND polcmd IN ('*', 'r', 'd') AND NOT takes_all)
        OR EXISTS (SELECT FROM unnest('{r,d}'::"char"[]) AS needed(command)
                    WHERE NOT EXISTS (SELECT FROM applies
                                       WHERE polpermissive AND takes_all AND polcmd IN ('*', command))))
"""


def newest_whole_snapshot(connection: Connection, table_name: str) -> datetime | None:
    """Return the `as_of` of the newest full export or scan that was loaded completely; None if there is none.

    A purge up to this time loses nothing: the snapshot already holds the outcome of any older change still to come.
    """
    with translating("looking for the newest snapshot", table=table_name):
        row = connection.execute(
            "SELECT max(as_of) FROM replication.exports"
            " WHERE table_name = %s AND status = 'loaded' AND kind <> 'incremental'",
            [table_name],
        ).fetchone()
    return row[0] if row else None
