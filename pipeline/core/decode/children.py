"""From an item to the rows of a child target: the elements of a list or a map, each with its place.

Invariant: an item gives all rows of its child target or none. If an element cannot be converted, the whole item fails,
so a parent's row and its children always show one state.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.errors import ConversionError
from pipeline.core.model.attributes import find
from pipeline.core.types.conversion import converter

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pipeline.core.model.attributes import AttributeValue, Item
    from pipeline.core.model.change import Row
    from pipeline.core.model.mapping import Target


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class ChildDecoder:
    """Decodes the elements of items for one child target. Build it once."""

    def __init__(
        self,
        child: Target,
        settled: Counter[str] | None = None,
        element: Callable[[Item], Row] | None = None,
    ) -> None:
        """`settled` counts, by column, the values that a policy changed.

        `element`, if given, converts an element's members to the child's own columns.
        """
        self.child = child
        place = child.key_columns[-1]
        self._of_list = place.type.name == "integer"
        self._convert_place = converter(place, is_key=True)
        self._columns = [(column.path, converter(column, settled=settled)) for column in child.own_columns]
        self._element = element or self._general_element

    def rows(self, item: Mapping[str, AttributeValue]) -> str:
        """Return the item's rows as a JSON array of arrays of texts: place, own columns. Raises ConversionError."""
        rows: list[Row] = []
        try:
            for place, element in self._elements(item):
                rows.append((self._convert_place(place), *self._element(self._members(element))))
        except ConversionError as error:
            raise ConversionError(f"{self.child.view_name}.{error.column}", error.reason) from None
        return _json(rows)

    def _general_element(self, members: Item) -> Row:
        return tuple([convert(find(members, path)) for path, convert in self._columns])

    def _members(self, element: AttributeValue) -> Item:
        members = element.get("M")
        if not isinstance(members, dict):
            raise ConversionError(self.child.key_columns[-1].name, "an element is not a map")
        return cast("Item", members)

    def _elements(self, item: Mapping[str, AttributeValue]) -> Iterable[tuple[AttributeValue, AttributeValue]]:
        found = find(item, self.child.explode)
        if found is None or "NULL" in found:
            return ()
        tag = "L" if self._of_list else "M"
        if tag not in found:
            kind = "list" if self._of_list else "map"
            raise ConversionError(self.child.key_columns[-1].name, f"the elements are not in a {kind}")
        value: Any = found[tag]
        if self._of_list:
            return [({"N": str(number)}, element) for number, element in enumerate(value)]
        return [({"S": name}, element) for name, element in value.items()]


def child_rows(target: Target, rows: Sequence[Row]) -> list[list[Row]]:
    """Return the child rows that a target's rows carry, of each child, as rows of its table."""
    stored = target.stored_columns
    positions = [stored.index(name) for name in target.primary_key]
    keys = [tuple([row[position] for position in positions]) for row in rows]
    return [
        [(*key, *element) for key, row in zip(keys, rows, strict=True) for element in json.loads(row[number] or "[]")]
        for number in range(len(stored), len(stored) + len(target.carried))
    ]
