"""The rules for a child target: the elements of a list, map or set, as rows of their own.

Invariant: a child's key is its parent's key and the element's place, so an item's key alone finds all rows of its
children and of theirs. A child has no `match` and no tombstones: its rows come and go with the item's row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.core.mapping_files.column_rules import COLUMN_EXAMPLE, ColumnSources, name_problem, read_column
from pipeline.core.mapping_files.history_rules import HISTORY_EXAMPLE, NO_HISTORY_OF_A_CHILD
from pipeline.core.mapping_files.index_rules import INDEXES_EXAMPLE, read_indexes
from pipeline.core.mapping_files.reader_rules import READERS_EXAMPLE, read_readers
from pipeline.core.mapping_files.yaml_fields import suggestion
from pipeline.core.model.attributes import parse_path
from pipeline.core.model.mapping import EACH, Column, OnError, Target
from pipeline.core.types.sql_types import SqlType

if TYPE_CHECKING:
    from pipeline.core.mapping_files.yaml_fields import Field
    from pipeline.core.model.attributes import PathPart

_CHILD = {
    "parent": "parent: Orders",
    "explode": "explode: lines",
    "element": "element: {line: integer}",
    "columns": COLUMN_EXAMPLE,
}
# A list's elements are counted from 0, as in paths; a map's elements are known by their names.
_PLACES = {"integer": "L", "text": "M"}
# A set's members are known by themselves.
_MEMBERS = {"SS": "text", "NS": "numeric", "BS": "bytea"}
# DynamoDB nests 32 levels deep, and an index of PostgreSQL has at most 32 columns.
MOST_LEVELS = 8


def is_child(field: Field) -> bool:
    """Whether a target of a mapping file is a child target."""
    return any(field.has(name) for name in ("parent", "explode", "element"))


def read_child(
    schema: str, view: str, field: Field, parents: dict[str, Target], key: dict[str, str] | None
) -> Target | None:
    """Read one child target of a file whose other targets, or children read before, are `parents`, by view name.

    Notes problems.
    """
    required = {name: example for name, example in _CHILD.items() if name != "columns" or not _is_of_set(field)}
    optional = {"indexes": INDEXES_EXAMPLE, "readers": READERS_EXAMPLE}
    # Not among the keys that a message lists.
    others = {"history": HISTORY_EXAMPLE, "columns": COLUMN_EXAMPLE}
    others = {name: example for name, example in others.items() if field.has(name) and name not in required}
    fields = field.known(required, optional | others)
    if fields is None:
        return None
    if "history" in fields:
        fields["history"].problem(NO_HISTORY_OF_A_CHILD)
    parent = _read_parent(fields["parent"], parents) if "parent" in fields else None
    path = _read_explode(fields["explode"], parent, key) if "explode" in fields else None
    element = _read_element(fields["element"], path) if "element" in fields else None
    members = _members(fields.get("columns"), needed="columns" in required)
    if members is None or path is None or element is None or parent is None:
        return None
    place, member_of = element
    if member_of and "columns" in fields:
        fields["columns"].problem(
            "a set's members have no attributes; remove columns, the element's place is the value"
        )
    head = (*(replace(column, on_error=OnError.REJECT) for column in parent.key_columns), place)
    if place.name in parent.primary_key:
        fields["element"].problem(f'"{place.name}" is already a column of the parent\'s key; rename it')
    columns = _read_columns(members, {column.name for column in head})
    child = Target(
        schema,
        view,
        tuple(column.name for column in head),
        (*head, *columns),
        parent=parent.view_name,
        explode=path,
        member=member_of,
        readers=read_readers(fields["readers"]) if "readers" in fields else None,
    )
    if "indexes" not in fields or len(columns) < len(members):  # what is wrong with a column was reported
        return child
    return replace(child, indexes=read_indexes(fields["indexes"], child))


def _members(field: Field | None, *, needed: bool) -> dict[str, Field] | None:
    if field is None:
        return None if needed else {}
    return field.members("{sku: {attribute: sku, type: text}}")


def _read_columns(members: dict[str, Field], taken: set[str]) -> list[Column]:
    columns: list[Column] = []
    for name, member in members.items():
        if name in taken:
            member.problem(
                f'"{name}" is already a column of the child, through its parent\'s key and its place; rename it'
            )
        elif problem := name_problem(name, column=True):
            member.problem(f'"{name}" {problem}')
        column = read_column(name, member, ColumnSources({}, {}))
        if column is not None:
            columns.append(column)
    return columns


def _is_of_set(field: Field) -> bool:
    """Whether the element is written as a set's: `{tag: SS}`."""
    return any(kind in _MEMBERS for kind in field.values_of("element"))


def _read_parent(field: Field, parents: dict[str, Target]) -> Target | None:
    name = field.text("name the target whose items contain the elements")
    if name is None:
        return None
    found = parents.get(name) or parents.get(f"public.{name}")
    if found is None:
        names = [view.removeprefix("public.") for view in parents]
        remedy = suggestion(name, names, "the targets are") if names else "add it"
        field.problem(f'"{name}" is not a target of this file that can have children; {remedy}')
    elif found.member:
        field.problem(f'"{name}" has the members of a set, which contain nothing; name another target')
        return None
    elif found.parent and len(found.places) == MOST_LEVELS:
        field.problem(
            f"is {MOST_LEVELS + 1} lists or maps deep, and at most {MOST_LEVELS} become tables; keep it as jsonb"
        )
        return None
    return found


def _read_explode(field: Field, parent: Target | None, key: dict[str, str] | None) -> tuple[PathPart, ...] | None:
    text = field.text("give the path to a list or map, such as lines")
    if text is None:
        return None
    try:
        path = parse_path(text)
    except ValueError as error:
        field.problem(str(error))
        return None
    if parent and parent.parent:
        return (*parent.explode, EACH, *path)
    if key and path[0] in key:
        field.problem(f'"{text}" is the key attribute "{path[0]}", which is never a list or a map')
        return None
    return path


def _read_element(field: Field, path: tuple[PathPart, ...] | None) -> tuple[Column, str | None] | None:
    """Return the column for an element's place, and the set's type if it is a set's member."""
    members = field.members("{line: integer}")
    if members is None:
        return None
    if len(members) != 1:
        field.problem(
            "must name one column for an element's place: {line: integer} in a list, {name: text} in a map, {tag: SS}"
            " (or NS, BS) in a set"
        )
        return None
    ((name, member),) = members.items()
    kind = member.text("write integer for a list's elements, text for a map's, and SS, NS or BS for a set's")
    if problem := name_problem(name, column=True):
        member.problem(f'"{name}" {problem}')
    if kind is not None and kind not in _PLACES and kind not in _MEMBERS:
        member.problem(
            f'"{kind}" is not a type for a place; write integer for the elements of a list, text for those of a map,'
            " and SS, NS or BS for those of a set"
        )
        return None
    parts = ["[]" if part == EACH else f"[{part}]" if isinstance(part, int) else f".{part}" for part in path or ()]
    where = "".join(parts).lstrip(".")
    of_set = kind if kind in _MEMBERS else None
    return None if kind is None else (Column(name, where, (), SqlType(_MEMBERS.get(kind, kind))), of_set)
