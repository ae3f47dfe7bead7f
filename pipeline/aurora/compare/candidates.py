"""The list of keys whose rows differ from a snapshot, and are still to be settled, as a table of one run and target.

Invariant: a key leaves the list in the transaction that records what became of it, so a killed run settles the rest.
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

# Columns beside the key's; a mapping's names cannot be theirs, for they are not valid as the key's here (`key 0` …).
SOURCE_HASH, CHANGED = "snapshot hash", "changed since"
# Of a key among those sent.
PLACE = "place sent"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A key that differed, and what is known of it so far."""

    number: int
    key: Key
    snapshot_hash: int | None
    """Of the snapshot's row; None where the snapshot has none."""
    mark: str | None
    """The stored row's, at a look at which the source held something else; None before such a look."""
    read_at: datetime | None
    """When the source was read at that look."""
    proven: bool
    """Found to be drift already; it waits to be mended."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a candidate gave, to be kept with it until the next."""

    number: int
    mark: str | None
    read_at: datetime | None
    proven: bool
    not_before: datetime | None
    """No use in looking again before this time."""


@dataclass(frozen=True, slots=True)
class Left:
    """How many keys are left on a list."""

    keys: int
    proven: int
    newest_read: datetime | None
    """When the source was read for one of them last."""


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
        """Create the table, unless an earlier part of the run has."""
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
        """Return the next keys behind number `after`: those changed since the snapshot, or not, or all.

        `ready` is (now, how far replication is known to be): only keys worth another look then.
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
        """Take keys off the list, inside the caller's transaction."""
        with translating("shortening the list of differences"):
            connection.execute(sql.SQL("DELETE FROM {} WHERE number = ANY (%s)").format(self.name), [list(numbers)])

    def keep(self, connection: Connection, looks: Sequence[Look]) -> None:
        """Keep what looks have given, inside the caller's transaction."""
        if not looks:
            return
        with translating("keeping looks at differences"):
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
        """Count what is left."""
        with translating("counting differences"):
            row = connection.execute(
                sql.SQL("SELECT count(*), count(*) FILTER (WHERE proven), max(read_at) FROM {}").format(self.name)
            ).fetchone()
        return Left(*row) if row else Left(0, 0, None)


def sent_keys(target: Target) -> sql.Composed:
    """Compose a relation `a` of the keys of `keys_sent`, with PLACE, the place of each."""
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
