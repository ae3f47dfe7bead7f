r"""One spelling for every text of a block of JSON lines, in which a quote is never part of a text.

In the plain spelling a backslash stands as U+0001, a quote as U+0002, and of escapes only `\n \r \t \b \f` remain:
those that COPY text has too. JSON has no bare control characters, so the two stand for nothing else. Whatever is not
JSON, or is no text for PostgreSQL (U+0000, lone surrogates), or has no short escape, becomes U+0003: a line that holds
one is for the general way.

Invariant: equal texts are spelt alike, and `as_json` gives JSON of the same texts.
"""

from __future__ import annotations

import re

UNREADABLE = b"\x03"
_CONTROLS = [bytes([code]) for code in range(0x20) if code != 0x0A]
_AS_UNREADABLE = bytes(3 if bytes([code]) in _CONTROLS else code for code in range(256))
_OTHER_ESCAPE = re.compile(
    rb"\\(?:u([dD][89abAB]%(hex)b{2})\\u([dD][c-fC-F]%(hex)b{2})|u(%(hex)b{4})|(?![nrtbf]))" % {b"hex": b"[0-9a-fA-F]"}
)
# In fewer bytes than that for each, escapes are many: then passes over all bytes are faster.
_MANY_BYTES = 55
_QUOTE, _SLASH = b'"/'
_SHORT = {0x08: b"\\b", 0x09: b"\\t", 0x0A: b"\\n", 0x0C: b"\\f", 0x0D: b"\\r", 0x22: b"\x02", 0x5C: b"\x01"}


def plain(block: bytes) -> bytes:
    """Return a block of lines, or a part of one, in the plain spelling."""
    if any(control in block for control in _CONTROLS):  # to look for each takes half the time of one translation
        block = block.translate(_AS_UNREADABLE)
    if b"\\" not in block:
        return block
    few = len(block) - len(block.replace(b"\\", b"")) < len(block) // _MANY_BYTES
    return _OTHER_ESCAPE.sub(_character, (marked_one_by_one if few else marked_at_once)(block))


def marked_at_once(block: bytes) -> bytes:
    """Put the marks in, in three passes over every byte."""
    return block.replace(b"\\\\", b"\x01").replace(b'\\"', b"\x02").replace(b"\\/", b"/")


def marked_one_by_one(block: bytes) -> bytes:
    """Put the marks in, backslash by backslash."""
    first, *others = block.split(b"\\")
    parts = iter(others)
    spelt = [first]
    append = spelt.append
    for part in parts:
        if not part:  # a backslash that the one before it escapes
            escaped = next(parts, None)
            append(b"\\" if escaped is None else b"\x01" + escaped)
        elif part[0] == _QUOTE:
            append(b"\x02")
            append(part[1:])
        else:
            append(part if part[0] == _SLASH else b"\\" + part)
    return b"".join(spelt)


def _character(match: re.Match[bytes]) -> bytes:
    high, low, code = match.groups()
    if high:
        return bytes.fromhex((high + low).decode()).decode("utf-16-be").encode()
    if code is None:
        return UNREADABLE
    number = int(code, 16)
    if number in _SHORT:
        return _SHORT[number]
    return UNREADABLE if number < 0x20 or 0xD800 <= number <= 0xDFFF else chr(number).encode()


def as_json(spelt: bytes) -> bytes:
    """Return the JSON of texts in the plain spelling."""
    return spelt.replace(b"\x01", b"\\\\").replace(b"\x02", b'\\"')


def as_copy_text(spelt: bytes) -> bytes:
    """Return the COPY text of texts in the plain spelling."""
    return spelt.replace(b"\x01", b"\\\\").replace(b"\x02", b'"')


def as_quoted_copy_text(spelt: bytes) -> bytes:
    r"""Return the COPY text of JSON, where an escape is a backslash of the field."""
    return spelt.replace(b"\\", b"\\\\").replace(b"\x01", b"\\\\\\\\").replace(b"\x02", b'\\\\"')


def as_array_copy_text(spelt: bytes) -> bytes:
    """Return the COPY text of an array literal, in whose elements a backslash and a quote need a backslash."""
    return spelt.replace(b"\x01", b"\\\\\\\\").replace(b"\x02", b'\\\\"')
