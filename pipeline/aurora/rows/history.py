"""Writes versions to histories.

Invariant: versions are only added, each at its own position, and one that is there already stays as it is. So neither
the order in which versions arrive, nor how often, nor from where, matters. Only forgetting a key removes any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.schema import history_tables
from pipeline.aurora.sessions.connection import trusted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target


def forget(connection: Connection, target: Target, key: Sequence[str]) -> int:
    """Delete every version of a row, inside the caller's transaction; return how many there were.

    `key` has the primary key's texts in its order. A target without a history has none.
    """
    if target.history is None:
        return 0
    same_key = sql.SQL(" AND ").join(
        sql.SQL("{} = {}::{}").format(
            sql.Identifier(column.name), sql.Literal(text), sql.SQL(trusted(column.type.input_sql))
        )
        for column, text in zip(target.key_columns, key, strict=True)
    )
    with translating("forgetting the versions of a row"):
        return sum(
            connection.execute(sql.SQL("DELETE FROM {} WHERE {}").format(table, same_key)).rowcount
            for table in (history_tables.versions(target), history_tables.base(target))
        )
