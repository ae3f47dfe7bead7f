"""From an attribute value to the text that PostgreSQL reads for one column: the codec.

Invariant: a value comes out exact or not at all. What a type cannot hold raises ConversionError with a reason
that never quotes the value; the column's `on_error` then decides. The same converters serve the stream, both
kinds of export and re-reads, so that one item is one row whichever door it came through.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from pipeline.core.attributes import (
    NOT_ONE_TAG,
    AttributeValue,
    UnrepresentableError,
    a_list,
    canonical_number,
    number,
    sort_numbers,
    to_json,
)
from pipeline.core.attributes import text as checked_text
from pipeline.core.errors import ConversionError
from pipeline.core.json_text import checked_json
from pipeline.core.mapping import Column, OnError
from pipeline.core.sql_types import TYPES, SqlType

Converter = Callable[[AttributeValue | None], str | None]

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
# Hour 24, which some versions of Python read, is left out: one text must mean one thing on every machine.
_TIMESTAMP = re.compile(
    r"\d{4}-\d{2}-\d{2}[T ](?:[01]\d|2[0-3]):\d{2}(?::\d{2}(?:\.(\d{1,9}))?)?(?:Z|[+-]\d{2}(?::?\d{2})?)", re.ASCII
)
_TAGS = frozenset({"S", "N", "B", "BOOL", "NULL", "SS", "NS", "BS", "L", "M"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Digits by which the point of an epoch time moves to make it microseconds.
_EPOCH_DIGITS = {"seconds": 6, "milliseconds": 3}
# Digits of the largest epoch time before the year 10000, in milliseconds, and some to spare.
_MOST_EPOCH_DIGITS = 20


def converter(column: Column, *, is_key: bool = False, settled: Counter[str] | None = None) -> Converter:
    """Return the function that turns an item's attribute value (None when missing) into the column's text.

    A key's text is canonical, so that equal keys are equal texts. Raises ConversionError when called with a value
    that the column cannot hold and that its `on_error` does not settle; what it settles is counted in `settled`.
    """
    accepted = TYPES[column.type.name]
    by_tag = {tag: _tag_converter(tag, column, is_key=is_key, settled=settled) for tag in accepted}
    find_converter = by_tag.get
    name, default = column.name, column.default
    on_error = _policy(column, settled, is_key=is_key)

    def convert(attribute: AttributeValue | None) -> str | None:
        if attribute is None:
            if is_key:
                raise ConversionError(name, "the key attribute is missing")
            return default
        for tag, value in attribute.items():
            convert_value = find_converter(tag)
            if convert_value is None:
                if tag == "NULL" and not is_key and len(attribute) == 1:
                    return None
                return on_error(f"takes {' or '.join(sorted(accepted))} and the attribute is of {_type(tag)}")
            try:
                return convert_value(value) if len(attribute) == 1 else on_error(NOT_ONE_TAG)
            except UnrepresentableError as error:
                return on_error(str(error))
        return on_error("the attribute value is empty")

    return convert


def _type(tag: str) -> str:
    """Name a type. What stands where a tag should can be data."""
    return f"type {tag}" if tag in _TAGS else "an unknown type tag"


def _policy(column: Column, settled: Counter[str] | None, *, is_key: bool) -> Callable[[str], None]:
    """Return what a value that the column cannot hold goes to, with the reason."""

    def refuse(reason: str) -> None:
        raise ConversionError(column.name, reason)

    def count_and_leave_null(_: str) -> None:
        if settled is not None:
            settled[column.name] += 1

    return count_and_leave_null if column.on_error is OnError.NULL and not is_key else refuse


def unmapped_json(
    rest: dict[str, AttributeValue],
    column_name: str,
    on_error: OnError = OnError.REJECT,
    settled: Counter[str] | None = None,
) -> str:
    """Write the attributes that no column takes as one JSON object.

    Raises ConversionError for what jsonb cannot hold; under `OnError.NULL` each such attribute is null instead, and
    one whose very name cannot be held is left out.
    """
    try:
        return to_json({"M": rest}) if rest else "{}"
    except UnrepresentableError as error:
        if on_error is OnError.NULL:
            if settled is not None:
                settled[column_name] += 1
            return to_json({"M": _representable(rest)})
        raise ConversionError(column_name, f"an attribute that is not mapped {error}") from None


def _representable(rest: dict[str, AttributeValue]) -> dict[str, AttributeValue]:
    kept: dict[str, AttributeValue] = {}
    for name, value in rest.items():
        try:
            checked_text(name)
        except UnrepresentableError:
            continue
        try:
            to_json(value)
        except UnrepresentableError:
            kept[name] = {"NULL": True}
        else:
            kept[name] = value
    return kept


def _tag_converter(
    tag: str, column: Column, *, is_key: bool, settled: Counter[str] | None = None
) -> Callable[[Any], str]:
    sql_type = column.type
    specific: dict[str, Callable[[], Callable[[Any], str]]] = {
        "jsonb": lambda: checked_json if tag == "S" and column.json == "parse" else lambda value: to_json({tag: value}),
        "smallint": lambda: _integer(15),
        "integer": lambda: _integer(31),
        "bigint": lambda: _integer(63),
        "numeric": lambda: _numeric(sql_type, canonical=is_key),
        "varchar": lambda: _varchar(column, settled, cut=column.on_error is OnError.TRUNCATE and not is_key),
        "uuid": lambda: _key_uuid if is_key else _uuid,
        "timestamptz": lambda: _timestamp if tag == "S" else _epoch(column.epoch or "seconds"),
    }
    return specific[sql_type.name]() if sql_type.name in specific else _BY_NAME[sql_type.name]


def _integer(bits: int) -> Callable[[str], str]:
    low, high = -(2**bits), 2**bits - 1
    # A digit less than the bound has fits whatever it is; the others are compared.
    fits = re.compile(rf"-?[1-9]\d{{0,{len(str(high)) - 2}}}|0", re.ASCII).fullmatch

    def convert(value: str) -> str:
        if fits(value):
            return value
        plain = canonical_number(value)
        if "." in plain:
            raise UnrepresentableError("is not a whole number")
        if len(plain) > 20 or not low <= int(plain) <= high:
            raise UnrepresentableError(f"is out of the range of a {bits + 1}-bit integer")
        return plain

    return convert


def _numeric(sql_type: SqlType, *, canonical: bool) -> Callable[[str], str]:
    write = canonical_number if canonical else number
    if not sql_type.params:
        return write
    precision, scale = sql_type.params[0], sql_type.params[1] if len(sql_type.params) == 2 else 0

    def convert(value: str) -> str:
        whole, _, fraction = canonical_number(value).lstrip("-").partition(".")
        if len(fraction) > scale:
            raise UnrepresentableError(f"has more than {scale} digits after the point")
        if len(whole.lstrip("0")) > precision - scale:
            raise UnrepresentableError(f"has more than {precision - scale} digits before the point")
        return write(value)

    return convert


def _varchar(column: Column, settled: Counter[str] | None, *, cut: bool) -> Callable[[str], str]:
    length = column.type.params[0]

    def convert(value: str) -> str:
        if len(value) <= length:
            return checked_text(value)
        if not cut:
            raise UnrepresentableError(f"is longer than {length} characters")
        value = checked_text(value[:length])
        if settled is not None:
            settled[column.name] += 1
        return value

    return convert


def _uuid(value: str) -> str:
    if not _UUID.fullmatch(value):
        raise UnrepresentableError("is not a UUID")
    return value.lower()


def _key_uuid(value: str) -> str:
    # Two keys that differ in case alone are two items, and would be one UUID.
    if value != _uuid(value):
        raise UnrepresentableError("is a UUID in upper case, which a key column cannot tell from lower case")
    return value


def _date(value: str) -> str:
    if _DATE.fullmatch(value):
        try:
            return date.fromisoformat(value).isoformat()
        except ValueError:
            pass
    raise UnrepresentableError("is not a date from 0001-01-01 to 9999-12-31 in the form 2026-01-31")


def _timestamp(value: str) -> str:
    match = _TIMESTAMP.fullmatch(value)
    if match and len((match[1] or "").rstrip("0")) <= 6:
        try:
            return datetime.fromisoformat(value).astimezone(UTC).isoformat()
        except (ValueError, OverflowError):
            pass
    raise UnrepresentableError("is not a time with its offset, to the microsecond, in the form 2026-01-31T12:00:00Z")


def _epoch(unit: str) -> Callable[[str], str]:
    digits = _EPOCH_DIGITS[unit]

    def convert(value: str) -> str:
        # By digits: arithmetic on Decimal rounds to 28 of them, and would take a finer time for a whole one.
        whole, _, fraction = canonical_number(value).partition(".")
        if len(fraction) > digits:
            raise UnrepresentableError("is an epoch time finer than a microsecond")
        # Cut where it is out of every range already: int() refuses texts of thousands of digits.
        microseconds = int(whole[:_MOST_EPOCH_DIGITS] + fraction.ljust(digits, "0"))
        try:
            return (_EPOCH + timedelta(microseconds=microseconds)).isoformat()
        except OverflowError:
            raise UnrepresentableError(f"is not an epoch time in {unit} in the years 1 to 9999") from None

    return convert


def _boolean(value: object) -> str:
    if not isinstance(value, bool):
        raise UnrepresentableError("is not true or false")
    return "t" if value else "f"


def _bytea(value: str) -> str:
    try:
        return "\\x" + b64decode(value, validate=True).hex()
    except (Base64Error, ValueError):
        raise UnrepresentableError("is not base64") from None


def array_literal(values: list[str]) -> str:
    """Write texts as a PostgreSQL array literal of non-null elements."""
    if not values:
        return "{}"
    joined = '","'.join(values)
    if "\\" in joined or joined.count('"') != 2 * (len(values) - 1):
        # All at once: U+0000 is in no text that PostgreSQL takes, and so parts them.
        joined = "\x00".join(values)
        if joined.count("\x00") == len(values) - 1:
            joined = joined.replace("\\", "\\\\").replace('"', '\\"').replace("\x00", '","')
        else:
            joined = '","'.join([v.replace("\\", "\\\\").replace('"', '\\"') for v in values])
    return f'{{"{joined}"}}'


def text_array(values: list[str]) -> str:
    """Write a set of texts as a PostgreSQL array literal, sorted."""
    if values.__class__ is not list:
        a_list(values)  # which refuses it
    return array_literal([checked_text(v) for v in sorted(values)])


def _numeric_array(values: list[str]) -> str:
    return array_literal(sort_numbers(values))


def _bytea_array(values: list[str]) -> str:
    if values.__class__ is not list:
        a_list(values)  # which refuses it
    return array_literal(sorted(map(_bytea, values)))


_BY_NAME: dict[str, Callable[[Any], str]] = {
    "double precision": number,
    "boolean": _boolean,
    "text": checked_text,
    "date": _date,
    "bytea": _bytea,
    "text[]": text_array,
    "numeric[]": _numeric_array,
    "bytea[]": _bytea_array,
}
