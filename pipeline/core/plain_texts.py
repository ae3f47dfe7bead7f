"""Texts that a column takes as they are, as patterns: what the fast ways of decoding look for.

Invariant: whatever a pattern matches whole, the column's converter returns unchanged. What it does not match may still
be right; the converter then decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.core.mapping import Column

# DynamoDB's numbers have at most 126 digits before the point and 167 after it; longer ones are for the converter.
# Character classes one after another, without a group: three times as fast. The look behind is against `1.`.
NUMBER = r"-?+(?!0\d)\d{1,200}+\.?+\d{0,200}+(?<=\d)"
# numeric, double precision and jsonb read an exponent, and make of it what the plain notation is.
EXPONENT_NUMBER = rf'{NUMBER}(?:(?=")|[eE][+-]?+\d{{1,3}}+)'
# A character takes four bytes in UTF-8 at most, and escapes only make a text longer.
MOST_BYTES = 4
# Digits that fit whatever their value, and what first digit one more may have; the converter compares the others.
# Most numbers are short, and none is tried twice: that order and these repeats spare a fifth of a narrow pattern.
_INTEGERS = {
    "smallint": r"-?+[1-9]\d{0,3}+|-?[12]\d{4}|0",
    "integer": r"-?+[1-9]\d{0,8}+|-?1\d{9}|0",
    "bigint": r"-?+[1-9]\d{0,17}+|-?[1-8]\d{18}|0",
}
_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


def plain_pattern(column: Column, *, is_key: bool) -> str | None:  # noqa: PLR0911  one return a type reads best
    """Return the pattern of texts that the column takes as they are."""
    kind, params = column.type.name, column.type.params
    if kind in _INTEGERS:
        return _INTEGERS[kind]
    if kind == "uuid":
        return _UUID
    if kind == "double precision" or (kind == "numeric" and not params and not is_key):
        return NUMBER
    if kind != "numeric":
        return None
    if is_key and not params:
        return r"-?[1-9]\d{0,199}|0"
    precision, scale = params[0], params[1] if len(params) == 2 else 0
    whole = precision - scale
    if not whole:
        return None
    fraction = rf"(?:\.\d{{1,{scale}}})?" if scale and not is_key else ""
    digits = rf"[1-9]\d{{0,{whole - 1}}}"
    return rf"-?{digits}|0" if is_key else rf"-?(?:0|{digits}){fraction}"
