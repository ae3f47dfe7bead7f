"""The one statement that writes whole rows to a storage table: from the stream, from a snapshot, to a build aside.

Invariant: a stored row is replaced only by a newer state. A rule for every written row belongs here. Only a promotion
does not use it: it fills columns of a row whose state stays the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.rows.ordering_sql import admits_new_key, newest_closed, supersedes
from pipeline.aurora.schema import tables
from pipeline.core.model.mapping import AS_OF, DELETED, VERSION

if TYPE_CHECKING:
    from pipeline.core.model.mapping import Target


def upsert(
    target: Target,
    rows: sql.Composable,
    *,
    into: sql.Identifier | None = None,
    values: sql.Composable | None = None,
    condition: sql.Composable | None = None,
    order: sql.Composable | None = None,
    otherwise: sql.Composable | None = None,
) -> sql.Composed:
    """Compose the statement that stores `rows`, a relation with the alias `c`; `stored` is the stored row.

    `values` are the values of all columns, if not simply the relation's columns; `into` is a table other than the
    target's. `order` is the order in which rows are locked: always by key if others write to the table. `otherwise` is
    a condition under which `excluded` takes the place of `stored` although it is not newer.
    """
    names = tables.identifiers(tables.all_columns(target))
    return sql.SQL(
        "INSERT INTO {into} AS stored ({names}) SELECT {values} FROM {rows}{condition}{order} {newer}{otherwise}"
    ).format(
        into=into or tables.storage(target),
        names=names,
        values=values or names,
        rows=rows,
        condition=sql.SQL(" WHERE {}").format(condition) if condition else sql.SQL(""),
        order=sql.SQL(" ORDER BY {}").format(order) if order else sql.SQL(""),
        newer=on_conflict(target),
        otherwise=sql.SQL(" OR {}").format(otherwise) if otherwise else sql.SQL(""),
    )


def admitted(target: Target, mapping_name: str) -> sql.Composed:
    """Compose the condition that row `c` may be stored: it is newer than `purged_through`, or its key is stored."""
    return sql.SQL("({admits} OR EXISTS {stored})").format(
        admits=admits_new_key("c", mapping_name), stored=stored_key(target)
    )


def admitted_late(target: Target, mapping_name: str) -> sql.Composed:
    """Compose the condition that row `c`, a change of the stream, may be stored, however late it comes.

    It combines `admitted` with `pipeline.core.ordering.comes_too_late` in SQL. A change newer than everything purged or
    proven, as all are in a quiet week, costs one comparison. The others look up their rows in a single subquery,
    because every batch pays for planning each subquery.
    """
    return sql.SQL(
        "(c.{as_of} > {newest_closed} OR (SELECT"
        " (COALESCE(c.{as_of} > t.purged_through, true) OR k.{as_of} IS NOT NULL)"
        " AND (c.{version} IS NULL OR NOT COALESCE(c.{as_of} <@ t.proven, false)"
        " OR (c.{deleted} AND COALESCE(k.{deleted}, true)))"
        " FROM replication.tables AS t LEFT JOIN {storage} AS k ON {same_key} WHERE t.name = {name}))"
    ).format(
        as_of=sql.Identifier(AS_OF),
        deleted=sql.Identifier(DELETED),
        version=sql.Identifier(VERSION),
        newest_closed=newest_closed(mapping_name),
        storage=tables.storage(target),
        same_key=_same_key(target),
        name=sql.Literal(mapping_name),
    )


def stored_key(target: Target) -> sql.Composed:
    """Compose a subquery for EXISTS that finds the stored row with the key of row `c`."""
    return sql.SQL("(SELECT FROM {} AS k WHERE {})").format(tables.storage(target), _same_key(target))


def _same_key(target: Target) -> sql.Composed:
    return sql.SQL(" AND ").join(sql.SQL("k.{0} = c.{0}").format(sql.Identifier(n)) for n in target.primary_key)


def on_conflict(target: Target) -> sql.Composed:
    """Keep the newer of the stored row and the candidate."""
    names = [n for n in tables.all_columns(target) if n not in target.primary_key]
    return sql.SQL("ON CONFLICT ({key}) DO UPDATE SET {assignments} WHERE {rule}").format(
        key=tables.identifiers(target.primary_key),
        assignments=sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(n)) for n in names),
        rule=supersedes("excluded", "stored"),
    )
