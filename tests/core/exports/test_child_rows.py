"""Child rows decoded apart, on the fast path, against the general path: same rows, same failures, same counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.decode.children import child_rows
from pipeline.core.decode.row_code import WrittenDecoder
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import ConversionError, TerminalError
from pipeline.core.exports.export_lines import decode_full
from pipeline.core.exports.fast.block_decode import BlockDecoder
from pipeline.core.exports.ways import Ways
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import EACH, Column, OnError, Target
from pipeline.core.types.copy_text import copy_text
from pipeline.core.types.sql_types import SqlType
from tests.core.exports.test_block_decode import (
    NAMES,
    attributes,
    escapings,
    malformed_lines,
    paths,
    read_row,
    scalars,
    targets,
    types,
    written,
)

LISTS, MAPS = "list", "map"
# Maps whose attribute `a` is often a list or map of maps, and whose `b` is often a set, so that they have children.
leaves = st.dictionaries(st.sampled_from(NAMES), attributes, max_size=3).map(lambda value: {"M": value})
sets = st.one_of(
    st.lists(st.text("ab", min_size=1, max_size=2), min_size=1, max_size=2, unique=True).map(
        lambda value: {"SS": value}
    ),
    st.lists(st.sampled_from(["1", "1.0", "2", "1E+1"]), min_size=1, max_size=3, unique=True).map(
        lambda value: {"NS": value}
    ),
    st.lists(st.sampled_from(["AA==", "AP8="]), min_size=1, max_size=2, unique=True).map(lambda value: {"BS": value}),
)
nested = st.lists(leaves, max_size=2).map(lambda value: {"L": value}) | st.dictionaries(
    st.sampled_from(NAMES), leaves, max_size=2
).map(lambda value: {"M": value})


def with_children(some: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return {"M": some | more}


members: st.SearchStrategy[dict[str, Any]] = st.builds(
    with_children,
    st.dictionaries(st.sampled_from(NAMES), attributes, max_size=2),
    st.fixed_dictionaries({}, optional={"a": nested, "b": sets}),
)
lists = st.lists(members, max_size=4).map(lambda value: {"L": value})
maps = st.dictionaries(st.sampled_from(NAMES), members, max_size=3).map(lambda value: {"M": value})
odd_lists = st.lists(members | scalars, max_size=2).map(lambda value: {"L": value}) | attributes


@st.composite
def parents(draw: st.DrawFn) -> Target:
    parent = replace(draw(targets()), name="parent")
    kinds = draw(st.lists(st.sampled_from([LISTS, MAPS]), min_size=1, max_size=2, unique=True))
    found = [draw(children(parent, kind)) for kind in kinds]
    if draw(st.booleans()):
        found.append(draw(children(found[0], draw(st.sampled_from([LISTS, MAPS])))))
    if draw(st.booleans()):
        found.append(members_of(draw(st.sampled_from([parent, *found])), draw(st.sampled_from(sorted(SETS)))))
    return replace(parent, children=tuple(found))


SETS = {"SS": "text", "NS": "numeric", "BS": "bytea"}


def below(parent: Target, *path: str) -> tuple[str | int, ...]:
    return (*parent.explode, EACH, *path) if parent.parent else path


def members_of(parent: Target, tag: str) -> Target:
    """A child of the set in the attribute `b`."""
    place = Column("member", "b", (), SqlType(SETS[tag]))
    head = (*(replace(column, on_error=OnError.REJECT) for column in parent.key_columns), place)
    key = tuple(column.name for column in head)
    return Target("public", "set", key, head, parent=parent.view_name, explode=below(parent, "b"), member=tag)


@st.composite
def children(draw: st.DrawFn, parent: Target, kind: str) -> Target:
    name = f"{parent.name} {kind}"
    place = Column(name, kind, (), SqlType("integer" if kind == LISTS else "text"))
    head = (*(replace(column, on_error=OnError.REJECT) for column in parent.key_columns), place)
    own = [
        Column(f"e{number}", str(path), path, draw(types), on_error=draw(st.sampled_from(list(OnError))))
        for number, path in enumerate(draw(st.lists(paths, max_size=3)))
    ]
    key = tuple(column.name for column in head)
    explode = below(parent, kind if not parent.parent else "a")
    return Target("public", name, key, (*head, *own), parent=parent.view_name, explode=explode)


@st.composite
def items(draw: st.DrawFn, *, odd: bool = False) -> dict[str, Any]:
    item = {"a": draw(attributes)} | draw(st.dictionaries(st.sampled_from(NAMES), attributes, max_size=2))
    if draw(st.booleans()):
        item["b"] = draw(sets)
    for kind, values in ((LISTS, lists), (MAPS, maps)):
        if draw(st.integers(0, 4)):
            item[kind] = draw(values | odd_lists if odd else values)
    return item


def outcome(target: Target, block: bytes, *, general: bool, after: bytes = b"") -> tuple[Any, ...]:
    """Rows of each table sorted, failures as texts, changed values; or the error. It first learns from `after`."""
    settled: Counter[str] = Counter()
    decoder = BlockDecoder(target, settled, apart=True)
    with suppress(TerminalError):
        if after:
            decoder.decode(after, file="before")
    settled.clear()
    try:
        if general:
            rows, failures = decode_full(block, RowDecoder(target, settled), file="f")
            own = [row[: len(target.stored_columns)] for row in rows]
            texts = [copy_text(own) if own else b"", *map(copy_text, child_rows(target, rows))]
        else:
            text, _, failures, apart = decoder.decode(block, file="f")
            texts = [text, *apart]
    except TerminalError as error:
        return ("error", str(error) if malformed_lines(target, block) == 1 else "")
    found = [
        sorted((read_row(table, line) for line in text.split(b"\n")[:-1]), key=repr)
        for table, text in zip((target, *target.children), texts, strict=True)
    ]
    return found, sorted((line, str(error)) for line, error in failures), dict(settled)


def lines_of(some: Sequence[Any], ascii_only: Sequence[bool]) -> bytes:
    return written(
        [
            json.dumps({"Item": item}, ensure_ascii=ensure, separators=(",", ":"))
            for item, ensure in zip(some, ascii_only, strict=False)
        ]
    )


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(parents(), st.lists(items() | items(odd=True), max_size=4), escapings, st.lists(items(), max_size=2))
def test_child_rows_apart_are_those_of_the_general_path(
    target: Target, some: list[Any], ascii_only: list[bool], before: list[Any]
) -> None:
    block, after = lines_of(some, ascii_only), lines_of(before, [True] * 2)
    assert outcome(target, block, general=False, after=after) == outcome(target, block, general=True)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(parents(), items() | items(odd=True))
def test_the_written_function_gives_the_carried_rows_of_the_general_path(target: Target, item: dict[str, Any]) -> None:
    found: list[Any] = []
    for make in (lambda decoder: decoder, WrittenDecoder):  # type: ignore[misc]
        settled: Counter[str] = Counter()
        try:
            found.append((make(RowDecoder(target, settled)).row(item), settled))  # type: ignore[no-untyped-call]
        except ConversionError as error:
            found.append((str(error), settled))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            found.append((type(error), settled))
    assert found[0] == found[1]


ORDERS = """
name: orders
source: {table: Orders, key: {Id: N}}
targets:
  Orders:
    primary_key: [id]
    columns:
      id: {attribute: Id, type: bigint}
      customer: {attribute: customer, type: text}
    unmapped: %s
  Lines:
    parent: Orders
    explode: lines
    element: {line: integer}
    columns:
      sku: {attribute: sku, type: text}
      quantity: {attribute: quantity, type: integer}
"""
LINE = '{"M":{"sku":{"S":"a%d"},"quantity":{"N":"%d"}}}'


def order(number: int, *lines: str) -> str:
    return f'{{"Item":{{"Id":{{"N":"{number}"}},"lines":{{"L":[{",".join(lines)}]}},"customer":{{"S":"c"}}}}}}'


def test_most_lists_are_not_even_parsed() -> None:
    """Otherwise it would be right but slow."""
    for unmapped in ("ignore", "rest"):
        (target,) = read_mapping(ORDERS % unmapped, "orders.yaml").targets
        decoder = BlockDecoder(target, apart=True)
        lines = [order(n, *[LINE % (n, m) for m in range(n)]) for n in range(4)]
        (text,) = decoder.decode(written(lines), file="f").children
        assert text == b"".join(b"%d\t%d\ta%d\t%d\n" % (n, m, n, m) for n in range(4) for m in range(n))
        assert decoder.ways == Ways(unparsed=4)


def test_an_item_with_an_odd_list_is_read_whole_by_another_path_and_its_neighbours_are_not_parsed() -> None:
    (target,) = read_mapping(ORDERS % "ignore", "orders.yaml").targets
    decoder = BlockDecoder(target, apart=True)
    good, odd = LINE % (1, 1), '{"M":{"sku":{"S":"x"},"quantity":{"N":"1E+1"}}}'
    lines = [order(1, good), order(2, good, odd, good), order(3, good, '{"S":"no map"}'), order(4, good, good)]
    decoded = decoder.decode(written(lines), file="f")
    assert sorted(decoded.children[0].splitlines()) == [
        b"1\t0\ta1\t1", b"2\t0\ta1\t1", b"2\t1\tx\t10", b"2\t2\ta1\t1", b"4\t0\ta1\t1", b"4\t1\ta1\t1",
    ]  # fmt: skip
    assert (decoded.rows, len(decoded.failures)) == (3, 1)
    assert decoder.ways == Ways(unparsed=2, parsed=1, general=1)


def test_a_text_that_looks_like_the_end_of_a_list_ends_none() -> None:
    for unmapped in ("ignore", "rest"):
        (target,) = read_mapping(ORDERS % unmapped, "orders.yaml").targets
        lines = [
            order(n, LINE % (n, 1), f'{{"M":{{"sku":{{"S":{json.dumps(sku)}}}}}}}', LINE % (n, 2))
            for n, sku in enumerate(["x]}", "]},", 'a"]}}', "]},{", "\\]}]}"])
        ]
        assert outcome(target, written(lines), general=False) == outcome(target, written(lines), general=True)
