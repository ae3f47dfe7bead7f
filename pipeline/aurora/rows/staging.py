"""Copies a snapshot's rows in bulk to a staging table, then merges them into storage under the ordering rule.

Invariant: a merge accepts a snapshot's row only if the rule says so, and a row that PostgreSQL refuses is found by
halving and returned, never dropped with its neighbours. The caller owns the transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.rows import history
from pipeline.aurora.rows.children import replace_children
from pipeline.aurora.rows.isolating import copied_types, refused_values, store_isolating
from pipeline.aurora.rows.upsert import admitted, upsert
from pipeline.aurora.schema import tables
from pipeline.core.errors import DataError
from pipeline.core.model.mapping import AS_OF, DELETED, VERSION
from pipeline.core.names import fitting
from pipeline.core.types.copy_text import copy_text

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.change import Change, Row
    from pipeline.core.model.mapping import Target


_COPYING = "copying rows to a staging table"


@dataclass(frozen=True, slots=True)
class Staging:
    """A staging table of one target's rows, without bookkeeping columns and without an index."""

    target: Target
    name: sql.Identifier
    deletes: bool = False
    """Whether its last column marks deletes, of which only the key matters."""

    @classmethod
    def temporary(cls, connection: Connection, target: Target, *, deletes: bool = False) -> Staging:
        """Create one that lasts until the end of the transaction."""
        name = fitting(f"staging {target.storage_name}")
        staging = cls(target, sql.Identifier("pg_temp", name), deletes)
        with translating("creating a staging table"):
            connection.execute(
                sql.SQL("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP").format(
                    sql.Identifier(name), _definitions(target, deletes=deletes)
                )
            )
        return staging

    def create(self, connection: Connection) -> None:
        """Create it as an unlogged table that outlives the transaction, unless it exists."""
        with translating("creating a staging table"):
            connection.execute(
                sql.SQL("CREATE UNLOGGED TABLE IF NOT EXISTS {} ({})").format(self.name, _definitions(self.target))
            )

    def clear(self, connection: Connection) -> None:
        """Empty it."""
        with translating("emptying a staging table"):
            connection.execute(sql.SQL("TRUNCATE {}").format(self.name))

    def copy_isolating(
        self, connection: Connection, rows: Sequence[Row], refuse: Callable[[Row, DataError], None]
    ) -> None:
        """COPY rows under savepoints; calls `refuse` with each that PostgreSQL refuses."""

        def store(part: Sequence[Row]) -> int:
            self.copy(connection, [part])
            return len(part)

        store_isolating(connection, rows, store, refuse, partial(self.judge, connection))

    def copy(self, connection: Connection, blocks: Iterable[Sequence[Row]]) -> None:
        """COPY blocks of rows in one stream. Raises DataError when PostgreSQL refuses any of them."""
        with (
            translating(_COPYING),
            connection.cursor() as cursor,
            cursor.copy(self.copy_statement) as copy,
        ):
            for block in blocks:
                copy.write(copy_text(block))

    def row(self, change: Change) -> Row:
        """Return a change as a row of a table with deletes; for a delete, only the key."""
        nothing = [None] * len(self.target.carried)
        return (*change.texts(self.target), *(nothing if change.row is None else ()), "f" if change.row else "t")

    def judge(self, connection: Connection, rows: Sequence[Row]) -> dict[int, DataError]:
        """Return by index the rows that `copy` would refuse for a value, with its error."""
        return refused_values(connection, copied_types(self.target), rows, _COPYING)

    @property
    def copy_statement(self) -> sql.Composed:
        """The COPY that takes rows as text."""
        return copy_statement(self.target, self.name, deletes=self.deletes)

    def merge(self, connection: Connection, mapping_name: str, as_of: datetime) -> int:
        """Merge into the target's storage table as one snapshot; return the number of rows accepted.

        A key that the snapshot holds twice counts once. Rows are sorted by key, so that the index is written in order
        and two merges lock rows in the same order.
        """
        with translating("merging a snapshot under the ordering rule", table=mapping_name):
            taken = (
                self._merge_with_children(connection, mapping_name, as_of)
                if self.target.children
                else connection.execute(
                    merge_query(self.target, self.name, mapping_name, deletes=self.deletes), [as_of]
                ).rowcount
            )
            if self.target.history:
                connection.execute(self._versions(mapping_name), [as_of])
            return taken

    def _versions(self, mapping_name: str) -> sql.Composed:
        """Compose the statement that records every row as a version of the snapshot, whether it was accepted or not.

        Otherwise the versions would depend on what the storage table held when the snapshot came.
        """
        rows = snapshot_rows(self.target, self.name, self.target.carried, deletes=self.deletes)
        return history.record(
            self.target, rows, history.carried(self.target), condition=admitted(self.target, mapping_name)
        )

    def _merge_with_children(self, connection: Connection, mapping_name: str, as_of: datetime) -> int:
        """Merge, note which parents were accepted, and replace their children."""
        target, taken = self.target, sql.Identifier("pg_temp", "taken parents")
        key = tables.identifiers(target.primary_key)
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(taken))
        connection.execute(
            sql.SQL("CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                sql.Identifier("taken parents"), key, self.name
            )
        )
        cursor = connection.execute(
            sql.SQL("WITH taken AS ({} RETURNING {}) INSERT INTO {} SELECT * FROM taken").format(
                merge_query(target, self.name, mapping_name, deletes=self.deletes), returned_key(target), taken
            ),
            [as_of],
        )
        replace_children(
            connection,
            target,
            taken=taken,
            candidates=sql.SQL(
                "(SELECT DISTINCT ON ({key}) {key}, {carried}, NULL::numeric AS {version},"
                " %(as_of)s::timestamptz AS {as_of} FROM {staging} ORDER BY {key}, ctid)"
            ).format(
                key=key,
                carried=tables.identifiers(target.carried),
                version=sql.Identifier(VERSION),
                as_of=sql.Identifier(AS_OF),
                staging=self.name,
            ),
            parameters={"as_of": as_of},
        )
        return cursor.rowcount


def copy_statement(
    target: Target, name: sql.Identifier, *, deletes: bool = False, carried: bool = True
) -> sql.Composed:
    """Compose the COPY of a target's stored columns, as text, to the table `name`; `carried`: with its child rows."""
    names = (*target.stored_columns, *(target.carried if carried else ()), *([DELETED] if deletes else []))
    return sql.SQL("COPY {} ({}) FROM STDIN").format(name, tables.identifiers(names))


def merge_query(target: Target, staging: sql.Identifier, mapping_name: str, *, deletes: bool = False) -> sql.Composed:
    """Compose the merge of a staging table; its one parameter is the snapshot's `as_of`."""
    rows = snapshot_rows(target, staging, deletes=deletes)
    return upsert(target, rows, condition=admitted(target, mapping_name))


def snapshot_rows(
    target: Target, staging: sql.Identifier, carried: Sequence[str] = (), *, deletes: bool = False
) -> sql.Composed:
    """Compose the rows of a staging table as candidates `c`, each key once; its one parameter is their `as_of`."""
    return sql.SQL(
        "(SELECT DISTINCT ON ({key}) {values}, NULL::numeric AS {version}, %s::timestamptz AS {as_of},"
        " {is_delete} AS {deleted} FROM {staging} ORDER BY {key}{first}) AS c"
    ).format(
        values=tables.identifiers((*target.stored_columns, *carried)),
        key=tables.identifiers(target.primary_key),
        # If the snapshot holds a key twice, the merged row, its children and its version must come from the same one.
        first=sql.SQL(", ctid" if target.children or target.history else ""),
        version=sql.Identifier(VERSION),
        as_of=sql.Identifier(AS_OF),
        deleted=sql.Identifier(DELETED),
        is_delete=sql.Identifier(DELETED) if deletes else sql.SQL("false"),
        staging=staging,
    )


def returned_key(target: Target) -> sql.Composed:
    """Return the key columns of the row as it is stored."""
    return sql.SQL(", ").join(sql.SQL("stored.{}").format(sql.Identifier(name)) for name in target.primary_key)


def _definitions(target: Target, *, deletes: bool = False) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), tables.column_type(target, name))
        for name in (*target.stored_columns, *target.carried, *([DELETED] if deletes else []))
    )
