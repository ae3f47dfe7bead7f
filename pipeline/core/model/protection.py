"""Which attributes are protected, how, and the key of their hashes.

Invariant: a rule names a path through an item's maps and lists; whatever is there, or on the way where a map or a list
was expected, is replaced before anything is stored. `*` means each member of a map or element of a list. The key never
shows in a repr; its fingerprint identifies it.
"""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, cast

from pipeline.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.core.model.attributes import PathPart

ANY = "*"
"""A part of a rule's path: each member of a map, each element of a list or a set."""
MASKED = "***"
HASH_DIGITS = 64
# A key that can be guessed makes the hashes of short values readable.
SHORTEST_KEY = 32


class Protect(StrEnum):
    """What takes the place of a protected value."""

    HASH = "hash"
    """HMAC-SHA-256 under the privacy key, as hex: equal values stay equal."""
    MASK = "mask"
    """The same text for every value."""
    DROP = "drop"
    """Nothing: the attribute is stored nowhere."""


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """Protects whatever is at `path`."""

    path: tuple[str, ...]
    how: Protect

    def __str__(self) -> str:
        return f"{self.how} {spelled(self.path)}"


@dataclass(frozen=True, slots=True)
class PrivacyKey:
    """The key of the hashes."""

    key: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Identifies the key without revealing it."""
        return hmac.digest(self.key, b"dynaurora privacy key", "sha256").hex()[:16]


def privacy_key(text: str, *, variable: str) -> PrivacyKey:
    """Return the key that a secret's text gives: the text itself, or member `key` of a JSON object.

    `variable` names the setting in the error.
    """
    found: object = text.strip()
    if text.lstrip().startswith("{"):
        try:
            found = cast("dict[str, object]", json.loads(text)).get("key")
        except ValueError:
            found = None
    if not isinstance(found, str) or len(found) < SHORTEST_KEY:
        raise ConfigurationError(
            f"reading the privacy key: {variable} does not give a text of at least {SHORTEST_KEY} characters",
            hint='store the output of `openssl rand -hex 32`, as plain text or as {"key": "…"}',
        )
    return PrivacyKey(found.encode())


def generalized(path: Iterable[PathPart]) -> tuple[str, ...]:
    """Return a path with ANY for each index of a list: what is protected in one element is protected in all."""
    return tuple(ANY if isinstance(part, int) else part for part in path)


def overlap(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether what one rule's path names is, or may be, what the other's names, or inside it."""
    if not one or not other:
        return True
    mine, theirs = one[0], other[0]
    if (mine == theirs or ANY in (mine, theirs)) and overlap(one[1:], other[1:]):
        return True
    if mine == ANY != theirs and overlap(one[1:], other):  # the other's name reaches through a list
        return True
    return theirs == ANY != mine and overlap(one, other[1:])


def remainders(rule: Sequence[str], place: Sequence[str]) -> set[tuple[str, ...]]:
    """Return what may be left of a rule's path at a place, which names reach only step by step; the empty path is all.

    The set is empty if the rule reaches nothing there. A name of the rule reaches through lists: it may pass over an
    element.
    """
    if not rule or not place:
        return {tuple(rule)}
    found: set[tuple[str, ...]] = set()
    if rule[0] == place[0] or ANY in (rule[0], place[0]):
        found |= remainders(rule[1:], place[1:])
    if place[0] == ANY != rule[0]:
        found |= remainders(rule, place[1:])
    return found


def spelled(path: Iterable[str]) -> str:
    """Spell a path as a mapping file does."""
    return ".".join(f'"{part}"' if any(character in part for character in '."[]') else part for part in path)


def rules_by_target(found: Iterable[tuple[str, Iterable[Rule]]]) -> dict[str, tuple[Rule, ...]]:
    """Return the rules by target, and under "" those for an item whose target is not known: all of them.

    What targets protect in different ways is masked there, because no column takes it.
    """
    targets: dict[str, set[Rule]] = {}
    everywhere: dict[tuple[str, ...], Protect] = {}
    for target, rules in found:
        targets.setdefault(target, set()).update(rules)
        for rule in rules:
            same = everywhere.setdefault(rule.path, rule.how) is rule.how
            everywhere[rule.path] = rule.how if same else Protect.MASK
    every = {Rule(path, how) for path, how in everywhere.items()}
    return {target: tuple(sorted(of)) for target, of in (targets | {"": every}).items()}


Entry = tuple[tuple[str, ...], str]
"""A rule as it is recorded: its path, and its `how`; with a hash, the fingerprint of the key too."""


def entry(rule: Rule, key: PrivacyKey | None) -> Entry:
    """Return the entry of a rule under this key."""
    how = f"{rule.how}:{key.fingerprint if key else ''}" if rule.how is Protect.HASH else str(rule.how)
    return rule.path, how


def recorded(rules: Mapping[str, Iterable[Rule]], key: PrivacyKey | None) -> str:
    """Return the record of the rules in force, by target: "" if there is none. Equal records mean equal values."""
    return written({target: {entry(rule, key) for rule in of} for target, of in rules.items()})


def written(entries: Mapping[str, Iterable[Entry]]) -> str:
    """Write entries by target as a record."""
    found = {target: [[how, *path] for path, how in sorted(of)] for target, of in sorted(entries.items())}
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False) if any(found.values()) else ""


def entries(record: str) -> dict[str, set[Entry]]:
    """Read a record."""
    found: dict[str, list[list[str]]] = json.loads(record) if record else {}
    return {target: {(tuple(path), how) for how, *path in of} for target, of in found.items()}


def entries_of(record: str, target: str) -> frozenset[Entry]:
    """Return what a record says of the items of one target."""
    found = entries(record)
    return frozenset(found.get(target, found.get("", set())))
