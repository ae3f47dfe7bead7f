"""Names shortened to the length that PostgreSQL keeps: two different names never become one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.names import LONGEST_NAME_BYTES, fitting


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=80), st.text(st.characters(codec="utf-8")))
def test_a_fitting_name_fits_and_stays_apart_from_others(start: str, rest: str) -> None:
    long, other = (start * 30)[:70] + rest, (start * 30)[:70] + rest + "x"
    assert len(fitting(long).encode()) <= LONGEST_NAME_BYTES
    assert fitting(long) != fitting(other)
    if len(start.encode()) <= LONGEST_NAME_BYTES:
        assert fitting(start) == start


def test_a_character_is_never_cut_in_two() -> None:
    assert fitting("é" * 40).startswith("é" * 27 + "_")
