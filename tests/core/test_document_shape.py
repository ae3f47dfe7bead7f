"""Documents read by a shape they share, against the way that any document is written."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import plain_json
from pipeline.core.document_shape import MOST_VALUES, common_shape
from tests.core.test_line_pattern import binaries, names, numbers, plain_texts

values = st.one_of(
    plain_texts.map(lambda value: {"S": value}),
    numbers.map(lambda value: {"N": value}),
    binaries.map(lambda value: {"B": value}),
    st.booleans().map(lambda value: {"BOOL": value}),
    st.just({"NULL": True}),
)
documents: st.SearchStrategy[dict[str, Any]] = st.recursive(
    values,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda value: {"L": value})
        | st.dictionaries(names, inner, max_size=3).map(lambda value: {"M": value})
    ),
    max_leaves=8,
)


def spelt(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def other_values(draw: st.DrawFn, document: dict[str, Any]) -> dict[str, Any]:
    """The same shape with other values."""
    ((tag, value),) = document.items()
    if tag == "L":
        return {tag: [other_values(draw, element) for element in value]}
    if tag == "M":
        return {tag: {name: other_values(draw, member) for name, member in value.items()}}
    return draw(values.filter(lambda other: tag in other))


@settings(deadline=None)
@given(documents, st.data())
def test_documents_of_one_shape_are_written_as_any_are(document: dict[str, Any], data: st.DataObject) -> None:
    shape = common_shape([spelt(document)])
    if shape is None:
        return
    others = [spelt(data.draw(st.composite(other_values)(document=document))) for _ in range(2)]  # type: ignore[call-arg]
    matches = [re.fullmatch(shape.pattern.encode(), text) for text in (spelt(document), *others)]
    found = [(text, match.groups()) for text, match in zip((spelt(document), *others), matches, strict=True) if match]
    if not found:
        return
    written = shape.write(list(zip(*(groups for _, groups in found), strict=True)))
    assert written == plain_json.write([text for text, _ in found]).split(b"\n")


MAP: dict[str, Any] = {"M": {"a": {"S": "x"}, "l": {"L": [{"N": "1"}, {"BOOL": True}, {"NULL": True}]}, "e": {"M": {}}}}


def test_a_shape_captures_values_and_writes_what_stands_between() -> None:
    shape = common_shape([spelt(MAP)])
    assert shape is not None
    assert shape.texts == (b'{"a":', b',"l":[', b",", b',null],"e":{}}')
    match = re.fullmatch(shape.pattern.encode(), spelt(MAP))
    assert match is not None
    assert match.groups() == (b'"x"', b"1", b"true")
    assert shape.write([[b'"x"', b'"y"'], [b"1", b"2"], [b"true", b"false"]]) == [
        b'{"a":"x","l":[1,true,null],"e":{}}',
        b'{"a":"y","l":[2,false,null],"e":{}}',
    ]


@pytest.mark.parametrize(
    "document",
    [{"M": {}}, {"L": []}, {"S": "alone"}, {"N": "1"}, {"L": [{"NULL": True}]}, {"M": {"s": {"SS": ["a"]}}}, [], 5,
     {"M": {'q"': {"S": "x"}}}, {"M": {"b\\": {"S": "x"}}}, {"M": {"a": {}}}, {"M": {"a": {"S": "x", "N": "1"}}},
     {"M": 5}, {"L": 5}, {"M": {"a": "x"}}, {"L": [{"S": "x"}] * (MOST_VALUES + 1)}],
)  # fmt: skip
def test_what_has_no_shape(document: object) -> None:
    assert common_shape([spelt(document)]) is None


def test_the_shape_is_that_of_most_documents() -> None:
    one, other = spelt(MAP), spelt({"M": {"b": {"S": "x"}}})
    assert common_shape([]) is None
    assert common_shape([b"", b""]) is None
    assert common_shape([one, b"", other, one, one]) == common_shape([one])
    assert common_shape([one, other]) is None
    assert common_shape([spelt({"L": [{"S": "x"}] * n}) for n in range(1, 9)]) is None
