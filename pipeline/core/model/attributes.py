"""Attribute values as DynamoDB writes them (`{"N": "42"}`), found by path and written as exact JSON.

Invariant: nothing passes through a float, and nothing is changed. Numbers are copied digit by digit, sets are sorted
(DynamoDB keeps no order for them), binary is base64, and a value that JSON in PostgreSQL cannot hold raises.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache
from json.encoder import encode_basestring  # the C encoder: quotes and escapes, leaves other characters alone
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

AttributeValue = dict[str, Any]
"""One tag of S, N, B, BOOL, NULL, SS, NS, BS, L, M, and its value; B is base64 text."""

Item = dict[str, AttributeValue]

_T = TypeVar("_T")
_is_json_number = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?", re.ASCII).fullmatch
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,6})?", re.ASCII)
# Digits that numeric, and a number in jsonb, can hold before and after the point (PostgreSQL manual, numeric types).
# DynamoDB's own numbers have at most 126 and 167; a string that is read as a number may have any number.
_WHOLE_DIGITS, _FRACTION_DIGITS = 131_072, 16_383
_PATH_PART = re.compile(r'(?:(?:^|(?<!^)\.)(?:"(?P<quoted>(?:[^"\\]|\\.)+)"|(?P<bare>[^."\[\]]+)))|\[(?P<index>\d+)\]')

PathPart = str | int
NOT_ONE_TAG = "is not an attribute value: expected one type tag and its value"


class UnrepresentableError(ValueError):
    """A value that PostgreSQL cannot hold as asked. The text gives the reason, never the value."""


def number(text: str) -> str:
    """Return a DynamoDB number, or a string that holds one, in plain notation with every digit.

    Raises UnrepresentableError if the text is not a number, or has more digits than `numeric` can hold.
    """
    if len(text) <= _FRACTION_DIGITS and _is_json_number(text):
        return text
    if not _NUMBER.fullmatch(text):
        raise UnrepresentableError("is not a number")
    value = Decimal(text)
    # Checked before it is written out: `1e999999` has eight characters, and a million written out.
    if value.adjusted() >= _WHOLE_DIGITS or -int(value.as_tuple().exponent) > _FRACTION_DIGITS:
        raise UnrepresentableError("has more digits than numeric can hold")
    return f"{value:f}"


def canonical_number(text: str) -> str:
    """Return a number in the one notation that equal numbers share: `1.50` → `1.5`, `-0` → `0`."""
    plain = number(text)
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return "0" if plain in {"-0", ""} else plain


def text(value: str) -> str:
    """Return `value` if PostgreSQL text can hold it; raises for U+0000 and lone surrogates."""
    if "\x00" in value:
        raise UnrepresentableError("contains the character U+0000, which PostgreSQL text cannot hold")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UnrepresentableError("contains a lone surrogate, which is not Unicode text") from None
    return value


def to_json(attribute: AttributeValue) -> str:
    """Write an attribute value as JSON text for jsonb, exactly. Raises UnrepresentableError.

    N is a JSON number with every digit, B base64 text, a set a sorted array, L an array, M an object, NULL null.
    """
    if len(attribute) != 1:
        raise UnrepresentableError(NOT_ONE_TAG)
    ((tag, value),) = attribute.items()
    try:
        writer = _JSON_WRITERS[tag]
    except KeyError:
        raise UnrepresentableError("has an unknown type tag, none of DynamoDB's ten") from None
    return writer(value)


def _json_text(value: str) -> str:
    # `text` would return it unchanged. Most texts are like this, and a call costs more than this check.
    return encode_basestring(value if value.isascii() and "\x00" not in value else text(value))


def _json_boolean(value: object) -> str:
    if not isinstance(value, bool):
        raise UnrepresentableError("is not true or false")
    return "true" if value else "false"


def _json_null(_: object) -> str:
    return "null"


def _json_text_set(values: list[str]) -> str:
    if values.__class__ is not list:
        a_list(values)  # which refuses it
    return f"[{','.join(map(_json_text, sorted(values)))}]"


def _json_number_set(values: list[str]) -> str:
    return f"[{','.join(sort_numbers(values))}]"


# Lists and maps mostly hold texts and numbers, which are written directly instead of by their tag,
# and texts without a call.


def _json_list(elements: list[AttributeValue]) -> str:
    parts: list[str] = []
    append = parts.append
    if elements.__class__ is not list:
        a_list(elements)  # which refuses it
    for element in elements:
        if len(element) != 1:
            append(to_json(element))  # which refuses it
        elif "S" in element:
            value = element["S"]
            append(encode_basestring(value if value.isascii() and "\x00" not in value else text(value)))
        elif "N" in element:
            append(number(element["N"]))
        else:
            append(to_json(element))
    return "[" + ",".join(parts) + "]"


def _json_map(members: Item) -> str:
    parts: list[str] = []
    append = parts.append
    for name, member in members.items():
        if len(member) != 1:
            append(to_json(member))  # which refuses it
        elif "S" in member:
            value = member["S"]
            append(
                _json_name(name) + encode_basestring(value if value.isascii() and "\x00" not in value else text(value))
            )
        elif "N" in member:
            append(_json_name(name) + number(member["N"]))
        else:
            append(_json_name(name) + to_json(member))
    return "{" + ",".join(parts) + "}"


# Items of a table share the names of their maps' members.
@lru_cache(maxsize=512)
def _json_name(name: str) -> str:
    return _json_text(name) + ":"


_JSON_WRITERS: dict[str, Callable[[Any], str]] = {
    "S": _json_text,
    "N": number,
    "B": encode_basestring,
    "BOOL": _json_boolean,
    "NULL": _json_null,
    "SS": _json_text_set,
    "NS": _json_number_set,
    "BS": _json_text_set,
    "L": _json_list,
    "M": _json_map,
}


def sort_numbers(values: list[str]) -> list[str]:
    """Return a number set sorted by value."""
    if values.__class__ is not list:
        a_list(values)  # which refuses it
    return sorted(map(number, values), key=Decimal)


def a_list(values: list[_T]) -> list[_T]:
    """Return a set's or list's values. Raises UnrepresentableError for a text, whose letters would pass as a list."""
    if type(values) is not list:
        raise UnrepresentableError("is a set or list whose value is not a list")
    return values


def parse_path(path: str) -> tuple[PathPart, ...]:
    """Parse `address.city`, `lines[0].sku` or `"a.b".c` into its parts. Raises ValueError if it is not a path."""
    parts: list[PathPart] = []
    position = 0
    for match in _PATH_PART.finditer(path):
        if match.start() != position:
            break
        position = match.end()
        if match["index"] is not None:
            parts.append(int(match["index"]))
        else:
            parts.append(re.sub(r"\\(.)", r"\1", match["quoted"]) if match["quoted"] else match["bare"])
    if position != len(path) or not parts or isinstance(parts[0], int):
        raise ValueError(f'"{path}" is not an attribute path such as name, address.city, lines[0].sku or "a.b".c')
    return tuple(parts)


def find(item: Mapping[str, AttributeValue], path: tuple[PathPart, ...]) -> AttributeValue | None:
    """Return the attribute value at `path`, or None if any part of the path is missing."""
    found = item.get(cast("str", path[0]))
    for part in path[1:]:
        if found is None:
            return None
        if len(found) != 1:
            raise UnrepresentableError(NOT_ONE_TAG)
        if isinstance(part, int):
            elements = cast("list[AttributeValue]", found.get("L", ()))
            found = elements[part] if part < len(elements) else None
        else:
            found = cast("Item", found.get("M", {})).get(part)
    return found
