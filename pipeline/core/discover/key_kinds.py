"""Kinds of items that differ in their keys: `ORDER#2026#4` has the pattern `ORDER#{}#{}`.

Invariant: every item has exactly one kind, and a kind is a pattern for each string of the key. A pattern contains words
that look like names of things, never what follows them, so it reveals nothing about an item's identity.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.core.model.attributes import Item

SEPARATOR = "#"
PART = "{}"
# With more kinds than this in one table, the words are values, such as names of cities.
MOST_KINDS = 30
_CONSTANT = re.compile(r"[A-Z][A-Z_]{1,30}", re.ASCII)
_PREFIX = re.compile(r"[A-Za-z][A-Za-z_-]{0,30}", re.ASCII)

Kind = tuple[str, ...]
"""One pattern for each key attribute, in the order of the key."""


@dataclass(frozen=True, slots=True)
class ItemKind:
    """A kind of items, and how many items of the sample belong to it."""

    patterns: dict[str, str]
    """Pattern by key attribute: `{"PK": "CUSTOMER#{}", "SK": "PROFILE"}`."""
    items: int


def kinds(items: Sequence[Item], key: Mapping[str, str]) -> tuple[list[Kind], list[ItemKind]]:
    """Return each item's kind, and the kinds by count; only the kind `{}` if the keys show no difference."""
    for constants in (True, False):
        each = [tuple(_pattern(item, name, tag, constants=constants) for name, tag in key.items()) for item in items]
        counted = Counter(each)
        if len(counted) <= MOST_KINDS:
            break
    else:
        each = [(PART,) * len(key)] * len(items)
        counted = Counter(each)
    ordered = sorted(counted.items(), key=lambda found: (-found[1], found[0]))
    return each, [ItemKind(dict(zip(key, kind, strict=True)), count) for kind, count in ordered]


def told_apart(found: Sequence[ItemKind]) -> bool:
    """Whether the keys distinguish kinds of items, or at least name the only one."""
    return any(pattern.replace(PART, "").strip(SEPARATOR) for kind in found for pattern in kind.patterns.values())


def with_captures(kind: ItemKind) -> dict[str, str]:
    """Return the kind's patterns with a name for each part that varies: `CUSTOMER#{customer_id}`."""
    taken: set[str] = set()
    named: dict[str, str] = {}
    for attribute, pattern in kind.patterns.items():
        parts, before = list[str](), ""
        for part in pattern.split(SEPARATOR):
            if part == PART:
                parts.append(f"{{{_free(_capture(before, attribute), taken)}}}")
                before = ""
            else:
                parts.append(part)
                before = part
        named[attribute] = SEPARATOR.join(parts)
    return named


def _capture(before: str, attribute: str) -> str:
    word = re.sub(r"[^a-z0-9]+", "_", (before or attribute).lower()).strip("_")
    return f"{word}_id" if before else word or "part"


def _free(name: str, taken: set[str]) -> str:
    free, number = name, 2
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    taken.add(free)
    return free


def _pattern(item: Item, name: str, tag: str, *, constants: bool) -> str:
    if tag != "S":
        return PART
    parts = str(item.get(name, {}).get("S", "")).split(SEPARATOR)
    shaped = [_shape(part, first=not index and len(parts) > 1, constants=constants) for index, part in enumerate(parts)]
    return SEPARATOR.join(shaped)


def _shape(part: str, *, first: bool, constants: bool) -> str:
    if (first and _PREFIX.fullmatch(part)) or (constants and _CONSTANT.fullmatch(part)):
        return part
    return "" if not part else PART
