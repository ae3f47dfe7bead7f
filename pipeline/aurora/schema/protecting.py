"""Brings the database to what a mapping protects: the record that refuses other writers, and what is stored in clear.

Invariant: from the transaction on that changes the record, no writer stores a value that the mapping protects, and none
is left: whatever the columns concerned hold is emptied in it, and a load fills them again. A value that is protected no
longer, or in another way, or under another key, is emptied too, because the stored one means something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping.protection import NOT_SET, difference, former_tables, key_differs
from pipeline.aurora.schema import catalog, history_tables
from pipeline.core.model import history
from pipeline.core.model.mapping import BOOKKEEPING_COLUMNS, STORAGE_SCHEMA
from pipeline.core.model.protection import ANY, entries, generalized, remainders

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping, Target

_Paths = set[tuple[str, ...]]
_NOTE = (
    "deploy the mapping to the replicator, whose batches wait until then; then `dynaurora load {name}` fills the tables"
    " again, and `dynaurora reconcile {name} --repair` the rows that had changed just before. A history stays empty"
    " there. Backups, exports and the disk's free space may still hold the old values"
)


@dataclass(frozen=True, slots=True)
class Change:
    """What has to be done, in one transaction. `sql` is empty if there is nothing to do."""

    what: str = ""
    sql: str = ""
    note: str = ""
    problem: tuple[str, str] | None = None
    """Why it is not done, and the way out."""


def plan_protection(
    connection: Connection, mapping: TableMapping, stored: str, *, registered: bool, new_key: bool
) -> Change:
    """Compare what a mapping protects with the record in force."""
    if mapping.hashes and mapping.privacy_key is None:
        return Change(problem=NOT_SET)
    if stored == mapping.protection:
        return Change()
    replaced = key_differs(mapping, stored)
    if replaced and not new_key:
        return Change(problem=difference(mapping, stored))
    before = {path for of in entries(stored).values() for path in of}
    added_any = any(of - before for of in entries(mapping.protection).values())
    if added_any and registered and (former := former_tables(connection, mapping)):
        return Change(
            problem=(
                f"{', '.join(former)}, of targets that the mapping has no more, may hold in clear what is protected",
                f"drop them with their views (DROP VIEW …; DROP TABLE {', '.join(former)}), then run this again",
            )
        )
    emptied: list[_Emptied] = []
    for target in mapping.targets:
        changed, added = _changed(mapping, target, stored)
        emptied += _emptied(connection, target, changed, leftovers=added)
    record = sql.SQL("UPDATE replication.tables SET protection = {} WHERE name = {}").format(
        sql.Literal(mapping.protection or None), sql.Literal(mapping.name)
    )
    locks = [sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(part.table) for part in emptied]
    what = "record the new privacy key" if replaced else "record what is protected"
    if emptied:
        shown = "; ".join(f"{part.table.as_string(connection)}: {', '.join(part.names)}" for part in emptied)
        what += f", and empty what was stored before ({shown})"
    # The planner's statistics have values too; those of a column that is empty have none.
    analyzed = [sql.SQL("ANALYZE {}").format(part.table) for part in emptied]
    statements = [*locks, record, *(part.statement for part in emptied), *analyzed]
    text = ";\n".join(statement.as_string(connection) for statement in statements) + ";"
    return Change(what, text, _NOTE.format(name=mapping.name) if emptied else "")


def _changed(mapping: TableMapping, target: Target, stored: str) -> tuple[_Paths, bool]:
    """Return the paths of a target's items that are protected in another way now, and whether any is protected now."""
    name = target.view_name if target.match else ""
    before, now = entries(stored), entries(mapping.protection)
    old, new = before.get(name, before.get("", set())), now.get(name, set())
    return {path for path, _ in old ^ new}, bool(new - old)


@dataclass(frozen=True, slots=True)
class _Emptied:
    """A table, and the statement that empties its columns and attributes `names`."""

    table: sql.Identifier
    names: list[str]
    statement: sql.Composable


def _emptied(connection: Connection, target: Target, changed: _Paths, *, leftovers: bool) -> Iterator[_Emptied]:
    """Yield what is emptied of a target's table, of its history's, and of its children's.

    `leftovers`: also what the mapping no longer fills, because something is protected now that was not, and it may be
    there.
    """
    children = list(_children(target, changed))
    columns = _columns(target, changed)
    columns |= {history.children_column(child) for child, inside in children if _columns(child, inside)}
    known = {*history_tables.all_columns(target), *BOOKKEEPING_COLUMNS}
    roots = sorted({path[0] for path in changed if path})
    base = history.base_name(target)
    has_history = catalog.stored_table(connection, STORAGE_SCHEMA, base) is not None
    for name in (target.storage_name, *((history.table_name(target), base) if has_history else ())):
        found = catalog.stored_table(connection, STORAGE_SCHEMA, name)
        if found is None:
            continue
        there = set(found.columns)
        names = sorted(columns & there | (there - known if leftovers else set()))
        attributes = roots if target.unmapped in there else []
        if names or attributes:
            table = sql.Identifier(STORAGE_SCHEMA, name)
            yield _Emptied(table, names + attributes, _empty(table, names, target.unmapped or "", attributes))
    for child, inside in children:
        yield from _emptied(connection, child, inside, leftovers=leftovers)


def _children(target: Target, changed: _Paths) -> Iterable[tuple[Target, _Paths]]:
    """Return the children, each with the changed paths as seen from its elements; the empty path is all of each."""
    for child in target.children:
        place = (*generalized(child.explode), ANY)
        yield child, {left for path in changed for left in remainders(path, place)}


def _columns(table: Target, paths: _Paths) -> set[str]:
    columns = table.own_columns if table.parent else table.columns
    return {
        column.name
        for column in columns
        if column.name not in table.primary_key
        and column.path
        and any(remainders(path, generalized(column.path)) for path in paths)
    }


def _empty(table: sql.Identifier, columns: list[str], rest: str, attributes: list[str]) -> sql.Composable:
    names = [sql.Identifier(name) for name in columns]
    assignments: list[sql.Composable] = [sql.SQL("{} = NULL").format(name) for name in names]
    conditions: list[sql.Composable] = [sql.SQL("{} IS NOT NULL").format(name) for name in names]
    if attributes:
        parts = {"rest": sql.Identifier(rest), "attributes": sql.Literal(attributes)}
        assignments.append(sql.SQL("{rest} = {rest} - {attributes}::text[]").format(**parts))
        conditions.append(sql.SQL("{rest} ?| {attributes}::text[]").format(**parts))
    return sql.SQL("UPDATE {} SET {} WHERE {}").format(
        table, sql.SQL(", ").join(assignments), sql.SQL(" OR ").join(conditions)
    )
