"""Replaces all rows of child targets together with their parent's row, by the writer that has just written that row.

Invariant: the parent's row decides. Its primary key serialises the transactions that write one parent, so only the
writer whose state was accepted replaces the children, in statements that begin after the upsert. These see what the
previous writer committed. (Within the upsert they would not, because all parts of a statement see the database as of
its beginning.) A child row has its parent's position, and no tombstone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.schema import tables
from pipeline.aurora.sessions.connection import trusted
from pipeline.core.model.mapping import AS_OF, VERSION

if TYPE_CHECKING:
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target


def replace_children(
    connection: Connection,
    target: Target,
    *,
    taken: sql.Composable,
    candidates: sql.Composable,
    parameters: dict[str, object],
) -> None:
    """Replace the children of the parents in `taken`, inside the transaction that stored the parents.

    `taken` is a relation of the parents' keys; `candidates` one of keys, carried child rows, `_version` and `_as_of`,
    with each key once. The carried rows are NULL for a deleted parent.
    """
    for child, carried in zip(target.children, target.carried, strict=True):
        connection.execute(
            sql.SQL("DELETE FROM {child} AS c USING {taken} AS t WHERE {same_key}").format(
                child=tables.storage(child), taken=taken, same_key=same_key(target, "c", "t")
            ),
            parameters,
        )
        connection.execute(
            sql.SQL(
                "INSERT INTO {child} ({names}, {version}, {as_of}) SELECT {key}, {values}, k.{version}, k.{as_of}"
                " FROM {candidates} AS k JOIN {taken} AS t ON {same_key}"
                " CROSS JOIN LATERAL jsonb_array_elements(k.{carried}) AS e (value)"
            ).format(
                child=tables.storage(child),
                names=tables.identifiers(child.stored_columns),
                version=sql.Identifier(VERSION),
                as_of=sql.Identifier(AS_OF),
                key=qualified("k", target),
                values=sql.SQL(", ").join(element_values(child, assigned=True)),
                candidates=candidates,
                taken=taken,
                same_key=same_key(target, "k", "t"),
                carried=sql.Identifier(carried),
            ),
            parameters,
        )


def element_values(child: Target, *, assigned: bool) -> list[sql.Composed]:
    """Compose the values of an element `e.value`, its places first.

    `assigned`: for assignment to a column, which checks the length; otherwise with the columns' own types, for
    comparing.
    """
    return [
        sql.SQL("(e.value->>{})::{}{}").format(
            sql.Literal(number),
            sql.SQL(trusted(column.type.input_sql if assigned else column.type.sql)),
            # As the stored column: PostgreSQL compares no rows whose collations differ.
            sql.SQL(' COLLATE "C"' if column in child.places and column.type.codec.is_text else ""),
        )
        for number, column in enumerate((*child.places, *child.own_columns))
    ]


def differs(child: Target, carried: str, staged: str, stored: str) -> sql.Composed:
    """Compose the condition that a staged parent's elements differ from its stored children, column by column."""
    columns = (*child.places, *child.own_columns)
    parent_key = child.primary_key[: -len(child.places)]
    values = element_values(child, assigned=False)
    return sql.SQL(
        "ARRAY(SELECT ROW({elements}) FROM jsonb_array_elements({staged}.{carried}) AS e (value)"
        " ORDER BY {places_of_element}) IS DISTINCT FROM"
        " ARRAY(SELECT ROW({columns}) FROM {child} AS c WHERE {of_parent} ORDER BY {places})"
    ).format(
        elements=sql.SQL(", ").join(values),
        staged=sql.Identifier(staged),
        carried=sql.Identifier(carried),
        places_of_element=sql.SQL(", ").join(values[: len(child.places)]),
        columns=sql.SQL(", ").join(
            sql.SQL("c.{}::{}").format(sql.Identifier(column.name), sql.SQL(trusted(column.type.sql)))
            for column in columns
        ),
        child=tables.storage(child),
        of_parent=sql.SQL(" AND ").join(
            sql.SQL("c.{0} = {1}.{0}").format(sql.Identifier(name), sql.Identifier(stored)) for name in parent_key
        ),
        places=sql.SQL(", ").join(sql.SQL("c.{}").format(sql.Identifier(place.name)) for place in child.places),
    )


def qualified(alias: str, target: Target) -> sql.Composed:
    """Return the target's key columns, qualified."""
    return sql.SQL(", ").join(
        sql.SQL("{}.{}").format(sql.Identifier(alias), sql.Identifier(name)) for name in target.primary_key
    )


def same_key(target: Target, one: str, other: str) -> sql.Composed:
    """Compose the condition that two relations' rows are of one parent."""
    return sql.SQL(" AND ").join(
        sql.SQL("{a}.{n} = {b}.{n}").format(a=sql.Identifier(one), b=sql.Identifier(other), n=sql.Identifier(name))
        for name in target.primary_key
    )
