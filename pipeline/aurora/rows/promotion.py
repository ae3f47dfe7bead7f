"""Fills columns from the jsonb column, one range of keys at a time, while others write.

Invariant: a row is changed only if its `xmin` is still as read, so concurrent writes are never touched. `_version` and
`_as_of` stay, because the row is the same state of the same item. The statement never waits for a row: one that another
transaction holds is skipped, reported, and left to a later pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.rows.apply import nullable_array_literal
from pipeline.aurora.schema import tables
from pipeline.aurora.sessions.connection import trusted
from pipeline.core.model import history
from pipeline.core.model.mapping import AS_OF, DELETED, VERSION, Column
from pipeline.core.types.arrays import array_literal
from pipeline.core.types.sql_types import SqlType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

Key = tuple[str, ...]


def tables_of_history(target: Target) -> list[Target]:
    """Return the tables of a target's history, as targets whose key is a version's; each is promoted like the target.

    So the newest version stays equal to the stored row, and older ones get what their own attributes say.
    """
    position = (
        Column(AS_OF, AS_OF, (AS_OF,), SqlType("timestamptz")),
        Column(VERSION, VERSION, (VERSION,), SqlType("numeric")),
    )
    return [
        replace(
            target,
            schema="public",  # the names are those of tables in the storage schema
            name=name,
            primary_key=(*target.primary_key, AS_OF, VERSION),
            columns=(*target.columns, *position),
            children=(),
            indexes=(),
            history=None,
        )
        for name in history.tables_of(target)
    ]


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row that may need filling. `json` is the attribute's JSON text; None if the jsonb column lacks it."""

    key: Key
    xmin: str
    deleted: bool
    json: str | None


@dataclass(frozen=True, slots=True)
class FilledRow:
    """A row's new column values, in the promotion's order; `take_out`: remove the attribute from the jsonb column."""

    key: Key
    xmin: str
    values: tuple[str | None, ...]
    take_out: bool


@dataclass(frozen=True, slots=True)
class Written:
    """The indexes of the changed rows, and how many were skipped because others had changed or held them."""

    changed: list[int]
    skipped: int


@dataclass(frozen=True)
class Promotion:
    """The statements that promote one attribute of one target into its columns. Build it once."""

    target: Target
    attribute: str
    columns: tuple[Column, ...]
    """Every column that the attribute fills, as a whole or by a path."""
    whole: bool
    """Whether a column takes the whole attribute, so that it leaves the jsonb column."""
    _parts: dict[str, sql.Composable] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        target = self.target
        key = target.key_columns
        names = [column.name for column in self.columns]
        # A column filled by a path depends only on the jsonb column: rows without the attribute have the default.
        emptied = sql.SQL(" OR ").join(
            sql.SQL("stored.{} IS DISTINCT FROM {}").format(sql.Identifier(c.name), _default(c)) for c in self.columns
        )
        filled = sql.SQL(" OR ").join(sql.SQL("stored.{} IS NOT NULL").format(sql.Identifier(n)) for n in names)
        parts: dict[str, sql.Composable] = {
            "storage": tables.storage(target),
            "unmapped": sql.Identifier(target.unmapped or ""),
            "deleted": sql.Identifier(DELETED),
            "attribute": sql.Literal(self.attribute),
            "key": tables.identifiers(target.primary_key),
            "key_texts": sql.SQL(", ").join(sql.SQL("stored.{}::text").format(sql.Identifier(c.name)) for c in key),
            "after": sql.SQL(", ").join(sql.SQL("%s::{}").format(_type(c)) for c in key),
            "same_key": sql.SQL(" AND ").join(
                sql.SQL("stored.{0} = v.{0}").format(sql.Identifier(c.name)) for c in key
            ),
            "key_order": sql.SQL(", ").join(sql.SQL("stored.{}").format(sql.Identifier(c.name)) for c in key),
            "absent": sql.SQL("false") if self.whole else emptied,
            "filled": filled,
        }
        object.__setattr__(self, "_parts", parts)

    def range_end(self, connection: Connection, after: Key | None, rows: int) -> Key | None:
        """Return the key that ends a range of `rows` stored rows after `after`; None if fewer are left."""
        query = sql.SQL(
            "SELECT {key_texts} FROM {storage} AS stored {behind} ORDER BY {key_order} OFFSET %s LIMIT 1"
        ).format(**self._parts, behind=self.where(behind=after))
        with translating(f"walking the keys of {self.target.view_name}"):
            return connection.execute(query, [*(after or ()), rows - 1]).fetchone()

    def read(self, connection: Connection, after: Key | None, end: Key | None) -> list[StoredRow]:
        """Read the rows after `after`, up to `end`, that may need filling."""
        query = sql.SQL(
            "SELECT stored.xmin::text, stored.{deleted}, (stored.{unmapped} -> {attribute})::text, {key_texts}"
            " FROM {storage} AS stored {range} ORDER BY {key_order}"
        ).format(**self._parts, range=self.where(behind=after, up_to=end, candidate=True))
        with translating(f"reading rows to promote in {self.target.view_name}"):
            rows = connection.execute(query, [*(after or ()), *(end or ())]).fetchall()
        return [StoredRow(tuple(key), xmin, deleted, json) for xmin, deleted, json, *key in rows]

    def write(self, connection: Connection, rows: Sequence[FilledRow]) -> Written:
        """Fill the rows that are still as they were read and do not yet have the wanted values."""
        names = [column.name for column in self.columns]
        is_array = {column.name: column.type.name for column in self.columns if column.type.is_array}
        values = [
            sql.SQL("v.{}::{}").format(_value_name(i), sql.SQL(trusted(is_array[n])))
            if n in is_array
            else sql.SQL("v.{}").format(_value_name(i))
            for i, n in enumerate(names)
        ]
        changed = [
            sql.SQL("stored.{} IS DISTINCT FROM {}").format(sql.Identifier(n), value)
            for n, value in zip(names, values, strict=True)
        ]
        arrays = [sql.SQL("%s::{}[]").format(_type(column)) for column in self.target.key_columns]
        arrays += [sql.SQL("%s::integer[]"), sql.SQL("%s::text[]"), sql.SQL("%s::boolean[]")]
        arrays += [sql.SQL("%s::{}[]").format(sql.SQL(trusted(c.type.sent_sql))) for c in self.columns]
        query = _WRITE.format(
            **self._parts,
            arrays=sql.SQL(", ").join(arrays),
            aliases=sql.SQL(", ").join(
                [
                    tables.identifiers(self.target.primary_key),
                    sql.SQL("index, was_xmin, take_out"),
                    *map(_value_name, range(len(names))),
                ]
            ),
            changed=sql.SQL(" OR ").join(changed),
            assignments=sql.SQL(", ").join(
                sql.SQL("{} = {}").format(sql.Identifier(n), value) for n, value in zip(names, values, strict=True)
            ),
        )
        keys = [array_literal([row.key[i] for row in rows]) for i in range(len(self.target.primary_key))]
        indexes = array_literal([str(index) for index in range(len(rows))])
        xmins = array_literal([row.xmin for row in rows])
        take_out = array_literal(["t" if row.take_out else "f" for row in rows])
        filled = [nullable_array_literal([row.values[i] for row in rows]) for i in range(len(names))]
        with translating(f"promoting attributes of {self.target.view_name}"):
            found = connection.execute(query, [*keys, indexes, xmins, take_out, *filled]).fetchall()
        return Written([index for index, done in found if done], sum(not done for _, done in found))

    @property
    def candidate(self) -> sql.Composed:
        """The condition of a row (alias `stored`) that may need filling."""
        return sql.SQL(
            "CASE WHEN stored.{deleted} THEN {filled} ELSE stored.{unmapped} ? {attribute} OR {absent} END"
        ).format(**self._parts)

    def where(self, *, behind: Key | None, up_to: Key | None = None, candidate: bool = False) -> sql.Composed:
        """Return the WHERE clause of a range of keys; its parameters are the keys' texts."""
        conditions: list[sql.Composable] = []
        if behind is not None:
            conditions.append(sql.SQL("({key_order}) > ({after})").format(**self._parts))
        if up_to is not None:
            conditions.append(sql.SQL("({key_order}) <= ({after})").format(**self._parts))
        if candidate:
            conditions.append(self.candidate)
        return sql.SQL("WHERE ") + sql.SQL(" AND ").join(conditions) if conditions else sql.Composed([])


def survey(
    connection: Connection, promotions: Sequence[Promotion], after: Key | None, end: Key | None
) -> tuple[int, ...]:
    """Count, for each promotion of one target, the rows of a range that may need filling."""
    counts = sql.SQL(", ").join(sql.SQL("count(*) FILTER (WHERE {})").format(one.candidate) for one in promotions)
    query = sql.SQL("SELECT {} FROM {} AS stored {}").format(
        counts, tables.storage(promotions[0].target), promotions[0].where(behind=after, up_to=end)
    )
    with translating(f"counting rows to promote in {promotions[0].target.view_name}"):
        row = connection.execute(query, [*(after or ()), *(end or ())]).fetchone()
    return row or ()


_WRITE = sql.SQL(
    "WITH v AS (SELECT * FROM unnest({arrays}) AS v({aliases})),"
    " wanted AS MATERIALIZED (SELECT v.* FROM {storage} AS stored JOIN v ON {same_key}"
    " WHERE stored.xmin <> v.was_xmin::xid OR v.take_out OR {changed}),"
    # In the replicator's lock order, although nothing here ever waits for a row.
    " held AS MATERIALIZED (SELECT v.* FROM {storage} AS stored JOIN wanted AS v ON {same_key}"
    " WHERE stored.xmin = v.was_xmin::xid ORDER BY {key_order} FOR NO KEY UPDATE OF stored SKIP LOCKED),"
    " done AS (UPDATE {storage} AS stored SET {assignments},"
    " {unmapped} = CASE WHEN v.take_out THEN stored.{unmapped} - {attribute} ELSE stored.{unmapped} END"
    " FROM held AS v WHERE {same_key} RETURNING v.index)"
    " SELECT wanted.index, done.index IS NOT NULL FROM wanted LEFT JOIN done USING (index)"
)


def resume_after(connection: Connection, table: str, promotion: Promotion) -> Key | None:
    """Return the key after which an unfinished promotion resumes."""
    with translating("reading the progress of a promotion", table=table):
        row = connection.execute(
            "SELECT after_key FROM replication.promotions WHERE table_name = %s AND target = %s AND attribute = %s"
            " AND finished_at IS NULL",
            [table, promotion.target.view_name, promotion.attribute],
        ).fetchone()
    return tuple(row[0]) if row and row[0] else None


def mark(
    connection: Connection, table: str, promotion: Promotion, after: Key | None, *, filled: int, finished: bool
) -> None:
    """Record a promotion's progress, in the transaction that filled the rows."""
    with translating("recording the progress of a promotion", table=table):
        connection.execute(
            "INSERT INTO replication.promotions AS p (table_name, target, attribute, after_key, filled, finished_at)"
            " VALUES (%s, %s, %s, %s, %s, CASE WHEN %s THEN clock_timestamp() END)"
            " ON CONFLICT (table_name, target, attribute) DO UPDATE SET after_key = excluded.after_key,"
            " filled = p.filled + excluded.filled, finished_at = excluded.finished_at, updated_at = clock_timestamp()",
            [table, promotion.target.view_name, promotion.attribute, list(after) if after else None, filled, finished],
        )


def _value_name(index: int) -> sql.Identifier:
    return sql.Identifier(f"value {index}")


def _type(column: Column) -> sql.SQL:
    return sql.SQL(trusted(column.type.input_sql))


def _default(column: Column) -> sql.Composable:
    if column.default is None:
        return sql.SQL("NULL")
    return sql.SQL("{}::{}").format(sql.Literal(column.default), sql.SQL(trusted(column.type.name)))
