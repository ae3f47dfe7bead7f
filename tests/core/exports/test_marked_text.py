"""Marked text: texts keep their meaning, whatever the marks replace."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.types.fast.marked_text import EMPTY, UNREADABLE, as_copy_text, as_json, marked, with_empties

PIECES = ["\\", '"', "/", "u0041", "u0022", "u005c", "u000", "n", "r", "ud83d", "ude00", "\n", "a", "é"]
# How COPY text spells a text's characters.
_COPIED = str.maketrans({"\\": "\\\\", "\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"})


@given(st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.booleans())
@example("\\", True)
@example("\\\\\\", True)
@example('\\"', True)
def test_a_text_means_what_it_meant(value: str, ascii_only: bool) -> None:
    text = marked(json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")[1:-1])
    readable = all(character >= " " or character in "\b\t\n\f\r" for character in value)
    if UNREADABLE in text:
        assert not readable or any("\ud800" <= character <= "\udfff" for character in value)
    else:
        assert json.loads(b'"' + as_json(text) + b'"') == value
        assert as_copy_text(text) == value.translate(_COPIED).encode("utf-8", "surrogatepass")
        assert b'"' not in text


def test_no_text_is_empty_with_marks_for_those_that_are() -> None:
    line = b'{"Item":{"S":{"M":{"S":{"S":""},"a":{"SS":[""]},"b":{"S":"x"},"c":{"N":""}}}}}'
    assert marked(line) == line
    text = with_empties(line)
    assert text == line.replace(b'{"S":""}', b'{"S":"' + EMPTY + b'"}')
    assert as_json(text) == as_copy_text(text) == line
    assert UNREADABLE in marked(EMPTY)
    assert UNREADABLE in marked(rb"\u0006")


@pytest.mark.parametrize("text", [b"\\u0000", b"\\u0001", b"\\ud800", b"\\x", b"\\u12", b"\x07", b"\\", b"\\\n"])
def test_what_no_mark_can_stand_for_is_marked_as_such(text: bytes) -> None:
    assert UNREADABLE in marked(b"before" + text)
