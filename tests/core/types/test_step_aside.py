"""A column option or type that fast decoding does not know: every path honours it, or takes the general path."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest

from pipeline.core.decode.row_code import WrittenDecoder
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.exports.export_lines import decode_full, decode_incremental
from pipeline.core.exports.fast.block_decode import BlockDecoder
from pipeline.core.exports.fast.line_reader import LineReader
from pipeline.core.exports.fast.line_regex import LineRegex
from pipeline.core.exports.fast.line_template import template_of
from pipeline.core.model.attributes import UnrepresentableError
from pipeline.core.model.mapping import Column, TableMapping, Target
from pipeline.core.ordering import Position
from pipeline.core.streams.stream_records import StreamDecoder
from pipeline.core.types.codec import Codec, Use
from pipeline.core.types.copy_text import copy_text
from pipeline.core.types.sql_types import TYPES, SqlType
from tests.core.exports.test_block_decode import line_of, read_row, written
from tests.type_table import TAGS


@dataclass(frozen=True, slots=True)
class MarkedColumn(Column):
    """A column with an unknown option: its texts begin with a mark."""

    mark: str | None = None


@dataclass(frozen=True, slots=True)
class AuditedTarget(Target):
    """A target with an unknown option."""

    audited: bool = False


def marking(codec: Codec) -> Codec:
    """The codec, with a conversion that honours the option; its statement about fast decoding is unchanged."""

    def convert(use: Use) -> Callable[[Any], str]:
        value_of, mark = codec.convert(use), getattr(use.column, "mark", None) or ""
        return lambda value: mark + value_of(value)

    return replace(codec, convert=convert)


def address(value: str) -> str:
    try:
        return str(ip_address(value.replace("localhost", "127.0.0.1")))
    except ValueError:
        raise UnrepresentableError("is not an address") from None


INET = Codec(name="inet", tags=frozenset({"S"}), convert=lambda _: address)
"""An unknown type, which says nothing about fast decoding."""


@pytest.fixture
def tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry of types, with the unknown type in it."""
    for name, codec in TYPES.items():
        monkeypatch.setitem(TYPES, name, marking(codec))
    monkeypatch.setitem(TYPES, "inet", INET)


DOCUMENT = Column("map", "map", ("map",), SqlType("jsonb"))
VALUES = {
    "numeric": {"N": "1.50"},
    "uuid": {"S": "0f8fad5b-d9cb-469f-a165-70867728950e"},
    "date": {"S": "2026-12-31"},
    "timestamptz": {"S": "2026-01-31T12:00:00Z"},
    "jsonb": {"M": {"a": {"S": "x"}, "b": {"N": "1"}}},
    "text[]": {"L": [{"S": "b"}, {"NULL": True}, {"S": "a"}]},
    "bytea[]": {"L": [{"B": "AP8="}]},
    **{f"{name}[]": {"L": [{"N": "2"}, {"N": "1"}]} for name in ("numeric", "double precision", "integer", "bigint")},
}


def target_of(column: Column, *others: Column, unmapped: str | None = None) -> Target:
    return Target("public", "t", ("pk",), (Column("pk", "pk", ("pk",), SqlType("text")), column, *others), unmapped)


def every_way(target: Target, item: dict[str, Any], key: str = "pk") -> dict[str, list[Any]]:
    """The row of an item by each path of decoding, as PostgreSQL would read it."""
    decoder = RowDecoder(target)
    line = line_of(item, ascii_only=False)
    block = written([line] * 3)
    window = json.dumps({"Keys": {key: item[key]}, "NewImage": item}).encode() + b"\n"
    dynamodb = {
        "ApproximateCreationDateTime": 1_717_200_418,
        "Keys": {key: item[key]},
        "NewImage": item,
        "SequenceNumber": str(10**21),
    }
    stream = StreamDecoder(TableMapping("t", "t", {key: "S"}, (target,)))
    batch = stream.decode([{"eventName": "MODIFY", "dynamodb": dynamodb}], "2024-06-01T00:00:00.000")  # type: ignore[typeddict-item]
    (change,), _ = decode_incremental(window, decoder, Position(datetime(2026, 1, 1, tzinfo=UTC)), file="f")
    rows = {
        "one item": decoder.row(item),
        "row code": WrittenDecoder(decoder).row(item),
        "line by line": decode_full(block, decoder, file="f")[0][0],
        "catch-up": change.row or (),
        "stream": batch.changes[target][0].row or (),
    }
    texts = {way: copy_text([row])[:-1] for way, row in rows.items()}
    blocks = BlockDecoder(target)
    for way in ("a block", "a block, when others were read", "a block, when documents were learnt"):
        text, count, failures, _ = blocks.decode(block, file="f")
        assert (count, failures) == (3, [])
        (texts[way],) = set(text.splitlines())
    return {way: read_row(target, text) for way, text in texts.items()}


@pytest.mark.usefixtures("tomorrow")
@pytest.mark.parametrize("beside", [(), (DOCUMENT,)], ids=["alone", "beside a document"])
@pytest.mark.parametrize("name", TYPES)
def test_an_option_of_tomorrow_is_honoured_on_every_way(name: str, beside: tuple[Column, ...]) -> None:
    codec = TYPES[name]
    tag = min(codec.tags)
    value = VALUES.get(name, {tag: TAGS[tag]})
    sql_type = SqlType(name, (20,) if codec.parameters[0] else ())
    target = target_of(MarkedColumn("c", "c", ("c",), sql_type, mark="*"), *beside)
    item = {"pk": {"S": "k"}, "c": value, "map": VALUES["jsonb"]}
    if not beside:
        del item["map"]
    general = RowDecoder(target).row(item)
    assert str(general[1]).startswith("*")
    rows = every_way(target, item)
    assert rows == dict.fromkeys(rows, read_row(target, copy_text([general])[:-1]))


@pytest.mark.usefixtures("tomorrow")
def test_a_target_with_what_is_not_known_is_written_out_nowhere() -> None:
    column = Column("c", "c", ("c",), SqlType("text"))
    item = {"pk": {"S": "k"}, "c": {"S": "x"}}
    for target in (
        target_of(MarkedColumn("c", "c", ("c",), SqlType("text"), mark="*")),
        AuditedTarget("public", "t", ("pk",), target_of(column).columns, audited=True),
    ):
        decoder = RowDecoder(target)
        assert WrittenDecoder(decoder).source == ""
        assert LineReader(target).read(written([line_of(item)])).rows == 0
        assert template_of(line_of(item).encode(), target) is None
        with pytest.raises(ValueError, match="options need the general path"):
            LineRegex(target, {})


@pytest.mark.usefixtures("tomorrow")
def test_an_option_that_is_not_set_costs_nothing() -> None:
    target = target_of(MarkedColumn("c", "c", ("c",), SqlType("text")))
    decoder = RowDecoder(target)
    assert WrittenDecoder(decoder).source
    assert template_of(line_of({"pk": {"S": "k"}, "c": {"S": "x"}}).encode(), target) is not None


@pytest.mark.usefixtures("tomorrow")
@pytest.mark.parametrize("unmapped", [None, "rest"])
def test_a_type_of_tomorrow_is_converted_on_every_way(unmapped: str | None) -> None:
    target = target_of(Column("c", "c", ("c",), SqlType("inet")), DOCUMENT, unmapped=unmapped)
    item = {"pk": {"S": "k"}, "c": {"S": "localhost"}, "map": VALUES["jsonb"]}
    rows = every_way(target, item)
    assert rows == dict.fromkeys(rows, rows["one item"])
    assert rows["one item"][1] == "127.0.0.1"
    refused = {**item, "c": {"S": "nowhere"}}
    text, count, failures, _ = BlockDecoder(target).decode(written([line_of(item), line_of(refused)]), file="f")
    assert (text.count(b"\n"), count, len(failures)) == (1, 1, 1)
    assert str(failures[0][1]) == 'column "c": is not an address'
