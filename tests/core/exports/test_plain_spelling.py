"""The plain spelling: texts keep their meaning, and both ways of putting the marks in put them alike."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.types.fast.plain_spelling import UNREADABLE, as_json, marked_at_once, marked_one_by_one, plain

PIECES = ["\\", '"', "/", "u0041", "u0022", "u005c", "u000", "n", "r", "ud83d", "ude00", "\n", "a", "é"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example("\\")
@example("\\\\")
@example("\\\\\\")
@example('\\\\"')
@example("\\ud83d\\ude00")
def test_both_ways_put_the_marks_in_alike(text: str) -> None:
    block = text.encode()
    one_by_one = marked_one_by_one(block)
    assert one_by_one == marked_at_once(block)


@pytest.mark.parametrize("filler", ["", "x" * 10_000], ids=["many escapes", "few"])
@given(value=st.text(max_size=30), ascii_only=st.booleans())
def test_a_text_means_what_it_meant(filler: str, value: str, *, ascii_only: bool) -> None:
    written = json.dumps(value + filler, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    spelt = plain(written[1:-1])
    readable = all(character >= " " or character in "\b\t\n\f\r" for character in value)
    if UNREADABLE in spelt:
        assert not readable
    else:
        assert json.loads(b'"' + as_json(spelt) + b'"') == value + filler
        assert b'"' not in spelt


@pytest.mark.parametrize("text", [b"\\u0000", b"\\u0001", b"\\ud800", b"\\x", b"\\u12", b"\x07", b"\\", b"\\\n"])
@pytest.mark.parametrize("filler", [b"", b"x" * 10_000], ids=["many escapes", "few"])
def test_what_has_no_plain_spelling_is_marked(text: bytes, filler: bytes) -> None:
    assert UNREADABLE in plain(text + filler if text != b"\\" else filler + text)
