"""Strings that hold JSON, checked before they are sent to PostgreSQL as jsonb.

Invariant: PostgreSQL accepts every text that passes, and it is sent as written, so every digit of its numbers arrives.
The check depends only on the text, so it gives the same result on every machine.
"""

from __future__ import annotations

import json
from typing import Any, cast

from pipeline.core.model.attributes import UnrepresentableError, number, text

# PostgreSQL's limit is its stack, and Python has a limit too. This is below both, and far above real data.
DEEPEST_JSON = 200


class _Members(list[tuple[str, Any]]):
    """An object's members, including earlier ones with a repeated name: PostgreSQL checks them all."""


def checked_json(value: str) -> str:
    """Return `value` if it is JSON that jsonb can hold. Raises UnrepresentableError."""
    try:
        parsed = _DECODER.decode(value)
    except UnrepresentableError:
        raise
    except RecursionError:
        raise UnrepresentableError(_TOO_DEEP) from None
    except ValueError:
        raise UnrepresentableError("is a string that is not JSON") from None
    _check(parsed, 0)
    return value


_TOO_DEEP = f"contains JSON nested deeper than {DEEPEST_JSON} levels"


def _no_constant(_: str) -> None:
    """Reject NaN and the infinities, which Python accepts and JSON does not have."""
    raise UnrepresentableError("is a string that is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_Members, parse_float=number, parse_int=number, parse_constant=_no_constant
)


def _check(value: object, depth: int) -> None:
    if depth > DEEPEST_JSON:
        raise UnrepresentableError(_TOO_DEEP)
    if isinstance(value, str):
        text(value)
    elif isinstance(value, _Members):
        for name, member in value:
            text(name)
            _check(member, depth + 1)
    elif isinstance(value, list):
        for element in cast("list[Any]", value):
            _check(element, depth + 1)
