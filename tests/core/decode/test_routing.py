"""Routing: each record and each line goes to the one target that its key names, and none is lost on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from pipeline.core.decode.routing import NO_TARGET, Router
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import TerminalError
from pipeline.core.exports.export_lines import decode_full
from pipeline.core.exports.export_routing import route_block
from pipeline.core.exports.fast.block_decode import BlockDecoder
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping, Unmatched
from pipeline.core.streams.stream_records import StreamDecoder, StreamRecord
from pipeline.core.types.copy_text import copy_text
from tests.core.mapping_files.test_match_rules import RIGHT

LABEL = "2026-05-14T10:00:00.000"


def key(pk: str, sk: str) -> dict[str, Any]:
    return {"PK": {"S": pk}, "SK": {"S": sk}}


CUSTOMER, ORDER, STRAY = (
    key("CUSTOMER#1", "PROFILE"),
    key("CUSTOMER#1", "ORDER#2026-05-01#a"),
    key("STORE#1", "PROFILE"),
)


def record(sequence: int, keys: dict[str, Any], event: str = "INSERT") -> StreamRecord:
    change: dict[str, Any] = {
        "ApproximateCreationDateTime": 1_778_752_900,
        "Keys": keys,
        "SequenceNumber": str(10**20 + sequence),
    }
    if event != "REMOVE":
        change["NewImage"] = {**keys, "email": {"S": "a@b"}}
    return {"eventName": event, "dynamodb": change}  # type: ignore[typeddict-item]


@pytest.fixture
def shop() -> TableMapping:
    return read_mapping(RIGHT, "shop.yaml")


def block(*items: dict[str, Any]) -> bytes:
    return b"".join(json.dumps({"Item": item}).encode() + b"\n" for item in items)


def test_a_record_is_a_change_of_its_target_alone_a_removal_too(shop: TableMapping) -> None:
    records = [record(1, CUSTOMER), record(2, ORDER), record(3, ORDER, "REMOVE")]
    batch = StreamDecoder(shop).decode(records, LABEL)
    customers, orders = shop.targets
    assert [(c.key, c.row is None, c.origin) for c in batch.changes[customers]] == [(("1",), False, 0)]
    assert [(c.key, c.row is None, c.origin) for c in batch.changes[orders]] == [
        (("1", "2026-05-01", "a"), False, 1),
        (("1", "2026-05-01", "a"), True, 2),
    ]
    assert (batch.rejects, batch.ignored) == ([], 0)


def test_a_record_that_matches_nothing_is_rejected_whole_or_counted(shop: TableMapping) -> None:
    records = [record(1, STRAY), record(2, CUSTOMER), record(3, STRAY, "REMOVE")]
    batch = StreamDecoder(shop).decode(records, LABEL)
    assert [(r.target, r.reason, r.record) for r in batch.rejects] == [
        (NO_TARGET, "its key matches no target", records[0]),
        (NO_TARGET, "its key matches no target", records[2]),
    ]
    batch = StreamDecoder(replace(shop, unmatched=Unmatched.IGNORE)).decode(records, LABEL)
    assert (batch.rejects, batch.ignored) == ([], 2)
    assert len(batch.changes[shop.targets[0]]) == 1
    assert batch.last_sequence_number == str(10**20 + 3)


def test_a_number_that_is_not_canonical_is_rejected_for_its_target(shop: TableMapping) -> None:
    batch = StreamDecoder(shop).decode([record(1, key("CUSTOMER#007", "PROFILE"))], LABEL)
    (reject,) = batch.rejects
    assert (reject.target, "007" in reject.reason) == ("public.Customers", False)


def test_the_lines_of_a_block_are_parted_and_add_up(shop: TableMapping) -> None:
    whole = block(CUSTOMER, STRAY, ORDER, CUSTOMER, ORDER)
    routed = route_block(whole, Router(shop), file="f", first_line=11)
    customers, orders = shop.targets
    assert routed.parts[customers].block == block(CUSTOMER, CUSTOMER)
    assert list(routed.parts[customers].numbers) == [11, 14]
    assert list(routed.parts[orders].numbers) == [13, 15]
    assert routed.unmatched == [block(STRAY).removesuffix(b"\n")]


def test_without_patterns_every_target_gets_the_block_as_it_is(shop: TableMapping) -> None:
    plain = replace(shop, targets=tuple(replace(target, match=()) for target in shop.targets))
    routed = route_block(b"not read\n", Router(plain), file="f", first_line=1)
    assert {target.name: part.block for target, part in routed.parts.items()} == {
        "Customers": b"not read\n",
        "Orders": b"not read\n",
    }


def test_a_malformed_line_is_named_by_its_number_in_the_file(shop: TableMapping) -> None:
    bad = {**ORDER, "email": {"S": 5, "N": "1"}}
    routed = route_block(block(CUSTOMER, ORDER, CUSTOMER, {**ORDER, "x": 5}), Router(shop), file="f", first_line=11)
    decoder = RowDecoder(shop.targets[1])
    with pytest.raises(TerminalError, match="line 14: an attribute value is not in DynamoDB's form"):
        routed.parts[shop.targets[1]].decode(partial(decode_full, decoder=decoder, file="f"))
    with pytest.raises(TerminalError, match="line 12: a key attribute is not of DynamoDB's form"):
        route_block(block(bad, {**ORDER, "PK": 5}), Router(shop), file="f", first_line=11)


def test_the_function_written_for_a_target_takes_captured_parts_as_the_general_way_does(shop: TableMapping) -> None:
    orders = shop.targets[1]
    lines = block(ORDER, {**ORDER, "x": {"N": "1"}}, key("CUSTOMER#007", "ORDER#2026-05-01#a"), CUSTOMER)
    lines += block(key("CUSTOMER#2", 'ORDER#2026-05-01#"\\\t'))
    rows, failures = decode_full(lines, RowDecoder(orders), file="f")
    decoded = BlockDecoder(orders).decode(lines, file="f")
    assert decoded.text.splitlines() == copy_text(rows).splitlines()
    assert [(line, str(error)) for line, error in decoded.failures] == [(line, str(error)) for line, error in failures]
    assert (len(rows), len(failures)) == (3, 2)
