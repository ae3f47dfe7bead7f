"""Finds the positions that stored rows have overtaken: a change at such a position would be stale.

Invariant: the ordering rule decides, in its one SQL form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.rows.ordering_sql import admits_new_key, supersedes
from pipeline.aurora.schema import tables
from pipeline.aurora.sessions.connection import trusted
from pipeline.core.model.mapping import AS_OF, VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target
    from pipeline.core.ordering import Position


def overtaken(
    connection: Connection, mapping_name: str, target: Target, candidates: Sequence[tuple[tuple[str, ...], Position]]
) -> set[int]:
    """Return the indexes of the candidates (key, position) whose stored row, live or tombstone, is as new or newer.

    Includes those without a row that are not newer than `purged_through`: their tombstone may be gone.
    """
    if not candidates:
        return set()
    columns = [list(parts) for parts in zip(*(key for key, _ in candidates), strict=True)]
    versions = [None if p.version is None else str(p.version) for _, p in candidates]
    with translating("comparing rejects with the stored rows"):
        rows = connection.execute(
            _query(mapping_name, target), [*columns, versions, [p.as_of for _, p in candidates]]
        ).fetchall()
    return {index - 1 for (index,) in rows}


def _query(mapping_name: str, target: Target) -> sql.Composed:
    types = [column.type.input_sql for column in target.key_columns]
    arrays = sql.SQL(", ").join(sql.SQL("%s::text[]::{}[]").format(sql.SQL(trusted(name))) for name in types)
    same_key = sql.SQL(" AND ").join(sql.SQL("k.{0} = c.{0}").format(sql.Identifier(n)) for n in target.primary_key)
    return sql.SQL(
        "SELECT c.position FROM unnest({arrays}, %s::numeric[], %s::timestamptz[]) WITH ORDINALITY"
        " AS c ({key}, {version}, {as_of}, position) LEFT JOIN {storage} AS k ON {same_key}"
        " WHERE NOT CASE WHEN k.{as_of} IS NULL THEN {admits} ELSE {rule} END"
    ).format(
        arrays=arrays,
        key=tables.identifiers(target.primary_key),
        version=sql.Identifier(VERSION),
        as_of=sql.Identifier(AS_OF),
        storage=tables.storage(target),
        same_key=same_key,
        admits=admits_new_key("c", mapping_name),
        rule=supersedes("c", "k"),
    )
