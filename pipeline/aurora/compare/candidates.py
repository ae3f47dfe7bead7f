"""The list of keys that differ from a snapshot and are not yet resolved, as a table for each run and target.

Invariant: a key leaves the list in the transaction that records its outcome, so after a killed run the rest can be
resolved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.schema import tables
from pipeline.aurora.sessions.connection import trusted
from pipeline.core.model.mapping import STORAGE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.aurora.compare.key_ranges import Key
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

# Columns besides the key's. They cannot clash with a mapping's names, because the key columns are named `key 0` … here.
SOURCE_HASH, CHANGED = "snapshot hash", "changed since"
# The position of a key among those sent.
PLACE = "place sent"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A key that differed, and what we know about it so far."""

    number: int
    key: Key
    snapshot_hash: int | None
    """Hash of the snapshot's row; None if the snapshot has no such row."""
    mark: str | None
    """The stored row's mark at the last check that found the source different; None before such a check."""
    read_at: datetime | None
    """When that check read the source."""
    proven: bool
    """Already known to be drift; it waits for repair."""


@dataclass(frozen=True, slots=True)
class Look:
    """The result of a check of a candidate, kept until the next check."""

    number: int
    mark: str | None
    read_at: datetime | None
    proven: bool
    not_before: datetime | None
    """Checking again before this time is pointless."""


@dataclass(frozen=True, slots=True)
class Left:
    """The number of keys left on a list."""

    keys: int
    proven: int
    newest_read: datetime | None
    """When the source was last read for one of them."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The list's table."""

    target: Target
    name: sql.Identifier

    @classmethod
    def of(cls, target: Target, suffix: str) -> Candidates:
        """Name the list that belongs to the staging table of the suffix."""
        return cls(target, sql.Identifier(STORAGE_SCHEMA, f"_{suffix}_left"))

    @property
    def key_names(self) -> tuple[str, ...]:
        """Names of the columns that hold the key."""
        return tuple(f"key {i}" for i in range(len(self.target.primary_key)))

    def create(self, connection: Connection) -> None:
        """Create the table, unless an earlier part of the run created it."""
        columns = sql.SQL(", ").join(
            sql.SQL("{} {} NOT NULL").format(sql.Identifier(name), tables.column_type(self.target, column.name))
            for name, column in zip(self.key_names, self.target.key_columns, strict=True)
        )
        with translating("creating the list of differences"):
            connection.execute(
                sql.SQL(
                    "CREATE UNLOGGED TABLE IF NOT EXISTS {} (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
                    " {}, {} bigint, {} boolean NOT NULL, mark text, read_at timestamptz,"
                    " proven boolean NOT NULL DEFAULT false, not_before timestamptz)"
                ).format(self.name, columns, sql.Identifier(SOURCE_HASH), sql.Identifier(CHANGED))
            )

    def clear(self, connection: Connection) -> None:
        """Empty the list."""
        with translating("emptying the list of differences"):
            connection.execute(sql.SQL("TRUNCATE {}").format(self.name))

    def next(
        self,
        connection: Connection,
        *,
        after: int,
        most: int,
        changed: bool | None = None,
        ready: tuple[datetime, datetime] | None = None,
    ) -> list[Candidate]:
        """Return the next keys after number `after`: those changed since the snapshot, those not changed, or all.

        `ready` is (now, how far replication is known to have come): return only keys worth another check at that point.
        """
        conditions = [sql.SQL("number > %(after)s")]
        if changed is not None:
            conditions.append(sql.SQL(trusted(f'"{CHANGED}" = %(changed)s')))
        if ready:
            conditions.append(
                sql.SQL("COALESCE(not_before <= %(now)s, true) AND (proven OR COALESCE(read_at <= %(through)s, true))")
            )
        query = sql.SQL(
            "SELECT number, {keys}, {hash}, mark, read_at, proven FROM {list} WHERE {conditions}"
            " ORDER BY number LIMIT %(most)s"
        ).format(
            keys=sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in self.key_names),
            hash=sql.Identifier(SOURCE_HASH),
            list=self.name,
            conditions=sql.SQL(" AND ").join(conditions),
        )
        now, through = ready or (None, None)
        named = {"after": after, "most": most, "changed": changed, "now": now, "through": through}
        with translating("reading the list of differences"):
            rows = connection.execute(query, named).fetchall()
        return [Candidate(row[0], tuple(row[1:-4]), *row[-4:]) for row in rows]

    def remove(self, connection: Connection, numbers: Sequence[int]) -> None:
        """Remove keys from the list, inside the caller's transaction."""
        with translating("removing keys from the list of differences"):
            connection.execute(sql.SQL("DELETE FROM {} WHERE number = ANY (%s)").format(self.name), [list(numbers)])

    def keep(self, connection: Connection, looks: Sequence[Look]) -> None:
        """Record the results of checks, inside the caller's transaction."""
        if not looks:
            return
        with translating("recording checks of differences"):
            connection.execute(
                sql.SQL(
                    "UPDATE {} AS c SET mark = u.mark, read_at = u.read_at, proven = u.proven,"
                    " not_before = u.not_before FROM unnest(%s::bigint[], %s::text[], %s::timestamptz[],"
                    " %s::boolean[], %s::timestamptz[]) AS u (number, mark, read_at, proven, not_before)"
                    " WHERE c.number = u.number"
                ).format(self.name),
                [
                    [look.number for look in looks],
                    [look.mark for look in looks],
                    [look.read_at for look in looks],
                    [look.proven for look in looks],
                    [look.not_before for look in looks],
                ],
            )

    def left(self, connection: Connection) -> Left:
        """Count the keys left."""
        with translating("counting differences"):
            row = connection.execute(
                sql.SQL("SELECT count(*), count(*) FILTER (WHERE proven), max(read_at) FROM {}").format(self.name)
            ).fetchone()
        return Left(*row) if row else Left(0, 0, None)


def sent_keys(target: Target) -> sql.Composed:
    """Compose a relation `a` of the keys of `keys_sent`, with the position of each as PLACE."""
    arrays = sql.SQL(", ").join(
        sql.SQL(trusted(f"%(key_{i})s::text[]::{column.type.input_sql}[]"))
        for i, column in enumerate(target.key_columns)
    )
    return sql.SQL("unnest({}) WITH ORDINALITY AS a ({}, {})").format(
        arrays, tables.identifiers(target.primary_key), sql.Identifier(PLACE)
    )


def keys_sent(keys: Sequence[Key]) -> dict[str, object]:
    """Return the parameters of `sent_keys`."""
    return {f"key_{i}": list(texts) for i, texts in enumerate(zip(*keys, strict=True))}
