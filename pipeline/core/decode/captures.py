"""Columns that are filled from a captured part of a key attribute, and the way back from their texts.

Invariant: in a primary key, different parts give different texts. A number column only accepts the usual spelling of a
part, so that `ORDER#007` and `ORDER#7`, which are two items, never share a row.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

from pipeline.core.errors import ConversionError
from pipeline.core.model.attributes import canonical_number
from pipeline.core.model.key_patterns import captured_number
from pipeline.core.model.mapping import OnError
from pipeline.core.types.conversion import converter

if TYPE_CHECKING:
    from collections import Counter

    from pipeline.core.model.attributes import AttributeValue
    from pipeline.core.model.mapping import Column
    from pipeline.core.types.conversion import Converter


def capture_converter(column: Column, *, is_key: bool, settled: Counter[str] | None = None) -> Converter:
    """Like `converter`, for the captured part that fills `column`; `settled` counts what its policy changed."""
    convert = converter(column, is_key=is_key, settled=settled)
    if "N" not in column.type.codec.key_of:
        return convert

    def convert_number(part: AttributeValue | None) -> str | None:
        if part is None or "S" not in part:
            return convert(part)
        number = captured_number(part)
        if number is not None:
            return convert({"N": number})
        if column.on_error is OnError.NULL and not is_key:
            if settled is not None:
                settled[column.name] += 1
            return None
        raise ConversionError(column.name, "the captured part is not a whole number without sign and leading zeros")

    return convert_number


def source_text(column: Column, tag: str, text: str) -> str:
    """Return the key attribute's or captured part's value from the column's stored text: the inverse of converting."""
    if tag == "B":
        return b64encode(bytes.fromhex(text.removeprefix("\\x"))).decode()
    if column.capture is not None and "N" in column.type.codec.key_of:
        return canonical_number(text)  # a numeric(p,s) column shows zeros after the point
    return text
