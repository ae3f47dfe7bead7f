"""The function generated for documents of one form against `to_json`: the same text, or no text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipeline.core.model.attributes import to_json
from pipeline.core.types.fast import document_code
from pipeline.core.types.fast.document_code import document_writer, form_of
from tests.core.exports.test_block_decode import attributes, malformed, scalars

REFUSALS = (AttributeError, KeyError, TypeError, ValueError)
documents = attributes | malformed


@st.composite
def alike(draw: st.DrawFn, attribute: Any) -> Any:  # noqa: ANN401 - of any form
    """An attribute value with the same structure, mostly: other values of any type, now and then malformed."""
    given = cast("dict[str, Any]", attribute) if isinstance(attribute, dict) else {}
    tag, value = next(iter(given.items()), ("", None))
    if tag == "M" and isinstance(value, dict):
        return {"M": {name: draw(alike(member)) for name, member in cast("dict[str, Any]", value).items()}}
    if tag == "L" and isinstance(value, list):
        return {"L": [draw(alike(element)) for element in cast("list[Any]", value)]}
    found = draw(scalars.filter(lambda each: tag in each) if draw(st.integers(0, 9)) and tag in "SN" else documents)
    return given if draw(st.booleans()) else found


def outcome(write: Callable[[Any], str], attribute: object) -> str | type[Exception]:
    try:
        return write(attribute)
    except REFUSALS as error:
        return type(error)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], deadline=None, max_examples=300)
@given(st.data(), documents)
def test_a_form_writes_what_is_written_without_it_or_raises(data: st.DataObject, learnt: dict[str, Any]) -> None:
    form = form_of(learnt)
    assume(form is not None)
    assert form is not None
    for _ in range(4):
        attribute = data.draw(alike(learnt))
        written = outcome(form, attribute)
        if isinstance(written, str):
            assert written == to_json(attribute)


@settings(deadline=None)
@given(st.lists(documents, min_size=1, max_size=5), st.data())
def test_a_column_writes_every_document_as_without_its_form(some: list[Any], data: st.DataObject) -> None:
    write = document_writer()
    for attribute in [*some * 40, *(data.draw(alike(some[0])) for _ in range(4))]:
        assert outcome(write, attribute) == outcome(to_json, attribute)


ORDER: dict[str, Any] = {
    "M": {"%s{}'\"": {"S": "Zoë"}, "n": {"N": "1.50"}, "l": {"L": [{"M": {}}, {"L": []}, {"BOOL": True}]}}
}


@pytest.fixture
def general(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The documents that were written without a form."""
    seen: list[Any] = []

    def noting(attribute: dict[str, Any]) -> str:
        if "M" in attribute:
            seen.append(attribute)
        return to_json(attribute)

    monkeypatch.setattr(document_code, "to_json", noting)
    return seen


def test_documents_of_one_form_are_soon_written_with_it(general: list[Any]) -> None:
    write = document_writer()
    order = {"M": {name: ORDER["M"][name] for name in ("%s{}'\"", "n")}}
    texts = [write({"M": {**order["M"], "n": {"N": str(number)}}}) for number in range(100)]
    assert texts == [to_json({"M": {**order["M"], "n": {"N": str(number)}}}) for number in range(100)]
    assert len(general) == 32
    write({"M": {"other": {"S": "x"}}})
    assert len(general) == 33


def test_a_few_documents_of_another_form_do_not_change_it(general: list[Any]) -> None:
    write = document_writer()
    usual, other = {"M": {"a": {"S": "x"}}}, {"M": {"b": {"S": "x"}}}
    for _ in range(50):
        for attribute in (*[usual] * 9, other):
            write(attribute)
    assert len(general) < 100


def test_documents_without_a_common_form_are_written_as_before(
    general: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[Any] = []

    def learning(attribute: dict[str, Any]) -> Callable[[dict[str, Any]], str] | None:
        learnt.append(attribute)
        return form_of(attribute)

    monkeypatch.setattr(document_code, "form_of", learning)
    write = document_writer()
    for number in range(500):
        write({"M": {f"name {number}": {"S": "x"}}})
    assert (len(general), len(learnt)) == (500, 3)


def test_a_form_knows_no_name_or_value_of_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    sources: list[str] = []

    def noting(source: str, file: str, mode: str) -> object:
        sources.append(source)
        return compile(source, file, mode)

    monkeypatch.setattr(document_code, "compile", noting, raising=False)
    form = form_of(ORDER)
    assert form is not None
    assert form(ORDER) == to_json(ORDER)
    assert not any(part in sources[0] for part in ("%s{}", "Zo", "1.50"))
