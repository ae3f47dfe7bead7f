r"""From attribute values as they stand in an export to the JSON that `attributes.to_json` writes, without parsing them.

Every value of a column at once: type tags are cut out of one long text, a kind of tag at a time. The values are of the
form of `value_regex.any_value`, in marked text, without quotes; so what opens a tagged value can be nothing else. Only
what closes it, `"}`, `]}` or `}}`, could also be part of a text. Then it is there more often than what opens, as it is
where a number is none that JSON has; and the values are written one by one, such a one by parsing it.

Invariant: the JSON is that of `to_json`, sets sorted, every digit kept. Only an exponent may stay, of which jsonb makes
the plain notation that `to_json` writes, with the same digits after the point.
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
# Stands before what was a value: a member may have a tag's name, and its value must not then look like the tag's.
_MARK = b"\x04"
_MAP_END = b"\x05"
_MAP_ENDS = bytes.maketrans(_MAP_END, b"}")
# Digits that a float holds exactly, so that they sort as numbers do.
_EXACT_AS_FLOAT = 15


def write(values: Sequence[bytes]) -> bytes:
    """Return each value's JSON, as marked text, one a line; of an attribute that is missing, nothing."""
    text = b"\n".join(values)
    written = _write(text)
    return written if written is not None else b"\n".join([value and _write_alone(value) for value in values])


def _write(text: bytes) -> bytes | None:
    """Return the JSON of values, one a line; None when a text has what looks like a closing bracket."""
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
    """Cut out what closes the tags of so many values; None when a text has what looks like it."""
    # Where no text has a bracket: of several in a row, two close a map and its tag, and one before them another tag.
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
    """Replace, and count, what is cheaper by the lengths than by looking again."""
    replaced = text.replace(old, new)
    return replaced, (len(text) - len(replaced)) // (len(old) - len(new))


def _sort_sets(text: bytes) -> tuple[bytes, int]:
    """Sort each set and cut its tag out, but for the bracket that closes the tag."""
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
    """Return the key by which elements in marked text sort as the texts do that they stand for."""
    return _real if b"\\" in texts or b"\x01" in texts or b"\x02" in texts else None


def _real(element: bytes) -> str:
    return json.loads(b'"' + as_json(element) + b'"')


def sorted_numbers(elements: list[bytes]) -> list[bytes]:
    """Return a number set in the order of its values."""
    if max(map(len, elements)) <= _EXACT_AS_FLOAT:
        return sorted(elements, key=float)
    return [number.encode() for number in sort_numbers([element.decode() for element in elements])]


def _write_alone(value: bytes) -> bytes:
    written = _write(value)
    return written if written is not None else marked(to_json(json.loads(as_json(value))).encode())
