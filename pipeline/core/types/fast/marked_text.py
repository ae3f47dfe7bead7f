r"""Marked text: JSON lines in which a mark replaces each character that would prevent reading them without parsing.

U+0001 stands for a backslash and U+0002 for a quote, so a quote is never part of a text; U+0006 may stand for an empty
text. The only escapes left are `\n \r \t \b \f`, which COPY text has too. JSON has no bare control characters, so the
marks are unambiguous. Anything that is not JSON, that PostgreSQL text cannot hold (U+0000, lone surrogates), or that
has no short escape, becomes U+0003; a line that contains it takes the general path.

Invariant: equal texts have equal marked text, and `as_json` returns JSON of the same texts.
"""

from __future__ import annotations

import re

UNREADABLE, EMPTY = b"\x03", b"\x06"
_CONTROLS = [bytes([code]) for code in range(0x20) if code != 0x0A]
_AS_UNREADABLE = bytes(3 if bytes([code]) in _CONTROLS else code for code in range(256))
_OTHER_ESCAPE = re.compile(
    rb"\\(?:u([dD][89abAB]%(hex)b{2})\\u([dD][c-fC-F]%(hex)b{2})|u(%(hex)b{4})|(?![nrtbf]))" % {b"hex": b"[0-9a-fA-F]"}
)
_SHORT = {0x08: b"\\b", 0x09: b"\\t", 0x0A: b"\\n", 0x0C: b"\\f", 0x0D: b"\\r", 0x22: b"\x02", 0x5C: b"\x01"}


def marked(lines: bytes) -> bytes:
    """Return lines, or a part of a line, as marked text."""
    if any(control in lines for control in _CONTROLS):  # this search takes half the time of one translation
        lines = lines.translate(_AS_UNREADABLE)
    if b"\\" in lines:
        lines = lines.replace(b"\\\\", b"\x01").replace(b'\\"', b"\x02").replace(b"\\/", b"/")
        lines = _OTHER_ESCAPE.sub(_character, lines)
    return lines


def with_empties(text: bytes) -> bytes:
    """Return marked text with a mark for every empty text, so that none is empty.

    The search takes a twentieth of the time of reading the lines, so it is done only for data that has empty texts.
    """
    return text.replace(b'"S":""', b'"S":"' + EMPTY + b'"')


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


def as_json(text: bytes) -> bytes:
    """Return the JSON of marked text."""
    return text.replace(EMPTY, b"").replace(b"\x01", b"\\\\").replace(b"\x02", b'\\"')


def as_copy_text(text: bytes) -> bytes:
    """Return the COPY text of marked text."""
    return text.replace(EMPTY, b"").replace(b"\x01", b"\\\\").replace(b"\x02", b'"')


def as_quoted_copy_text(text: bytes) -> bytes:
    r"""Return the COPY text of JSON, whose escapes are backslashes within the field; empty texts stay marked."""
    return text.replace(b"\\", b"\\\\").replace(b"\x01", b"\\\\\\\\").replace(b"\x02", b'\\\\"')


def as_array_copy_text(text: bytes) -> bytes:
    """Return the COPY text of an array literal, in whose elements a backslash and a quote need a backslash."""
    return text.replace(b"\x01", b"\\\\\\\\").replace(b"\x02", b'\\\\"')
