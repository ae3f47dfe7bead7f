"""Reads a whole table by a parallel scan, resumable, within a budget of read capacity.

Invariant: a page's `read_at` is never later than the moment when any of its items was read (`pipeline.dynamodb.items`
says why too early is safe), and `resume_from` of a saved page continues right after it. A scan is not a snapshot of the
whole table: each page is a snapshot of its own items, as of its own time.
"""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event
from typing import TYPE_CHECKING, Any

from pipeline.dynamodb.clock import SourceClock
from pipeline.dynamodb.errors import translating
from pipeline.dynamodb.read_budget import ReadBudget
from pipeline.dynamodb.wire import from_wire, to_wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from concurrent.futures import Future
    from datetime import datetime

    from types_boto3_dynamodb.client import DynamoDBClient

    from pipeline.core.model.attributes import Item


@dataclass(frozen=True, slots=True)
class ScanPage:
    """`resume_from` is the key to continue after, or None if the segment is done."""

    segment: int
    items: list[Item]
    read_at: datetime
    resume_from: Item | None
    consumed_capacity: float


def scan_segments(
    client: DynamoDBClient,
    table_name: str,
    *,
    segments: int,
    consistent: bool = True,
    read_capacity_per_second: float | None = None,
    resume: Mapping[int, Item | None] | None = None,
    clock: SourceClock | None = None,
) -> Iterator[ScanPage]:
    """Yield the pages of every segment: each segment's in order, the segments in parallel.

    Each segment has at most one page in progress or waiting for the caller. `resume` has each segment's last saved
    `resume_from` (None: it was done); with it, `segments` must equal that of the scan being resumed.
    """
    resume = resume or {}
    stop = Event()
    budget = ReadBudget(read_capacity_per_second) if read_capacity_per_second else None
    scan = _Scan(client, table_name, segments, consistent, budget, stop, clock or SourceClock())
    pending: set[Future[ScanPage | None]] = set()
    with ThreadPoolExecutor(max_workers=segments, thread_name_prefix="scan") as pool:
        try:
            for segment in range(segments):
                start = resume.get(segment)
                if start is not None or segment not in resume:
                    pending.add(pool.submit(scan.page, segment, start))
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    page = future.result()
                    if page is None:
                        return
                    if page.resume_from is not None:
                        pending.add(pool.submit(scan.page, page.segment, page.resume_from))
                    yield page
        finally:
            stop.set()


@dataclass(frozen=True, slots=True)
class _Scan:
    client: DynamoDBClient
    table_name: str
    segments: int
    consistent: bool
    budget: ReadBudget | None
    stop: Event
    clock: SourceClock

    def page(self, segment: int, start: Item | None) -> ScanPage | None:
        """Read one page; None if the scan was stopped while waiting for the budget."""
        request: dict[str, Any] = {"ExclusiveStartKey": from_wire(start)} if start else {}
        reserved = 0.0
        if self.budget:
            reserved, limit = self.budget.reserve(self.stop)
            request["Limit"] = limit
        if self.stop.is_set():
            return None
        with translating(f"scanning {self.table_name}, segment {segment} of {self.segments}"):
            answer, read_at = self.clock.ask(
                self.client.scan,
                TableName=self.table_name,
                Segment=segment,
                TotalSegments=self.segments,
                ConsistentRead=self.consistent,
                ReturnConsumedCapacity="TOTAL",
                **request,
            )
        consumed = answer.get("ConsumedCapacity", {}).get("CapacityUnits", 0.0)
        if self.budget:
            self.budget.correct(reserved, consumed, answer.get("ScannedCount", 0))
        last = answer.get("LastEvaluatedKey")
        return ScanPage(
            segment, list(map(to_wire, answer["Items"])), read_at, to_wire(last) if last else None, consumed
        )
