"""The cost of decoding in units that do not depend on the machine: function calls for an item, Python's and C's.

Compared with the rest, a call costs about the same everywhere. The general path takes hundreds of calls.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.core.exports.fast.block_decode import BlockDecoder
from pipeline.core.model.mapping import TableMapping, Target
from pipeline.core.streams.stream_records import StreamDecoder
from tests.core.exports.test_block_decode import EMPLOYEES, line_of, written
from tests.core.exports.test_line_regex import EVERY_TYPE, ITEM


def calls(work: Callable[[], object]) -> int:
    """Count the calls that some work makes."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def narrow(number: int) -> dict[str, Any]:
    return {"Id": {"N": str(number)}, "empName": {"S": f"name {number:05}"}}


def wide(number: int) -> dict[str, Any]:
    """One of every type, in one of many orders, each with some attribute missing."""
    names = [name for name in ITEM if name == "pk" or (len(name) + number) % 9]
    turned = names[number % len(names) :] + names[: number % len(names)]
    return {**{name: ITEM[name] for name in turned}, "pk": {"S": f"k{number}"}}


def escaped(number: int) -> dict[str, Any]:
    return {**wide(number), "note": {"S": f'line {number}\nand "another"'}}


@pytest.mark.parametrize(
    ("target", "item", "most"),
    [(EMPLOYEES, narrow, 0.1), (EVERY_TYPE, wide, 50), (EVERY_TYPE, escaped, 55)],
    ids=["narrow", "wide", "escaped"],
)
def test_an_item_costs_so_many_calls_and_no_more(
    target: Target, item: Callable[[int], dict[str, Any]], most: float
) -> None:
    decoder = BlockDecoder(target)
    lines = [line_of(item(number), ascii_only=False) for number in range(2_000)]
    for _ in range(2):
        decoder.decode(written(lines[:100]), file="f")  # it learns only once
    block = written(lines)
    assert calls(lambda: decoder.decode(block, file="f")) / len(lines) <= most


def record(number: int) -> dict[str, Any]:
    """A stream record of an item with a text, numbers, a boolean and a map that holds a list."""
    attributes: dict[str, Any] = {
        "pk": {"S": f"k{number}"},
        "name": {"S": "Akua"},
        "n": {"N": str(number)},
        "on": {"BOOL": True},
        "map": {"M": {"city": {"S": "Accra"}, "score": {"N": "1.5"}, "tags": {"L": [{"S": "x"}, {"N": "6"}]}}},
    }
    change = {
        "ApproximateCreationDateTime": 1_717_200_418,
        "Keys": {"pk": attributes["pk"]},
        "NewImage": attributes,
        "SequenceNumber": str(10**21 + number),
    }
    return {"eventName": "MODIFY", "dynamodb": change}


def test_a_record_costs_so_many_calls_and_no_more() -> None:
    """The general path, which nothing here should take, costs over a hundred."""
    mapping = TableMapping("t", "t", {"pk": "S"}, (EVERY_TYPE,))
    decoder = StreamDecoder(mapping)
    records: Any = [record(number) for number in range(1_000)]
    label = "2024-06-01T00:00:00.000"
    decoder.decode(records[:10], label)
    assert calls(lambda: decoder.decode(records, label)) / len(records) <= 81
