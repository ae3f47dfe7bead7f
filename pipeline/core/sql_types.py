"""The SQL types a mapping may name, parsed once: `varchar(20)` → SqlType("varchar", (20,)).

Invariant: every type in TYPES has its converters in `pipeline.core.conversion`; a test walks them all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Attribute types (AttributeValue tags) that each SQL type takes. NULL is taken by all: as NULL, in jsonb as its null.
TYPES: dict[str, frozenset[str]] = {
    "smallint": frozenset({"N"}),
    "integer": frozenset({"N"}),
    "bigint": frozenset({"N"}),
    "numeric": frozenset({"N", "S"}),
    "double precision": frozenset({"N"}),
    "boolean": frozenset({"BOOL"}),
    "text": frozenset({"S"}),
    "varchar": frozenset({"S"}),
    "uuid": frozenset({"S"}),
    "date": frozenset({"S"}),
    "timestamptz": frozenset({"S", "N"}),
    "bytea": frozenset({"B"}),
    "jsonb": frozenset({"S", "N", "B", "BOOL", "NULL", "SS", "NS", "BS", "L", "M"}),
    "text[]": frozenset({"SS"}),
    "numeric[]": frozenset({"NS"}),
    "bytea[]": frozenset({"BS"}),
}

# Types that keep two different keys different, by the key's attribute type. `numeric` takes N alone here, because
# the strings "1" and "1.0" are two items and one number.
KEY_TYPES: dict[str, frozenset[str]] = {
    "N": frozenset({"smallint", "integer", "bigint", "numeric"}),
    "S": frozenset({"text", "varchar", "uuid", "date"}),
    "B": frozenset({"bytea"}),
}

# Types for a part captured from a text key. Numbers take it in its one spelling alone: `007` is refused, so that it
# never shares a row with `7`.
CAPTURE_TYPES = frozenset(
    {"text", "varchar", "uuid", "date", "timestamptz", "smallint", "integer", "bigint", "numeric"}
)
CAPTURE_KEY_TYPES = CAPTURE_TYPES - {"timestamptz"}
# Of these, the types that read it as a number.
CAPTURED_NUMBERS = frozenset({"smallint", "integer", "bigint", "numeric"})

_ALIASES = {"int": "integer", "int4": "integer", "int8": "bigint", "int2": "smallint", "decimal": "numeric",
            "float8": "double precision", "bool": "boolean", "character varying": "varchar",
            "timestamp with time zone": "timestamptz"}  # fmt: skip

_SPELLING = re.compile(
    r"\s*(?P<name>[a-z][a-z0-9 ]*?)\s*(?:\(\s*(?P<params>\d+(?:\s*,\s*\d+)?)\s*\))?(?P<array>\[\])?\s*"
)


@dataclass(frozen=True, slots=True)
class SqlType:
    """A PostgreSQL type: `name` as in TYPES, `params` its length, or precision and scale."""

    name: str
    params: tuple[int, ...] = ()

    @property
    def sql(self) -> str:
        """Spelling for a column definition. Safe to embed: only known names and integers."""
        return f"{self.name}({','.join(map(str, self.params))})" if self.params else self.name

    @property
    def input_sql(self) -> str:
        """Type to send values as: without length, so that PostgreSQL checks it at assignment and cuts nothing.

        An explicit cast to varchar(n) cuts silently; an assignment raises (PostgreSQL manual, character types).
        """
        return self.name if self.name != "varchar" else "text"


def parse_sql_type(text: str) -> SqlType:
    """Parse a type as a mapping spells it. Raises ValueError with a reason that names what is wrong."""
    match = _SPELLING.fullmatch(text.lower())
    if not match:
        raise ValueError(f'"{text}" is not a column type')
    name = _ALIASES.get(match["name"], match["name"]) + (match["array"] or "")
    if name not in TYPES:
        raise ValueError(f'"{text}" is not one of the column types: {", ".join(TYPES)}')
    params = tuple(int(p) for p in match["params"].split(",")) if match["params"] else ()
    _check_params(name, params)
    return SqlType(name, params)


def _check_params(name: str, params: tuple[int, ...]) -> None:
    if not params:
        if name == "varchar":
            raise ValueError('"varchar" needs a length, such as varchar(20); use text for any length')
        return
    if name == "varchar":
        if len(params) != 1 or not 1 <= params[0] <= 10_485_760:
            raise ValueError("varchar takes one length from 1 to 10485760")
    elif name == "numeric":
        precision, scale = params[0], params[1] if len(params) == 2 else 0
        if not (1 <= precision <= 1000 and 0 <= scale <= precision):
            raise ValueError("numeric takes a precision from 1 to 1000 and a scale not above it")
    else:
        raise ValueError(f"{name} takes no length")
