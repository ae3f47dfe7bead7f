"""Line templates: exactly the columns' attributes, in a fixed order. The fastest path.

Most lines of a table with a few simple attributes look like this. Their values are the row's fields unchanged, so no
value needs any work.

Invariant: a line that fits the template becomes the same row as with `line_regex`. Lines are marked text
(`pipeline.core.types.fast.marked_text`) without an escape.
"""

from __future__ import annotations

import json
import re
from operator import itemgetter
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.exports.lines import count_lines
from pipeline.core.types.fast.column_texts import as_they_are
from pipeline.core.types.fast.fast_form import fast_forms
from pipeline.core.types.fast.marked_text import EMPTY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.model.mapping import Target


class LineTemplate:
    """Matches lines with these attributes in this order. Raises ValueError if a row is more than their values."""

    def __init__(self, target: Target, names: Sequence[str]) -> None:
        paths = [column.path for column in target.columns]
        if sorted(map(repr, paths)) != sorted(repr((name,)) for name in names) or any(
            '"' in name or "\\" in name for name in names
        ):
            raise ValueError("its attributes are not exactly those of the columns")
        forms = dict(zip([path[0] for path in paths], fast_forms(target) or (), strict=False))
        values = [form.in_line() if (form := forms.get(name)) and form.write is as_they_are else "" for name in names]
        if target.match or target.children or not all(values) or len(values) == 1:
            raise ValueError("some values have to be converted")
        body = ",".join(f'"{re.escape(name)}":{value}' for name, value in zip(names, values, strict=True))
        line = rf'\{{"Item":\{{{body}\}}\}}'
        self._find = re.compile(f"^{line}$".encode(), re.MULTILINE).findall
        self._cut = re.compile(f"^{line}\n".encode(), re.MULTILINE).sub
        order = [list(names).index(cast("str", path[0])) for path in paths]
        self._select = None if order == sorted(order) else itemgetter(*order)
        self._end = b"\t{}\n" if target.unmapped else b"\n"

    def read(self, text: bytes) -> tuple[bytes, int, bytes]:
        """Return the rows of the lines that fit the template as COPY text, their number, and the other lines."""
        found: list[Any] = self._find(text)
        if not found:
            return b"", 0, text
        lines = count_lines(text)
        # A match that spans lines means a malformed text: the general path refuses the line by number.
        rest = b"" if len(found) == lines else self._cut(b"", text)
        if len(found) + count_lines(rest) != lines:
            return b"", 0, text
        rows = map(b"\t".join, map(self._select, found) if self._select else found)
        return (self._end.join(rows) + self._end).replace(EMPTY, b""), len(found), rest


def template_of(line: bytes, target: Target) -> LineTemplate | None:
    """Return the template that a line fits; None if there is none."""
    try:
        return LineTemplate(target, list(json.loads(line.replace(EMPTY, b""))["Item"]))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None
