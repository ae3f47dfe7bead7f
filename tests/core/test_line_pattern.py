"""Lines read by their shape against the general way: many lines of one shape, and some that are nearly of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.block_decode import BlockDecoder
from pipeline.core.line_shapes import Shapes, shape_of
from pipeline.core.mapping import Column, Target
from pipeline.core.sql_types import parse_sql_type
from tests.core.test_block_decode import outcome, written

PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "S": st.sampled_from(["", "a", "Zoë", "😀😀", "abc", "100%", "%s", "}", '{"S":', ",", "\x7f", "NULL"]).filter(
        lambda text: '"' not in text
    ),
    "N": st.sampled_from(["0", "-0", "1", "-17", "32767", "123456789", "12.50", "-0.001", "123456789012345678"]),
    "BOOL": st.booleans(),
    "NULL": st.just(True),
}
STRANGE: dict[str, st.SearchStrategy[Any]] = {
    "S": st.sampled_from(
        ['"', "\\", "\n", "\t", "\x00", "\x1f", "\ud800", "a long text", 5, None, "\u2028", "\\u0041"]
    ),
    "N": st.sampled_from(["007", "1E5", "", "nan", " 1", "1\n", "9" * 40, "9" * 300, "0." + "1" * 300, 5, "٣"]),
    "BOOL": st.sampled_from([1, "true", None]),
    "NULL": st.just(False),
}
TYPES = {
    "S": ["text", "varchar(3)", "varchar(40)", "jsonb", "numeric", "uuid"],
    "N": ["smallint", "integer", "bigint", "numeric", "numeric(4,2)", "double precision", "timestamptz", "jsonb"],
    "BOOL": ["boolean", "jsonb"],
    "NULL": ["text", "bigint", "jsonb"],
}


@st.composite
def shaped_lines(draw: st.DrawFn) -> tuple[Target, bytes]:
    """A target, and a block of lines with the same attributes in the same order; a few with something strange."""
    tags = draw(st.lists(st.sampled_from(sorted(PLAIN)), min_size=1, max_size=4))
    attributes = [("key", draw(st.sampled_from(["S", "N"])))] + [(f"a{n}%", tag) for n, tag in enumerate(tags)]
    attributes = draw(st.permutations(attributes))
    columns = [Column("key", "key", ("key",), parse_sql_type("text" if dict(attributes)["key"] == "S" else "bigint"))]
    for name, tag in attributes:
        if name != "key" and draw(st.booleans()):
            sql_type = parse_sql_type(draw(st.sampled_from(TYPES[tag])))
            columns.append(Column(f"c {name}", name, (name,), sql_type, default=draw(st.sampled_from([None, "x\t%"]))))
    if draw(st.booleans()):
        columns.append(Column("absent", "absent", ("absent",), parse_sql_type("text"), default="%d"))
    target = Target(
        "public", "t", ("key",), tuple(draw(st.permutations(columns))), draw(st.sampled_from([None, "rest"]))
    )
    lines: list[str] = []
    for _ in range(draw(st.integers(1, 6))):
        strange = draw(st.sampled_from([None, None, *[name for name, _ in attributes]]))
        item: dict[str, Any] = {
            name: {tag: draw((STRANGE if name == strange else PLAIN)[tag])} for name, tag in attributes
        }
        if draw(st.integers(0, 9)) == 0:
            item.pop(draw(st.sampled_from([name for name, _ in attributes])))
        lines.append(json.dumps({"Item": item}, ensure_ascii=draw(st.booleans()), separators=(",", ":")))
    return target, written(lines)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=300)
@given(shaped_lines())
def test_lines_of_a_shape_give_what_the_general_way_gives(made: tuple[Target, bytes]) -> None:
    target, block = made
    assert outcome(target, block, general=False) == outcome(target, block, general=True)


NUMBERED = Target(
    "public",
    "t",
    ("Id",),
    (
        Column("Name", "name", ("name",), parse_sql_type("varchar(5)")),
        Column("Id", "Id", ("Id",), parse_sql_type("bigint")),
        Column("On", "on", ("on",), parse_sql_type("boolean"), default="f"),
    ),
    "rest",
)
LINE = '{"Item":{"Id":{"N":"%d"},"name":{"S":"Zoë"},"on":{"BOOL":true},"x":{"N":"1.5"},"y":{"NULL":true}}}'


def test_a_shape_reads_its_lines_and_hands_back_the_others() -> None:
    shape = shape_of(LINE % 1, NUMBERED)
    assert shape is not None
    other = '{"Item":{"Id":{"N":"3"},"name":{"S":"longer than 5"},"on":{"BOOL":true},"x":{"N":"1"},"y":{"NULL":true}}}'
    text = f"{LINE % 1}\n{other}\n{LINE % 2}\n"
    assert shape.read(text) == ['Zoë\t1\tt\t{"x":1.5,"y":null}', 'Zoë\t2\tt\t{"x":1.5,"y":null}']
    assert shape.without(text) == other + "\n"


@pytest.mark.parametrize(
    "line",
    ['{"Item":{"Id":{"N":"1"},"x":{"L":[]}}}', '{"Item":{"name":{"S":"no key"}}}', '{"Item":{"Id":{"N":"1"}},"More":1}',
     '{"Item":{"Id":{"N":"1","S":"x"}}}', '{"Item":{"Id":{"NULL":true}}}', '{"Item":[]}', "5", "{"],
)  # fmt: skip
def test_what_has_no_shape(line: str) -> None:
    shape = shape_of(line, NUMBERED)
    assert shape is None or shape.read(line + "\n") == []


def test_several_shapes_are_learnt_and_a_table_without_any_is_given_up() -> None:
    shapes = Shapes(NUMBERED)
    short = '{"Item":{"Id":{"N":"7"}}}'
    rows, rest = shapes.read(f"{LINE % 1}\n{short}\n{LINE % 2}\n{short}\n", 4)
    assert (len(rows), rest) == (4, "")
    listed = '{"Item":{"Id":{"N":"1"},"x":{"L":[]}}}\n'
    for _ in range(5):
        assert shapes.read(listed, 1) == ([], listed)
    assert shapes.read(short + "\n", 1) == ([], short + "\n")  # given up


def test_a_block_of_one_shape_is_not_parsed() -> None:
    decoder = BlockDecoder(NUMBERED)
    decoder._plain = decoder._escaped = decoder.rows = None  # type: ignore[assignment]  # all other ways
    block = written([LINE % number for number in range(2_000)])
    text, rows, failures = decoder.decode(block, file="f")
    assert (text.count(b"\n"), rows, failures) == (2_000, 2_000, [])
