r"""Lines of one shape, read without parsing them: the fastest way, for tables whose items are texts and numbers.

Most tables' items have a few shapes: the same attributes, of the same types, in the same order. Of a shape a regular
expression is made that matches such a line whole, its values only where each is a text that its column takes as it is.

Invariant: a line that a shape matches is one that the general way would convert, to the same text. Names and quotes
are part of the pattern, and values hold no quote, backslash or control character, so a value cannot reach past its
end. What matches no shape is handed back.
"""

from __future__ import annotations

import json
import re
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.copy_text import field
from pipeline.core.decode import LONGEST_KEY_BYTES, RowDecoder
from pipeline.core.plain_texts import MOST_BYTES, NUMBER, plain_pattern

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.core.attributes import AttributeValue
    from pipeline.core.mapping import Column, Target

MOST_SHAPES = 8
# A block with at least this share of lines that no shape matches is worth looking for another.
_WORTH_A_SHAPE = 0.1
# Blocks in a row that shapes were no use for, until they are no longer tried.
_PATIENCE = 3
_TEXT = r'[^"\\\x00-\x1f]'


class Shape:
    """One shape of line: a pattern with a group for each value, and how the values make a row."""

    def __init__(self, pattern: str, groups: int, row: list[int | str]) -> None:
        """`row` is the row's text in parts: the number of a group, or what stands between them."""
        # With one group `findall` would give texts, and with two it gives tuples.
        self._line = re.compile(f"^{pattern}{'()' if groups == 1 else ''}$", re.MULTILINE | re.ASCII)
        self._whole_line = re.compile(f"^{pattern}\n", re.MULTILINE | re.ASCII)
        order = [part for part in row if isinstance(part, int)]
        self._select = None if order == list(range(groups)) and groups > 1 else itemgetter(*order)
        template = "".join("%s" if isinstance(part, int) else part.replace("%", "%%") for part in row)
        self._write: Callable[[Any], str] = template.__mod__

    def read(self, text: str) -> list[str]:
        """Return the rows of the lines of this shape."""
        found: Any = self._line.findall(text)
        return list(map(self._write, map(self._select, found) if self._select else found))

    def without(self, text: str) -> str:
        """Return the lines of other shapes."""
        return self._whole_line.sub("", text)


class Shapes:
    """The shapes met so far, of one target. It learns from the lines it is given, and gives up where they have none."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._shapes: list[Shape] = []
        # Parts of keys and elements are no values of their own: such lines have to be parsed.
        self._useless = _PATIENCE if target.match or target.children else 0

    def read(self, text: str, lines: int) -> tuple[list[str], str]:
        """Return the rows of the lines that have a known shape, and the rest of the text."""
        rows: list[str] = []
        if self._useless == _PATIENCE:
            return rows, text
        rest = text
        for shape in self._shapes:
            rest = self._take(shape, rest, rows, lines)
        while rest and lines - len(rows) > lines * _WORTH_A_SHAPE and len(self._shapes) < MOST_SHAPES:
            shape = shape_of(rest[: rest.index("\n")], self._target)
            if shape is None:
                break
            self._shapes.append(shape)
            rest = self._take(shape, rest, rows, lines)
        self._useless = 0 if len(rows) * 2 > lines else self._useless + 1
        return rows, rest

    def _take(self, shape: Shape, rest: str, rows: list[str], lines: int) -> str:
        found = shape.read(rest) if rest else []
        if not found:
            return rest
        rows += found
        return "" if len(rows) == lines else shape.without(rest)


def shape_of(line: str, target: Target) -> Shape | None:
    """Make the shape of a line; None where it has a value that only a conversion can make the column's text."""
    try:
        parsed = json.loads(line)
        attributes = [(name, tag, value) for name, ((tag, value),) in _tagged(parsed["Item"])]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
    columns = {column.path[0]: column for column in target.columns}
    if "\\" in line or len(columns) < len(target.columns) or any(len(column.path) > 1 for column in target.columns):
        return None
    composer = _Composer(target, {cast("str", name): column for name, column in columns.items()})
    if not all(composer.add(*attribute) for attribute in attributes):
        return None
    return composer.shape()


def _tagged(item: dict[str, AttributeValue]) -> list[tuple[str, list[tuple[str, Any]]]]:
    return [(name, list(attribute.items())) for name, attribute in item.items()]


class _Composer:
    """Puts a shape together, an attribute at a time."""

    def __init__(self, target: Target, columns: dict[str, Column]) -> None:
        self._target, self._columns = target, columns
        self._limit = LONGEST_KEY_BYTES // MOST_BYTES // len(target.primary_key) if RowDecoder(target).limits_key else 0
        self._pattern: list[str] = []
        self._groups = 0
        self._fields: dict[str, int | str] = {}
        self._rest: list[int | str] = []

    def add(self, name: str, tag: str, value: object) -> bool:
        """Add an attribute; False where it is not plain."""
        column = self._columns.get(name)
        if tag == "NULL":
            pattern, part = ("true", "null") if value is True else ("", "")
            if column:
                pattern, part = (pattern, r"\N") if column.name not in self._keys and _nullable(column) else ("", "")
        elif column:
            pattern, part = self._column_pattern(column, tag), self._groups
        else:
            pattern, part = {"S": f"({_TEXT}*)", "N": f"({NUMBER})", "BOOL": "(true|false)"}.get(tag, ""), self._groups
        if not pattern:
            return False
        quote = '"' if tag in {"S", "N"} else ""
        self._pattern.append(f'"{re.escape(name)}":\\{{"{tag}":{quote}{pattern}{quote}\\}}')
        self._groups += isinstance(part, int)
        if column:
            self._fields[name] = part
        elif self._target.unmapped:
            shown = '"' if tag == "S" else ""
            self._rest += ["," if self._rest else "", f'"{name}":{shown}', part, shown]
        return True

    def shape(self) -> Shape | None:
        """Return what was put together, unless a key is missing."""
        row: list[int | str] = []
        for column in self._target.columns:
            name = cast("str", column.path[0])
            if name not in self._fields and column.name in self._keys:
                return None
            row += [self._fields.get(name, field(column.default)), "\t"]
        row = [*row, "{", *self._rest, "}"] if self._target.unmapped else row[:-1]
        return Shape(r'\{"Item":\{' + ",".join(self._pattern) + r"\}\}", self._groups, row)

    @property
    def _keys(self) -> tuple[str, ...]:
        return self._target.primary_key

    def _column_pattern(self, column: Column, tag: str) -> str:
        """Return the pattern, with one group, of the values that are the column's text; "" where there is none."""
        kind, is_key = column.type.name, column.name in self._keys
        if tag == "S" and kind in {"text", "varchar"}:
            longest = column.type.params[0] if kind == "varchar" else None
            if is_key and self._limit:
                longest = min(self._limit, longest or self._limit)
            return f"({_TEXT}{'*' if longest is None else f'{{0,{longest}}}'})"
        if tag == "BOOL" and kind == "boolean":
            return "([tf])(?:(?<=t)rue|(?<=f)alse)"
        if tag == ("S" if kind == "uuid" else "N"):
            pattern = plain_pattern(column, is_key=is_key)
            return f"({pattern})" if pattern else ""
        return ""


def _nullable(column: Column) -> bool:
    """Whether the attribute value NULL is the column's NULL: jsonb may hold a null of its own."""
    return column.type.name != "jsonb"
