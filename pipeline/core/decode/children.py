"""From an item to the rows of a child target: the elements of a list, a map or a set, each with its place.

Invariant: an item gives all rows of its child target or none. If an element cannot be converted, the whole item fails,
so a parent's row and its children always show one state.
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.errors import ConversionError
from pipeline.core.model.attributes import UnrepresentableError, a_list, find
from pipeline.core.model.mapping import EACH
from pipeline.core.types.conversion import converter
from pipeline.core.types.key_length import check_length, limits_key

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from pipeline.core.model.attributes import AttributeValue, Item, PathPart
    from pipeline.core.model.change import Row
    from pipeline.core.model.mapping import Column, Target


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class _Step:
    """The elements of one list, map or set, with their places."""

    def __init__(self, place: Column, path: tuple[PathPart, ...], member: str | None) -> None:
        self._path, self._name = path, place.name
        self._tag = member or ("L" if place.type.name == "integer" else "M")
        self._convert = converter(place, is_key=True)

    def elements(self, members: Mapping[str, AttributeValue]) -> Iterable[tuple[str | None, AttributeValue]]:
        """Return the elements inside an item or an element. Raises ConversionError."""
        found = find(members, self._path)
        if found is None or "NULL" in found:
            return ()
        tag, convert = self._tag, self._convert
        if tag not in found:
            raise ConversionError(self._name, f"the elements are not in a {_KINDS.get(tag, f'set ({tag})')}")
        value: Any = found[tag]
        if tag == "L":
            return [(str(number), element) for number, element in enumerate(value)]
        if tag == "M":
            return [(convert({"S": name}), element) for name, element in value.items()]
        return [(place, {}) for place in dict.fromkeys([convert({tag[0]: each}) for each in a_list(value)])]

    def members(self, element: AttributeValue) -> Item:
        """Return an element's members."""
        members = element.get("M")
        if not isinstance(members, dict):
            raise ConversionError(self._name, "an element is not a map")
        return cast("Item", members)


_KINDS = {"L": "list", "M": "map"}


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
        paths = [tuple(path) for is_each, path in groupby(child.explode, lambda part: part == EACH) if not is_each]
        members = [*[None] * (len(paths) - 1), child.member]
        self._steps = [
            _Step(place, path, member) for place, path, member in zip(child.places, paths, members, strict=True)
        ]
        self._columns = [(column.path, converter(column, settled=settled)) for column in child.own_columns]
        self._element = element or self._general_element
        self._limits_key = limits_key(child)

    def rows(self, item: Mapping[str, AttributeValue], key: Sequence[str | None]) -> str:
        """Return the item's rows as a JSON array of arrays of texts: places, own columns. `key` is the parent's.

        Raises ConversionError.
        """
        rows: list[Row] = []
        *outer, last = self._steps
        found: list[tuple[tuple[str | None, ...], Item]] = [((), cast("Item", item))]
        try:
            for step in outer:
                found = [
                    ((*places, place), step.members(element))
                    for places, members in found
                    for place, element in step.elements(members)
                ]
            for places, members in found:
                for place, element in last.elements(members):
                    own = () if self.child.member else self._element(last.members(element))
                    rows.append((*places, place, *own))
            if self._limits_key:
                count = len(self._steps)
                for row in rows:
                    check_length(self.child, [text or "" for text in (*key, *row[:count])])
        except ConversionError as error:
            raise ConversionError(f"{self.child.view_name}.{error.column}", error.reason) from None
        except UnrepresentableError as error:
            raise ConversionError(f"{self.child.view_name}.{self.child.places[-1].name}", str(error)) from None
        return _json(rows)

    def _general_element(self, members: Item) -> Row:
        return tuple([convert(find(members, path)) for path, convert in self._columns])


def child_rows(target: Target, rows: Sequence[Row]) -> list[list[Row]]:
    """Return the child rows that a target's rows carry, of each child, as rows of its table."""
    stored = target.stored_columns
    positions = [stored.index(name) for name in target.primary_key]
    keys = [tuple([row[position] for position in positions]) for row in rows]
    return [
        [(*key, *element) for key, row in zip(keys, rows, strict=True) for element in json.loads(row[number] or "[]")]
        for number in range(len(stored), len(stored) + len(target.carried))
    ]
