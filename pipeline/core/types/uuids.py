"""uuid, from texts in its form; shown in lower case."""

from __future__ import annotations

import re

from pipeline.core.model.attributes import UnrepresentableError
from pipeline.core.types.codec import Codec, Example
from pipeline.core.types.fast.fast_form import as_it_is

_LOWER = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_ANY = re.compile(_LOWER, re.IGNORECASE)


def _convert(value: str) -> str:
    if not _ANY.fullmatch(value):
        raise UnrepresentableError("is not a UUID")
    return value.lower()


def _convert_key(value: str) -> str:
    # Two keys that differ only in case are two items, but would be one UUID.
    if value != _convert(value):
        raise UnrepresentableError("is a UUID in upper case, which a key column cannot tell from lower case")
    return value


UUID = Codec(
    name="uuid",
    tags=frozenset({"S"}),
    key_of=frozenset({"S"}),
    takes_captures=True,
    convert=lambda use: _convert_key if use.is_key else _convert,
    fast_form=lambda _column, _is_key: as_it_is("S", _LOWER),
    examples=(Example(({"S": "0F8FAD5B-D9CB-469F-A165-70867728950E"}, {"S": "0f8fad5bd9cb469fa16570867728950e"})),),
)
