"""Reading again by key: every key is answered once, and never with too late a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.stub import Stubber
from types_boto3_dynamodb.client import DynamoDBClient

from pipeline.core.errors import TerminalError, TransientError
from pipeline.dynamodb import items as items_module
from pipeline.dynamodb.client import client
from pipeline.dynamodb.items import read_items
from pipeline.dynamodb.wire import to_wire
from tests.dynamodb.conftest import put, send_times


@pytest.mark.stack
def test_items_that_are_there_and_items_that_are_not(dynamodb: DynamoDBClient, make_table: Callable[..., str]) -> None:
    name = make_table({"K": "B", "R": "N"})
    stored = [
        {"K": {"B": bytes([n])}, "R": {"N": str(n)}, "v": {"M": {"bs": {"BS": [b"\x00"]}, "n": {"N": "1.5"}}}}
        for n in range(120)
    ]
    put(dynamodb, name, stored)
    by_key = {n: to_wire(item) for n, item in enumerate(stored)}
    keys = [to_wire({"K": {"B": bytes([n])}, "R": {"N": str(n)}}) for n in range(250)]
    before = datetime.now(UTC)
    sent = send_times(dynamodb)
    reads = list(read_items(dynamodb, name, keys + keys[:7]))
    assert sorted(int(read.key["R"]["N"]) for read in reads) == list(range(250))
    assert all(read.item == by_key.get(int(read.key["R"]["N"])) for read in reads)
    assert all(before <= read.read_at <= datetime.now(UTC) for read in reads)
    read_at = sorted({read.read_at for read in reads})
    assert len(read_at) == 3
    assert all(
        noted < send < following
        for noted, send, following in zip(read_at, sent, [*read_at[1:], datetime.now(UTC)], strict=True)
    )


@pytest.mark.stack
def test_no_keys_and_no_table(dynamodb: DynamoDBClient) -> None:
    assert list(read_items(dynamodb, "Nowhere", [])) == []
    with pytest.raises(
        TerminalError, match="reading 1 items of Nowhere by key: BatchGetItem answered ResourceNotFound"
    ):
        list(read_items(dynamodb, "Nowhere", [{"Id": {"N": "1"}}]))


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[DynamoDBClient, Stubber]]:
    """DynamoDB leaves keys unprocessed when it is short of capacity, which local AWS never is."""
    monkeypatch.setattr(items_module, "_LONGEST_PAUSE_SECONDS", 0.001)
    made = client("dynamodb")
    with Stubber(made) as stubber:
        yield made, stubber
        stubber.assert_no_pending_responses()
    made.close()


def answer(found: list[int], left: list[int]) -> dict[str, Any]:
    unprocessed = {"Employees": {"Keys": [{"Id": {"N": str(n)}} for n in left], "ConsistentRead": True}}
    return {
        "Responses": {"Employees": [{"Id": {"N": str(n)}} for n in found]},
        "UnprocessedKeys": unprocessed if left else {},
    }


def test_unprocessed_keys_are_asked_for_again_and_keep_their_own_time(
    stubbed: tuple[DynamoDBClient, Stubber],
) -> None:
    made, stubber = stubbed
    for found, left in ([1], [2, 3]), ([], [2, 3]), ([2], []):
        asked = {n for n in (1, 2, 3) if n in found + left or (not left and n == 3)}
        request = {"Keys": [{"Id": {"N": str(n)}} for n in sorted(asked)], "ConsistentRead": True}
        stubber.add_response("batch_get_item", answer(found, left), {"RequestItems": {"Employees": request}})
    reads = list(read_items(made, "Employees", [{"Id": {"N": str(n)}} for n in (1, 2, 3)]))
    assert [(read.key["Id"]["N"], read.item is not None) for read in reads] == [("1", True), ("2", True), ("3", False)]
    assert reads[0].read_at < reads[1].read_at == reads[2].read_at


def test_keys_that_stay_unprocessed_are_a_transient_error(stubbed: tuple[DynamoDBClient, Stubber]) -> None:
    made, stubber = stubbed
    for _ in range(8):
        stubber.add_response("batch_get_item", answer([], [1]))
    with pytest.raises(TransientError, match="left them unprocessed 8 times in a row; the table's read capacity"):
        list(read_items(made, "Employees", [{"Id": {"N": "1"}}]))


def test_a_number_key_in_another_notation_finds_its_item(stubbed: tuple[DynamoDBClient, Stubber]) -> None:
    """DynamoDB answers in its own notation (local AWS keeps the one that was put)."""
    made, stubber = stubbed
    stubber.add_response("batch_get_item", answer([10], []))
    (read,) = read_items(made, "Employees", [{"Id": {"N": "10.0"}}, {"Id": {"N": "1E1"}}])
    assert read.item == {"Id": {"N": "10"}}
