"""The rules for a child target: the elements of a list or map of its parent's items, as rows of their own.

Invariant: a child's key is its parent's key and the element's place, so the parent's key alone finds all its rows. A
child has no `match` and no tombstones: its rows come and go with its parent's row.
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
from pipeline.core.model.mapping import Column, OnError, Target
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


def is_child(field: Field) -> bool:
    """Whether a target of a mapping file is a child target."""
    return any(field.has(name) for name in ("parent", "explode", "element"))


def read_child(
    schema: str, view: str, field: Field, parents: dict[str, Target], key: dict[str, str] | None
) -> Target | None:
    """Read one child target of a file whose other targets are `parents`, by view name. Notes problems."""
    optional = {"indexes": INDEXES_EXAMPLE, "readers": READERS_EXAMPLE}
    # Not among the keys that a message lists.
    fields = field.known(_CHILD, {**optional, "history": HISTORY_EXAMPLE} if field.has("history") else optional)
    if fields is None:
        return None
    if "history" in fields:
        fields["history"].problem(NO_HISTORY_OF_A_CHILD)
    path = _read_explode(fields["explode"], key) if "explode" in fields else None
    place = _read_element(fields["element"], path) if "element" in fields else None
    parent = _read_parent(fields["parent"], parents) if "parent" in fields else None
    members = fields["columns"].members("{sku: {attribute: sku, type: text}}") if "columns" in fields else None
    if members is None or path is None or place is None or parent is None:
        return None
    head = (*(replace(column, on_error=OnError.REJECT) for column in parent.key_columns), place)
    taken = {column.name for column in head}
    if place.name in parent.primary_key:
        fields["element"].problem(f'"{place.name}" is already a column of the parent\'s key; rename it')
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
    child = Target(
        schema,
        view,
        tuple(column.name for column in head),
        (*head, *columns),
        parent=parent.view_name,
        explode=path,
        readers=read_readers(fields["readers"]) if "readers" in fields else None,
    )
    if "indexes" not in fields or len(columns) < len(members):  # what is wrong with a column was reported
        return child
    return replace(child, indexes=read_indexes(fields["indexes"], child))


def _read_parent(field: Field, parents: dict[str, Target]) -> Target | None:
    name = field.text("name the target whose items contain the elements")
    if name is None:
        return None
    found = parents.get(name) or parents.get(f"public.{name}")
    if found is None:
        names = [view.removeprefix("public.") for view in parents]
        remedy = suggestion(name, names, "the targets are") if names else "add it"
        field.problem(f'"{name}" is not a target of this file that can have children; {remedy}')
    return found


def _read_explode(field: Field, key: dict[str, str] | None) -> tuple[PathPart, ...] | None:
    text = field.text("give the path to a list or map, such as lines")
    if text is None:
        return None
    try:
        path = parse_path(text)
    except ValueError as error:
        field.problem(str(error))
        return None
    if key and path[0] in key:
        field.problem(f'"{text}" is the key attribute "{path[0]}", which is never a list or a map')
        return None
    return path


def _read_element(field: Field, path: tuple[PathPart, ...] | None) -> Column | None:
    members = field.members("{line: integer}")
    if members is None:
        return None
    if len(members) != 1:
        field.problem("must name one column for an element's place: {line: integer} in a list, {name: text} in a map")
        return None
    ((name, member),) = members.items()
    kind = member.text("write integer for a list's elements, text for a map's")
    if problem := name_problem(name, column=True):
        member.problem(f'"{name}" {problem}')
    if kind is not None and kind not in _PLACES:
        member.problem(
            f'"{kind}" is not a type for a place; write integer for the elements of a list, text for those of a map'
        )
        return None
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path or ()).lstrip(".")
    return None if kind is None else Column(name, where, (), SqlType(kind))
