"""Purges old tombstones; `purged_through` records how far, so that no older change brings a row back.

Invariant: every writer sees either a tombstone or a `purged_through` that covers it. Each chunk's tombstones are found
without a lock; then one short transaction takes a lock that waits for the table's writers and makes new ones wait, sets
`purged_through`, and deletes those that are tombstones still. Without the lock, a writer whose snapshot still shows the
tombstone and the old `purged_through` could insert an older change once the tombstone is gone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from pipeline.aurora.errors import describe, translate, translating
from pipeline.aurora.schema import tables
from pipeline.core.errors import NotMigratedError, TerminalError, TransientError
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


_FIRST_PLACE = "(0,0)"


@dataclass(slots=True)
class Sweep:
    """One pass of a purge over a table, in the order of its pages: each chunk begins where the last one ended."""

    after: str = _FIRST_PLACE
    """The ctid of the last tombstone that was deleted or kept."""
    ended: bool = False
    kept: Counter[str] = field(default_factory=Counter[str])
    """Tombstones that users' constraints, triggers or rules keep from being deleted: how many for each reason."""


def purge_chunk(
    connection: Connection,
    target: Target,
    mapping_name: str,
    through: datetime,
    *,
    rows: int = CHUNK_ROWS,
    sweep: Sweep | None = None,
) -> int:
    """Delete up to `rows` tombstones whose `as_of` is not after `through`; returns how many.

    Pass the same `sweep` to every chunk until it has ended; tombstones that a foreign key, trigger or rule protects are
    counted in it, and the next chunk passes over them. Even if there is no tombstone, the first chunk records
    `purged_through`. Raises TransientError if it does not get the lock in time, TerminalError if row-level security
    hides tombstones from the user.
    """
    sweep = sweep or Sweep()
    with translating("purging tombstones", table=mapping_name):
        found = find(connection, target, through, sweep.after, rows)
        if not found and sweep.after != _FIRST_PLACE:
            sweep.ended = True
            return 0
        removal = _Removal(connection, target, mapping_name)
        with connection.transaction():
            removed, last = _purge(connection, target, mapping_name, through, found, removal)
    sweep.ended, sweep.after = not found, last
    sweep.kept += removal.kept
    return removed


def find(connection: Connection, target: Target, through: datetime, after: str, rows: int) -> list[str]:
    """Return the places (ctids) of the next tombstones, in the order of the table's pages, without reading it again."""
    with connection.transaction():
        connection.execute(_IN_ORDER)
        found = connection.execute(
            sql.SQL("SELECT ctid::text FROM {storage} WHERE ctid > %(after)s::tid AND {old} LIMIT %(rows)s").format(
                storage=tables.storage(target), old=_old()
            ),
            {"after": after, "through": through, "rows": rows},
        )
        return [place for (place,) in found]


def _purge(
    connection: Connection,
    target: Target,
    mapping_name: str,
    through: datetime,
    found: Sequence[str],
    removal: _Removal,
) -> tuple[int, str]:
    """Delete those found that are tombstones still, under the lock; returns how many, and how far it came."""
    storage = tables.storage(target)
    connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(int(LOCK_SECONDS * 1000))))
    connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(storage))
    _refuse_hidden(connection, target, mapping_name)
    marked = connection.execute(
        "UPDATE replication.tables SET purged_through = GREATEST(purged_through, %s) WHERE name = %s",
        [through, mapping_name],
    )
    if marked.rowcount != 1:
        raise NotMigratedError(
            "purging tombstones: the table is not registered, so `purged_through` could not be recorded",
            table=mapping_name,
            hint="run `dynaurora migrate`",
        )
    still = connection.execute(
        sql.SQL("SELECT ctid::text FROM {} WHERE ctid = ANY (%(found)s::tid[]) AND {} ORDER BY ctid").format(
            storage, _old()
        ),
        {"found": found, "through": through},
    ).fetchall()
    # Deferred constraints would otherwise refuse the chunk at commit, after its last savepoint.
    connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    removed, handled = removal.remove([place for (place,) in still])
    if handled < len(still):
        return removed, still[handled - 1][0]
    return removed, found[-1] if found else _FIRST_PLACE


def _old() -> sql.Composed:
    return sql.SQL("{deleted} AND {as_of} <= %(through)s").format(
        deleted=sql.Identifier(DELETED), as_of=sql.Identifier(AS_OF)
    )


# Only a plain pass over the table returns rows in the order of its pages, so that the next chunk can begin where this
# one ends.
_IN_ORDER = """
SELECT set_config(name, value, true)
  FROM (VALUES ('enable_indexscan', 'off'), ('enable_indexonlyscan', 'off'), ('enable_bitmapscan', 'off'),
               ('synchronize_seqscans', 'off'), ('max_parallel_workers_per_gather', '0')) AS setting (name, value)
"""


@dataclass(frozen=True, slots=True)
class _Removal:
    """The deletes of one chunk, within its transaction."""

    connection: Connection
    target: Target
    table_name: str
    kept: Counter[str] = field(default_factory=Counter[str])

    def remove(self, places: Sequence[str]) -> tuple[int, int]:
        """Delete all the tombstones at once; if one is refused, delete the first few by halving.

        Returns how many were deleted, and how many of the places, from the first, were deleted or kept.
        """
        try:
            return self._delete(places), len(places)
        except psycopg.Error as error:
            if not _refused(error):
                raise
            few = places[:_HALVED_ROWS]
            return self._halve(few, error), len(few)

    def _halve(self, places: Sequence[str], error: psycopg.Error) -> int:
        if len(places) == 1:
            self.kept[describe(error, error.sqlstate or "")] += 1
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
        if left:
            self.kept[_PASSED_OVER] += len(left)
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
