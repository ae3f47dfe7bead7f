r"""Reads the lists whose elements are child rows: one regular expression over all lists of a piece, element by element.

The line's expression captures each list whole. This one matches an element at a time, with the same alternatives as a
line's attributes, so an element's columns are written as a line's are.

Invariant: an item is read with all its elements, or refused with all of them. Documents are marked text
(`pipeline.core.types.fast.marked_text`), one a line; an empty line stands for an item without the list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.types.fast.value_regex import REPEAT, any_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.core.types.fast.column_texts import Values

Match = tuple[bytes, ...]
# The last three groups: the list's end, a comma before another element, or the rest of a list that cannot be read.
_END, _MORE, _UNREAD = -3, -2, -1
_FEW = 100
_PLACES = [b"\t%d" % place for place in range(_FEW)]


class UnreadListsError(ValueError):
    """Some items have a list that the expression cannot read."""

    def __init__(self, items: Iterable[int]) -> None:
        super().__init__("a list that only the general path can read")
        self.items = frozenset(items)
        """Their indexes."""


def list_expression() -> str:
    """Return the expression for an attribute value that may be such a list.

    Up to the first bracket that may end the list, it looks at nothing: the elements' expression does.
    """
    return rf'\{{"L":\[[^\]]*+\]\}}(?=[,}}])|{any_value()}'


def element_expression(attribute: str, _required: str = "") -> str:
    """Return the expression for one element of a list, or a whole list without any; `attribute` is for a member."""
    members = rf'\{{"M":(?:\{{\}}|(?=\{{)(?:{attribute}){REPEAT}\}})\}}'
    return (
        rf'(?:^\{{"L":\[|,){members}(?:(\]\}}$)|(?=(,)))'
        r'|^(?:\{"L":\[\]\}|\{"NULL":true\})?$'
        r"|([^\n])[^\n]*$"
    )


def elements(matches: Sequence[Match], keys: Sequence[bytes]) -> tuple[list[bytes], list[Match]]:
    """Return, for each element, the fields of its key, and its match; `keys` are the fields of each item's.

    Raises UnreadListsError.
    """
    heads: list[bytes] = []
    found: list[Match] = []
    unread: list[int] = []
    item = place = 0
    for match in matches:
        if match[_END] or match[_MORE]:
            heads.append(keys[item] + (_PLACES[place] if place < _FEW else b"\t%d" % place))
            found.append(match)
            if match[_MORE]:
                place += 1
                continue
        elif match[_UNREAD]:
            unread.append(item)
        item += 1
        place = 0
    if unread or item != len(keys):
        raise UnreadListsError(unread or range(len(keys)))
    return heads, found


def child_rows(heads: Sequence[bytes], fields: Sequence[Values]) -> bytes:
    """Return rows as marked COPY text."""
    return b"\n".join([*map(b"\t".join, zip(heads, *fields, strict=True)), b""])
