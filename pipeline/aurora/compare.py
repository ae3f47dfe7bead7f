"""Comparing a snapshot with a target, set at a time, by what is stored.

Invariant: nothing is called different on the strength of a hash or a timestamp: the columns themselves are compared,
each with `IS DISTINCT FROM`. A stored row whose `_as_of` is later than the snapshot's may rightly differ from it: it
is *in flight*, counted, and never listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from psycopg import sql

from pipeline.aurora import children, tables
from pipeline.aurora.connection import literal
from pipeline.aurora.errors import translating
from pipeline.core.mapping import AS_OF, DELETED

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.aurora.connection import Connection
    from pipeline.aurora.staging import Staging
    from pipeline.core.mapping import Target

Kind = Literal["missing", "extra", "different"]
_FETCH_ROWS = 1_000


@dataclass(frozen=True, slots=True)
class Difference:
    """A key on which snapshot and target disagree. `key` holds the primary key's texts."""

    key: tuple[str, ...]
    kind: Kind
    columns: tuple[str, ...]
    """The columns that differ, for `different`."""


def count(connection: Connection, target: Target, staging: Staging, as_of: datetime) -> tuple[int, int]:
    """Return (keys compared, keys in flight): a key counts once, whether it is in the snapshot, the target or both."""
    query = sql.SQL(
        "SELECT count(*) FILTER (WHERE NOT in_flight), count(*) FILTER (WHERE in_flight)"
        " FROM (SELECT COALESCE(t.{as_of} > %(as_of)s, false) AS in_flight"
        " FROM {staging} AS s FULL JOIN {storage} AS t ON {same_key}"
        " WHERE s.{key} IS NOT NULL OR NOT t.{deleted}) AS k"
    ).format(staging=staging.name, storage=tables.storage(target), **_parts(target))
    with translating("counting what is compared"):
        row = connection.execute(query, {"as_of": as_of}).fetchone()
    return (row[0], row[1]) if row else (0, 0)


def differences(connection: Connection, target: Target, staging: Staging, as_of: datetime) -> Iterator[Difference]:
    """Yield every difference that is not in flight, with bounded memory.

    Runs in a transaction of its own on `connection`, which must not be used otherwise until it is exhausted.
    """
    query = _differences(target, staging.name, tables.storage(target), sql.SQL("true"))
    with (
        translating("comparing a snapshot with its target"),
        connection.transaction(),
        connection.cursor("differences") as cursor,
    ):
        cursor.itersize = _FETCH_ROWS
        cursor.execute(query, {"as_of": as_of})
        for row in cursor:
            yield _difference(target, row)


def differences_of_keys(
    connection: Connection, target: Target, staging: Staging, keys: Sequence[tuple[str, ...]], as_of: datetime
) -> list[Difference]:
    """Return the differences among `keys` alone; `staging` holds the rows of those that the source has."""
    arrays = sql.SQL(", ").join(
        sql.SQL("%({name})s::text[]::{type}[]").format(
            name=sql.SQL(literal(f"key_{i}")), type=sql.SQL(literal(column.type.input_sql))
        )
        for i, column in enumerate(target.key_columns)
    )
    asked = sql.SQL("(SELECT t.* FROM {storage} AS t JOIN unnest({arrays}) AS a({key_names}) ON {same_key})").format(
        storage=tables.storage(target),
        arrays=arrays,
        key_names=tables.identifiers(target.primary_key),
        same_key=_same_key(target, "a", "t"),
    )
    among = sql.SQL("EXISTS (SELECT FROM unnest({arrays}) AS a({key_names}) WHERE {same_key})").format(
        arrays=arrays, key_names=tables.identifiers(target.primary_key), same_key=_same_key(target, "a", "o")
    )
    parameters: dict[str, object] = {f"key_{i}": list(parts) for i, parts in enumerate(zip(*keys, strict=True))}
    with translating("comparing items read again with their rows"):
        query = _differences(target, staging.name, asked, among)
        rows = connection.execute(query, {"as_of": as_of, **parameters})
        return [_difference(target, row) for row in rows]


def _difference(target: Target, row: tuple[Any, ...]) -> Difference:
    width = len(target.primary_key)
    absent, columns = row[width], row[width + 1]
    return Difference(tuple(row[:width]), absent or "different", () if absent else tuple(columns))


def _differences(
    target: Target, staging: sql.Composable, storage: sql.Composable, orphans_among: sql.Composable
) -> sql.Composed:
    values = [name for name in target.stored_columns if name not in target.primary_key]
    differs = sql.SQL(" || ").join(
        sql.SQL("CASE WHEN s.{0} IS DISTINCT FROM t.{0} THEN ARRAY[{1}] ELSE '{{}}'::text[] END").format(
            sql.Identifier(name), sql.Literal(name)
        )
        for name in values
    )
    differs = differs if values else sql.SQL("'{}'::text[]").format()
    for child, carried in zip(target.children, target.carried, strict=True):
        differs += sql.SQL(" || CASE WHEN {} THEN ARRAY[{}] ELSE '{{}}'::text[] END").format(
            children.differs(child, carried, "s", "t"),
            sql.Literal(child.view_name),
        )
    texts = sql.SQL(", ").join(
        sql.SQL("COALESCE(s.{0}, t.{0})::text AS {1}").format(sql.Identifier(n), sql.Identifier(f"key {i}"))
        for i, n in enumerate(target.primary_key)
    )
    return sql.SQL(
        "SELECT * FROM (SELECT {key_texts},"
        " CASE WHEN s.{key} IS NULL THEN 'extra' WHEN t.{key} IS NULL OR t.{deleted} THEN 'missing' END AS absent,"
        " {differs} AS columns FROM {staging} AS s FULL JOIN {storage} AS t ON {same_key}"
        " WHERE (s.{key} IS NOT NULL OR NOT t.{deleted}) AND NOT COALESCE(t.{as_of} > %(as_of)s, false)) AS d"
        " WHERE absent IS NOT NULL OR cardinality(columns) > 0 {orphans}"
    ).format(
        key_texts=texts,
        differs=differs,
        orphans=_orphans(target, staging, orphans_among) if target.children else sql.SQL(""),
        staging=staging,
        storage=storage,
        **_parts(target),
    )


def _orphans(target: Target, staging: sql.Composable, among: sql.Composable) -> sql.Composed:
    """Compose the rest of the differences: children of parents that neither the snapshot nor the target has."""
    each = sql.SQL(" UNION ALL ").join(
        sql.SQL("SELECT {key}, {as_of} FROM {child}").format(
            key=tables.identifiers(target.primary_key), as_of=sql.Identifier(AS_OF), child=tables.storage(child)
        )
        for child in target.children
    )
    texts = sql.SQL(", ").join(sql.SQL("o.{}::text").format(sql.Identifier(name)) for name in target.primary_key)
    return sql.SQL(
        "UNION ALL SELECT DISTINCT {texts}, 'extra', '{{}}'::text[] FROM ({each}) AS o LEFT JOIN {storage} AS t"
        " ON {of_parent} WHERE (t.{key} IS NULL OR t.{deleted})"
        " AND NOT COALESCE(t.{as_of} > %(as_of)s, o.{as_of} > %(as_of)s) AND {among}"
        " AND NOT EXISTS (SELECT FROM {staging} AS s WHERE {staged})"
    ).format(
        texts=texts,
        each=each,
        storage=tables.storage(target),
        of_parent=_same_key(target, "o", "t"),
        staged=_same_key(target, "s", "o"),
        among=among,
        staging=staging,
        **{name: part for name, part in _parts(target).items() if name != "same_key"},
    )


def _parts(target: Target) -> dict[str, sql.Composable]:
    return {
        "as_of": sql.Identifier(AS_OF),
        "deleted": sql.Identifier(DELETED),
        "key": sql.Identifier(target.primary_key[0]),
        "same_key": _same_key(target, "s", "t"),
    }


def _same_key(target: Target, one: str, other: str) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("{a}.{n} = {b}.{n}").format(a=sql.Identifier(one), b=sql.Identifier(other), n=sql.Identifier(name))
        for name in target.primary_key
    )
