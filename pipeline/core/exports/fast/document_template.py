r"""Document templates: the fixed text that similar lists and maps share, with slots for their values.

In most tables, nearly all lists and maps of an attribute differ only in their values: they have the same members in the
same order, lists of the same length, values of the same types. The line's expression then captures their values, which
are joined with the shared text. This saves removing type tags, the slow part otherwise
(`pipeline.core.types.fast.untagged_json`). A template is learned from earlier documents; a document that does not fit
is captured whole.

Invariant: a template's expression matches only what `value_regex.any_value` matches, and gives the same JSON as
`untagged_json.write`. All text is marked text (`pipeline.core.types.fast.marked_text`).
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

# Each value is a group of the line's expression and slows down every line; and larger documents are seldom alike.
MOST_VALUES = 40
# A template is used if at least this share of this many documents fit it.
_SAMPLE = 20
_COMMON = 0.6
# By tag, the expression for an attribute value. Its one group is never empty; an empty group means no value.
_VALUES = {
    "S": rf'\{{"S":("{TEXT}")\}}',
    "B": rf'\{{"B":("{TEXT}")\}}',
    "N": rf'\{{"N":"({EXPONENT_NUMBER})"\}}',
    "BOOL": r'\{"BOOL":(true|false)\}',
}


@dataclass(frozen=True, slots=True)
class DocumentTemplate:
    """A template: its expression, with one group per value, and the texts before, between and after the values."""

    regex: str
    texts: tuple[bytes, ...]

    @property
    def values(self) -> int:
        """Number of values, and of groups; at least one."""
        return len(self.texts) - 1

    def write(self, values: Sequence[Values]) -> list[bytes]:
        """Return the documents' JSON; the first of `values` holds their first values, and so on."""
        before, *after = map(repeat, self.texts)  # endless iterators: the same text for every document
        parts = chain([before], *zip(values, after, strict=True))
        return list(map(b"".join, zip(*parts, strict=False)))


def common_template(documents: Iterable[bytes]) -> DocumentTemplate | None:
    """Return the template that most of the documents fit; None if they have none in common."""
    templates = [_template(document) for document in _first(documents)]
    for template, count in Counter(templates).most_common(1):
        if template is not None and count >= len(templates) * _COMMON:
            return template
    return None


def _first(documents: Iterable[bytes]) -> Iterator[bytes]:
    for document, _ in zip(filter(None, documents), range(_SAMPLE), strict=False):
        yield document


def _template(document: bytes) -> DocumentTemplate | None:
    """Return a document's template; None for a set, a single value, names with escapes, or too many values."""
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

    Raises ValueError for a value that a template cannot contain.
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
    """Yield a list's elements or a map's members, each with the text of its name."""
    if tag == "L":
        yield from (("", element) for element in value)
        return
    for name, member in value.items():
        if json.dumps(name, ensure_ascii=False) != f'"{name}"':
            raise ValueError("a name with an escape")
        yield f'"{name}":', member
