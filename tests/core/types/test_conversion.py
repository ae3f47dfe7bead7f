"""The codec at its limits: numbers, times, JSON strings, paths, and the values that a policy changes."""

from __future__ import annotations

import json
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import ConversionError
from pipeline.core.model.attributes import UnrepresentableError, canonical_number, find, number, parse_path, to_json
from pipeline.core.model.mapping import Column, OnError
from pipeline.core.types.arrays import array_literal
from pipeline.core.types.conversion import converter, unmapped_json
from pipeline.core.types.json_text import DEEPEST_JSON, checked_json
from pipeline.core.types.sql_types import TYPES, SqlType


def convert(sql_type: str, attribute: Any, **options: Any) -> str | None:  # noqa: ANN401 - attribute values
    params = options.pop("params", ())
    return converter(Column("c", "c", ("c",), SqlType(sql_type, params), **options))(attribute)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("1E+125", "1" + "0" * 125),
        ("1E-130", "0." + "0" * 129 + "1"),
        ("-9.9E+2", "-990"),
        ("+5", "5"),
        (".5", "0.5"),
        ("5.", "5"),
        ("007", "7"),
        ("12345678901234567890123456789012345678", "12345678901234567890123456789012345678"),
        ("1e131071", "1" + "0" * 131_071),
        ("1e-16383", "0." + "0" * 16_382 + "1"),
    ],
)
def test_numbers_are_written_plainly_with_every_digit(text: str, plain: str) -> None:
    assert number(text) == plain
    assert Decimal(number(text)) == Decimal(text)


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "1\n", "1_000", "nan", "Infinity", "٣", "0x1F", "1e", "--1", "1,5", "½"]
)
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UnrepresentableError, match="is not a number"):
        number(text)


@pytest.mark.parametrize("text", ["1e131072", "1e-16384", "1e999999", "9" * 131_073, "0." + "1" * 16_384])
def test_numbers_beyond_numeric_are_refused_before_they_are_written_out(text: str) -> None:
    with pytest.raises(UnrepresentableError, match="has more digits than numeric can hold"):
        number(text)


def test_equal_keys_are_equal_texts() -> None:
    assert {canonical_number(text) for text in ("1.50", "1.5", "15E-1", "+1.500")} == {"1.5"}
    assert {canonical_number(text) for text in ("0", "-0", "0.00", "-0.0", "0E+5")} == {"0"}


@given(st.integers(-62_000_000_000_000_000, 253_000_000_000_000_000))
def test_an_epoch_time_is_exact_to_the_microsecond(micros: int) -> None:
    in_seconds, in_milliseconds = f"{Decimal(micros).scaleb(-6):f}", f"{Decimal(micros).scaleb(-3):f}"
    assert convert("timestamptz", {"N": in_seconds}) == convert(
        "timestamptz", {"N": in_milliseconds}, epoch="milliseconds"
    )


@pytest.mark.parametrize(
    "text",
    [
        "1.00000000000000000000000000000001",  # 33 digits: arithmetic with 28 would take it for a whole second
        "0.0000001",
        "1E-130",
    ],
)
def test_an_epoch_time_finer_than_a_microsecond_is_refused(text: str) -> None:
    with pytest.raises(ConversionError, match="finer than a microsecond"):
        convert("timestamptz", {"N": text})


@pytest.mark.parametrize("text", ["253402300800", "1E+125", "-62135596801", "1" + "0" * 5000])
def test_an_epoch_time_beyond_the_year_9999_is_refused(text: str) -> None:
    with pytest.raises(ConversionError, match="in the years 1 to 9999"):
        convert("timestamptz", {"N": text})


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31T12:00Z", "2026-01-31T12:00:00+00:00"),
        ("2026-01-31 12:00:00+05:30", "2026-01-31T06:30:00+00:00"),
        ("2026-01-31T12:00:00-0800", "2026-01-31T20:00:00+00:00"),
        ("2026-01-31T12:00:00+02", "2026-01-31T10:00:00+00:00"),
        ("2026-01-31T12:00:00.123456000Z", "2026-01-31T12:00:00.123456+00:00"),
    ],
)
def test_times_with_their_offset(text: str, moment: str) -> None:
    assert convert("timestamptz", {"S": text}) == moment


@pytest.mark.parametrize(
    "text",
    ["2026-01-31T24:00:00Z", "2026-01-31T12:00:60Z", "2026-01-31", "2026-01-31T12:00:00", "0001-01-01T00:00:00+01:00",
     "2026-02-29T12:00:00Z", "2026-01-31T12:00:00.0000001Z", "20260131T120000Z", "2026-W05-6T12:00:00Z", "now"],
)  # fmt: skip
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(ConversionError, match="is not a time with an offset"):
        convert("timestamptz", {"S": text})


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
)


@given(JSON_VALUES, st.booleans())
def test_json_is_sent_as_it_was_written(value: Any, ascii_only: bool) -> None:  # noqa: ANN401 - JSON
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert convert("jsonb", {"S": text}, json="parse") == text
    assert convert("jsonb", {"S": text}) == to_json({"S": text})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("NaN", "is not JSON"),
        ("[-Infinity]", "is not JSON"),
        ("'a'", "is not JSON"),
        ('"\t"', "is not JSON"),
        ('{"a": 1} x', "is not JSON"),
        ("\ufeff1", "is not JSON"),
        ("1e999999", "more digits than numeric"),
        (r'["\u0000"]', "U+0000"),
        (r'{"\u0000": 1}', "U+0000"),
        (r'{"a": "\ud800"}', "lone surrogate"),
        (r'{"a": "\u0000", "a": "hidden by this one"}', "U+0000"),
        ("[" * (DEEPEST_JSON + 2) + "]" * (DEEPEST_JSON + 2), "nested deeper"),
        ("[" * 100_000, "nested deeper"),
    ],
)
def test_strings_that_jsonb_would_refuse_are_refused_here(text: str, reason: str) -> None:
    with pytest.raises(UnrepresentableError) as raised:
        checked_json(text)
    assert reason in str(raised.value)


def test_json_as_deep_as_it_may_be() -> None:
    text = "[" * DEEPEST_JSON + "]" * DEEPEST_JSON
    assert checked_json(text) == text


ITEM: Any = {
    "address": {"M": {"city": {"S": "Kumasi"}, "none": {"NULL": True}}},
    "lines": {"L": [{"M": {"sku": {"S": "a"}}}, {"M": {"a.b": {"L": [{"N": "1"}, {"N": "2"}]}}}]},
    "a.b": {"S": "dotted"},
    'say "x"': {"S": "quoted"},
    "name": {"S": "text"},
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("address.city", {"S": "Kumasi"}),
        ("address.none", {"NULL": True}),
        ("address.absent", None),
        ("address.city.deeper", None),
        ("address[0]", None),
        ("lines[0].sku", {"S": "a"}),
        ('lines[1]."a.b"[1]', {"N": "2"}),
        ("lines[2].sku", None),
        ("lines.sku", None),
        ('"a.b"', {"S": "dotted"}),
        (r'"say \"x\""', {"S": "quoted"}),
        ("name", {"S": "text"}),
        ("absent.name", None),
        ("name[0]", None),
    ],
)
def test_paths_reach_into_maps_and_lists(path: str, found: object) -> None:
    assert find(ITEM, parse_path(path)) == found


@pytest.mark.parametrize("path", ["", ".a", "a.", "a..b", "[0]", "a[x]", "a[-1]", "a[0", 'a."b', "a]"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is not an attribute path"):
        parse_path(path)


@pytest.mark.parametrize("name", TYPES)
def test_null_is_null_in_every_type_and_missing_is_the_default(name: str) -> None:
    params = (3,) if name == "varchar" else ()
    assert convert(name, {"NULL": True}, params=params, default="d") == ("null" if name == "jsonb" else None)
    assert convert(name, None, params=params, default="d") == "d"
    assert convert(name, None, params=params) is None


@pytest.mark.parametrize("name", TYPES)
def test_every_type_refuses_what_is_not_for_it_and_settles_it_under_null(name: str) -> None:
    params = (3,) if name == "varchar" else ()
    for tag in {"S", "N", "B", "BOOL", "SS", "NS", "BS", "L", "M"} - TYPES[name].tags:
        with pytest.raises(ConversionError, match=f"and the attribute is of type {tag}"):
            convert(name, {tag: "secret"}, params=params)
        settled: Counter[str] = Counter()
        column = Column("c", "c", ("c",), SqlType(name, params), on_error=OnError.NULL)
        assert converter(column, settled=settled)({tag: "x"}) is None
        assert settled == {"c": 1}


def test_unmapped_attributes_that_cannot_be_held() -> None:
    rest: Any = {
        "good": {"N": "1.50"},
        "bad": {"L": [{"S": "\x00"}]},
        "n\x00": {"S": "x"},
        "s": {"M": {"\ud800": {"N": "1"}}},
    }
    with pytest.raises(ConversionError, match="an attribute that is not mapped contains"):
        unmapped_json(rest, "rest")
    settled: Counter[str] = Counter()
    assert unmapped_json(rest, "rest", OnError.NULL, settled) == '{"good":1.50,"bad":null,"s":null}'
    assert settled == {"rest": 1}


def test_two_uuid_keys_that_differ_in_case_never_become_one() -> None:
    column = Column("c", "c", ("c",), SqlType("uuid"))
    lower = "0f8fad5b-d9cb-469f-a165-70867728950e"
    key, value = converter(column, is_key=True), converter(column)
    assert key({"S": lower}) == value({"S": lower.upper()}) == lower
    with pytest.raises(ConversionError, match="is a UUID in upper case"):
        key({"S": lower.upper()})


@pytest.mark.parametrize(
    ("unit", "text", "time"),
    [
        ("seconds", "1767225600", "2026-01-01T00:00:00+00:00"),
        ("seconds", "1767225600.5", "2026-01-01T00:00:00.500000+00:00"),
        ("milliseconds", "1767225600123", "2026-01-01T00:00:00.123000+00:00"),
        ("milliseconds", "-1", "1969-12-31T23:59:59.999000+00:00"),
    ],
)
def test_epoch_times_are_read_in_their_unit(unit: str, text: str, time: str) -> None:
    assert convert("timestamptz", {"N": text}, epoch=unit) == time


@pytest.mark.parametrize(("one", "other"), [("1.50", "1.5"), ("-0", "0"), ("1E+2", "100")])
def test_equal_number_keys_are_equal_texts(one: str, other: str) -> None:
    key = converter(Column("c", "c", ("c",), SqlType("numeric")), is_key=True)
    assert key({"N": one}) == key({"N": other})


@pytest.mark.parametrize(("sql_type", "bits"), [("smallint", 15), ("integer", 31), ("bigint", 63)])
@given(data=st.data())
def test_an_integer_column_takes_what_its_range_holds_and_nothing_else(
    sql_type: str, bits: int, data: st.DataObject
) -> None:
    edges = [sign * (2**bits + off) for sign in (1, -1) for off in (-1, 0, 1)] + [10**n for n in range(21)]
    value = data.draw(st.sampled_from(edges) | st.integers(-(2 ** (bits + 1)), 2 ** (bits + 1)))
    if -(2**bits) <= value < 2**bits:
        assert convert(sql_type, {"N": str(value)}) == str(value)
    else:
        with pytest.raises(ConversionError, match="out of the range"):
            convert(sql_type, {"N": str(value)})


@given(st.lists(st.text(st.sampled_from('a,"\\{} \x00é')), min_size=1))
def test_an_array_literal_quotes_each_element_by_itself(values: list[str]) -> None:
    quoted = ["".join("\\" + c if c in '"\\' else c for c in value) for value in values]
    assert array_literal(values) == "{" + ",".join(f'"{value}"' for value in quoted) + "}"
