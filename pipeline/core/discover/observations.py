"""What is recorded of one attribute value: its type, its length, its digits, the form of its text.

Invariant: an observation contains no text of an item. Numbers are read with every digit, never through a float.
"""

from __future__ import annotations

import re
from base64 import b64decode
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pipeline.core.errors import ConversionError
from pipeline.core.model.attributes import UnrepresentableError, canonical_number
from pipeline.core.model.mapping import Column
from pipeline.core.types.conversion import converter
from pipeline.core.types.sql_types import SqlType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.core.model.attributes import AttributeValue, Item

# Forms of a text, and of a number; "" is any other.
UUID, DATE, TIME, LOCAL_TIME, NUMBER, JSON, EMPTY = "uuid", "date", "time", "local time", "number", "JSON", "empty"
UUID_UPPER = "uuid in upper case"
WHOLE, DECIMAL, SECONDS, MILLISECONDS = "whole", "decimal", "epoch seconds", "epoch milliseconds"

_LOCAL_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?", re.ASCII)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?", re.ASCII)
# 2000-01-01 to 2100-01-01
_EPOCH_FROM, _EPOCH_TO = Decimal(946_684_800), Decimal(4_102_444_800)


class Observation(NamedTuple):
    """One attribute value in one item."""

    attribute: str
    """The path as a mapping spells it; a member of a map is `address.city`."""
    tag: str
    length: int
    """Characters of S, bytes of B, elements of a set, list or map; 0 for the others."""
    number: Decimal | None
    whole_digits: int
    fraction_digits: int
    form: str


def observe(item: Item) -> Iterator[Observation]:
    """Yield the observations of an item's attributes, and of the members of its maps, one level deep."""
    for name, value in item.items():
        path = spell(name)
        yield _observe(path, value)
        members = cast("Item", value.get("M", {}))
        for member, inner in members.items():
            yield _observe(f"{path}.{spell(member)}", inner)


def spell(name: str) -> str:
    """Return an attribute's name as a part of a path: in double quotes if it has a character that paths use."""
    if name and not re.search(r'[."\[\]\\]', name):
        return name
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _observe(path: str, attribute: AttributeValue) -> Observation:
    tag, value = next(iter(attribute.items()))
    if tag == "N":
        return _number(path, value)
    if tag == "S":
        return Observation(path, tag, len(value), None, 0, 0, _text_form(value))
    return Observation(path, tag, _size(tag, value), None, 0, 0, "")


def _size(tag: str, value: Any) -> int:  # noqa: ANN401 - any attribute value
    if tag == "B":
        return len(b64decode(value))
    return len(value) if tag in {"SS", "NS", "BS", "L", "M"} else 0


def _number(path: str, value: str) -> Observation:
    plain = canonical_number(value)
    whole, _, fraction = plain.lstrip("-").partition(".")
    number = Decimal(plain)
    form = DECIMAL if fraction else WHOLE
    if _EPOCH_FROM <= number < _EPOCH_TO:
        form = DECIMAL if fraction else SECONDS
    elif not fraction and _EPOCH_FROM <= number / 1000 < _EPOCH_TO:
        form = MILLISECONDS
    return Observation(path, "N", 0, number, len(whole.lstrip("0")), len(fraction), form)


def _text_form(value: str) -> str:
    """Return what a text could be stored as. The product's own converters decide, so a proposal always holds."""
    if not value:
        return EMPTY
    if value[0] in "{[" and value[-1] in "}]":
        return JSON
    if not value.isascii() or len(value) > 64:
        return ""
    for form, convert in _CONVERTERS.items():
        try:
            converted = convert({"S": value})
        except ConversionError:
            continue
        return UUID_UPPER if form == UUID and converted != value else form
    if _LOCAL_TIME.fullmatch(value):
        return LOCAL_TIME
    return NUMBER if _NUMBER.fullmatch(value) and _is_number(value) else ""


def _is_number(value: str) -> bool:
    try:
        return canonical_number(value) == value  # otherwise the number would not show the text: 1.50, -0
    except UnrepresentableError:  # pragma: no cover - the pattern is narrower
        return False


_CONVERTERS = {
    form: converter(Column(form, form, (form,), SqlType(name)))
    for form, name in ((UUID, "uuid"), (DATE, "date"), (TIME, "timestamptz"))
}
