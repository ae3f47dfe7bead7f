"""The rules for a column of a mapping file: its name, attribute, type, default, and what happens to wrong values.

Invariant: a column that was read can be created in PostgreSQL, and its default is a value that it can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.errors import ConversionError
from pipeline.core.mapping_files.protection_rules import check_options, read_protect
from pipeline.core.mapping_files.yaml_fields import suggestion
from pipeline.core.model.attributes import UnrepresentableError, parse_path
from pipeline.core.model.mapping import BOOKKEEPING_COLUMNS, CARRIED_PREFIX, Column, OnError
from pipeline.core.names import LONGEST_NAME_BYTES
from pipeline.core.types.conversion import converter
from pipeline.core.types.sql_types import CAPTURE_TYPES, TYPES, SqlType, parse_sql_type

if TYPE_CHECKING:
    from pipeline.core.mapping_files.yaml_fields import Field
    from pipeline.core.model.attributes import PathPart
    from pipeline.core.types.codec import Option

COLUMN_EXAMPLE = "columns: {Id: {attribute: Id, type: bigint}}"
# Column keys that apply to one type; each is a field of Column.
OPTIONS = {option.name: option for codec in TYPES.values() for option in codec.options}
# PostgreSQL manual, system columns: CREATE TABLE refuses them.
_SYSTEM_COLUMNS = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})

_COLUMN = {"attribute": "attribute: empName", "type": "type: text"}
_CAPTURED_COLUMN = {"capture": "capture: order_id", "type": "type: text"}
_COLUMN_OPTIONAL = {
    "default": "default: NA",
    "on_error": "on_error: null",
    **{name: f"{name}: {option.values[0]}" for name, option in OPTIONS.items()},
    "description": "description: as the payroll knows them",
    "protect": "protect: hash",
}


def name_problem(name: str, *, column: bool = False) -> str | None:
    """Say why PostgreSQL or we cannot use the name, with the remedy; None if it can be used."""
    if not name:
        return "is empty; give it a name"
    # The driver takes "%" in a statement for a parameter, and a line break would end a plan's comments.
    if "%" in name or any(character < " " or character == "\x7f" for character in name):
        return 'contains "%" or a control character, which names cannot contain; rename it'
    if (size := len(name.encode("utf-8", "surrogatepass"))) > LONGEST_NAME_BYTES:
        return f"has {size} bytes and PostgreSQL keeps {LONGEST_NAME_BYTES} of a name; shorten it"
    if column and (name in BOOKKEEPING_COLUMNS or name.startswith(CARRIED_PREFIX)):
        return "is the name of one of Dynaurora's own columns; rename it"
    if column and name in _SYSTEM_COLUMNS:
        return "is the name of a system column of PostgreSQL; rename it"
    return None


@dataclass(frozen=True, slots=True)
class ColumnSources:
    """What a column can be filled from, besides any attribute."""

    key: dict[str, str] | None
    """The key attributes and their types; None if they could not be read."""
    captures: dict[str, tuple[str, str]]
    """The captured parts: each one's key attribute and its type."""


def read_column(name: str, field: Field, sources: ColumnSources) -> Column | None:
    """Read one column. Notes problems; returns None if it cannot be used."""
    key = sources.key
    if field.has("capture"):
        return _read_captured_column(name, field, sources)
    fields = field.known(_COLUMN, {"capture": "capture: order_id", **_COLUMN_OPTIONAL})
    if fields is None:
        return None
    path = _read_path(fields["attribute"], key) if "attribute" in fields else None
    sql_type = _read_type(fields["type"]) if "type" in fields else None
    on_error = read_on_error(fields["on_error"], sql_type) if "on_error" in fields else OnError.REJECT
    options = _read_options(fields, sql_type)
    description = fields["description"].text() if "description" in fields else None
    if path is None or sql_type is None:
        return None
    _check_key_attribute(fields["type"], path, sql_type, key)
    default = _read_default(fields["default"], sql_type) if "default" in fields else None
    protect = read_protect(fields["protect"], path, sql_type, key) if "protect" in fields else None
    check_options(fields)
    return Column(
        name,
        fields["attribute"].written,
        path,
        sql_type,
        default,
        on_error,
        description=description,
        protect=protect,
        **options,
    )


def _read_captured_column(name: str, field: Field, sources: ColumnSources) -> Column | None:
    """Read a column that is filled from a part that the target's `match` captures."""
    fields = field.known(_CAPTURED_COLUMN, {"attribute": _COLUMN["attribute"], **_COLUMN_OPTIONAL})
    if fields is None:
        return None
    if "attribute" in fields:
        fields["attribute"].problem("is given together with capture, and a column has one source; remove one of them")
    if "default" in fields:
        fields["default"].problem("is never used, because a captured part is never missing; remove it")
    if "protect" in fields:
        read_protect(fields["protect"], tuple(sources.key or ()), None, sources.key)
    capture = fields["capture"].text("name a part that the target's match captures") if "capture" in fields else None
    sql_type = _read_type(fields["type"]) if "type" in fields else None
    on_error = read_on_error(fields["on_error"], sql_type) if "on_error" in fields else OnError.REJECT
    options = _read_options(fields, sql_type)
    description = fields["description"].text() if "description" in fields else None
    if capture is None or sql_type is None:
        return None
    if capture not in sources.captures:
        remedy = (
            suggestion(capture, sources.captures, "it captures")
            if sources.captures
            else f'add a pattern to the target, such as match: {{PK: "CUSTOMER#{{{capture}}}"}}'
        )
        fields["capture"].problem(f'"{capture}" is not captured by the target\'s match; {remedy}')
        return None
    attribute, tag = sources.captures[capture]
    if tag == "S":
        _check_captured_text(fields, sql_type)
    else:
        _check_key_attribute(fields["type"], (attribute,), sql_type, sources.key)
    return Column(
        name,
        attribute,
        (attribute,),
        sql_type,
        None,
        on_error,
        description=description,
        capture=capture,
        protect=None,
        **options,
    )


def _check_captured_text(fields: dict[str, Field], sql_type: SqlType) -> None:
    if sql_type.name not in CAPTURE_TYPES:
        fields["type"].problem(
            f"{sql_type.sql} cannot hold a captured part, which is text; use {', '.join(sorted(CAPTURE_TYPES))}"
        )
    elif "epoch" in fields:
        fields["epoch"].problem("is for numbers, and a captured part is text; remove it, or capture it as bigint")


def _read_path(field: Field, key: dict[str, str] | None) -> tuple[PathPart, ...] | None:
    text = field.text("name the attribute that the column is filled from")
    if text is None:
        return None
    try:
        path = parse_path(text)
    except ValueError as error:
        field.problem(f"{error}; put a name with other characters into double quotes inside single ones: '\"a.b\"'")
        return None
    if len(path) > 1 and key and path[0] in key:
        field.problem(f'"{text}" looks inside the key attribute "{path[0]}", which is never a map or a list')
    return path


def _read_type(field: Field) -> SqlType | None:
    text = field.text("give the column's type, such as text or bigint")
    if text is None:
        return None
    try:
        return parse_sql_type(text)
    except ValueError as error:
        if "(" in text and ")" not in text:
            field.problem(
                f'"{text}" lacks its ")": inside {{ }} a comma ends a value; write it in quotes, as "numeric(12,2)"'
            )
            return None
        base, parenthesis, parameters = text.partition("(")
        near = suggestion(base.strip(), list(TYPES), "") if base.strip().lower() not in TYPES else ""
        remedy = near.removesuffix("?") + parenthesis + parameters + "?" if near.endswith("?") else ""
        field.problem(f"{error}; {remedy}" if remedy else str(error))
        return None


def _check_key_attribute(
    field: Field, path: tuple[PathPart, ...], sql_type: SqlType, key: dict[str, str] | None
) -> None:
    tag = (key or {}).get(str(path[0])) if len(path) == 1 else None
    if tag is not None and tag not in sql_type.codec.tags:
        fitting = ", ".join(name for name, codec in TYPES.items() if tag in codec.tags)
        field.problem(f"{sql_type.sql} cannot hold the key attribute {path[0]}, which is of type {tag}; use {fitting}")


def read_on_error(field: Field, sql_type: SqlType | None) -> OnError:
    """Read what happens to values that a column of the type cannot hold; notes problems."""
    # `on_error: null` is YAML's null, but the meaning is clear.
    text = "null" if field.tag == "null" and field.written else field.text("write reject, null or truncate")
    if text is None:
        return OnError.REJECT
    if text not in set(OnError):
        field.problem(f'"{text}" is not a policy; {suggestion(text, list(OnError), "the policies are")}')
        return OnError.REJECT
    if text == OnError.TRUNCATE and sql_type is not None and not sql_type.codec.cuts_to_length:
        field.problem(f"{sql_type.sql} has no length to cut to; use null, or reject")
    return OnError(text)


def _read_options(fields: dict[str, Field], sql_type: SqlType | None) -> dict[str, str | None]:
    """Read the options that apply to columns of one type, by name."""
    return {name: _read_option(fields[name], option, sql_type) for name, option in OPTIONS.items() if name in fields}


def _read_option(field: Field, option: Option, sql_type: SqlType | None) -> str | None:
    text = field.text(option.remedy)
    if text is not None and text not in option.values:
        field.problem(f'"{text}" {option.refusal}; {suggestion(text, option.values, option.introduction)}')
    elif sql_type is not None and option not in sql_type.codec.options:
        field.problem(f"{sql_type.sql} {option.elsewhere}")
    return text


def _read_default(field: Field, sql_type: SqlType) -> str | None:
    if field.tag == "null" and "NULL" not in sql_type.codec.tags:
        field.problem("is null; remove it: a column without a default is NULL if the attribute is missing")
        return None
    try:
        attribute = sql_type.codec.default(field)
        return None if attribute is None else converter(Column("default", "", (), sql_type))(attribute)
    except ConversionError as error:
        field.problem(f"{_shown(field)} {error.reason}; give a value that {sql_type.sql} can hold")
    except UnrepresentableError as error:
        field.problem(f"{_shown(field)} {error}; give a value that {sql_type.sql} can hold")
    return None


def _shown(field: Field) -> str:
    return f'"{field.written[:40]}"' if field.is_scalar else "the value"
