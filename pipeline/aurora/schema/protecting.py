"""Brings the database to what a mapping protects: the record that refuses other writers, and what is stored in clear.

Invariant: from the transaction on that changes the record, no writer stores a value that the mapping protects, and none
is left: whatever the columns concerned hold is emptied in it, and a load fills them again. A value that is protected no
longer, or in another way, or under another key, is emptied too, because the stored one means something else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping.protection import KEY_DIFFERS, difference, key_differs
from pipeline.aurora.schema import catalog, tables
from pipeline.core.model.mapping import BOOKKEEPING_COLUMNS, STORAGE_SCHEMA
from pipeline.core.model.protection import ANY, entries, generalized, overlap

if TYPE_CHECKING:
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping, Target


@dataclass(frozen=True, slots=True)
class Change:
    """What has to be done, in one transaction. `sql` is empty if there is nothing to do."""

    what: str = ""
    sql: str = ""
    note: str = ""
    problem: tuple[str, str] | None = None
    """Why it is not done, and the way out."""


def plan_protection(connection: Connection, mapping: TableMapping, stored: str, *, new_key: bool) -> Change:
    """Compare what a mapping protects with the record in force."""
    if mapping.hashes and mapping.privacy_key is None:
        return Change(problem=("it hashes attributes, and the privacy key is not set", _SET_KEY))
    if stored == mapping.protection:
        return Change()
    replaced = key_differs(mapping, stored)
    if replaced and not new_key:
        return Change(problem=difference(mapping, stored))
    statements: list[sql.Composable] = []
    emptied: list[str] = []
    locks: list[sql.Composable] = []
    for target in mapping.targets:
        changed, added = _changed(mapping, target, stored)
        for table, paths in _tables(target, changed):
            found = catalog.stored_table(connection, STORAGE_SCHEMA, table.storage_name)
            if found is None:
                continue
            locks.append(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(tables.storage(table)))
            columns = _columns(table, paths) & set(found.columns)
            if added:
                columns |= set(found.columns) - set(table.stored_columns) - set(BOOKKEEPING_COLUMNS)
            roots = sorted({path[0] for path in paths}) if table.unmapped in found.columns else []
            if columns or roots:
                emptied += [f"{tables.storage(table).as_string(connection)}: {', '.join([*sorted(columns), *roots])}"]
                statements.append(_empty(table, sorted(columns), roots))
    record = sql.SQL("UPDATE replication.tables SET protection = {} WHERE name = {}").format(
        sql.Literal(mapping.protection or None), sql.Literal(mapping.name)
    )
    what = "record the new privacy key" if replaced else "record what is protected"
    if emptied:
        what += f", and empty what was stored before ({'; '.join(emptied)})"
    text = ";\n".join(statement.as_string(connection) for statement in (*locks, record, *statements)) + ";"
    return Change(what, text, _NOTE.format(name=mapping.name) if emptied else "")


_SET_KEY = "set PRIVACY_KEY_SECRET_ID to a secret of at least 32 characters, or PRIVACY_KEY for local use"
_NOTE = (
    "deploy the mapping to the replicator, whose batches wait until then; `dynaurora load {name}` fills what was emptied"
    " (after that, `dynaurora reconcile {name} --repair` fills rows that changed within the margin before); backups,"
    " exports and the disk's free space may still hold the old values"
)
__all__ = ["KEY_DIFFERS", "Change", "plan_protection"]


def _changed(mapping: TableMapping, target: Target, stored: str) -> tuple[set[tuple[str, ...]], bool]:
    """Return the paths of a target's items that are protected in another way now, and whether any is protected now."""
    name = target.view_name if target.match else ""
    before, now = entries(stored), entries(mapping.protection)
    old, new = before.get(name, before.get("", set())), now.get(name, set())
    return {path for path, _ in old ^ new}, bool(new - old)


def _tables(target: Target, changed: set[tuple[str, ...]]) -> list[tuple[Target, set[tuple[str, ...]]]]:
    """Return a target and its children, each with the changed paths as seen from its items or elements."""
    found = [(target, changed)]
    for child in target.children:
        place = (*generalized(child.explode), ANY)
        inside = {path[len(place) :] for path in changed if overlap(path, place)}
        # What is above the elements concerns all of each.
        found += _tables(child, inside)
    return found


def _columns(table: Target, paths: set[tuple[str, ...]]) -> set[str]:
    columns = table.own_columns if table.parent else table.columns
    return {
        column.name
        for column in columns
        if column.name not in table.primary_key
        and column.path
        and any(overlap(generalized(column.path), path) for path in paths)
    }


def _empty(table: Target, columns: list[str], roots: list[str]) -> sql.Composable:
    names = [sql.Identifier(name) for name in columns]
    assignments: list[sql.Composable] = [sql.SQL("{} = NULL").format(name) for name in names]
    conditions: list[sql.Composable] = [sql.SQL("{} IS NOT NULL").format(name) for name in names]
    if roots and table.unmapped:
        parts = {"rest": sql.Identifier(table.unmapped), "roots": sql.Literal(roots)}
        assignments.append(sql.SQL("{rest} = {rest} - {roots}::text[]").format(**parts))
        conditions.append(sql.SQL("{rest} ?| {roots}::text[]").format(**parts))
    return sql.SQL("UPDATE {} SET {} WHERE {}").format(
        tables.storage(table), sql.SQL(", ").join(assignments), sql.SQL(" OR ").join(conditions)
    )
