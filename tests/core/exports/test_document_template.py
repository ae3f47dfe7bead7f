"""Documents read by a template that they fill, against the general way to write a document; how it is learnt."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.exports.fast.document_template import MOST_VALUES, common_template
from pipeline.core.exports.fast.line_reader import LineReader
from pipeline.core.model.attributes import number
from pipeline.core.types.fast import untagged_json
from pipeline.core.types.fast.marked_text import as_json
from tests.core.exports.test_block_decode import line_of, outcome, written
from tests.core.exports.test_line_regex import EVERY_TYPE, binaries, names, numbers, plain_texts

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


def text_of(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def other_values(draw: st.DrawFn, document: dict[str, Any]) -> dict[str, Any]:
    """The same document with other values."""
    ((tag, value),) = document.items()
    if tag == "L":
        return {tag: [other_values(draw, element) for element in value]}
    if tag == "M":
        return {tag: {name: other_values(draw, member) for name, member in value.items()}}
    return draw(values.filter(lambda other: tag in other))


@settings(deadline=None)
@given(documents, st.data())
def test_documents_of_one_template_are_written_as_any_are(document: dict[str, Any], data: st.DataObject) -> None:
    template = common_template([text_of(document)])
    if template is None:
        return
    others = [text_of(data.draw(st.composite(other_values)(document=document))) for _ in range(2)]  # type: ignore[call-arg]
    matches = [re.fullmatch(template.regex.encode(), text) for text in (text_of(document), *others)]
    found = [(text, match.groups()) for text, match in zip((text_of(document), *others), matches, strict=True) if match]
    if not found:
        return
    written = template.write(list(zip(*(groups for _, groups in found), strict=True)))
    assert plainly(written) == plainly(untagged_json.write([text for text, _ in found]).split(b"\n"))


def plainly(documents: list[bytes]) -> list[str]:
    """Write the numbers out: an exponent may stay, because PostgreSQL reads it as the plain notation."""
    parsed = [json.loads(as_json(text), parse_int=in_digits, parse_float=in_digits) for text in documents]
    return [json.dumps(document) for document in parsed]


def in_digits(text: str) -> dict[str, str]:
    """Return a number's plain notation, marked as a number."""
    return {"": number(text)}


def test_an_exponent_stays_or_is_written_out_and_is_the_same_number() -> None:
    """A document with a text that looks like the end of a tag is parsed, and parsing writes the number out."""
    document = text_of({"M": {"a": {"S": "}"}, "n": {"N": "1E+5"}}})
    template = common_template([document])
    assert template is not None
    match = re.fullmatch(template.regex.encode(), document)
    assert match is not None
    written, any_way = template.write([[value] for value in match.groups()]), [untagged_json.write([document])]
    assert (written, any_way) == ([b'{"a":"}","n":1E+5}'], [b'{"a":"}","n":100000}'])
    assert plainly(written) == plainly(any_way) != plainly([b'{"a":"}","n":10000}'])


MAP: dict[str, Any] = {"M": {"a": {"S": "x"}, "l": {"L": [{"N": "1"}, {"BOOL": True}, {"NULL": True}]}, "e": {"M": {}}}}


def test_a_template_captures_values_and_writes_the_texts_between() -> None:
    template = common_template([text_of(MAP)])
    assert template is not None
    assert template.texts == (b'{"a":', b',"l":[', b",", b',null],"e":{}}')
    match = re.fullmatch(template.regex.encode(), text_of(MAP))
    assert match is not None
    assert match.groups() == (b'"x"', b"1", b"true")
    assert template.write([[b'"x"', b'"y"'], [b"1", b"2"], [b"true", b"false"]]) == [
        b'{"a":"x","l":[1,true,null],"e":{}}',
        b'{"a":"y","l":[2,false,null],"e":{}}',
    ]


@pytest.mark.parametrize(
    "document",
    [{"M": {}}, {"L": []}, {"S": "alone"}, {"N": "1"}, {"L": [{"NULL": True}]}, {"M": {"s": {"SS": ["a"]}}}, [], 5,
     {"M": {'q"': {"S": "x"}}}, {"M": {"b\\": {"S": "x"}}}, {"M": {"a": {}}}, {"M": {"a": {"S": "x", "N": "1"}}},
     {"M": 5}, {"L": 5}, {"M": {"a": "x"}}, {"L": [{"S": "x"}] * (MOST_VALUES + 1)}],
)  # fmt: skip
def test_what_fills_no_template(document: object) -> None:
    assert common_template([text_of(document)]) is None


def test_the_template_is_that_of_most_documents() -> None:
    one, other = text_of(MAP), text_of({"M": {"b": {"S": "x"}}})
    assert common_template([]) is None
    assert common_template([b"", b""]) is None
    assert common_template([one, b"", other, one, one]) == common_template([one])
    assert common_template([one, other]) is None
    assert common_template([text_of({"L": [{"S": "x"}] * n}) for n in range(1, 9)]) is None


def documents_in(lines: int, *, like: bool) -> bytes:
    """Lines whose documents all fill one template, or each its own."""
    items = [
        {"pk": {"S": f"k{n}"}, "map": {"M": {"a" if like else f"a{n}": {"S": f"x{n}"}, "n": {"N": str(n)}}}}
        for n in range(lines)
    ]
    return written([line_of(item) for item in items])


def test_a_template_is_learnt_and_other_documents_are_read_all_the_same() -> None:
    reader = LineReader(EVERY_TYPE)
    reader.read(documents_in(5, like=True))
    assert reader.templates == {"map"}
    first = documents_in(400, like=True)
    for block in (first, documents_in(400, like=False), first + documents_in(400, like=False)):
        assert outcome(EVERY_TYPE, block, general=False, after=first) == outcome(EVERY_TYPE, block, general=True)
        reading = reader.read(block)
        assert (reading.rows, reading.others) == (block.count(b"\n"), [])


def test_documents_with_no_template_in_common_are_captured_whole() -> None:
    reader = LineReader(EVERY_TYPE)
    for _ in range(20):
        reader.read(documents_in(50, like=False))
    assert reader.templates == set()


@pytest.mark.parametrize("first", ['{"M":{"a":{"S":"x"},"n":{"N":"1"}}}', '{"L":[]}'])
@pytest.mark.parametrize("second", ['{"M":{"a":{"S":"y"},"n":{"N":"2"}}}', '{"L":[{"S":"z"}]}'])
def test_of_a_document_that_is_there_twice_the_last_one_counts(first: str, second: str) -> None:
    block = written([f'{{"Item":{{"pk":{{"S":"k"}},"map":{first},"map":{second}}}}}'])
    learnt = documents_in(5, like=True)
    assert outcome(EVERY_TYPE, block, general=False, after=learnt) == outcome(EVERY_TYPE, block, general=True)


def test_a_template_is_learnt_where_documents_are_rare() -> None:
    """The first pieces contain no document at all."""
    reader = LineReader(EVERY_TYPE)
    reader.read(written([line_of({"pk": {"S": "k"}})]))
    reader.read(documents_in(2, like=True))
    assert reader.templates == {"map"}
