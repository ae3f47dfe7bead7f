"""The SQL types that a mapping may name, parsed once: `varchar(20)` → SqlType("varchar", (20,)).

Invariant: a type is one of TYPES. Its codec (`pipeline.core.types`) contains everything about it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.core.types.arrays import ARRAYS
from pipeline.core.types.binary import BYTEA
from pipeline.core.types.boolean import BOOLEAN
from pipeline.core.types.codec import Codec
from pipeline.core.types.jsonb import JSONB
from pipeline.core.types.numbers import DOUBLE_PRECISION, INTEGERS, NUMERIC
from pipeline.core.types.text import TEXT, VARCHAR
from pipeline.core.types.times import DATE, TIMESTAMPTZ
from pipeline.core.types.uuids import UUID

TYPES: dict[str, Codec] = {
    codec.name: codec
    for codec in (*INTEGERS, NUMERIC, DOUBLE_PRECISION, BOOLEAN, TEXT, VARCHAR, UUID, DATE, TIMESTAMPTZ, BYTEA, JSONB,
                  *ARRAYS)
}  # fmt: skip

# Types that keep different keys different, by the key's attribute type.
KEY_TYPES = {tag: frozenset(name for name, codec in TYPES.items() if tag in codec.key_of) for tag in ("N", "S", "B")}
# Types for a part captured from a text key, and those of them that keep different parts different. Number types only
# accept the usual spelling: `007` is refused, so it never shares a row with `7`.
CAPTURE_TYPES = frozenset(name for name, codec in TYPES.items() if codec.takes_captures)
CAPTURE_KEY_TYPES = frozenset(name for name in CAPTURE_TYPES if TYPES[name].key_of)

_SPELLING = re.compile(
    r"\s*(?P<name>[a-z][a-z0-9 ]*?)\s*(?:\(\s*(?P<params>\d+(?:\s*,\s*\d+)?)\s*\))?(?P<array>\[\])?\s*"
)


@dataclass(frozen=True, slots=True)
class SqlType:
    """A PostgreSQL type: `name` as in TYPES, `params` its length, or precision and scale."""

    name: str
    params: tuple[int, ...] = ()

    @property
    def codec(self) -> Codec:
        """Everything about the type."""
        return TYPES[self.name]

    @property
    def sql(self) -> str:
        """The spelling for a column definition. Safe to embed: only known names and integers."""
        return f"{self.name}({','.join(map(str, self.params))})" if self.params else self.name

    @property
    def is_array(self) -> bool:
        """Whether it is an array type, according to its name."""
        return self.name.endswith("[]")

    @property
    def input_sql(self) -> str:
        """The type to send values as: without length, so that PostgreSQL checks the length at assignment."""
        return self.codec.input_name or self.name

    @property
    def sent_sql(self) -> str:
        """The type to send a column of values as, in an array. Arrays go as texts: unnest would flatten them."""
        return "text" if self.is_array else self.input_sql


def parse_sql_type(text: str) -> SqlType:
    """Parse a type as a mapping spells it. Raises ValueError with a reason that names what is wrong."""
    match = _SPELLING.fullmatch(text.lower())
    if not match:
        raise ValueError(f'"{text}" is not a column type')
    aliases = {alias: name for name, codec in TYPES.items() for alias in codec.aliases}
    name = aliases.get(match["name"], match["name"]) + (match["array"] or "")
    if name not in TYPES:
        raise ValueError(f'"{text}" is not one of the column types: {", ".join(TYPES)}')
    params = tuple(int(p) for p in match["params"].split(",")) if match["params"] else ()
    if params and not TYPES[name].parameters[1]:
        raise ValueError(f"{name} has no length")
    TYPES[name].check_params(params)
    return SqlType(name, params)
