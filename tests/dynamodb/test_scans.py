"""Scans: every item once, resumable by segment, within the budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from types_boto3_dynamodb.client import DynamoDBClient

from pipeline.core.errors import TerminalError
from pipeline.core.model.attributes import Item
from pipeline.dynamodb.read_budget import ReadBudget
from pipeline.dynamodb.scans import ScanPage, scan_segments
from tests.dynamodb.conftest import put, send_times

COUNT = 400


@pytest.fixture
def table(dynamodb: DynamoDBClient, make_table: Callable[..., str]) -> str:
    name = make_table()
    put(dynamodb, name, [{"Id": {"N": str(number)}, "b": {"B": b"\x00" * 10}} for number in range(COUNT)])
    return name


def ids(pages: list[ScanPage]) -> list[int]:
    return sorted(int(item["Id"]["N"]) for page in pages for item in page.items)


@pytest.mark.stack
@pytest.mark.parametrize("segments", [1, 4])
def test_every_item_once(dynamodb: DynamoDBClient, table: str, segments: int) -> None:
    before = datetime.now(UTC)
    sent = send_times(dynamodb)
    pages = list(scan_segments(dynamodb, table, segments=segments))
    assert ids(pages) == list(range(COUNT))
    assert {page.segment for page in pages} == set(range(segments))
    assert pages[0].items[0]["b"] == {"B": "AAAAAAAAAAAAAA=="}
    assert all(before <= page.read_at <= datetime.now(UTC) for page in pages)
    assert sum(page.consumed_capacity for page in pages) > 0
    assert all(
        read_at < send for read_at, send in zip(sorted(page.read_at for page in pages), sorted(sent), strict=True)
    )


@pytest.mark.stack
def test_an_abandoned_scan_resumes_after_each_segments_last_page(dynamodb: DynamoDBClient, table: str) -> None:
    kept: list[ScanPage] = []
    pages = scan_segments(dynamodb, table, segments=3, read_capacity_per_second=150)
    for page in pages:
        kept.append(page)
        if len(kept) == 3:
            break
    pages.close()  # type: ignore[attr-defined]
    resume: dict[int, Item | None] = {page.segment: page.resume_from for page in kept}
    assert 0 < len(ids(kept)) < COUNT
    rest = list(scan_segments(dynamodb, table, segments=3, resume=resume))
    assert ids(kept + rest) == list(range(COUNT))


@pytest.mark.stack
def test_segments_that_are_done_are_not_read_again(dynamodb: DynamoDBClient, table: str) -> None:
    assert list(scan_segments(dynamodb, table, segments=2, resume={0: None, 1: None})) == []
    assert {page.segment for page in scan_segments(dynamodb, table, segments=2, resume={0: None})} == {1}


def charge_as_dynamodb_does(parsed: dict[str, Any], **_: object) -> None:
    """One unit for each 4 KB of an item, here 18 KB; local AWS charges one for a page, whatever it contains."""
    parsed["ConsumedCapacity"]["CapacityUnits"] = 5.0 * parsed["ScannedCount"]


@pytest.mark.stack
def test_the_budget_is_kept_also_when_items_cost_more_than_was_thought(
    dynamodb: DynamoDBClient, make_table: Callable[..., str]
) -> None:
    name = make_table()
    put(dynamodb, name, [{"Id": {"N": str(number)}, "b": {"B": bytes(18_000)}} for number in range(60)])
    dynamodb.meta.events.register("after-call.dynamodb.Scan", charge_as_dynamodb_does)
    started = time.monotonic()
    pages = list(scan_segments(dynamodb, name, segments=2, read_capacity_per_second=100))
    seconds = time.monotonic() - started
    assert ids(pages) == list(range(60))
    consumed = sum(page.consumed_capacity for page in pages)
    assert consumed == 60 * 5
    # At most a second's worth at the start, and the last page, because nothing waits for its cost.
    assert consumed <= 100 * (seconds + 1) + pages[-1].consumed_capacity
    assert seconds < 20  # and the budget is used: it would take a minute if every item were expected to have full size


@pytest.mark.stack
def test_an_error_ends_the_scan_and_its_threads(dynamodb: DynamoDBClient) -> None:
    with pytest.raises(TerminalError, match=r"scanning Nowhere, segment . of 3: Scan answered ResourceNotFound"):
        list(scan_segments(dynamodb, "Nowhere", segments=3))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scan")]


def test_the_first_page_expects_the_largest_items_and_the_next_what_it_found() -> None:
    budget, stop = ReadBudget(1000), threading.Event()
    units, limit = budget.reserve(stop)
    assert (units, limit) == (500, 5)
    budget.correct(units, 10, 5)
    assert budget.reserve(stop) == (500, 250)


def test_a_page_that_cost_more_than_set_aside_is_a_debt() -> None:
    budget, stop = ReadBudget(1000), threading.Event()
    units, _ = budget.reserve(stop)
    budget.correct(units, 1200, 300)  # 4 units an item, and 200 over the balance
    started = time.monotonic()
    assert budget.reserve(stop) == (500, 125)
    assert 0.6 < time.monotonic() - started < 1.5


def test_waiting_for_the_budget_ends_when_the_scan_is_given_up() -> None:
    budget, stop = ReadBudget(0.01), threading.Event()
    budget.correct(0, 100, 1)
    threading.Timer(0.1, stop.set).start()
    started = time.monotonic()
    budget.reserve(stop)
    assert time.monotonic() - started < 5


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        ReadBudget(0)
