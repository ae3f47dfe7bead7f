"""Routing: which targets take an item, from its key attributes alone, and the captured parts.

Invariant: an item and the record of its removal, which carries only the key, go to the same targets. With patterns that
is at most one target, because a mapping whose patterns overlap is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.errors import ConversionError
from pipeline.core.model.mapping import Unmatched

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.core.model.attributes import AttributeValue, Item
    from pipeline.core.model.mapping import TableMapping, Target

MATCHES_NO_TARGET = "its key matches no target"
NO_TARGET = ""
"""The target name for the reject of an item without a target."""


class Router:
    """Routes the items of one mapping. Build it once; its methods hold no state."""

    def __init__(self, mapping: TableMapping) -> None:
        self.targets = mapping.targets
        self.rejects_unmatched = mapping.unmatched is Unmatched.REJECT
        self.trivial = not any(target.match for target in mapping.targets)
        """Whether every item belongs to every target."""

    def route(self, keys: Mapping[str, AttributeValue]) -> tuple[Target, ...]:
        """Return the targets of the item with these key attributes (possibly with others); none: unmatched."""
        if self.trivial:
            return self.targets
        for target in self.targets:
            if matches(target, keys):
                return (target,)
        return ()


def matches(target: Target, keys: Mapping[str, AttributeValue]) -> bool:
    """Whether an item belongs to the target."""
    return all(pattern.match(keys.get(attribute)) is not None for attribute, pattern in target.match)


def captured(target: Target, keys: Mapping[str, AttributeValue]) -> Item:
    """Return the parts that the target's patterns capture, by name. Raises ConversionError if they do not match."""
    parts: Item = {}
    for attribute, pattern in target.match:
        found = pattern.match(keys.get(attribute))
        if found is None:
            raise ConversionError(attribute, f"the key does not match the pattern of {target.view_name}")
        parts.update(found)
    return parts
