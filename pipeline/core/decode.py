"""From an item to a row of one target: every mapped column converted, the rest kept as one JSON object.

Invariant: one item gives one row, the same whichever door it came through (stream, exports, scan, re-read).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.attributes import find
from pipeline.core.conversion import converter, unmapped_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.core.attributes import AttributeValue
    from pipeline.core.change import Row
    from pipeline.core.mapping import Target


class RowDecoder:
    """Decodes items for one target. Build it once; its methods hold no state."""

    def __init__(self, target: Target) -> None:
        self.target = target
        keys = set(target.primary_key)
        self._columns = [(column.path, converter(column, is_key=column.name in keys)) for column in target.columns]
        self._key_columns = [(column.path, converter(column, is_key=True)) for column in target.key_columns]
        names = [column.name for column in target.columns]
        self._key_positions = [names.index(name) for name in target.primary_key]
        # An attribute is taken up when a column holds all of it; a path into a map leaves the map with the rest.
        self._taken = frozenset(column.path[0] for column in target.columns if len(column.path) == 1)

    def row(self, item: Mapping[str, AttributeValue]) -> Row:
        """Convert an item to the target's stored columns. Raises ConversionError."""
        values = [convert(item.get(path[0]) if len(path) == 1 else find(item, path)) for path, convert in self._columns]  # type: ignore[arg-type]
        if self.target.unmapped:
            taken = self._taken
            rest = {name: value for name, value in item.items() if name not in taken}
            values.append(unmapped_json(rest, self.target.unmapped))
        return tuple(values)

    def key_of(self, row: Row) -> tuple[str, ...]:
        """Return the primary key's texts out of a converted row."""
        return tuple([row[position] or "" for position in self._key_positions])

    def key(self, keys: Mapping[str, AttributeValue]) -> tuple[str, ...]:
        """Convert a record's key attributes alone, as a REMOVE carries them. Raises ConversionError."""
        return tuple([convert(find(keys, path)) or "" for path, convert in self._key_columns])
