"""docs/types.md is true: its tables are what the codec answers today."""

from __future__ import annotations

from pipeline.core.sql_types import TYPES
from tests.type_table import CASES, PAGE, TAGS, answer, generated, with_generated


def test_the_tables_are_the_codecs() -> None:
    page = PAGE.read_text()
    assert page == with_generated(page), "run `python -m tests.type_table`"
    assert generated() in page


def test_every_type_is_shown_and_every_attribute_type_asked() -> None:
    assert {sql_type.name for sql_type, _, _ in CASES} | {"boolean"} == set(TYPES)
    assert set(TAGS) == {tag for tags in TYPES.values() for tag in tags}


def test_no_reason_quotes_its_value() -> None:
    for sql_type, options, values in CASES:
        for value in values:
            taken, text = answer(sql_type, value, **options)
            (content,) = value.values()
            if not taken and isinstance(content, str) and len(content) > 3:
                assert content not in text
