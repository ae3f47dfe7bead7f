"""Ranges of a target's keys: where to split them, and how far each lane of a reconciliation has come.

Invariant: a target's ranges cover every key of snapshot and target once: the first range has no lower bound, the last
no upper bound, and the statement that compares keys also moves the lane's mark past them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.schema import tables
from pipeline.aurora.sessions.connection import trusted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

Key = tuple[str, ...]

# To find split points, each table is sampled: one page per this many rows, within bounds.
_ROWS_A_PAGE_SAMPLED = 5_000
_FEWEST_PAGES, _MOST_PAGES = 50, 5_000


@dataclass(frozen=True, slots=True)
class Lane:
    """The keys that one connection compares, in order: after `after`, through `through`; None: no bound."""

    target: int
    number: int
    after: Key | None
    through: Key | None
    done: bool = False


def cuts(
    connection: Connection, target: Target, relations: Sequence[sql.Identifier], lane: Lane, rows: int
) -> list[Key]:
    """Return keys of the lane's range in order, spread evenly enough: one from each sampled page.

    `relations` are the tables that hold the keys, with about `rows` rows each. Reads a bounded number of pages.
    """
    pages = min(_MOST_PAGES, max(_FEWEST_PAGES, rows // _ROWS_A_PAGE_SAMPLED))
    sampled = sql.SQL(" UNION ").join(
        sql.SQL(
            "SELECT * FROM (SELECT DISTINCT ON ((ctid::text::point)[0]) {key} FROM {relation}"
            " TABLESAMPLE SYSTEM (least(100, 100.0 * {most} * 8192 / greatest(1, pg_relation_size({name}))))"
            " WHERE {within}) AS p"
        ).format(
            key=tables.identifiers(target.primary_key),
            relation=relation,
            most=sql.Literal(pages),
            name=sql.Literal(relation.as_string()),
            within=within(target, lane.after, lane.through),
        )
        for relation in relations
    )
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(name)) for name in target.primary_key)
    query = sql.SQL("SELECT {texts} FROM ({sampled}) AS k ORDER BY {key}").format(
        texts=texts,
        sampled=sampled,
        key=sql.SQL(", ").join(sql.SQL("k.{}").format(sql.Identifier(name)) for name in target.primary_key),
    )
    with translating("looking for ranges of keys"):
        return [tuple(row) for row in connection.execute(query, bounds(lane.after, lane.through))]


def bounds(after: Key | None, through: Key | None) -> dict[str, object]:
    """Return the parameters of `within`."""
    named: dict[str, object] = {f"after_{i}": text for i, text in enumerate(after or ())}
    return named | {f"through_{i}": text for i, text in enumerate(through or ())}


def within(target: Target, after: Key | None, through: Key | None) -> sql.Composable:
    """Compose the condition that a key lies in a range, in a form that can use the key's index."""
    key = sql.SQL("({})").format(tables.identifiers(target.primary_key))
    conditions = [
        sql.SQL("{} {} ({})").format(key, sql.SQL(trusted(operator)), _parameters(target, name))
        for name, operator, bound in (("after", ">", after), ("through", "<=", through))
        if bound is not None
    ]
    return sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("true")


def _parameters(target: Target, name: str) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL(trusted(f"%({name}_{i})s::text::{column.type.input_sql}"))
        for i, column in enumerate(target.key_columns)
    )


def lanes(connection: Connection, run_id: int, target: int) -> list[Lane]:
    """Return a target's lanes as recorded, with how far each has come; empty before `divide`."""
    with translating("reading the progress of the comparison"):
        rows = connection.execute(
            "SELECT lane, after_key, through_key, done FROM replication.reconciliation_ranges"
            " WHERE reconciliation_id = %s AND target = %s ORDER BY lane",
            [run_id, target],
        )
        return [
            Lane(target, number, after and tuple(after), through and tuple(through), done)
            for number, after, through, done in rows
        ]


def divide(connection: Connection, run_id: int, target: int, between: Sequence[Key]) -> list[Lane]:
    """Record lanes split at the keys `between`; return them."""
    edges = [None, *between, None]
    made = [Lane(target, number, edges[number], edges[number + 1]) for number in range(len(edges) - 1)]
    with translating("recording ranges of keys"), connection.transaction():
        connection.cursor().executemany(
            "INSERT INTO replication.reconciliation_ranges (reconciliation_id, target, lane, after_key, through_key)"
            " VALUES (%s, %s, %s, %s, %s)",
            [(run_id, target, lane.number, _array(lane.after), _array(lane.through)) for lane in made],
        )
    return made


def _array(key: Key | None) -> list[str] | None:
    return None if key is None else list(key)
