"""From an attribute value to the text that PostgreSQL reads for one column.

Invariant: a value arrives exactly or not at all. A value that the type cannot hold raises ConversionError, whose reason
never quotes the value; the column's `on_error` then decides. The same converters serve the stream, both kinds of export
and re-reads, so one item becomes the same row on every path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from pipeline.core.errors import ConversionError
from pipeline.core.model.attributes import NOT_ONE_TAG, AttributeValue, UnrepresentableError, to_json
from pipeline.core.model.attributes import text as checked_text
from pipeline.core.model.mapping import Column, OnError
from pipeline.core.types.codec import Use

Converter = Callable[[AttributeValue | None], str | None]

_TAGS = frozenset({"S", "N", "B", "BOOL", "NULL", "SS", "NS", "BS", "L", "M"})


def converter(column: Column, *, is_key: bool = False, settled: Counter[str] | None = None) -> Converter:
    """Return the function that turns an item's attribute value (None if it is missing) into the column's text.

    A key's text is canonical, so equal keys have equal texts. The function raises ConversionError for a value that the
    column cannot hold, unless its `on_error` accepts the loss; such values are counted in `settled`.
    """
    codec = column.type.codec
    accepted = codec.tags
    by_tag = {tag: codec.convert(Use(tag, column, is_key, settled)) for tag in accepted}
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
                return on_error(f"accepts {' or '.join(sorted(accepted))}, and the attribute is of {_type(tag)}")
            try:
                return convert_value(value) if len(attribute) == 1 else on_error(NOT_ONE_TAG)
            except UnrepresentableError as error:
                return on_error(str(error))
        return on_error("the attribute value is empty")

    return convert


def _type(tag: str) -> str:
    """Return the name of a type. An unknown tag is not shown, because it may be data."""
    return f"type {tag}" if tag in _TAGS else "an unknown type tag"


def _policy(column: Column, settled: Counter[str] | None, *, is_key: bool) -> Callable[[str], None]:
    """Return the function that handles a value which the column cannot hold, given the reason."""

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
    """Return the attributes that no column takes as one JSON object.

    Raises ConversionError for an attribute that jsonb cannot hold. Under `OnError.NULL`, each such attribute becomes
    null, and one whose name jsonb cannot hold is left out.
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
