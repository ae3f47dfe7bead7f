"""The rules for a target of a mapping file: its name, its columns, its primary key.

Invariant: only key attributes, or the parts that `match` captures from them, form a primary key, each of them once and
with a type that keeps different keys different. So two items never share a row, and a REMOVE, which carries only the
keys, finds its row.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.core.mapping_files.column_rules import (
    COLUMN_EXAMPLE,
    ColumnSources,
    name_problem,
    read_column,
    read_on_error,
)
from pipeline.core.mapping_files.history_rules import HISTORY_EXAMPLE, read_history
from pipeline.core.mapping_files.index_rules import INDEXES_EXAMPLE, read_indexes
from pipeline.core.mapping_files.match_rules import MATCH_EXAMPLE, captures_of, missing_of_key, read_match
from pipeline.core.mapping_files.protection_rules import PATHS_EXAMPLE, read_unmapped_rules
from pipeline.core.mapping_files.reader_rules import READERS_EXAMPLE, read_readers
from pipeline.core.mapping_files.yaml_fields import suggestion
from pipeline.core.model.mapping import BOOKKEEPING_SCHEMA, STORAGE_SCHEMA, OnError, Target
from pipeline.core.types.sql_types import CAPTURE_KEY_TYPES, KEY_TYPES, SqlType

if TYPE_CHECKING:
    from pipeline.core.mapping_files.yaml_fields import Field
    from pipeline.core.model.key_patterns import Pattern
    from pipeline.core.model.mapping import Column
    from pipeline.core.model.protection import Rule

TARGET_EXAMPLE = "{Employees: {primary_key: [Id], columns: {Id: {attribute: Id, type: bigint}}}}"
UNMAPPED_DEFAULT = "attributes"
UNMAPPED_IGNORE = "ignore"
# Rows with more columns than this may not fit: 500 values that are stored out of line already fail with "row is too
# big" (54000), because 8,160 bytes must hold a pointer to each.
MOST_COLUMNS = 500
# Tables that loads, reconciliations and histories create beside the storage tables, and drop.
_OWN_TABLE = "_(load|reconcile)_[0-9].*|_history_.*"

_TARGET = {"primary_key": "primary_key: [Id]", "columns": COLUMN_EXAMPLE}
_TARGET_OPTIONAL = {
    "match": MATCH_EXAMPLE,
    "unmapped": "unmapped: attributes",
    "unmapped_on_error": "unmapped_on_error: reject",
    "indexes": INDEXES_EXAMPLE,
    "readers": READERS_EXAMPLE,
    "history": HISTORY_EXAMPLE,
}
_UNMAPPED = {
    "column": "column: attributes",
    **{how: f"{how}: {PATHS_EXAMPLE}" for how in ("drop", "hash", "mask")},
}


def read_target(name: str, field: Field, key: dict[str, str] | None) -> Target | None:
    """Read one target; `key` is None if it could not be read. Notes problems; returns None if it cannot be used."""
    schema, view = read_target_name(name, field)
    fields = field.known(_TARGET, _TARGET_OPTIONAL)
    if fields is None:
        return None
    unmapped, protect = _read_unmapped(fields["unmapped"], key) if "unmapped" in fields else (UNMAPPED_DEFAULT, ())
    match = read_match(fields["match"], key) if "match" in fields else ()
    members = fields["columns"].members("{Id: {attribute: Id, type: bigint}}") if "columns" in fields else None
    if match is None or members is None:
        return None  # reported; the captures or the columns are unknown
    columns = _read_columns(fields["columns"], members, ColumnSources(key, captures_of(match)), unmapped)
    if "primary_key" not in fields:
        return None
    primary_key = _read_primary_key(fields["primary_key"], members, columns, key, match)
    on_error = (
        _read_unmapped_on_error(fields["unmapped_on_error"], unmapped)
        if "unmapped_on_error" in fields
        else OnError.REJECT
    )
    readers = read_readers(fields["readers"]) if "readers" in fields else None
    target = Target(schema, view, primary_key, tuple(columns.values()), unmapped, on_error, match, readers=readers,
                    protect=protect)  # fmt: skip
    if "history" in fields:
        target = replace(target, history=read_history(fields["history"]))
    if "indexes" not in fields or len(columns) < len(members):  # what is wrong with a column was reported
        return target
    return replace(target, indexes=read_indexes(fields["indexes"], target))


def read_target_name(name: str, field: Field) -> tuple[str, str]:
    """Return the schema and the view that a target's name means; notes problems."""
    schema, dot, view = name.rpartition(".")
    if not dot:
        schema = "public"
    problem = name_problem(view) or name_problem(schema)
    if "." in schema:
        field.problem(f'"{name}" has more than one "."; write Name, or schema.Name')
    elif problem:
        field.problem(f'"{name}" {problem}')
    elif re.fullmatch(_OWN_TABLE, view):
        field.problem(f'"{name}" is a name of tables that Dynaurora creates and drops for its work; choose another')
    elif schema in {STORAGE_SCHEMA, BOOKKEEPING_SCHEMA}:
        field.problem(f'schema "{schema}" is Dynaurora\'s own; put the view into another schema')
    elif schema.startswith("pg_") or schema == "information_schema":
        field.problem(f'schema "{schema}" is reserved by PostgreSQL; put the view into another schema')
    elif dot and schema != "public" and len(name.encode()) > 63:
        field.problem(f'"{name}" has {len(name.encode())} bytes with its schema and PostgreSQL keeps 63; shorten it')
    return schema, view


def _read_unmapped(field: Field, key: dict[str, str] | None) -> tuple[str | None, tuple[Rule, ...]]:
    """Return the jsonb column, and what is protected of the attributes that no column takes."""
    if field.is_scalar:
        return _read_unmapped_column(field), ()
    fields = field.known({}, _UNMAPPED)
    if fields is None:
        return None, ()
    column = _read_unmapped_column(fields["column"]) if "column" in fields else UNMAPPED_DEFAULT
    return column, read_unmapped_rules(fields, key)


def _read_unmapped_column(field: Field) -> str | None:
    if field.tag == "bool":
        field.problem(f"is {field.written}; write `ignore` to drop unmapped attributes, or the name of a jsonb column")
        return None
    name = field.text("write `ignore` to drop unmapped attributes, or the name of a jsonb column")
    if name is None or name == UNMAPPED_IGNORE:
        return None
    if problem := name_problem(name, column=True):
        field.problem(f'"{name}" {problem}')
    return name


def _read_unmapped_on_error(field: Field, unmapped: str | None) -> OnError:
    policy = read_on_error(field, SqlType("jsonb"))
    if unmapped is None:
        field.problem("has no effect if unmapped attributes are ignored; remove it")
    return policy


def _read_columns(
    field: Field, members: dict[str, Field], sources: ColumnSources, unmapped: str | None
) -> dict[str, Column]:
    if not members:
        field.problem("has no column; add at least the key's, such as {Id: {attribute: Id, type: bigint}}")
    if len(members) > MOST_COLUMNS:
        field.problem(
            f"has {len(members)} columns, and rows of more than {MOST_COLUMNS} do not fit PostgreSQL's 8 kB page if"
            " their values are long; leave the rest to the jsonb column, or split them over two targets"
        )
    columns: dict[str, Column] = {}
    for name, member in members.items():
        if name == unmapped:
            member.problem(
                f'"{name}" is also the column of unmapped attributes;'
                " rename this column, or name that one with `unmapped`"
            )
        elif problem := name_problem(name, column=True):
            member.problem(f'"{name}" {problem}')
        column = read_column(name, member, sources)
        if column is not None:
            columns[name] = column
    return columns


def _read_primary_key(
    field: Field,
    members: dict[str, Field],
    columns: dict[str, Column],
    key: dict[str, str] | None,
    match: tuple[tuple[str, Pattern], ...],
) -> tuple[str, ...]:
    names: list[str] = []
    for element in field.elements("[Id]") or ():
        name = element.text()
        if name is None:
            continue
        if name in names:
            element.problem(f'"{name}" is named twice; remove one')
        elif name not in members:
            element.problem(f'"{name}" is not a column of this target; {suggestion(name, members, "the columns are")}')
        names.append(name)
    if key is None or set(names) - set(columns):
        return tuple(names)  # reported; the right key is not known yet
    filled: dict[str, str] = {}
    for name in dict.fromkeys(names):
        _check_key_column(members[name], columns[name], key, filled)
    missing_of_key(field, names, columns, key, match)
    return tuple(names)


def _check_key_column(field: Field, column: Column, key: dict[str, str], filled: dict[str, str]) -> None:
    attribute = column.path[0]
    tag = key.get(str(attribute)) if len(column.path) == 1 else None
    if tag is None:
        field.problem(
            f'is in the primary key, but its attribute "{column.attribute}" is not a key attribute, so a delete could'
            f" not find its row; build the key from the columns of {' and '.join(key)}"
        )
        return
    source = f"capture {column.capture}" if column.capture else str(attribute)
    if source in filled:
        what = "captured part" if column.capture else "attribute"
        field.problem(f'is in the primary key together with "{filled[source]}" of the same {what}; keep one of them')
    filled[source] = column.name
    _check_key_type(field, column, tag)
    if column.default is not None:
        field.problem("is in the primary key and has a default; remove it, because every item has its key")
    if column.on_error is not OnError.REJECT:
        field.problem("is in the primary key and must reject what it cannot hold; remove on_error")


def _check_key_type(field: Field, column: Column, tag: str) -> None:
    captured_text = column.capture is not None and tag == "S"
    fitting = CAPTURE_KEY_TYPES if captured_text else KEY_TYPES[tag]
    if column.type.name not in fitting:
        kind = "captured parts" if captured_text else f"keys of type {tag}"
        field.problem(
            f"is in the primary key, and {column.type.sql} does not keep all {kind} distinct; use"
            f" {' or '.join(sorted(fitting))}"
        )
