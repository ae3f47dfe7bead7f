"""COPY text: every field is written as it would be alone, whatever the other rows of its block contain."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.types.copy_text import copy_text, field

texts = st.sampled_from(
    ["", "a", "é", "日本", "\t", "\n", "\r", "\\", "\\N", "a\tb", "\x00", '{"a":"b\\n"}']
) | st.text(max_size=3)


@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[st.none() | texts] * width), max_size=4)))
def test_a_block_is_its_rows_fields(rows: list[tuple[str | None, ...]]) -> None:
    lines = ["\t".join(field(value) for value in row) + "\n" for row in rows]
    assert copy_text(rows) == "".join(lines).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("value", ["a\x00b", "\x00"])
def test_what_stands_for_null_within_a_block_is_never_taken_for_it(value: str) -> None:
    """PostgreSQL must refuse the value, not store another one."""
    assert copy_text([(value, None)]) == f"{value}\t\\N\n".encode()
