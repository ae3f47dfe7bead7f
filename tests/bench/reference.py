r"""The result that a load must have: the items as text for COPY, by code that shares nothing with the product's.

Invariant: it is simple enough to be obviously right, from the standard library's JSON and Decimal. Every result is
compared with its file, which is also the ready-made text that `psql \copy` is measured with.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any, cast

from tests.bench.items import Item
from tests.bench.shapes import Field, Shape

_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def copy_line(shape: Shape, item: Item) -> str:
    """Return one line for COPY with the columns, then `{}` if the table keeps unmapped attributes."""
    row = [*texts(shape, item), "{}"] if shape.unmapped else texts(shape, item)
    return "\t".join("\\N" if text is None else text.translate(_ESCAPES) for text in row) + "\n"


def child_lines(shape: Shape, item: Item) -> str:
    """Return the lines for COPY of an item's child rows."""
    return "".join(copy_line(shape.child, element) for element in elements(shape, item)) if shape.child else ""


def elements(shape: Shape, item: Item) -> list[Item]:
    """Return the elements of an item's list, each as an item of the child's fields."""
    if shape.child is None:
        return []
    found: list[dict[str, Any]] = item[shape.child.explode]["L"]
    key = {shape.key.attribute: item[shape.key.attribute]}
    return [{**key, "": {"N": str(place)}, **element["M"]} for place, element in enumerate(found)]


def texts(shape: Shape, item: Item) -> list[str | None]:
    """Return each column's text as PostgreSQL reads it."""
    defaults = dict(shape.defaults)
    return [_text(field, item.get(field.attribute), defaults.get(field.column)) for field in shape.fields]


def expected(field: Field, item: Item) -> Any:  # noqa: ANN401 - of any column
    """Return what a column without a default must hold, as `shown` gives it."""
    attribute = item.get(field.attribute)
    if attribute is None or "NULL" in attribute or (field.nul_is_null and holds_nul(attribute)):
        return None
    if field.tag == "B":
        return base64.b64decode(attribute["B"])
    value = plain(attribute)
    if field.type == "double precision[]":
        return list(map(float, value))
    if field.type == "timestamptz":
        return datetime.fromisoformat(value)
    return sorted(value) if field.tag == "SS" else value


def shown(field: Field, value: Any) -> Any:  # noqa: ANN401 - of any column
    """Return a value as psycopg reads it; jsonb must be read as text, because psycopg would make floats."""
    return json.loads(value, parse_float=Decimal, parse_int=Decimal) if field.type == "jsonb" and value else value


def _text(field: Field, attribute: dict[str, Any] | None, default: str | None) -> str | None:
    if attribute is None:
        return default
    if "NULL" in attribute:
        return None
    if field.nul_is_null and holds_nul(attribute):
        return None
    if field.type == "double precision[]":
        return "{" + ",".join(element["N"] for element in attribute["L"]) + "}"
    return _WRITERS[field.tag](attribute[field.tag])


def holds_nul(value: Any) -> bool:  # noqa: ANN401 - any part of an item
    """Whether any text in the value holds U+0000."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return any(holds_nul(name) or holds_nul(member) for name, member in members.items())
    if isinstance(value, list):
        return any(map(holds_nul, cast("list[Any]", value)))
    return isinstance(value, str) and "\x00" in value


def plain(attribute: dict[str, Any]) -> Any:  # noqa: ANN401 - any JSON value
    """Return an attribute value as plain Python: numbers as Decimal."""
    ((tag, value),) = attribute.items()
    if tag == "N":
        return Decimal(value)
    if tag == "L":
        return [plain(element) for element in value]
    if tag == "M":
        return {name: plain(member) for name, member in value.items()}
    return None if tag == "NULL" else value


def to_json(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """Write plain Python as JSON with every digit of its numbers."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return "{" + ", ".join(f"{json.dumps(name)}: {to_json(member)}" for name, member in members.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_json, cast("list[Any]", value))) + "]"
    return json.dumps(value)


def text_array(values: list[str]) -> str:
    """Write texts as an array literal."""
    quoted = ['"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values]
    return "{" + ",".join(quoted) + "}"


_WRITERS: dict[str, Callable[[Any], str]] = {
    "S": str,
    "N": lambda value: f"{Decimal(value):f}",
    "B": lambda value: "\\x" + base64.b64decode(value).hex(),
    "BOOL": lambda value: "t" if value else "f",
    "SS": lambda value: text_array(sorted(value)),
    "L": lambda value: to_json(plain({"L": value})),
    "M": lambda value: to_json(plain({"M": value})),
}
