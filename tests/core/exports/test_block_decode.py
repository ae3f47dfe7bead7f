"""Blocks decoded on the fast path against the general path: same rows, same failures, same refusals."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import TerminalError
from pipeline.core.exports.export_lines import decode_full
from pipeline.core.exports.fast.block_decode import BlockDecoder
from pipeline.core.exports.ways import Ways
from pipeline.core.model.attributes import parse_path
from pipeline.core.model.mapping import Column, OnError, Target
from pipeline.core.types.copy_text import copy_text
from pipeline.core.types.sql_types import KEY_TYPES, SqlType, parse_sql_type

NAMES = ("a", "b", "c", "d d", 'e"', "\u00e9", "\u2028", "'\\")

texts = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["", "NULL", "\\N", "\\", '"', "\t", "\n", "\r", "\x00", "\x7f", "\ud800", "😀", "{}", "2026-01-31", "é" * 6,
         "0f8fad5b-d9cb-469f-a165-70867728950e", "0F8FAD5B-D9CB-469F-A165-70867728950E", "2026-01-31T12:00:00Z",
         "[1.50]", "null", '"\\u0000"']
    ),
)  # fmt: skip
numbers = st.one_of(
    st.integers(-(2**64), 2**64).map(str),
    st.integers(-30, 30).map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
    st.sampled_from(
        ["0", "-0", "0.0", "1.50", "007", "1E+5", "-1.2E-7", "32767", "32768", "9223372036854775807", "12345678.90",
         "9223372036854775808", "99999999999999999999999999999999999999", "nan", "٣", "1_0", " 1", "1\n", ""]
    ),
)  # fmt: skip
binaries = st.one_of(st.binary(max_size=4).map(lambda b: __import__("base64").b64encode(b).decode()), st.just("*"))
scalars: st.SearchStrategy[dict[str, Any]] = st.one_of(
    texts.map(lambda v: {"S": v}),
    numbers.map(lambda v: {"N": v}),
    binaries.map(lambda v: {"B": v}),
    st.booleans().map(lambda v: {"BOOL": v}),
    st.just({"NULL": True}),
    st.lists(texts, max_size=3).map(lambda v: {"SS": v}),
    st.lists(numbers, max_size=3).map(lambda v: {"NS": v}),
    st.lists(binaries, max_size=3).map(lambda v: {"BS": v}),
)
attributes: st.SearchStrategy[dict[str, Any]] = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda v: {"L": v})
        | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3).map(lambda v: {"M": v})
    ),
    max_leaves=6,
)
# DynamoDB never writes this, but a damaged or foreign file may contain it.
malformed: st.SearchStrategy[Any] = st.sampled_from(
    [{}, {"S": 5}, {"S": None}, {"N": 5}, {"N": "1", "S": "x"}, {"S": "x", "N": "1"}, {"BOOL": 1}, {"BOOL": "t"},
     {"SS": "ab"}, {"SS": [1]}, {"L": {}}, {"M": []}, {"M": {"x": {"S": 1}}}, {"L": [{"S": "x", "N": "1"}]},
     {"L": [{}]}, {"X": 1}, "S", "N", ["S"], 5, None, {"B": 5}, {"NULL": False}, {"BOOL": 1.0}, {"N": True}]
)  # fmt: skip
items = st.dictionaries(st.sampled_from(NAMES), attributes, max_size=6)
strange_items = st.dictionaries(st.sampled_from(NAMES), scalars | malformed, max_size=6)

types = st.sampled_from(
    ["smallint", "integer", "bigint", "numeric", "numeric(8,2)", "numeric(3)", "numeric(2,2)", "double precision",
     "boolean", "text", "varchar(3)", "uuid", "date", "timestamptz", "bytea", "jsonb", "text[]", "numeric[]", "bytea[]",
     "double precision[]", "integer[]", "bigint[]"]
).map(parse_sql_type)  # fmt: skip
paths = st.one_of(
    st.sampled_from(NAMES).map(lambda name: (name,)),
    st.sampled_from(["a.b", "b.a.c", "c[0]", "a[1].b"]).map(parse_path),
)


@st.composite
def targets(draw: st.DrawFn) -> Target:
    key_types = sorted({name for names in KEY_TYPES.values() for name in names} - {"varchar"})
    key = Column(
        "key", "a", ("a",), draw(st.sampled_from([*key_types, "varchar(3)", "numeric(8,2)"]).map(parse_sql_type))
    )
    columns = [key]
    for number in range(draw(st.integers(0, 5))):
        path, sql_type = draw(paths), draw(types)
        columns.append(
            Column(
                f"c{number}",
                str(path),
                path,
                sql_type,
                default=draw(st.sampled_from([None, "x", "\\N", "a\tb"])),
                on_error=draw(st.sampled_from(list(OnError))),
                epoch=draw(st.sampled_from([None, "milliseconds"])),
                json=draw(st.sampled_from([None, "text", "parse"])),
            )
        )
    on_error = draw(st.sampled_from([OnError.REJECT, OnError.NULL]))
    return Target("public", "t", ("key",), tuple(columns), draw(st.sampled_from([None, "rest"])), on_error)


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def line_of(item: Any, *, ascii_only: bool = True) -> str:  # noqa: ANN401
    """A line as DynamoDB writes it: without spaces."""
    return json.dumps({"Item": item}, ensure_ascii=ascii_only, separators=(",", ":"))


def written(lines: list[str]) -> bytes:
    """In UTF-8. A lone surrogate, which UTF-8 does not have, becomes an escape.

    PostgreSQL refuses bytes that are not UTF-8 (tests/jobs/load/test_load.py).
    """
    text = "".join(line + "\n" for line in lines)
    return _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()


def outcome(target: Target, block: bytes, *, general: bool, after: bytes = b"") -> tuple[Any, ...]:
    """Rows sorted, failures as texts, changed values; or the error. The decoder first learns from `after`."""
    settled: Counter[str] = Counter()
    decoder = BlockDecoder(target, settled)
    if after:
        with suppress(TerminalError):
            decoder.decode(after, file="before")
        settled.clear()
    try:
        if general:
            rows, failures = decode_full(block, RowDecoder(target, settled), file="f", first_line=7)
            text, count = copy_text(rows) if rows else b"", len(rows)
        else:
            text, count, failures, _ = decoder.decode(block, file="f", first_line=7)
    except TerminalError as error:
        return ("error", str(error) if malformed_lines(target, block) == 1 else "")
    rows = sorted((read_row(target, line) for line in text.split(b"\n")[:-1]), key=repr)
    return rows, count, sorted((line, str(error)) for line, error in failures), dict(settled)


_COPY_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"'}


def read_row(target: Target, line: bytes) -> list[Any]:
    """Read a row as PostgreSQL would, so that different spellings of one value are equal."""
    fields = line.decode("utf-8", "surrogatepass").split("\t")
    types = [*(column.type.name for column in target.columns), *(["jsonb"] if target.unmapped else [])]
    return [read_field(sql_type, text) for sql_type, text in zip(types, fields, strict=True)]


def as_number(text: str) -> tuple[str, str]:
    """A number is compared by value, not by its text."""
    return "number", f"{Decimal(text):f}"


def read_field(sql_type: str, text: str) -> object:
    if text == r"\N":
        return None
    assert "\r" not in text
    text = re.sub(r"\\(.)", lambda escape: _COPY_ESCAPES[escape[1]], text)
    try:
        if sql_type == "jsonb":
            return sql_type, json.loads(text, parse_int=as_number, parse_float=as_number)
        if sql_type in {"numeric", "double precision"}:
            return f"{Decimal(text):f}"
        if sql_type in {"numeric[]", "double precision[]", "integer[]", "bigint[]"}:
            numbers = text[1:-1].replace('"', "").split(",")
            return [number if number in {"NULL", ""} else f"{Decimal(number):f}" for number in numbers]
        if sql_type == "timestamptz":
            return datetime.fromisoformat(text)
    except (InvalidOperation, ValueError):
        pass  # a default; this test does not check defaults
    return text


def malformed_lines(target: Target, block: bytes) -> int:
    count = 0
    for line in block.split(b"\n")[:-1]:
        try:
            decode_full(line + b"\n", RowDecoder(target), file="f")
        except TerminalError:
            count += 1
    return count


escapings = st.lists(st.booleans(), min_size=4, max_size=4)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(target=targets(), some=st.lists(items, max_size=4), ascii_only=escapings)
def test_the_fast_way_gives_what_the_general_way_gives(target: Target, some: list[Any], ascii_only: list[bool]) -> None:
    lines = [
        json.dumps({"Item": item}, ensure_ascii=ensure, separators=(",", ":"))
        for item, ensure in zip(some, ascii_only, strict=False)
    ]
    block = written(lines)
    assert outcome(target, block, general=False) == outcome(target, block, general=True)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    target=targets(),
    some=st.lists(strange_items, max_size=3),
    junk=st.sampled_from(
        [None, "", "{}", "[", '{"Item":5}', '{"Item":{}},{"Item":{}}', "5", '{"Item":{"a":{"S":"\\ud800"}}}']
    ),
)
def test_what_dynamodb_never_writes_is_refused_alike(target: Target, some: list[Any], junk: str | None) -> None:
    lines = [line_of(item) for item in some]
    block = written(lines if junk is None else [*lines, junk])
    assert outcome(target, block, general=False) == outcome(target, block, general=True)


LONG_KEYS = Target(
    "public",
    "Long",
    ("sk", "pk"),
    tuple(
        Column(name, name, (name,), SqlType(kind)) for name, kind in (("pk", "text"), ("x", "text"), ("sk", "bytea"))
    ),
    "attributes",
)


@given(
    st.sampled_from("aé€😀"),
    st.integers(1, 2048),
    st.integers(0, 1024),
    st.booleans(),
)
@example("a", 2048, 552, True)
@example("a", 2048, 553, True)
def test_keys_too_long_for_the_index_are_refused_alike(
    character: str, length: int, size: int, ascii_only: bool
) -> None:
    item = {"pk": {"S": character * length}, "sk": {"B": b64encode(bytes(size)).decode()}}
    block = written([line_of(item, ascii_only=ascii_only)])
    general = outcome(LONG_KEYS, block, general=True)
    assert outcome(LONG_KEYS, block, general=False) == general
    assert (general[1] == 1) == (len(character.encode()) * length + size <= 2600)


EMPLOYEES = Target(
    "public",
    "Employees",
    ("Id",),
    (
        Column("Id", "Id", ("Id",), SqlType("bigint")),
        Column("Name", "empName", ("empName",), SqlType("varchar", (20,)), default="NA"),
    ),
    "attributes",
)


@given(
    st.integers(0, 10**17),
    st.text(st.characters(exclude_characters='"\\', exclude_categories=["Cc", "Cs"]), max_size=20),
)
@example(0, "Zoë")
def test_most_lines_are_not_even_parsed(number: int, name: str) -> None:
    """Otherwise it would be right but slow."""
    decoder = BlockDecoder(EMPLOYEES)
    line = line_of({"Id": {"N": str(number)}, "empName": {"S": name}}, ascii_only=False)
    assert decoder.decode(written([line]), file="f")[:3] == (f"{number}\t{name}\t{{}}\n".encode(), 1, [])
    assert decoder.ways == Ways(unparsed=1)


def test_the_lines_that_each_way_serves_are_counted() -> None:
    decoder = BlockDecoder(EMPLOYEES)
    lines = [
        '{"Item":{"Id":{"N":"1"},"empName":{"S":"a\\tb\\\\"}}}',
        '{"Item":{"Id":{"N":"2"}}}',
        '{"Item": {"Id":{"N":"3"}}}',
        '{"Item":{"Id":{"N":"4"},"x":{"S":"of one line alone"}}}',
        '{"Item":{"Id":{"N":"5"},"empName":{"S":"a text that is too long"}}}',
    ]
    text, rows, failures, _ = decoder.decode(written(lines), file="f")
    assert sorted(text.splitlines()) == [
        rb"1" + b"\t" + rb"a\tb\\" + b"\t{}",
        b"2\tNA\t{}",
        b"3\tNA\t{}",
        b'4\tNA\t{"x":"of one line alone"}',
    ]
    assert (rows, len(failures)) == (4, 1)
    assert decoder.ways == Ways(unparsed=2, parsed=2, general=1)


def test_a_target_whose_rows_carry_child_rows_is_counted_as_parsed() -> None:
    place = Column("n", "n", (), SqlType("integer"))
    columns = (EMPLOYEES.columns[0], place)
    child = Target("public", "c", ("Id", "n"), columns, parent="public.Employees", explode=("list",))
    decoder = BlockDecoder(replace(EMPLOYEES, children=(child,)))
    decoder.decode(written(['{"Item":{"Id":{"N":"1"}}}'] * 3), file="f")
    assert decoder.ways == Ways(parsed=3)


@pytest.mark.parametrize("name", ["'", '"', "\\", "}", "{0}", "a\nb"])
def test_no_attribute_name_gets_out_of_the_source(name: str) -> None:
    column = Column("Id", name, (name,), SqlType("text"), default="'''\\\n")
    target = Target("public", name, ("key",), (Column("key", "k", ("k",), SqlType("text")), column), "rest")
    block = written([json.dumps({"Item": {"k": {"S": "x"}, name: {"S": "v"}}}), '{"Item":{"k":{"S":"y"}}}'])
    assert outcome(target, block, general=False) == outcome(target, block, general=True)
