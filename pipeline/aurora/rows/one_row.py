"""Statements about the row of one key, whose values are parameters and never part of a statement's text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from psycopg import RawCursor, sql

from pipeline.aurora.sessions.connection import trusted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target


def same_key(target: Target, alias: str) -> sql.Composed:
    """Compose the condition that the relation `alias` has the key, parameters $1 and following."""
    return sql.SQL(" AND ").join(
        sql.SQL("{}.{} = ${}::{}").format(
            sql.Identifier(alias),
            sql.Identifier(column.name),
            sql.SQL(trusted(str(number))),
            sql.SQL(trusted(column.type.input_sql)),
        )
        for number, column in enumerate(target.key_columns, start=1)
    )


def execute(connection: Connection, statement: sql.Composed, key: Sequence[str]) -> RawCursor[Any]:
    """Execute a statement with the texts of a key. Names in it may have a percent sign."""
    return RawCursor(connection).execute(statement, list(key))
