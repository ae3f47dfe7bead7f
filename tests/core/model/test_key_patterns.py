"""Patterns over keys: each key has one reading, a pattern builds its key again, and a common key of two is found."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.model.key_patterns import Pattern, PatternError, common_key, parse_pattern

ALPHABET = "ab#"
TEXTS = st.text(alphabet=ALPHABET, max_size=3)


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    """Patterns of up to three captures over a small alphabet."""
    captures = draw(st.integers(0, 3))
    between = [draw(TEXTS.filter(bool)) for _ in range(captures - 1)]
    texts = [draw(TEXTS), *between, *([draw(TEXTS)] if captures else [])]
    if not captures and not texts[0]:
        texts = ["a"]
    return Pattern("S", tuple(texts), tuple(f"c{n}" for n in range(captures)))


def parts(pattern: Pattern, key: str) -> dict[str, str] | None:
    found = pattern.match({pattern.tag: key})
    return None if found is None else {name: value[pattern.tag] for name, value in found.items()}


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("CUSTOMER#{id}", "CUSTOMER#7", {"id": "7"}),
        ("CUSTOMER#{id}", "CUSTOMER#7#8", {"id": "7#8"}),
        ("CUSTOMER#{id}", "CUSTOMER#", None),
        ("CUSTOMER#{id}", "XCUSTOMER#7", None),
        ("CUSTOMER#{id}", "customer#7", None),
        ("{a}#{b}", "x#y#z", {"a": "x", "b": "y#z"}),
        ("{a}#META", "x#META", {"a": "x"}),
        ("{a}#META", "x#y#META", None),
        ("{id}", "line\nend\n", {"id": "line\nend\n"}),
        ("A{{{id}}}", "A{5}", {"id": "5"}),
        ("PROFILE", "PROFILE", {}),
        ("PROFILE", "PROFILE\n", None),
        ("a.c{x}", "abc1", None),
        ("{a}|{b}", "1|2", {"a": "1", "b": "2"}),
        ("{a}]{b}", "1]2", {"a": "1", "b": "2"}),
        ("{a}^{b}", "1^2", {"a": "1", "b": "2"}),
        ("{a}\\{b}", "1\\2", {"a": "1", "b": "2"}),
    ],
)
def test_matching(text: str, key: str, expected: dict[str, str] | None) -> None:
    assert parts(parse_pattern(text, "S"), key) == expected


def test_numbers_match_by_value_and_binary_whole() -> None:
    assert parse_pattern("0", "N").match({"N": "0.0"}) == {}
    assert parse_pattern("1.50", "N").match({"N": "1.5"}) == {}
    assert parse_pattern("0", "N").match({"N": "1"}) is None
    assert parse_pattern("{year}", "N").match({"N": "2026"}) == {"year": {"N": "2026"}}
    assert parse_pattern("{hash}", "B").match({"B": "AP8="}) == {"hash": {"B": "AP8="}}
    assert parse_pattern("{year}", "N").match({"S": "2026"}) is None
    assert parse_pattern("{year}", "N").match(None) is None


@pytest.mark.parametrize(
    ("text", "tag", "message"),
    [
        ("", "S", "is empty, but a key never is"),
        ("A{id", "S", 'has a "{" without its partner'),
        ("A}id", "S", 'has a "}" without its partner'),
        ("A{}", "S", 'names a part ""'),
        ("A{order-id}", "S", 'names a part "order-id"'),
        ("{a}{b}", "S", "has nothing between {a} and {b}"),
        ("{a}#{a}", "S", 'captures "a" twice'),
        ("A", "N", "is not a number, and the attribute is of type N"),
        ("1{n}", "N", "splits an attribute of type N; write {n} alone"),
        ("x{n}", "B", "splits an attribute of type B; write {n} alone"),
        ("AP8=", "B", "is text and the attribute is of type B"),
    ],
)
def test_patterns_that_cannot_be_used(text: str, tag: str, message: str) -> None:
    with pytest.raises(PatternError) as raised:
        parse_pattern(text, tag)
    assert message in str(raised.value)


@given(patterns(), st.text(alphabet=ALPHABET, max_size=8))
def test_a_match_is_undone_by_building(pattern: Pattern, key: str) -> None:
    found = parts(pattern, key)
    if found is not None:
        assert pattern.build(found) == key


@given(patterns(), st.lists(st.text(alphabet=ALPHABET, min_size=1, max_size=3), min_size=3, max_size=3))
def test_what_is_built_from_parts_has_no_other_reading(pattern: Pattern, values: list[str]) -> None:
    chosen = dict(zip(pattern.captures, values, strict=False))
    forbidden = dict(zip(pattern.captures, pattern.texts[1:], strict=True))
    fits = all(not forbidden[name] or forbidden[name][0] not in value for name, value in chosen.items())
    found = parts(pattern, pattern.build(chosen))
    if fits:
        assert found == chosen
    else:
        assert found != chosen


@given(patterns(), patterns())
def test_a_common_key_is_found_exactly_when_there_is_one(one: Pattern, other: Pattern) -> None:
    shared = common_key(one, other, "S")
    if shared is not None:
        assert parts(one, shared) is not None
        assert parts(other, shared) is not None
    longest = 6 if shared is None else len(shared) - 1
    for length in range(min(longest, 6) + 1):  # no common key is shorter; the alphabet has a character of neither
        for key in map("".join, product(f"{ALPHABET}x", repeat=length)):
            assert parts(one, key) is None or parts(other, key) is None


def test_common_keys_with_attributes_of_other_types_and_without_a_pattern() -> None:
    zero, one, any_number = (parse_pattern(text, "N") for text in ("0", "1", "{n}"))
    assert common_key(zero, one, "N") is None
    assert common_key(zero, any_number, "N") == "0"
    assert common_key(any_number, None, "N") == "1"
    assert common_key(parse_pattern("{b}", "B"), parse_pattern("{c}", "B"), "B")
    assert common_key(parse_pattern("A#{x}", "S"), None, "S") == "A#x"
    assert common_key(None, None, "S") == "x"
