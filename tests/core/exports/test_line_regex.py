"""Lines read without parsing against the general path: hostile texts and names, every type, nearly correct lines."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.core.exports.fast import line_reader
from pipeline.core.exports.fast.block_decode import BlockDecoder
from pipeline.core.exports.fast.line_reader import MOST_NAMES, PIECE_BYTES, LineReader, Reading
from pipeline.core.exports.fast.line_regex import LineRegex
from pipeline.core.exports.fast.line_template import template_of
from pipeline.core.model.attributes import parse_path
from pipeline.core.model.mapping import Column, OnError, Target
from pipeline.core.types.sql_types import parse_sql_type
from tests.core.exports.test_block_decode import line_of, outcome, read_row, written

# Names that are type tags, or that would end a text, a pattern or an object if they were not escaped.
NAMES = ("S", "N", "M", "L", "SS", "BOOL", "NULL", "a.b", 'q"', "b\\", "}}", "]}", '{"M":{', "ü", "(", "t\tb", "Item")
PIECES = ('"', "\\", "/", "{", "}", "[", "]", ",", ":", "}}", "]}", '"}', '{"S":"', '{"N":"1"}', "\n", "\t", "\r", "\b",
          "\f", "\x00", "\x01", "\x02", "\x03", "\x04", "\x1f", "\x7f", "\\u0041", "\\n", "\\N", "é", "日本", "😀",
          "\ud83d", "\ude00", "\u2028", "a", "NULL", "%s", "")  # fmt: skip

texts = st.lists(st.sampled_from(PIECES), max_size=4).map("".join) | st.text(max_size=5)
plain_texts = st.sampled_from(["", "a", "Zoë", "😀😀", "100%", "{x}", "}", "[,]", "name: value", "\x7f", "a}}", "]}"])
numbers = st.sampled_from(
    ["0", "-0", "1", "-17", "12.50", "1E+5", "-1.2E-7", "1e100", "32767", "29999", "2147483647", "1999999999",
     "8999999999999999999", "9223372036854775807", "9223372036854775808", "9" * 38, "0." + "1" * 38, "007", "1E1000"]
)  # fmt: skip
binaries = st.binary(max_size=7).map(lambda value: b64encode(value).decode())
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "S": plain_texts | texts,
    "N": numbers,
    "B": binaries,
    "BOOL": st.booleans(),
    "NULL": st.just(True),
    "SS": st.lists(plain_texts | texts, min_size=1, max_size=4),
    "NS": st.lists(numbers, min_size=1, max_size=4),
    "BS": st.lists(binaries, min_size=1, max_size=3),
}
names = st.sampled_from(NAMES)
scalars = st.one_of([values.map(lambda value, tag=tag: {tag: value}) for tag, values in SCALARS.items()])
nested: st.SearchStrategy[dict[str, Any]] = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda value: {"L": value})
        | st.dictionaries(names, inner, max_size=3).map(lambda value: {"M": value})
    ),
    max_leaves=8,
)
TYPES = {
    "S": ["text", "varchar(3)", "varchar(40)", "jsonb", "uuid", "date", "timestamptz"],
    "N": ["smallint", "integer", "bigint", "numeric", "numeric(4,2)", "double precision", "timestamptz", "jsonb"],
    "B": ["bytea", "jsonb"],
    "BOOL": ["boolean", "jsonb"],
    "NULL": ["text", "bigint", "jsonb", "text[]"],
    "SS": ["text[]", "jsonb"],
    "NS": ["numeric[]", "jsonb"],
    "BS": ["bytea[]", "jsonb"],
    "M": ["jsonb"],
}
SPECIAL = st.sampled_from(
    ["2026-01-31", "2026-02-29", "2024-02-29", "0000-01-01", "2026-01-31T23:59:59Z", "2026-01-31T24:00:00Z",
     "2026-04-31T00:00:00Z", "2026-01-31T12:00:00.123Z", "2026-01-31T12:00:00.1234567Z", "2026-01-31 12:00:00+02",
     "0f8fad5b-d9cb-469f-a165-70867728950e", "0F8FAD5B-D9CB-469F-A165-70867728950E"]
)  # fmt: skip


def values_of(tag: str) -> st.SearchStrategy[dict[str, Any]]:
    if tag == "M":
        return nested
    return (SCALARS[tag] | SPECIAL if tag == "S" else SCALARS[tag]).map(lambda value: {tag: value})


@st.composite
def typed_lines(draw: st.DrawFn) -> tuple[Target, list[str]]:
    """A target, and lines of items that mostly fit its columns, each with its attributes in any order."""
    tags = {name: draw(st.sampled_from(sorted(TYPES))) for name in draw(st.lists(names, unique=True, max_size=5))}
    columns = [Column("key", "key", ("key",), parse_sql_type(draw(st.sampled_from(["text", "varchar(9)"]))))]
    for number, (name, tag) in enumerate(tags.items()):
        if draw(st.integers(0, 3)):
            columns.append(
                Column(
                    f"c{number}",
                    name,
                    (name,) if draw(st.integers(0, 7)) else (name, *parse_path("S.N")),
                    parse_sql_type(draw(st.sampled_from(TYPES[tag]))),
                    default=draw(st.sampled_from([None, None, "x\t%", "\x01"])),
                    on_error=draw(st.sampled_from([OnError.REJECT, OnError.NULL])),
                    epoch=draw(st.sampled_from([None, "seconds"])),
                    json=draw(st.sampled_from([None, "parse"])),
                )
            )
    if len(columns) > 1 and draw(st.integers(0, 9)) == 0:  # one attribute, two columns
        columns.append(Column("again", columns[1].attribute, columns[1].path[:1], parse_sql_type("jsonb")))
    target = Target("public", "t", ("key",), tuple(draw(st.permutations(columns))), draw(st.sampled_from([None, "r"])))
    lines: list[str] = []
    for number in range(draw(st.integers(1, 5))):
        item: dict[str, Any] = {"key": {"S": f"k{number}"}}
        for name, tag in tags.items():
            kind = draw(st.integers(0, 11))
            if kind:
                item[name] = {"NULL": True} if kind == 1 else draw(values_of(tag) if kind > 2 else nested)
        order = draw(st.permutations(list(item)))
        lines.append(line_of({name: item[name] for name in order}, ascii_only=draw(st.booleans())))
    return target, lines


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=150)
@given(typed_lines())
def test_lines_read_unparsed_give_what_the_general_way_gives(made: tuple[Target, list[str]]) -> None:
    target, lines = made
    block = written(lines)
    assert outcome(target, block, general=False) == outcome(target, block, general=True)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=150)
@given(typed_lines())
def test_what_was_learnt_from_other_lines_changes_no_row(made: tuple[Target, list[str]]) -> None:
    """The first line's documents fill the learnt template; the others mostly do not."""
    target, lines = made
    block = written([*lines, *lines[::-1]])
    assert outcome(target, block, general=False, after=written(lines[:1])) == outcome(target, block, general=True)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=100)
@given(
    typed_lines(),
    st.integers(0, 10_000),
    st.sampled_from(
        ['"', "\\", "{", "}", "[", "]", ",", ":", "\t", "\r", "\x01", "\x03", "N", "\n", '"}', '{"S":"x"}', " "]
    ),
    st.booleans(),
    st.booleans(),
)
def test_a_damaged_line_is_refused_alike(
    made: tuple[Target, list[str]], place: int, junk: str, insert: bool, learnt: bool
) -> None:
    """One character added or replaced, anywhere: no path accepts what another refuses."""
    target, lines = made
    after = written(lines[:1]) if learnt else b""
    text = lines[0]
    place %= len(text) + 1
    lines[0] = text[:place] + junk + text[place + (not insert) :]
    block = written(lines)
    assert outcome(target, block, general=False, after=after) == outcome(target, block, general=True)


def column(name: str, sql_type: str, **more: Any) -> Column:  # noqa: ANN401 - Column's own
    return Column(name, name, (name,), parse_sql_type(sql_type), **more)


EVERY_TYPE = Target(
    "public",
    "t",
    ("pk",),
    (
        column("pk", "text"),
        column("name", "varchar(6)", default="NA"),
        column("at", "timestamptz"),
        column("day", "date"),
        column("id", "uuid"),
        column("n", "bigint"),
        column("exact", "numeric"),
        column("on", "boolean"),
        column("bytes", "bytea"),
        column("tags", "text[]"),
        column("sizes", "numeric[]"),
        column("list", "jsonb"),
        column("map", "jsonb"),
        column("none", "text"),
    ),
    "rest",
)
ITEM: dict[str, Any] = {
    "pk": {"S": "k"},
    "name": {"S": "Мария"},
    "at": {"S": "2026-01-31T12:00:00.123Z"},
    "day": {"S": "2026-12-31"},
    "id": {"S": "0f8fad5b-d9cb-469f-a165-70867728950e"},
    "n": {"N": "-4611686018427387904"},
    "exact": {"N": "1.5E-30"},
    "on": {"BOOL": False},
    "bytes": {"B": "AAECAwQ="},
    "tags": {"SS": ["b", "a", "b}", "é"]},
    "sizes": {"NS": ["10", "-2.5", "1E3", "12345678901234567890.1"]},
    "list": {"L": [{"S": "x"}, {"N": "1.50"}, {"BOOL": True}, {"NULL": True}, {"L": []}, {"M": {}}, {"B": "AA=="}]},
    "map": {"M": {"S": {"B": "AA=="}, "L": {"SS": ["z", "y"]}, "M": {"M": {"N": {"N": "7"}}}, "B": {"S": "t"}}},
    "none": {"NULL": True},
    "x": {"NS": ["2", "1"]},
    "y": {"M": {"deep": {"L": [{"L": [{"M": {"er": {"S": ""}}}]}]}}},
}


def without_parsing(target: Target) -> BlockDecoder:
    decoder = BlockDecoder(target)
    decoder._written = decoder.rows = None  # type: ignore[assignment]  # all other paths
    return decoder


@settings(deadline=None)
@given(st.permutations(list(ITEM)), st.sets(st.sampled_from([name for name in ITEM if name != "pk"])), st.booleans())
@example(list(ITEM), set(), True)
def test_items_of_every_type_are_never_parsed(order: list[str], absent: set[str], ascii_only: bool) -> None:
    """In any order, with any of them missing, escaped or not: otherwise it would be right but slow."""
    item = {name: ITEM[name] for name in order if name not in absent}
    item["esc"] = {"S": 'a "quote", a \\, a /, a line\nand a\ttab'}
    block = written([line_of(item, ascii_only=ascii_only)] * 3)
    text, rows, failures, _ = without_parsing(EVERY_TYPE).decode(block, file="f")
    assert (rows, failures) == (3, [])
    general = outcome(EVERY_TYPE, block, general=True)[0]
    assert [read_row(EVERY_TYPE, line) for line in text.splitlines()] == general


@pytest.mark.parametrize("text", ["a}}b", "]}", "{{name}}", "[[1],[2]]}", "}}}}", "]}}}"])
def test_texts_with_brackets_in_nested_values_are_told_from_brackets(text: str) -> None:
    item: dict[str, Any] = {
        "pk": {"S": "k"},
        "map": {"M": {text: {"L": [{"S": text}, {"SS": [text, "a"]}]}, "x": {"M": {}}}},
    }
    block = written([line_of(item), line_of({"pk": {"S": "l"}}), line_of({"pk": {"S": "m"}, "map": {"M": {}}})])
    decoded = without_parsing(EVERY_TYPE).decode(block, file="f")
    assert decoded.rows == 3
    assert outcome(EVERY_TYPE, block, general=False) == outcome(EVERY_TYPE, block, general=True)


@pytest.mark.parametrize(
    "line",
    ['{"Item":{"pk":{"S":"k"},"pk":{"S":"l"}}}', '{"Item":{"pk":{"S":"k"},"name":{"S":"a"},"name":{"NULL":true}}}',
     '{"Item":{"pk":{"S":"k"},"none":{"NULL":true},"none":{"S":"a"}}}',
     '{"Item":{"pk":{"S":"k"},"x":{"N":"1"},"x":{"N":"2"}}}',
     '{"Item":{"pk":{"S":"k"},"map":{"M":{"a":{"S":"x"},"a":{"N":"2"}}}}}', '{"Item":{"p\\u006b":{"S":"\\u006b\\/"}}}',
     '{"Item":{"pk":{"S":"k"},"name":{"NULL":true},"name":{"S":"a"}}}'],
)  # fmt: skip
def test_names_that_stand_twice_or_are_spelt_otherwise(line: str) -> None:
    block = written([line])
    assert outcome(EVERY_TYPE, block, general=False) == outcome(EVERY_TYPE, block, general=True)


@pytest.mark.parametrize(
    "value",
    ['{"L":[{"S":"a"},]}', '{"L":[{"S":"a"}{"S":"b"}]}', '{"L":[,{"S":"a"}]}', '{"M":{{"S":"x"}}}',
     '{"L":["a":{"S":"x"}]}',
     '{"M":{"a":{"S":"x"},}}', '{"M":{"a":{"S":"x"}"b":{"S":"y"}}}', '{"L":[{"S":"a"}}}', '{"M":{"a":{"S":"x"}]}',
     '{"M":{"a":{"S":"x","N":"1"}}}', '{"M":{"a":"x"}}', '{"M":{"a":{"N":"1."}}}', '{"L":[{"N":"-"}]}',
     '{"M":{"a":{"N":"true"}}}', '{"L":[{"N":"1,2"},{"N":""}]}', '{"M":{"a":{"N":"1"},"b":{"N":"{}"}}}',
     '{"NS":["1" ]}'],
)  # fmt: skip
def test_nested_values_that_are_not_of_the_form_are_refused_alike(value: str) -> None:
    block = written([line_of(ITEM), f'{{"Item":{{"pk":{{"S":"k"}},"map":{value}}}}}', line_of(ITEM)])
    assert outcome(EVERY_TYPE, block, general=False) == outcome(EVERY_TYPE, block, general=True)


def test_what_is_nested_too_deep_is_converted_all_the_same() -> None:
    value: dict[str, Any] = {"S": "deep"}
    for _ in range(31):
        value = {"L": [value]}
    block = written([line_of({"pk": {"S": "k"}, "list": value})])
    assert outcome(EVERY_TYPE, block, general=False) == outcome(EVERY_TYPE, block, general=True)


def test_an_empty_text_is_never_taken_for_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_reader, "PIECE_BYTES", 1)  # a piece a line
    kinds: dict[str, dict[str, Any]] = {
        "full": ITEM,
        "empty": {**ITEM, "name": {"S": ""}, "map": {"M": {"a": {"S": ""}}}, "x": {"S": ""}, "tags": {"SS": ["", "a"]}},
        "missing": {"pk": {"S": "k"}},
    }
    order = [*["full"] * 2, *["empty", "missing"] * 3, *["empty"] * 4, *["missing", "full"] * 2]
    lines = [line_of({**kinds[kind], "pk": {"S": str(n)}}, ascii_only=False) for n, kind in enumerate(order)]
    block = written(lines)
    reading = LineReader(EVERY_TYPE).read(block)
    # The names of attributes that no column takes are learnt from two lines.
    assert (reading.rows, reading.others) == (len(order) - 1, block.splitlines()[:1])
    assert outcome(EVERY_TYPE, block, general=False) == outcome(EVERY_TYPE, block, general=True)


def test_a_refused_value_hands_back_its_line_alone() -> None:
    lines = [line_of({**ITEM, "pk": {"S": str(n)}, "bytes": {"B": "A=" if n == 5 else "AAAA"}}) for n in range(9)]
    reading = LineReader(EVERY_TYPE).read(written(lines))
    assert (reading.rows, reading.others) == (8, [lines[5].encode()])


def test_a_table_that_gives_no_lines_to_read_is_given_up() -> None:
    reader = LineReader(EVERY_TYPE)
    useless = written([line_of({"pk": {"N": "1"}})])
    for _ in range(3):
        assert reader.read(useless).rows == 0
    assert reader.read(written([line_of(ITEM)])) == Reading()


def test_only_so_many_names_are_learnt() -> None:
    reader = LineReader(EVERY_TYPE)
    lines = [line_of({"pk": {"S": "k"}, f"name {n // 2}": {"S": "x"}}) for n in range(2 * MOST_NAMES + 20)]
    read = 0
    for _ in range(5):
        reading = reader.read(written(lines))
        read = reading.rows
        assert read + len(reading.others) == len(lines)
    assert read == 2 * MOST_NAMES


def test_a_name_that_one_line_has_alone_is_not_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each such name would add an alternative, and the expression would be compiled again."""
    reader = LineReader(EVERY_TYPE)
    reader.read(written([line_of({"pk": {"S": "k"}})]))
    monkeypatch.setattr(LineRegex, "__init__", None)
    lines = [line_of({"pk": {"S": "k"}, **({f"name {n}": {"S": "x"}} if n % 5 == 0 else {})}) for n in range(100)]
    reading = reader.read(written(lines))
    assert (reading.rows, len(reading.others)) == (80, 20)


def test_elements_of_a_map_and_of_a_list_that_a_column_reads_too_have_no_expression() -> None:
    pk = column("pk", "text")
    for attribute, kind in (("map", "text"), ("pk", "integer")):
        place = column("n", kind)
        child = Target("public", "c", ("pk", "n"), (pk, place), parent="public.t", explode=(attribute,))
        with pytest.raises(ValueError, match="elements that need"):
            LineRegex(Target("public", "t", ("pk",), (pk,), children=(child,)), {})


SIMPLE = Target(
    "public",
    "t",
    ("Id",),
    (column("Name", "varchar(5)"), column("Id", "bigint"), column("On", "boolean", default="f")),
    "rest",
)
SIMPLE_LINE = '{"Item":{"Id":{"N":"%d"},"Name":{"S":"Zoë"},"On":{"BOOL":true}}}'


def test_a_template_reads_the_lines_that_fill_it_and_hands_back_the_others() -> None:
    template = template_of((SIMPLE_LINE % 1).encode(), SIMPLE)
    assert template is not None
    other = '{"Item":{"Id":{"N":"3"},"Name":{"S":"longer than 5"},"On":{"BOOL":true}}}'
    found = template.read(written([SIMPLE_LINE % 1, other, SIMPLE_LINE % 2]))
    assert found == ("Zoë\t1\tt\t{}\nZoë\t2\tt\t{}\n".encode(), 2, written([other]))
    assert template.read(written([other])) == (b"", 0, written([other]))


@pytest.mark.parametrize(
    "line",
    ['{"Item":{"Id":{"N":"1"},"Name":{"S":"a"}}}',
     '{"Item":{"Id":{"N":"1"},"Name":{"S":"a"},"On":{"BOOL":true},"x":{"S":""}}}',
     '{"Item":[]}', "5", "{", '{"Item":5}'],
)  # fmt: skip
def test_what_fills_no_template(line: str) -> None:
    assert template_of(line.encode(), SIMPLE) is None


def test_lines_that_fill_a_template_are_read_by_it_empty_texts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = without_parsing(SIMPLE)
    assert decoder._reader is not None  # pyright: ignore[reportPrivateUsage]
    decoder._reader._marks_empties = True  # pyright: ignore[reportPrivateUsage]  # as where many lines have one
    monkeypatch.setattr(LineReader, "_read_lines", nothing)
    lines = [(SIMPLE_LINE % number).replace("Zoë", "" if number % 3 == 0 else "Zoë") for number in range(5000)]
    text, rows, failures, _ = decoder.decode(written(lines), file="f")
    assert len(lines[0]) * len(lines) > 2 * PIECE_BYTES
    assert text.decode().splitlines() == [f"{'Zoë' if n % 3 else ''}\t{n}\tt\t{{}}" for n in range(5000)]
    assert (rows, failures) == (len(lines), [])


def nothing(_: LineReader, piece: bytes, *_others: object, escaped: bool) -> list[bytes]:
    assert (piece, escaped) == (b"", False)
    return []


def test_a_line_end_within_a_text_is_no_match_of_two_lines() -> None:
    torn = (SIMPLE_LINE % 1).replace("Zoë", "Z\noë")
    for lines in ([torn], [torn, SIMPLE_LINE % 2], [SIMPLE_LINE % 2, torn, SIMPLE_LINE % 3]):
        block = written(lines)
        assert outcome(SIMPLE, block, general=False) == outcome(SIMPLE, block, general=True)


def test_an_expression_is_soon_made() -> None:
    """A hundred names, all nested, are alternatives in one expression of bounded size."""
    target = Target("public", "t", ("pk",), (column("pk", "text"),), "rest")
    regex = LineRegex(target, {f"attribute {n}": True for n in range(MOST_NAMES)})
    item = {"pk": {"S": "k"}, "attribute 99": {"M": {"x": {"S": "y"}}}}
    found = regex.find_all(written([line_of(item)]))
    assert json.loads(regex.write(found, escaped=False)[0].split(b"\t")[1]) == {"attribute 99": {"x": "y"}}
