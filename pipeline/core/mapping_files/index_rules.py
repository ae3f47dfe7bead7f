"""The rules for a target's indexes: their columns, how they are built, and which rows they cover.

Invariant: an index read here never refuses a row because of another row. Unique ones contain the primary key, since
DynamoDB promises nothing else to be unique, and a condition compares with constants, so it cannot fail on a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.errors import ConversionError
from pipeline.core.mapping_files.yaml_fields import suggestion
from pipeline.core.model.attributes import UnrepresentableError, parse_path
from pipeline.core.model.index import BRIN, BTREE, GIN, METHODS, MOST_PARTS, Condition, Index, IndexPart
from pipeline.core.model.mapping import Column
from pipeline.core.types.conversion import converter
from pipeline.core.types.sql_types import SqlType

if TYPE_CHECKING:
    from pipeline.core.mapping_files.yaml_fields import Field
    from pipeline.core.model.mapping import Target

INDEXES_EXAMPLE = "indexes: [{columns: [Name]}]"
_INDEX = {"columns": "columns: [Department, Name]"}
_INDEX_OPTIONAL = {"method": "method: gin", "unique": "unique: true", "where": "where: {Department: [IT, HR]}"}
_PART = {"order": "order: desc", "nulls": "nulls: last"}
_ORDERS, _NULLS = ("asc", "desc"), ("first", "last")
# What to do about a type that a method cannot index.
_REMEDIES = {
    BTREE: 'use method: gin, or index a value inside a jsonb column, such as {path: "attributes.city"}',
    GIN: "use btree; gin is for jsonb columns and arrays",
    BRIN: "use btree",
}


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of the target whose index is being read."""

    types: dict[str, SqlType]
    primary_key: tuple[str, ...]
    view_name: str


def read_indexes(field: Field, target: Target) -> tuple[Index, ...]:
    """Read the indexes of a target whose columns were read. Notes problems; leaves out indexes that cannot be used."""
    types = {column.name: column.type for column in target.columns}
    if target.unmapped:
        types[target.unmapped] = SqlType("jsonb")
    known = _Columns(types, target.primary_key, target.view_name)
    found: dict[Index, Field] = {}
    for element in field.elements("[{columns: [Name]}]") or ():
        index = _read_index(element, known)
        if index is None:
            continue
        if index in found:
            element.problem(f"is the index of line {found[index].line} once more; remove one")
        elif index.method == BTREE and not index.where and index.parts == tuple(map(IndexPart, target.primary_key)):
            element.problem("is over the primary key, which has an index already; remove it")
        found[index] = element
    return tuple(found)


def _read_index(field: Field, known: _Columns) -> Index | None:
    fields = field.known(_INDEX, _INDEX_OPTIONAL)
    if fields is None:
        return None
    method = (
        _read_word(fields["method"], METHODS, "is not a method", "the methods are") if "method" in fields else BTREE
    )
    where = _read_where(fields["where"], known) if "where" in fields else ()
    unique = "unique" in fields and _read_unique(fields["unique"])
    if method is None or "columns" not in fields:
        return None
    parts: list[IndexPart] = []
    elements = fields["columns"].elements("[Department, Name]")
    for element in elements or ():
        part = _read_part(element, method, known)
        if part is None:
            return None
        if (part.column, part.path) in {(other.column, other.path) for other in parts}:
            element.problem(f'"{part}" is named twice; remove one')
        parts.append(part)
    if elements is not None and not 1 <= len(parts) <= MOST_PARTS:
        fields["columns"].problem(f"has {len(parts)} columns; an index has 1 to {MOST_PARTS}")
    if unique:
        _check_unique(fields["unique"], method, parts, known)
    return Index(tuple(parts), method, unique, where) if parts else None


def _read_unique(field: Field) -> bool:
    if field.tag != "bool":
        field.problem("must be true or false")
        return False
    return field.is_true


def _check_unique(field: Field, method: str, parts: list[IndexPart], known: _Columns) -> None:
    if method != BTREE:
        field.problem(f"{method} indexes are never unique; remove it, or use btree")
        return
    whole = {part.column for part in parts if not part.path}
    missing = [name for name in known.primary_key if name not in whole]
    if missing and set(known.primary_key) <= set(known.types):
        field.problem(
            "DynamoDB promises that an item's key is unique, and nothing else: two items that are equal here would stop"
            f" replication; add the rest of the primary key ({', '.join(missing)}) to the columns, or remove unique"
        )


def _read_part(field: Field, method: str, known: _Columns) -> IndexPart | None:
    if field.is_scalar:
        name = field.text("name a column")
        return None if name is None else _column_part(field, name, method, known, (False, False))
    kind = "path" if field.has("path") else "column"
    fields = field.known({kind: {"column": "column: Name", "path": "path: attributes.city"}[kind]}, _PART)
    if fields is None or kind not in fields:
        return None
    text = fields[kind].text("name a column, or the path to a value inside a jsonb column")
    order = _read_word(fields["order"], _ORDERS, "is not an order", "write") if "order" in fields else "asc"
    nulls = _read_word(fields["nulls"], _NULLS, "is not a place for nulls", "write") if "nulls" in fields else None
    if text is None or order is None:
        return None
    for name in ("order", "nulls"):
        if name in fields and method != BTREE:
            fields[name].problem(f"has no meaning with {method}, which keeps no order; remove it")
    descending = order == "desc"
    sort = (descending, descending if nulls is None else nulls == "first")
    if kind == "column":
        return _column_part(fields[kind], text, method, known, sort)
    return _path_part(fields[kind], text, method, known, sort)


def _column_part(field: Field, name: str, method: str, known: _Columns, sort: tuple[bool, bool]) -> IndexPart | None:
    sql_type = _type_of(field, name, known)
    if sql_type is None:
        return None
    if method not in sql_type.codec.index_methods:
        field.problem(f'"{name}" is {sql_type.sql}, which {method} cannot index; {_REMEDIES[method]}')
        return None
    return IndexPart(name, (), *sort)


def _path_part(field: Field, text: str, method: str, known: _Columns, sort: tuple[bool, bool]) -> IndexPart | None:
    try:
        column, *inside = parse_path(text)
    except ValueError as error:
        field.problem(str(error))
        return None
    sql_type = _type_of(field, str(column), known)
    if sql_type is None:
        return None
    if sql_type.name != "jsonb":
        field.problem(f'"{column}" is {sql_type.sql}; a path looks inside a jsonb column')
    elif not inside:
        field.problem(f'"{text}" is a whole column; write it as a column, or go on, such as {text}.city')
    elif method == BRIN:
        field.problem("brin is for columns; use btree, or gin")
    else:
        return IndexPart(str(column), tuple(inside), *sort)
    return None


def _type_of(field: Field, name: str, known: _Columns) -> SqlType | None:
    sql_type = known.types.get(name)
    if sql_type is None:
        field.problem(
            f'"{name}" is not a column of {known.view_name}; {suggestion(name, known.types, "the columns are")}'
        )
    return sql_type


def _read_where(field: Field, known: _Columns) -> tuple[Condition, ...]:
    members = field.members("{Department: [IT, HR]}") or {}
    found = (_read_condition(name, member, known) for name, member in sorted(members.items()))
    return tuple(condition for condition in found if condition)


def _read_condition(name: str, field: Field, known: _Columns) -> Condition | None:
    sql_type = _type_of(field, name, known)
    if sql_type is None:
        return None
    if field.tag == "null":
        return Condition(name, null=True)
    if field.has("not"):
        fields = field.known({"not": "not: null"}, {})
        if fields and fields["not"].tag != "null":
            fields["not"].problem("covers the rows that have a value if it is null; write {not: null}")
        return Condition(name)
    if BTREE not in sql_type.codec.index_methods:
        field.problem(f'"{name}" is {sql_type.sql}, which cannot be compared with a value; write null or {{not: null}}')
        return None
    elements = [field] if field.is_scalar else field.elements("[IT, HR]")
    values = [_read_value(element, sql_type) for element in elements or ()]
    if elements is not None and not values:
        field.problem("has no value; name those that the index covers")
    return Condition(name, tuple(sorted({value for value in values if value is not None}))) if values else None


def _read_value(field: Field, sql_type: SqlType) -> str | None:
    try:
        attribute = sql_type.codec.default(field)
        return None if attribute is None else converter(Column("where", "", (), sql_type))(attribute)
    except (ConversionError, UnrepresentableError) as error:
        reason = error.reason if isinstance(error, ConversionError) else str(error)
        field.problem(f"{reason}; give a value that {sql_type.sql} can hold")
        return None


def _read_word(field: Field, allowed: tuple[str, ...], refusal: str, introduction: str) -> str | None:
    text = field.text(f"write {' or '.join(allowed)}")
    if text is not None and text not in allowed:
        field.problem(f'"{text}" {refusal}; {suggestion(text, allowed, introduction)}')
        return None
    return text
