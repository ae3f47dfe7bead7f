"""Wire form and the SDK's form: the same item in both directions, for all ten types."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dynamodb.wire import from_wire, to_wire

_SCALARS = (
    st.fixed_dictionaries({"S": st.text()})
    | st.fixed_dictionaries({"N": st.integers().map(str)})
    | st.fixed_dictionaries({"B": st.binary()})
    | st.fixed_dictionaries({"BOOL": st.booleans()})
    | st.just({"NULL": True})
    | st.fixed_dictionaries({"SS": st.lists(st.text(), min_size=1)})
    | st.fixed_dictionaries({"NS": st.lists(st.integers().map(str), min_size=1)})
    | st.fixed_dictionaries({"BS": st.lists(st.binary(), min_size=1)})
)
_ATTRIBUTES: st.SearchStrategy[dict[str, Any]] = st.recursive(
    _SCALARS,
    lambda inner: (
        st.fixed_dictionaries({"L": st.lists(inner)}) | st.fixed_dictionaries({"M": st.dictionaries(st.text(), inner)})
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(), _ATTRIBUTES))
def test_there_and_back(item: dict[str, Any]) -> None:
    assert from_wire(to_wire(item)) == item


def test_binary_is_base64_at_any_depth() -> None:
    item = {
        "b": {"B": b"hello"},
        "bs": {"BS": [b"", b"\xff"]},
        "m": {"M": {"l": {"L": [{"B": b"\x00"}, {"S": "\x00"}]}}},
    }
    assert to_wire(item) == {
        "b": {"B": "aGVsbG8="},
        "bs": {"BS": ["", "/w=="]},
        "m": {"M": {"l": {"L": [{"B": "AA=="}, {"S": "\x00"}]}}},
    }


def test_what_is_not_base64_is_refused() -> None:
    with pytest.raises(ValueError, match="base64"):
        from_wire({"b": {"B": "not base64"}})
