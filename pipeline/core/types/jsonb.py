"""jsonb, for an attribute of any type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.core.model.attributes import to_json
from pipeline.core.model.mapping import Column
from pipeline.core.types.codec import Codec, Example, Option, Use
from pipeline.core.types.fast.column_texts import Values, as_they_are, documents
from pipeline.core.types.fast.document_code import document_writer
from pipeline.core.types.fast.fast_form import FastForm
from pipeline.core.types.fast.value_regex import any_value
from pipeline.core.types.json_text import checked_json
from pipeline.core.types.numbers import DIGITS


def _convert(use: Use) -> Callable[[Any], str]:
    tag = use.tag
    return checked_json if tag == "S" and use.column.json == "parse" else lambda value: to_json({tag: value})


def _fast_form(column: Column, _is_key: bool) -> FastForm:  # noqa: FBT001  a codec's
    parses = column.json == "parse"
    return FastForm(
        condition='"S" not in a' if parses else "",
        code=lambda code: [f"{code.value} = {code.bind('document', document_writer())}(a)"],
        document=('((?!..S")' if parses else "(") + any_value() + ")",
        write=_documents,
    )


def _documents(values: Values, missing: bytes, escaped: bool) -> Values:  # noqa: FBT001  a Writer
    return as_they_are(documents(values, escaped=escaped), missing, escaped)


JSONB = Codec(
    name="jsonb",
    tags=frozenset({"S", "N", "B", "BOOL", "NULL", "SS", "NS", "BS", "L", "M"}),
    convert=_convert,
    fast_form=_fast_form,
    default=lambda field: field.anything(),
    index_methods=frozenset({"gin"}),
    options=(
        Option(
            "json",
            ("parse", "text"),
            remedy="write parse for strings that hold JSON, or text for strings that stay strings",
            refusal="is not a way to read a string",
            introduction="the ways are",
            elsewhere="does not hold JSON; remove json, or make the column a jsonb",
            description=(
                "For a jsonb from strings: `parse` if they hold JSON; `text` (the default) keeps them as JSON strings."
            ),
        ),
    ),
    examples=(
        Example(
            (
                {"N": DIGITS},
                {"N": "1E-130"},
                {"S": '{"a": 1}'},
                {"B": "AP8="},
                {"NS": ["10", "9.5"]},
                {"M": {"A": {"L": []}, "a": {"NULL": True}}},
                {"L": [{"S": "a\x00b"}]},
                {"M": {"\x00": {"S": ""}}},
            )
        ),
        Example(
            (*({"S": s} for s in ('{"a": 1.50}', "null", "", "{a: 1}", "NaN", r'"\u0000"')), {"N": "1"}),
            options={"json": "parse"},
        ),
    ),
)
