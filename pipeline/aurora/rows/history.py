"""Writes versions to histories.

Invariant: versions are only added, each at its own position, and one that is there already stays as it is. So neither
the order in which versions arrive, nor how often, nor from where, matters. Only forgetting a key removes any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping import histories
from pipeline.aurora.errors import translating
from pipeline.aurora.rows import one_row
from pipeline.aurora.rows.children import element_values
from pipeline.aurora.rows.ordering_sql import newest_closed, supersedes
from pipeline.aurora.schema import catalog, history_tables, tables
from pipeline.core.model.history import base_name, table_name
from pipeline.core.model.mapping import AS_OF, BOOKKEEPING_COLUMNS, CARRIED_PREFIX, DELETED, STORAGE_SCHEMA, VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

# The column of candidates that marks the newest of each key.
NEWEST = f"{CARRIED_PREFIX}newest"


def record(
    target: Target,
    rows: sql.Composable,
    children: Sequence[sql.Composable],
    *,
    values: sql.Composable | None = None,
    condition: sql.Composable | None = None,
    into: sql.Identifier | None = None,
) -> sql.Composed:
    """Compose the statement that adds `rows`, a relation with the alias `c`, as versions.

    `children` are the values of the children's columns (`carried` or `stored`); `values` those of the stored columns,
    if not simply the relation's columns. It comes after the statement that stores the rows, or below it in the same
    one, and in the order of keys, so that two writers never wait for each other.
    """
    # By bytes, whatever the collation of the rows' columns is.
    key = sql.SQL(", ").join(
        sql.SQL('c.{} COLLATE "C"' if column.type.codec.is_text else "c.{}").format(sql.Identifier(column.name))
        for column in target.key_columns
    )
    return sql.SQL(
        "INSERT INTO {into} ({names}) SELECT {values}, COALESCE(c.{version}, 0), c.{as_of}, c.{deleted} FROM {rows}"
        "{condition} ORDER BY {order} ON CONFLICT DO NOTHING"
    ).format(
        into=into or history_tables.versions(target),
        names=tables.identifiers(history_tables.all_columns(target)),
        values=sql.SQL(", ").join([values or _columns_of("c", target.stored_columns), *children]),
        version=sql.Identifier(VERSION),
        as_of=sql.Identifier(AS_OF),
        deleted=sql.Identifier(DELETED),
        rows=rows,
        condition=sql.SQL(" WHERE {}").format(condition) if condition else sql.SQL(""),
        order=sql.SQL(", ").join([key, _columns_of("c", [AS_OF, VERSION])]),
    )


def carried(target: Target) -> list[sql.Composed]:
    """Compose the values of the children's columns from what row `c` carries: objects by the names of the columns."""
    return [
        sql.SQL(
            "CASE WHEN c.{carried} IS NOT NULL THEN (SELECT COALESCE(jsonb_agg(to_jsonb(r) ORDER BY {places}), '[]')"
            " FROM (SELECT {values} FROM jsonb_array_elements(c.{carried}) AS e (value)) AS r) END"
        ).format(
            carried=sql.Identifier(name),
            places=_columns_of("r", [place.name for place in child.places]),
            values=sql.SQL(", ").join(
                sql.SQL("{} AS {}").format(value, sql.Identifier(column.name))
                for value, column in zip(
                    element_values(child, assigned=False), (*child.places, *child.own_columns), strict=True
                )
            ),
        )
        for child, name in zip(target.children, target.carried, strict=True)
    ]


def stored(target: Target, alias: str, children: Sequence[sql.Identifier] | None = None) -> list[sql.Composed]:
    """Compose the values of the children's columns from the stored children of the stored row `alias`.

    `children` are the tables that have them, if not the child targets' storage tables.
    """
    where = children or [tables.storage(child) for child in target.children]
    return [
        sql.SQL(
            "CASE WHEN NOT {alias}.{deleted} THEN (SELECT COALESCE(jsonb_agg(to_jsonb(r) ORDER BY {places}), '[]')"
            " FROM (SELECT {names} FROM {child} AS e WHERE {same_key}) AS r) END"
        ).format(
            alias=sql.Identifier(alias),
            deleted=sql.Identifier(DELETED),
            places=_columns_of("r", [place.name for place in child.places]),
            names=_columns_of("e", [column.name for column in (*child.places, *child.own_columns)]),
            child=table,
            same_key=sql.SQL(" AND ").join(
                sql.SQL("e.{0} = {1}.{0}").format(sql.Identifier(name), sql.Identifier(alias))
                for name in target.primary_key
            ),
        )
        for child, table in zip(target.children, where, strict=True)
    ]


def close_late(target: Target, mapping_name: str) -> sql.Composed:
    """Compose the statement that ends a version that came too late (`pipeline.core.ordering.comes_too_late`).

    A proof says that the stored row, not this version, is what the source had at the proven span's end. So the stored
    row becomes a version of that time, just before any change that was made after the span.
    """
    key = sql.SQL(" AND ").join(sql.SQL("k.{0} = c.{0}").format(sql.Identifier(n)) for n in target.primary_key)
    values = sql.SQL(", ").join(
        sql.SQL("c.{}" if name in target.primary_key else "k.{}").format(sql.Identifier(name))
        for name in target.stored_columns
    )
    return sql.SQL(
        "INSERT INTO {into} ({names}) SELECT {values}, 0, t.at, COALESCE(k.{deleted}, true) FROM c"
        " CROSS JOIN LATERAL (SELECT max(upper(span)) - interval '1 microsecond' AS at FROM replication.tables,"
        " unnest(proven) AS span WHERE name = {mapping} AND c.{as_of} <@ span) AS t"
        " LEFT JOIN {storage} AS k ON {same_key}"
        " WHERE c.{newest} AND c.{as_of} <= {newest_closed} AND c.{version} IS NOT NULL AND t.at IS NOT NULL"
        " AND (NOT c.{deleted} OR NOT COALESCE(k.{deleted}, true)) AND (k.{as_of} IS NULL OR {supersedes})"
        " ON CONFLICT DO NOTHING"
    ).format(
        into=history_tables.versions(target),
        names=tables.identifiers(history_tables.all_columns(target)),
        values=sql.SQL(", ").join([values, *stored(target, "k")]),
        deleted=sql.Identifier(DELETED),
        mapping=sql.Literal(mapping_name),
        as_of=sql.Identifier(AS_OF),
        version=sql.Identifier(VERSION),
        newest=sql.Identifier(NEWEST),
        storage=tables.storage(target),
        same_key=key,
        newest_closed=newest_closed(mapping_name),
        supersedes=supersedes("c", "k"),
    )


def _columns_of(alias: str, names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.SQL("{}.{}").format(sql.Identifier(alias), sql.Identifier(n)) for n in names)


def forget(connection: Connection, target: Target, key: Sequence[str]) -> int:
    """Delete every version of a deleted row, inside the caller's transaction; return how many there were.

    Only its tombstone's own stays, which has nothing but the key, so that no older one that comes later is the newest.
    `key` has the primary key's texts in its order. A history that was stopped is kept, and is forgotten too.
    """
    recorded = histories.read(connection, target)
    if recorded is None:
        return 0
    names = {
        "versions": history_tables.versions(target),
        "storage": tables.storage(target),
        "deleted": sql.Identifier(DELETED),
        "as_of": sql.Identifier(AS_OF),
        "version": sql.Identifier(VERSION),
    }
    others = sql.SQL(
        "DELETE FROM {table} AS v WHERE {same_key} AND NOT EXISTS (SELECT FROM {storage} AS s WHERE {stored}"
        " AND s.{deleted} AND v.{deleted} AND v.{as_of} = s.{as_of} AND v.{version} = COALESCE(s.{version}, 0))"
    )
    own = sql.SQL(
        "INSERT INTO {versions} ({names}) SELECT {key}, COALESCE(s.{version}, 0), s.{as_of}, true FROM {storage} AS s"
        " WHERE {stored} AND s.{deleted} ON CONFLICT DO NOTHING"
    ).format(
        names=tables.identifiers((*target.primary_key, *BOOKKEEPING_COLUMNS)),
        key=_columns_of("s", target.primary_key),
        stored=one_row.same_key(target, "s"),
        **names,
    )
    with translating("forgetting the versions of a row"):
        deleted = sum(
            one_row.execute(
                connection,
                others.format(
                    table=sql.Identifier(STORAGE_SCHEMA, name),
                    same_key=one_row.same_key(target, "v"),
                    stored=one_row.same_key(target, "s"),
                    **names,
                ),
                key,
            ).rowcount
            for name in (table_name(target), base_name(target))
            if catalog.stored_table(connection, STORAGE_SCHEMA, name)
        )
        if recorded.stopped_at is None:
            one_row.execute(connection, own, key)
    return deleted
