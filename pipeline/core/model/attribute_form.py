"""Whether attribute values have DynamoDB's form: one of ten type tags, and a value of its kind.

Invariant: this is only checked after a conversion failed, so well-formed values, nearly all, cost nothing.
"""

from __future__ import annotations

from typing import Any, cast

# What code for well-formed values raises for malformed ones.
MALFORMED = (AttributeError, KeyError, RecursionError, TypeError, ValueError)
NOT_OF_THE_FORM = "an attribute value is not in DynamoDB's form"


def is_item(value: object) -> bool:
    """Whether every attribute value inside has DynamoDB's form. False if it is nested too deeply to check."""
    try:
        return _is_item(value)
    except RecursionError:
        return False


def _is_item(value: object) -> bool:
    return isinstance(value, dict) and all(_is_attribute(member) for member in cast("dict[str, Any]", value).values())


def _is_attribute(value: object) -> bool:
    if not isinstance(value, dict) or len(cast("dict[str, Any]", value)) != 1:
        return False
    tag, inner = next(iter(cast("dict[str, Any]", value).items()))
    if tag in {"S", "N", "B"}:
        return isinstance(inner, str)
    if tag in {"BOOL", "NULL"}:
        return isinstance(inner, bool)
    if tag in {"SS", "NS", "BS"}:
        return isinstance(inner, list) and all(isinstance(part, str) for part in cast("list[Any]", inner))
    if tag == "L":
        return isinstance(inner, list) and all(map(_is_attribute, cast("list[Any]", inner)))
    return tag == "M" and _is_item(inner)
