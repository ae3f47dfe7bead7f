"""Writes the parts of docs/mapping.schema.json about types and their options, from the codecs: `make docs`.

Invariant: an editor offers every type, in every spelling, that a mapping may name, and every option of one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from pipeline.core.mapping_files.column_rules import OPTIONS
from pipeline.core.types.sql_types import TYPES

SCHEMA = Path(__file__).parents[1] / "docs" / "mapping.schema.json"
_WIDTH = 120


def with_generated(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with its generated parts replaced."""
    properties = schema["$defs"]["column"]["properties"]
    properties["type"] = {
        "description": "The PostgreSQL type.",
        "type": "string",
        "anyOf": [
            {"enum": [name for name, codec in TYPES.items() if not codec.parameters[0]]},
            {"description": "The same in other spellings, and varchar(n), numeric(p,s).", "pattern": _spellings()},
        ],
    }
    for name, option in OPTIONS.items():
        properties[name] = {"description": option.description, "enum": list(option.values)}
    return schema


def _spellings() -> str:
    """The pattern of the texts that `parse_sql_type` accepts."""
    by_suffix: dict[str, list[str]] = {}
    for name, codec in TYPES.items():
        least, most = codec.parameters
        element = name.removesuffix("[]")
        if element != name:
            by_suffix.setdefault(r" *\[\]", []).extend([element, *TYPES[element].aliases])
            continue
        if not least:
            by_suffix.setdefault("", []).extend([name, *codec.aliases])
        if most:
            more = f"( *, *[0-9]+){{0,{most - 1}}}" if most > 1 else ""
            by_suffix.setdefault(rf" *\( *[0-9]+{more} *\)", []).extend([name, *codec.aliases])
    kinds = [f"({'|'.join(map(_any_case, names))}){suffix}" for suffix, names in by_suffix.items()]
    return f"^ *({'|'.join(kinds)}) *$"


def _any_case(name: str) -> str:
    return "".join(f"[{c.upper()}{c}]" if c.isalpha() else c for c in name)


def text(schema: dict[str, Any]) -> str:
    """The schema as the file has it: a member with descriptions has a line each, other members share lines."""
    return _text(schema, 0) + "\n"


def _text(value: Any, indent: int, before: int = 0) -> str:  # noqa: ANN401  JSON
    short = json.dumps(value, ensure_ascii=False)
    if '"description": "' not in short and indent + before + len(short) < _WIDTH:
        return short
    inner, start = indent + 2, "\n" + " " * (indent + 2)
    if isinstance(value, list):
        members = [_text(element, inner) for element in cast("list[Any]", value)]
        return f"[{start}{(',' + start).join(members)}\n{' ' * indent}]"
    if isinstance(value, dict):
        named = {json.dumps(name): member for name, member in cast("dict[str, Any]", value).items()}
        members = [f"{name}: {_text(member, inner, len(name) + 2)}" for name, member in named.items()]
        return f"{{{start}{(',' + start).join(members)}\n{' ' * indent}}}"
    return short


if __name__ == "__main__":
    SCHEMA.write_text(text(with_generated(json.loads(SCHEMA.read_text()))))
