"""docs/types.md and docs/mapping.schema.json are true: their tables and patterns are those of today's codecs."""

from __future__ import annotations

import json

from pipeline.core.types.sql_types import TYPES
from tests import mapping_schema
from tests.type_table import PAGE, TAGS, answer, examples, generated, with_generated


def test_the_tables_are_the_codecs() -> None:
    page = PAGE.read_text()
    assert page == with_generated(page), "run `make docs`"
    assert generated() in page


def test_the_schemas_types_and_options_are_the_codecs() -> None:
    written = mapping_schema.SCHEMA.read_text()
    assert written == mapping_schema.text(mapping_schema.with_generated(json.loads(written))), "run `make docs`"


def test_every_type_is_shown_and_every_attribute_type_asked() -> None:
    assert {sql_type.name for sql_type, _ in examples()} | {"boolean"} == set(TYPES)
    assert set(TAGS) == {tag for codec in TYPES.values() for tag in codec.tags}


def test_no_reason_quotes_its_value() -> None:
    for sql_type, example in examples():
        for value in example.values:
            taken, text = answer(sql_type, value, **example.options)
            (content,) = value.values()
            if not taken and isinstance(content, str) and len(content) > 3:
                assert content not in text
