r"""Converts attribute values of an export to the JSON that `attributes.to_json` writes, without parsing them.

It handles all values of a column at once: it removes the type tags from one long text, one kind of tag at a time. The
values match `value_regex.any_value` and are marked text, in which texts have no quotes, so an opening tag is
unambiguous. Only its closing, `"}`, `]}` or `}}`, can also occur inside a text. Then there are more closings than
openings (also if a number is not valid JSON), and the values are written one by one; those affected are parsed.

Invariant: the JSON is that of `to_json`, sets sorted, every digit kept. Only exponents may remain: jsonb turns them
into the plain notation that `to_json` writes, with the same digits after the point.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from pipeline.core.model.attributes import sort_numbers, to_json
from pipeline.core.types.fast.marked_text import as_json, marked
from pipeline.core.types.fast.value_regex import EXPONENT_NUMBER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_cut_numbers = re.compile(rb'\{"N":"(%b)"\}' % EXPONENT_NUMBER.encode()).split
_cut_sets = re.compile(rb'\{"([SNB])S":\["([^"]*+(?:","[^"]*+)*)"\]').split
# Precedes a value whose tag was removed: a map's member may be named like a tag, and must not be mistaken for one.
_MARK = b"\x04"
_MAP_END = b"\x05"
_MAP_ENDS = bytes.maketrans(_MAP_END, b"}")
# Numbers of this many digits are exact as floats, so they can be sorted as floats.
_EXACT_AS_FLOAT = 15


def write(values: Sequence[bytes]) -> bytes:
    """Return each value's JSON as marked text, one per line; an empty line for a missing attribute."""
    text = b"\n".join(values)
    written = _write(text)
    return written if written is not None else b"\n".join([value and _write_alone(value) for value in values])


def _write(text: bytes) -> bytes | None:
    """Return the values' JSON, one per line; None if a text contains something that looks like a closing bracket."""
    text = b"".join(_cut_numbers(text))
    if b'{"NULL":' in text:
        text = text.replace(b'{"NULL":true}', b"null")
    if b'{"BOOL":' in text:
        text = text.replace(b'{"BOOL":true}', b"true").replace(b'{"BOOL":false}', b"false")
    sets = binaries = 0
    if b'S":[' in text:
        text, sets = _sort_sets(text)
    start = b'"'
    if b'{"B":"' in text:
        start = _MARK + start
        text, binaries = _replaced(text, b'{"B":"', start)
    text, texts = _replaced(text, b'{"S":"', start)
    text, lists = _replaced(text, b'{"L":[', b"[")
    text, maps = _replaced(text, b'{"M":{', b"{")
    closed = _close(text, texts + binaries, lists + sets, maps)
    return closed.replace(_MARK, b"") if closed and _MARK in closed else closed


def _close(text: bytes, texts: int, lists: int, maps: int) -> bytes | None:
    """Remove the closings of this many tags; None if a text contains something that looks like one."""
    # If no text has a bracket: in a run of brackets, each pair closes a map and its tag, and a single one another tag.
    shorter, pairs = _replaced(text, b"}}", _MAP_END)
    closed = shorter.translate(_MAP_ENDS, b"}")
    if pairs == maps and len(shorter) - len(closed) == texts + lists:
        return closed
    for count, tagged, value in ((texts, b'"}', b'"'), (lists, b"]}", b"]"), (maps, b"}}", b"}")):
        text, replaced = _replaced(text, tagged, value)
        if replaced != count:
            return None
    return text


def _replaced(text: bytes, old: bytes, new: bytes) -> tuple[bytes, int]:
    """Replace, and count the replacements: comparing lengths is cheaper than searching again."""
    replaced = text.replace(old, new)
    return replaced, (len(text) - len(replaced)) // (len(old) - len(new))


def _sort_sets(text: bytes) -> tuple[bytes, int]:
    """Sort each set and remove its tag, except the bracket that closes the tag."""
    parts = _cut_sets(text)
    for index in range(1, len(parts), 3):
        elements = parts[index + 1].split(b'","')
        if parts[index] == b"N":
            written = b"[" + b",".join(sorted_numbers(elements)) + b"]"
        else:
            if len(elements) > 1:
                elements.sort(key=text_order(parts[index + 1]))
            written = b'["' + b'","'.join(elements) + b'"]'
        parts[index], parts[index + 1] = _MARK, written
    return b"".join(parts), len(parts) // 3


def text_order(texts: bytes) -> Callable[[bytes], str] | None:
    """Return the sort key by which elements in marked text sort like the original texts."""
    return _real if b"\\" in texts or b"\x01" in texts or b"\x02" in texts else None


def _real(element: bytes) -> str:
    return json.loads(b'"' + as_json(element) + b'"')


def sorted_numbers(elements: list[bytes]) -> list[bytes]:
    """Return a number set sorted by value."""
    if max(map(len, elements)) <= _EXACT_AS_FLOAT:
        return sorted(elements, key=float)
    return [number.encode() for number in sort_numbers([element.decode() for element in elements])]


def _write_alone(value: bytes) -> bytes:
    written = _write(value)
    return written if written is not None else marked(to_json(json.loads(as_json(value))).encode())
