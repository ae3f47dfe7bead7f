"""Storage tables and views as SQL: what a target looks like in the database.

Invariant: the view shows the mapped columns of live rows and nothing of ours. A key's live row and its tombstone are
one row, so the primary key makes all writers of that key wait for each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.sessions.connection import trusted
from pipeline.core.model.mapping import AS_OF, BOOKKEEPING_COLUMNS, DELETED, STORAGE_SCHEMA, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.core.model.mapping import Column, Target

# A tenth of each page is left free, so that a change of a loaded row stays on its page and touches no index. Otherwise
# most changes in a large table would write one page of the table and one of the index each (PostgreSQL manual,
# heap-only tuples).
OPTIONS = "fillfactor=90"
# Text keys compare by bytes, as in DynamoDB, so that no change of collation ever breaks the index.
_KEY_COLLATION = ' COLLATE "C"'


def storage(target: Target) -> sql.Identifier:
    """Qualified name of the target's storage table."""
    return sql.Identifier(STORAGE_SCHEMA, target.storage_name)


def view(target: Target) -> sql.Identifier:
    """Qualified name of the target's view."""
    return sql.Identifier(target.schema, target.name)


def identifiers(names: Iterable[str]) -> sql.Composed:
    """Return names as a comma-separated list of identifiers."""
    return sql.SQL(", ").join(map(sql.Identifier, names))


def all_columns(target: Target) -> tuple[str, ...]:
    """Names of every storage column: a row's values, then ours."""
    return (*target.stored_columns, *BOOKKEEPING_COLUMNS)


def column_type(target: Target, name: str) -> sql.SQL:
    """The type of a storage column, as in a column definition."""
    for column in target.columns:
        if column.name == name:
            return sql.SQL(trusted(_definition_type(target, column)))
    ours = {VERSION: "numeric", AS_OF: "timestamptz", DELETED: "boolean"}
    return sql.SQL(trusted(ours.get(name, "jsonb")))


def _definition_type(target: Target, column: Column) -> str:
    is_text_key = column.name in target.primary_key and column.type.codec.is_text
    return column.type.sql + (_KEY_COLLATION if is_text_key else "")


def stored_default(target: Target, name: str) -> sql.Composable:
    """Return the default for rows written without the column: existing rows, and those of an older writer.

    It is a constant, so only the catalog changes (PostgreSQL manual, ALTER TABLE). Writers that know the column always
    give it.
    """
    default = next((column.default for column in target.columns if column.name == name), None)
    return sql.SQL("") if default is None else sql.SQL(" DEFAULT {}").format(sql.Literal(default))


def column_definitions(target: Target) -> sql.Composed:
    """Column definitions of the storage table, without its primary key."""
    lines: list[sql.Composable] = [
        sql.SQL("{} {}{}").format(
            sql.Identifier(name),
            column_type(target, name),
            sql.SQL(" NOT NULL" if name in target.primary_key else ""),
        )
        for name in target.stored_columns
    ]
    lines += [
        sql.SQL("{} numeric").format(sql.Identifier(VERSION)),
        sql.SQL("{} timestamptz NOT NULL").format(sql.Identifier(AS_OF)),
        sql.SQL("{} boolean NOT NULL DEFAULT false").format(sql.Identifier(DELETED)),
    ]
    return sql.SQL(", ").join(lines)


def create_storage(target: Target) -> sql.Composed:
    """Statement that creates the storage table."""
    return sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({})) WITH ({})").format(
        storage(target), column_definitions(target), identifiers(target.primary_key), sql.SQL(OPTIONS)
    )


def create_view(target: Target, options: Sequence[tuple[str, str]] = ()) -> sql.Composed:
    """Statement that creates the view, or points an existing one with the same columns at the storage table.

    `options` are the existing view's, by name and value: PostgreSQL resets those that the statement leaves out.
    """
    settings = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in options
    )
    return sql.SQL("CREATE OR REPLACE VIEW {}{} AS SELECT {} FROM {} WHERE NOT {}").format(
        view(target),
        sql.SQL(" WITH ({})").format(settings) if options else sql.SQL(""),
        identifiers(view_columns(target)),
        storage(target),
        sql.Identifier(DELETED),
    )


def view_columns(target: Target) -> tuple[str, ...]:
    """Names of the columns that the view shows: the mapped ones."""
    return tuple(column.name for column in target.columns)
