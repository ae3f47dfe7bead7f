"""From the jsonb column back to attribute values, to convert them as if the item had just arrived.

Invariant: every digit is kept, and what JSON distinguishes stays different. Where JSON does not distinguish, the column
decides: a string is read as B if the column is bytea, and otherwise as S; an array is read as a set if the column is an
array of that kind and the elements are what our writer makes of a set (of one type, sorted, each once), and otherwise
as L. So two refusals of the replicator cannot be repeated here: B for a text column is accepted as its base64 text, S
that happens to be base64 for a bytea column as those bytes, in arrays too. A list that is sorted like a set gives the
same array (only of bytea, whose set is sorted by its bytes and not by their base64, it may be in another order).
Whether a number is an epoch time is up to the column, as everywhere.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pipeline.core.model.attributes import AttributeValue, PathPart
    from pipeline.core.model.mapping import Column


class Digits(str):
    """A number as it was written."""

    __slots__ = ()


def parse(text: str) -> object:
    """Parse JSON text of the jsonb column; numbers keep their digits. The result is for `attribute_value`."""
    return json.loads(text, parse_int=Digits, parse_float=Digits)


def attribute_value(root: object, column: Column) -> AttributeValue | None:
    """Return the value at the column's path in a parsed attribute (the path's first part); None if it is missing."""
    value = root
    for part in column.path[1:]:
        found = _step(value, part)
        if found is None:
            return None
        (value,) = found
    return column.type.codec.from_json(value) or _value(value)


def _step(value: object, part: PathPart) -> tuple[object] | None:
    """Return the member in a tuple, because a member can be None itself; None if there is none."""
    if isinstance(part, int):
        elements = cast("list[object]", value) if isinstance(value, list) else []
        return (elements[part],) if part < len(elements) else None
    members = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    return (members[part],) if part in members else None


def _value(value: Any) -> AttributeValue:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        members = cast("dict[str, object]", value)
        return {"M": {name: _value(member) for name, member in members.items()}}
    if isinstance(value, list):
        return {"L": [_value(element) for element in cast("list[object]", value)]}
    if isinstance(value, Digits):
        return {"N": str(value)}
    if isinstance(value, str):
        return {"S": value}
    return {"NULL": True} if value is None else {"BOOL": value}
