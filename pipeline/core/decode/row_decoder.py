"""From an item to a row of one target: every mapped column converted, the rest kept as one JSON object.

Invariant: one item gives one row, the same from every source (stream, exports, scan, re-read).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from pipeline.core.decode.captures import capture_converter
from pipeline.core.decode.children import ChildDecoder
from pipeline.core.decode.routing import captured
from pipeline.core.model.attributes import UnrepresentableError, find
from pipeline.core.types.conversion import converter, unmapped_json
from pipeline.core.types.key_length import check_length, limits_key

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping

    from pipeline.core.model.attributes import AttributeValue, Item, PathPart
    from pipeline.core.model.change import Row
    from pipeline.core.model.mapping import Column, Target
    from pipeline.core.types.conversion import Converter

_Source = tuple["str | None", "tuple[PathPart, ...]", "Converter"]
_Named = tuple[str, "Converter"]


class RowDecoder:
    """Decodes items for one target. Build it once; its methods hold no state."""

    def __init__(self, target: Target, settled: Counter[str] | None = None) -> None:
        """`settled` counts, by column, the values that a policy changed: to NULL, or cut."""
        self.target = target
        self._settled = settled
        keys = set(target.primary_key)
        self._children = [ChildDecoder(child, settled) for child in target.children]
        self._columns = [_source(column, is_key=column.name in keys, settled=settled) for column in target.columns]
        self._key_columns = [_source(column, is_key=True) for column in target.key_columns]
        self._named = _named(self._columns)
        self._named_keys = _named(self._key_columns)
        names = [column.name for column in target.columns]
        self._key_positions = [names.index(name) for name in target.primary_key]
        self.limits_key = limits_key(target)
        """Whether a key of the target can be too long for PostgreSQL's index, so that each must be measured."""
        # An attribute counts as mapped if a column holds all of it; a path into a map leaves the map with the rest.
        # What a pattern matches is fully known from the key.
        self._taken = frozenset(column.path[0] for column in target.columns if len(column.path) == 1) | {
            attribute for attribute, _ in target.match
        }
        roots = {str(column.path[0]) for column in target.columns if column.path} | {name for name, _ in target.match}
        roots |= {str(child.explode[0]) for child in target.children}
        # The attributes that make up a row; None: all of them.
        self._read = None if target.unmapped else roots

    def row(self, item: Mapping[str, AttributeValue]) -> Row:
        """Convert an item to the target's stored columns and carried child rows. Raises ConversionError."""
        if None in item.values() and None in {name: item.get(name, {}) for name in self._read or item}.values():
            raise UnrepresentableError("null in place of an attribute value")
        values = self._convert(self._named, self._columns, item)
        if self.target.unmapped:
            values.append("{}" if item.keys() <= self._taken else self._rest(item))
        if self.limits_key:
            check_length(self.target, [values[position] or "" for position in self._key_positions])
        if self._children:
            key = [values[position] for position in self._key_positions]
            values += [child.rows(item, key) for child in self._children]
        return tuple(values)

    def _rest(self, item: Mapping[str, AttributeValue]) -> str:
        taken, name = self._taken, self.target.unmapped or ""
        rest = {name: value for name, value in item.items() if name not in taken}
        return unmapped_json(rest, name, self.target.unmapped_on_error, self._settled)

    def key_of(self, row: Row) -> tuple[str, ...]:
        """Return the primary key's texts from a converted row."""
        return tuple([row[position] or "" for position in self._key_positions])

    def key(self, keys: Mapping[str, AttributeValue]) -> tuple[str, ...]:
        """Convert only a record's key attributes, as a REMOVE carries them. Raises ConversionError."""
        texts = tuple([text or "" for text in self._convert(self._named_keys, self._key_columns, keys)])
        if self.limits_key:
            check_length(self.target, texts)
        return texts

    def _convert(
        self, named: list[_Named] | None, sources: list[_Source], item: Mapping[str, AttributeValue]
    ) -> list[str | None]:
        if named is not None:
            get = item.get
            return [convert(get(name)) for name, convert in named]
        parts: Item = captured(self.target, item) if self.target.match else {}
        return [
            convert(parts[capture] if capture else item.get(path[0]) if len(path) == 1 else find(item, path))  # type: ignore[arg-type]
            for capture, path, convert in sources
        ]


def _source(column: Column, *, is_key: bool, settled: Counter[str] | None = None) -> _Source:
    make = converter if column.capture is None else capture_converter
    return column.capture, column.path, make(column, is_key=is_key, settled=settled)


def _named(sources: list[_Source]) -> list[_Named] | None:
    """Return the columns by attribute name; None unless every column is a whole attribute, found by its name alone."""
    if any(capture is not None or len(path) > 1 for capture, path, _ in sources):
        return None
    return [(cast("str", path[0]), convert) for _, path, convert in sources]
