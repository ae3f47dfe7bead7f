"""Finds the rows that PostgreSQL refuses: unreadable values with one statement, all others by halving.

Invariant: a row is refused only if storing it alone fails, and for that reason; of several unreadable texts, the first
in column order gives the reason. Halving finds errors that only storing shows (a constraint, a trigger).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from psycopg import sql

from pipeline.aurora.errors import refused_value, translating
from pipeline.aurora.rows.apply import nullable_array_literal
from pipeline.core.errors import DataError

if TYPE_CHECKING:
    from pipeline.aurora.rows.apply import ApplyStatement
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.change import Change, Row
    from pipeline.core.model.mapping import Target

# The first version that can check a value without failing the statement (PostgreSQL manual, data validity checking
# functions).
FIRST_VERSION = 160_000
# Every text can be read as this type.
_ALWAYS_READ = "text"

_T = TypeVar("_T")


def store_isolating(
    connection: Connection,
    rows: Sequence[_T],
    store: Callable[[Sequence[_T]], int],
    refuse: Callable[[_T, DataError], None],
    judge: Callable[[Sequence[_T]], dict[int, DataError]] | None = None,
) -> int:
    """Call `store` with rows (or changes) under savepoints, halving at each refusal; return how many it stored.

    Calls `refuse` with each row that PostgreSQL refuses alone. This is slow, some ten round trips per refused row, and
    only for files in which only PostgreSQL found a value wrong. At the first refusal, `judge` returns, by index, all
    rows that would be refused alone; halving finds the rest.
    """
    if not rows:
        return 0
    try:
        with connection.transaction():
            return store(rows)
    except DataError as error:
        if len(rows) == 1:
            refuse(rows[0], error)
            return 0
    found = judge(rows) if judge else {}
    if found:
        for index, error in found.items():
            refuse(rows[index], error)
        rest = [row for index, row in enumerate(rows) if index not in found]
        return store_isolating(connection, rest, store, refuse)
    middle = len(rows) // 2
    first = store_isolating(connection, rows[:middle], store, refuse)
    return first + store_isolating(connection, rows[middle:], store, refuse)


def refused_values(
    connection: Connection, types: Sequence[str], rows: Sequence[Row], doing: str
) -> dict[int, DataError]:
    """Return the error of each row that cannot be read as these types, by its index; `doing` is for its message.

    Empty if the server is older than PostgreSQL 16, or cannot check the rows together: then only storing shows it.
    """
    checked = [(place, name) for place, name in enumerate(types) if name != _ALWAYS_READ]
    if connection.info.server_version < FIRST_VERSION or not checked or not rows:
        return {}
    columns = [nullable_array_literal([row[place] for row in rows]) for place, _ in checked]
    try:
        with translating(doing), connection.transaction():
            found = connection.execute(_query([name for _, name in checked]), columns).fetchall()
    except DataError:
        return {}
    return {number - 1: refused_value(state, doing) for number, state in found}


def copied_types(target: Target) -> list[str]:
    """Return the types as which COPY reads a row's texts, in order."""
    types = {column.name: column.type.sql for column in target.columns}
    return [types.get(name, "jsonb") for name in (*target.stored_columns, *target.carried)]


def judging(
    connection: Connection, statement: ApplyStatement, doing: str
) -> Callable[[Sequence[Change]], dict[int, DataError]]:
    """Return the `judge` for `store_isolating`, which checks changes against the types that an apply statement uses.

    Lengths and arrays are not checked here: PostgreSQL checks them only in rows that the ordering rule admits.
    """
    target = statement.target
    sent = {c.name: c.type.sent_sql for c in target.columns}
    types = [sent.get(name, "jsonb") for name in target.stored_columns]

    def judge(changes: Sequence[Change]) -> dict[int, DataError]:
        return refused_values(connection, types, [change.texts(target) for change in changes], doing)

    return judge


def _query(types: Sequence[str]) -> sql.Composed:
    """Compose the query; its parameters are an array of texts for each of the types."""
    cases = [
        sql.SQL("WHEN NOT pg_input_is_valid({0}, {1}) THEN (pg_input_error_info({0}, {1})).sql_error_code").format(
            sql.Identifier(f"c{number}"), sql.Literal(name)
        )
        for number, name in enumerate(types)
    ]
    return sql.SQL(
        "SELECT * FROM (SELECT number, CASE {cases} END AS state FROM unnest({arrays}) WITH ORDINALITY AS u ({names},"
        " number)) AS judged WHERE state IS NOT NULL"
    ).format(
        cases=sql.SQL(" ").join(cases),
        arrays=sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(types)),
        names=sql.SQL(", ").join(sql.Identifier(f"c{number}") for number in range(len(types))),
    )
