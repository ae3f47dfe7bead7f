"""Lines of data files: every line gives a row, a change or a failure; an error for a wrong form names file and line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import TerminalError
from pipeline.core.exports.export_lines import decode_full, decode_incremental, parse_full, parse_incremental
from pipeline.core.model.attributes import parse_path
from pipeline.core.model.mapping import Column, Target
from pipeline.core.ordering import snapshot_position
from pipeline.core.types.sql_types import SqlType
from tests.dynamodb.export_fixture import WindowChange, full_lines, incremental_lines

TARGET = Target(
    schema="public",
    name="Employees",
    primary_key=("Id",),
    columns=(
        Column("Id", "Id", parse_path("Id"), SqlType("bigint")),
        Column("Name", "empName", parse_path("empName"), SqlType("varchar", (5,))),
    ),
    unmapped="attributes",
)
DECODER = RowDecoder(TARGET)
POSITION = snapshot_position(datetime(2026, 5, 14, tzinfo=UTC))


def item(number: int, name: str = "Ada", **more: dict[str, Any]) -> dict[str, Any]:
    return {"Id": {"N": str(number)}, "empName": {"S": name}, **more}


def block_of(*lines: bytes) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def test_full_lines_become_rows() -> None:
    block = block_of(*full_lines([item(1), item(2, "Zoë", age={"N": "1.10"}), {"Id": {"N": "3"}}]))
    rows, failures = decode_full(block, DECODER, file="f")
    assert rows == [("1", "Ada", "{}"), ("2", "Zoë", '{"age":1.10}'), ("3", None, "{}")]
    assert failures == []


def test_a_last_line_without_its_end_and_an_empty_block() -> None:
    block = block_of(*full_lines([item(1), item(2)]))
    assert len(parse_full(block, file="f")) == len(parse_full(block[:-1], file="f")) == 2
    assert decode_full(b"", DECODER, file="f") == ([], [])


def test_line_ends_and_separators_inside_values_are_no_line_ends() -> None:
    text = "a\nb\r\u2028\x85,"
    block = block_of(*full_lines([{"Id": {"N": "1"}, "note": {"S": text}}]))
    rows, _ = decode_full(block, DECODER, file="f")
    assert json.loads(rows[0][2] or "") == {"note": text}


def test_what_a_column_cannot_hold_is_a_failure_that_holds_the_line_whole() -> None:
    lines = full_lines([item(1), item(2, "too long"), item(3), {"empName": {"S": "no key"}}])
    rows, failures = decode_full(block_of(*lines), DECODER, file="f")
    assert [row[0] for row in rows] == ["1", "3"]
    assert [line for line, _ in failures] == [lines[1], lines[3]]
    assert [error.column for _, error in failures] == ["Name", "Id"]


GOOD = full_lines([item(1)])[0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "it is not JSON"),
        (b"<html>", "it is not JSON"),
        (b'{"Item":{"Id":{"N":"1"}', "it is not JSON"),
        (GOOD + b"," + GOOD, "it is not JSON"),
        (b'{"Item":{"Id":{"S":"\xff"}}}', "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b"[]", "it is not a line of such an export"),
        (b'{"Keys":{"Id":{"N":"1"}}}', "it is not a line of such an export"),
        (b'{"Item":[]}', "its Item is not an object"),
        (b'{"Item":{"Id":5}}', "an attribute value is not in DynamoDB's form"),
        (b'{"Item":{"Id":{"N":5}}}', "an attribute value is not in DynamoDB's form"),
        (b'{"Item":{"Id":{"N":"1"},"x":{"L":[{"S":7}]}}}', "an attribute value is not in DynamoDB's form"),
    ],
)
def test_a_full_line_that_is_not_of_the_form(line: bytes, reason: str) -> None:
    with pytest.raises(TerminalError, match=rf"^reading the export's file s3://b/k, line 12: {reason};"):
        decode_full(block_of(GOOD, line, GOOD), DECODER, file="s3://b/k", first_line=11)


def test_two_broken_lines_that_would_parse_as_one_are_noticed() -> None:
    block = block_of(b'{"Item":{"Id":{"N":"1"}', b'"x":{"S":"y"}}}')
    with pytest.raises(TerminalError, match="line 1: it is not JSON"):
        decode_full(block, DECODER, file="f")


def test_a_fault_in_a_decoder_is_not_blamed_on_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise KeyError("a defect of ours")

    decoder = RowDecoder(TARGET)
    monkeypatch.setattr(decoder, "row", broken)
    with pytest.raises(KeyError):
        decode_full(block_of(GOOD), decoder, file="f")


@pytest.mark.parametrize("view_type", ["NEW_IMAGE", "NEW_AND_OLD_IMAGES"])
@pytest.mark.parametrize("micros_form", ["text", "attribute", "number"])
def test_incremental_lines_become_changes(view_type: str, micros_form: str) -> None:
    lines = incremental_lines(
        [
            WindowChange({"Id": {"N": "1"}}, new=item(1)),
            WindowChange({"Id": {"N": "2"}}, new=item(2, "Bo"), old=item(2, "Al")),
            WindowChange({"Id": {"N": "3"}}, old=item(3)),
        ],
        view_type,
        micros_form,
    )
    changes, failures = decode_incremental(block_of(*lines), DECODER, POSITION, file="f")
    assert [(change.key, change.row) for change in changes] == [
        (("1",), ("1", "Ada", "{}")),
        (("2",), ("2", "Bo", "{}")),
        (("3",), None),
    ]
    assert [change.origin for change in changes] == [0, 1, 2]
    assert {change.position for change in changes} == {POSITION}
    assert failures == []
    parsed = parse_incremental(block_of(*lines), file="f")
    assert {change.write_micros for change in parsed} == {1_778_757_000_123_456}


def test_an_incremental_line_without_metadata_is_taken() -> None:
    assert parse_incremental(b'{"Keys":{"Id":{"N":"1"}}}\n', file="f")[0].write_micros is None


def test_failures_of_incremental_lines_keep_the_others_origins() -> None:
    lines = incremental_lines(
        [WindowChange({"Id": {"S": "a"}}), WindowChange({"Id": {"N": "2"}}, new=item(2, "too long")),
         WindowChange({"Id": {"N": "3"}})],
        "NEW_IMAGE",
    )  # fmt: skip
    changes, failures = decode_incremental(block_of(*lines), DECODER, POSITION, file="f")
    assert [(change.key, change.origin) for change in changes] == [(("3",), 2)]
    assert [line for line, _ in failures] == lines[:2]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"Item":{"Id":{"N":"1"}}}', "it is not a line of such an export"),
        (b'{"Keys":{}}', "its Keys or NewImage is not an object"),
        (b'{"Keys":{"Id":{"N":"1"}},"NewImage":[]}', "its Keys or NewImage is not an object"),
        (
            b'{"Keys":{"Id":{"N":"1"}},"NewImage":{"Id":{"N":"2"}}}',
            "the key attributes of its NewImage are not those of its Keys",
        ),
        (b'{"Keys":{"Id":{"N":"1"}},"NewImage":{}}', "the key attributes of its NewImage are not those of its Keys"),
        (
            b'{"Metadata":{"WriteTimestampMicros":"soon"},"Keys":{"Id":{"N":"1"}}}',
            "its WriteTimestampMicros is not a number",
        ),
        (b'{"Metadata":{"WriteTimestampMicros":Infinity},"Keys":{"Id":{"N":"1"}}}', "its WriteTimestampMicros is not"),
        (b'{"Keys":{"Id":{"N":1}}}', "an attribute value is not in DynamoDB's form"),
    ],
)
def test_an_incremental_line_that_is_not_of_the_form(line: bytes, reason: str) -> None:
    good = incremental_lines([WindowChange({"Id": {"N": "9"}})], "NEW_IMAGE")[0]
    with pytest.raises(TerminalError, match=rf"file s3://b/k, line 2: {reason}"):
        decode_incremental(block_of(good, line), DECODER, POSITION, file="s3://b/k")


def test_messages_never_quote_a_value() -> None:
    with pytest.raises(TerminalError) as caught:
        decode_full(b'{"Item":{"Id":{"N":"1"},"x":{"S":["secret"]}}}\n', DECODER, file="f")
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__
