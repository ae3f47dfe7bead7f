r"""Templates of documents: text with places for values, which lists and maps fill that are alike but for their values.

In most tables nearly all lists and maps of an attribute are so: the same members in the same order, lists of the same
length, values of the same types. Their values are then captured with the line, and put between texts that are the same
for all: no tag has to be cut out, which is what takes the time otherwise (`pipeline.core.types.fast.untagged_json`). A
template is taken from documents met before; other documents are captured whole.

Invariant: what a template's expression matches, `value_regex.any_value` would match, to the JSON that
`untagged_json.write` writes. All is marked text (`pipeline.core.types.fast.marked_text`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from pipeline.core.types.fast.value_regex import DEPTH, EXPONENT_NUMBER, TEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pipeline.core.types.fast.column_texts import Values

# Each value is a group of the line's expression, which costs every line; and a document of more is seldom like another.
MOST_VALUES = 40
# Of so many documents, that part must fill a template for it to be the one.
_SAMPLE = 20
_COMMON = 0.6
# By tag, the expression for an attribute value with its one group, which is never empty: where it is, there is none.
_VALUES = {
    "S": rf'\{{"S":("{TEXT}")\}}',
    "B": rf'\{{"B":("{TEXT}")\}}',
    "N": rf'\{{"N":"({EXPONENT_NUMBER})"\}}',
    "BOOL": r'\{"BOOL":(true|false)\}',
}


@dataclass(frozen=True, slots=True)
class DocumentTemplate:
    """A template: its expression with a group a value, and the texts before, between and after the values."""

    regex: str
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


def common_template(documents: Iterable[bytes]) -> DocumentTemplate | None:
    """Return the template that most of some documents fill; None where they have none in common."""
    templates = [_template(document) for document in _first(documents)]
    for template, count in Counter(templates).most_common(1):
        if template is not None and count >= len(templates) * _COMMON:
            return template
    return None


def _first(documents: Iterable[bytes]) -> Iterator[bytes]:
    for document, _ in zip(filter(None, documents), range(_SAMPLE), strict=False):
        yield document


def _template(document: bytes) -> DocumentTemplate | None:
    """Return a document's template; None for a set or a single value, or what has an escape, or is too much."""
    parts: list[str | None] = []
    try:
        attribute = json.loads(document)
        regex = "".join(_parts(attribute, parts, DEPTH)) if attribute.keys() & {"L", "M"} else ""
        texts = "".join("\n" if part is None else part for part in parts).encode().split(b"\n")
    except (AttributeError, TypeError, ValueError):
        return None
    return DocumentTemplate(regex, tuple(texts)) if 1 < len(texts) <= MOST_VALUES + 1 else None


def _parts(attribute: dict[str, Any], written: list[str | None], depth: int) -> Iterator[str]:
    """Yield an attribute value's expression in parts; note its JSON in `written`, with None for each value.

    Raises ValueError for what has no place in a template.
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
