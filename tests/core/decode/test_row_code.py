"""The function generated for a target against the general path: same rows, same refusals, same counts."""

from __future__ import annotations

import linecache
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from pipeline.core.decode.row_code import WrittenDecoder
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import ConversionError
from pipeline.core.exports.fast.block_decode import BlockDecoder
from pipeline.core.exports.fast.line_reader import LineReader, Reading
from pipeline.core.model.mapping import Column, OnError, Target
from pipeline.core.types.copy_text import copy_text
from pipeline.core.types.sql_types import parse_sql_type
from tests.core.exports.test_block_decode import items, line_of, strange_items, targets
from tests.core.types.test_step_aside import every_way

Convert = Callable[[Mapping[str, Any]], tuple[Any, ...]]


def outcome(target: Target, item: Mapping[str, Any], *, written: bool) -> tuple[Any, ...]:
    """The row, or the exception; and the values that a policy changed."""
    settled: Counter[str] = Counter()
    decoder = RowDecoder(target, settled)
    convert: Convert = WrittenDecoder(decoder).row if written else decoder.row
    try:
        return convert(item), settled
    except ConversionError as error:
        return str(error), settled
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return type(error), settled


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=400)
@given(targets(), items | strange_items)
def test_the_written_way_gives_what_the_general_way_gives(target: Target, item: dict[str, Any]) -> None:
    assert outcome(target, item, written=True) == outcome(target, item, written=False)


COLUMNS = {
    "text": ({"S": "Zoë"}, "Zoë"),
    "varchar(5)": ({"S": "12345"}, "12345"),
    "bigint": ({"N": "-5"}, "-5"),
    "numeric": ({"N": "0.10"}, "0.10"),
    "boolean": ({"BOOL": False}, "f"),
    "bytea": ({"B": "AAE="}, "\\x0001"),
    "text[]": ({"SS": ["b", 'a"']}, '{"a\\"","b"}'),
    "jsonb": ({"M": {"a": {"N": "1.50"}}}, '{"a":1.50}'),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_plain_value_never_takes_the_general_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, text = COLUMNS[name]
    columns = (
        Column("key", "key", ("key",), parse_sql_type("text")),
        Column("c", "c", ("c",), parse_sql_type(name), on_error=OnError.NULL),
    )
    target = Target("public", "t", ("key",), columns, "rest")
    decoder = RowDecoder(target)

    def never(_: object) -> tuple[Any, ...]:
        raise AssertionError

    monkeypatch.setattr(decoder, "row", never)
    convert = WrittenDecoder(decoder).row
    assert convert({"key": {"S": "k"}, "c": value}) == ("k", text, "{}")
    assert convert({"key": {"S": "k"}, "x": {"S": "y"}}) == ("k", None, '{"x":"y"}')


@pytest.mark.parametrize("text", ["text(c1)", "general1(a)", 'a["S"]', "{0}", "\\1", "get('key')", "jsonb(a)"])
def test_no_name_or_default_that_looks_like_code_is_taken_for_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = (
        Column("key", "key", ("key",), parse_sql_type("text")),
        Column("c", text, (text,), parse_sql_type("text")),
        Column("d", "d", ("d",), parse_sql_type("text"), default=text),
    )
    target = Target("public", text, ("key",), columns)
    item = {"key": {"S": "7"}, text: {"S": "hello"}}
    assert outcome(target, item, written=True)[0] == ("7", "hello", text)
    rows = every_way(target, item, key="key")
    assert rows == {way: ["7", "hello", text] for way in rows}
    monkeypatch.setattr(LineReader, "read", nothing_read)
    block = line_of(item).encode() + b"\n"
    assert BlockDecoder(target).decode(block, file="f").text == copy_text([("7", "hello", text)])


def nothing_read(*_: object) -> Reading:
    return Reading()


def test_the_code_is_shown_by_a_traceback() -> None:
    target = Target("public", "shown", ("key",), (Column("key", "key", ("key",), parse_sql_type("bigint")),))
    WrittenDecoder(RowDecoder(target))
    lines = linecache.getlines("<row of public.shown>")
    assert "        a = get('key')\n" in lines
    assert len(lines) < 20, "small enough to read"


def test_items_that_are_left_to_the_general_way_are_not_kept() -> None:
    """An exception that is raised again and again keeps all the frames that it passed."""
    columns = (Column("key", "key", ("key",), parse_sql_type("text")), Column("c", "c", ("c",), parse_sql_type("text")))
    decoder = WrittenDecoder(RowDecoder(Target("public", "t", ("key",), columns)))
    decoder.key = decoder.key_of = decoder._general = nothing_read  # type: ignore[assignment]  # which raises nothing

    class Kept(dict[str, Any]):
        """An item that can be watched."""

    item = Kept({"key": {"S": "k" * 2049}, "c": None})
    watched = weakref.ref(item)
    decoder.row(item)
    del item
    assert decoder.general_rows == 1
    assert watched() is None
