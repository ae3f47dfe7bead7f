r"""Documents of one shape: the same members in the same order, lists of the same length, values of the same types.

Most tables have lists and maps of which nearly all are so. Their values are then captured with the line, and stand
between texts that are the same for all: no tag has to be cut out, which is what takes the time otherwise
(`pipeline.core.types.fast.plain_json`). A shape is taken from documents met before; documents of another are for the
general pattern.

Invariant: what a shape's pattern matches, `value_patterns.any_value` would match, to the JSON that `plain_json.write`
writes. All is in the plain spelling (`pipeline.core.types.fast.plain_spelling`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from pipeline.core.types.fast.value_patterns import DEPTH, EXPONENT_NUMBER, TEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.core.types.fast.column_texts import Values

# Each value is a group of the line's pattern, which costs every line; and a document of more is seldom like another.
MOST_VALUES = 40
# Of so many documents, that part must have a shape for it to be the one.
_SAMPLE = 20
_COMMON = 0.6
# By tag, the pattern of an attribute value with its one group, which is never empty: so that is none.
_VALUES = {
    "S": rf'\{{"S":("{TEXT}")\}}',
    "B": rf'\{{"B":("{TEXT}")\}}',
    "N": rf'\{{"N":"({EXPONENT_NUMBER})"\}}',
    "BOOL": r'\{"BOOL":(true|false)\}',
}


@dataclass(frozen=True, slots=True)
class DocumentShape:
    """A shape: its pattern with a group a value, and the texts before, between and after the values."""

    pattern: str
    texts: tuple[bytes, ...]

    @property
    def values(self) -> int:
        """How many values it has, which is how many groups: one at least."""
        return len(self.texts) - 1

    def write(self, values: Sequence[Values]) -> list[bytes]:
        """Return the JSON of documents, whose first values are in the first of `values`, and so on."""
        before, *after = map(repeat, self.texts)  # without end: the same for every document
        parts = chain([before], *zip(values, after, strict=True))
        return list(map(b"".join, zip(*parts, strict=False)))


def common_shape(documents: Iterable[bytes]) -> DocumentShape | None:
    """Return the shape that most of some documents have; None where they have none in common."""
    shapes = [_shape(document) for document in _first(documents)]
    for shape, count in Counter(shapes).most_common(1):
        if shape is not None and count >= len(shapes) * _COMMON:
            return shape
    return None


def _first(documents: Iterable[bytes]) -> Iterator[bytes]:
    for document, _ in zip(filter(None, documents), range(_SAMPLE), strict=False):
        yield document


def _shape(document: bytes) -> DocumentShape | None:
    """Return a document's shape; None for a set or a single value, or what has an escape, or is too much."""
    parts: list[str | None] = []
    try:
        attribute = json.loads(document)
        pattern = "".join(_parts(attribute, parts, DEPTH)) if attribute.keys() & {"L", "M"} else ""
        texts = "".join("\n" if part is None else part for part in parts).encode().split(b"\n")
    except (AttributeError, TypeError, ValueError):
        return None
    return DocumentShape(pattern, tuple(texts)) if 1 < len(texts) <= MOST_VALUES + 1 else None


def _parts(attribute: dict[str, Any], written: list[str | None], depth: int) -> Iterator[str]:
    """Yield an attribute value's pattern in parts; note its JSON in `written`, with None for each value.

    Raises ValueError for what has no place in a shape.
    """
    ((tag, value),) = attribute.items()
    if tag in _VALUES:
        written.append(None)
        yield _VALUES[tag]
    elif tag == "NULL":
        written.append("null")
        yield r'\{"NULL":true\}'
    elif tag in {"L", "M"} and depth:
        opening, closing = "[]" if tag == "L" else "{}"
        yield rf'\{{"{tag}":\{opening}'
        written.append(opening)
        for number, (name, member) in enumerate(_members(tag, value)):
            comma = "," if number else ""
            written.append(comma + name)
            yield comma + re.escape(name)
            yield from _parts(member, written, depth - 1)
        written.append(closing)
        yield rf"\{closing}\}}"
    else:
        raise ValueError("a set, or nested too deep")


def _members(tag: str, value: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401  whatever JSON has
    """Yield the elements of a list, or the members of a map, with the name as it stands before them."""
    if tag == "L":
        yield from (("", element) for element in value)
        return
    for name, member in value.items():
        if json.dumps(name, ensure_ascii=False) != f'"{name}"':
            raise ValueError("a name with an escape")
        yield f'"{name}":', member
