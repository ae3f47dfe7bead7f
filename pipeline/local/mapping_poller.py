"""An event source mapping for DynamoDB Streams with AWS's semantics, because ministack's own lacks some of them.

Invariant: within a shard, batches are delivered one after another. A shard begins only when its parent is finished, so
an item's changes arrive in order across splits. Otherwise shards do not wait for each other.

It reads through the public stream calls and keeps its checkpoint in memory. `mapping_delivery` says what happens to a
batch. One departure: ParallelizationFactor is always 1.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from pipeline.local.mapping_delivery import Delivery, Discard, MappingSettings, Record
from pipeline.local.mapping_documents import event_record, failure_document
from pipeline.local.mapping_source import ExpiredError, Shard, StreamSource
from pipeline.local.mapping_targets import Target
from pipeline.local.raw_aws import Json

PAYLOAD_LIMIT_BYTES = 6 * 1024 * 1024
POLL_SECONDS = 0.1


@dataclass
class Statistics:
    """What a mapping has done so far."""

    invocations: int = 0
    records: int = 0
    discarded: int = 0


@dataclass
class Lane:
    """One shard that is being read."""

    shard: Shard
    finished: threading.Event = field(default_factory=threading.Event)
    quiet: threading.Event = field(default_factory=threading.Event)
    work: "Future[None] | None" = None


class MappingPoller:
    """A running mapping from one stream to one target. Use as a context manager, or `start` and `stop`."""

    def __init__(
        self,
        source: StreamSource,
        target: Target,
        settings: MappingSettings | None = None,
        *,
        on_failure: Callable[[str, bytes], object] | None = None,
        mapping_id: str | None = None,
    ) -> None:
        """`on_failure` stores an object under a key in the destination bucket. Without it, discards are lost."""
        self._source = source
        self._target = target
        self._settings = settings or MappingSettings()
        self._on_failure = on_failure
        self.mapping_id = mapping_id or str(uuid.uuid4())
        self.statistics = Statistics()
        self._stopping = threading.Event()
        self._lanes: dict[str, Lane] = {}
        self._threads = ThreadPoolExecutor(max_workers=64, thread_name_prefix="mapping")
        self._watching: Future[None] | None = None

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def start(self) -> None:
        """Begin at the starting position, which is fixed for the present shards when this returns."""
        self._find_lanes(self._settings.starting_position)
        self._watching = self._threads.submit(self._watch)

    def stop(self) -> None:
        """Let running invocations end, then stop; raise what ended a shard's work, if anything did."""
        self._stopping.set()
        if self._watching is not None:
            self._watching.result()
        self._threads.shutdown(wait=True)
        for lane in self._lanes.values():
            if lane.work is not None:
                lane.work.result()

    def wait_quiet(self, timeout_seconds: float = 30.0) -> bool:
        """Wait until every shard was read to its end and everything in it handled. False if that takes too long."""
        deadline = time.monotonic() + timeout_seconds
        lanes = [lane for lane in self._lanes.values() if not lane.finished.is_set()]
        for lane in lanes:
            lane.quiet.clear()
        return all(lane.finished.is_set() or lane.quiet.wait(max(0.0, deadline - time.monotonic())) for lane in lanes)

    def _watch(self) -> None:
        while not self._stopping.wait(1.0):
            self._find_lanes("TRIM_HORIZON")

    def _find_lanes(self, start: str) -> None:
        """Begin work on shards not seen before; children of known shards wait for them."""
        found = [Lane(shard) for shard in self._source.shards() if shard.shard_id not in self._lanes]
        # All are known before any is begun: a listing may name a child before its parent.
        self._lanes.update({lane.shard.shard_id: lane for lane in found})
        for lane in found:
            iterator = self._source.iterator(lane.shard.shard_id, start)
            lane.work = self._threads.submit(self._work, lane, iterator)

    def _work(self, lane: Lane, iterator: str) -> None:
        """Deliver one shard to its end."""
        while not self._stopping.is_set():
            parent = self._lanes.get(lane.shard.parent_id or "")
            if parent is None or parent.finished.wait(POLL_SECONDS):
                break
        delivery = Delivery(
            self._settings,
            self._invoke,
            lambda discard: self._discard(lane.shard, discard),
            clock=time.time,
            pause=lambda seconds: not self._stopping.wait(seconds),
        )
        reader = BatchReader(self._source, lane, iterator, self._settings, self._stopping)
        while batch := reader.next_batch():
            if not delivery.deliver(batch):
                return
        if not self._stopping.is_set():
            lane.finished.set()
            lane.quiet.set()

    def _invoke(self, records: Sequence[Record]) -> object:
        self.statistics.invocations += 1
        response = self._target({"Records": [dict(record) for record in records]})
        self.statistics.records += len(records)
        return response

    def _discard(self, shard: Shard, discard: Discard) -> None:
        self.statistics.discarded += len(discard.records)
        if self._on_failure is not None:
            now = datetime.now(UTC)
            folder = f"aws/lambda/{self.mapping_id}/{shard.shard_id}/{now:%Y/%m/%d}"
            key = f"{folder}/{now:%Y-%m-%dT%H.%M.%S}-{uuid.uuid4()}"
            self._on_failure(key, failure_document(shard.shard_id, self._source.stream_arn, discard, now))


class BatchReader:
    """Gathers a shard's records into batches by size, window and payload."""

    def __init__(
        self,
        source: StreamSource,
        lane: Lane,
        iterator: str,
        settings: MappingSettings,
        stopping: threading.Event,
    ) -> None:
        """Starts at `iterator`."""
        self._source = source
        self._lane = lane
        self._iterator: str | None = iterator
        self._settings = settings
        self._stopping = stopping
        self._read: list[Json] = []
        self._sizes: list[int] = []
        self._last: str | None = None
        self._first_at = 0.0

    def next_batch(self) -> list[Json]:
        """The next batch; empty when the shard has ended or the mapping stops."""
        while not self._stopping.is_set():
            waited = time.monotonic() - self._first_at
            full = len(self._read) >= self._settings.batch_size or sum(self._sizes) >= PAYLOAD_LIMIT_BYTES
            if self._read and (full or self._iterator is None or waited >= self._settings.window_seconds):
                return self._take()
            if self._iterator is None:
                return []
            if not self._fill():
                if not self._read:
                    self._lane.quiet.set()
                self._stopping.wait(POLL_SECONDS)
        return []

    def _fill(self) -> bool:
        """Read one page; False if there was nothing new."""
        if self._iterator is None:
            return False
        try:
            page, following = self._source.records(self._iterator)
        except ExpiredError:
            self._iterator = self._source.iterator(self._lane.shard.shard_id, "TRIM_HORIZON", self._last)
            return True
        self._iterator = following
        if page:
            if not self._read:
                self._first_at = time.monotonic()
            self._last = page[-1]["dynamodb"]["SequenceNumber"]
            records = [event_record(record, self._source.stream_arn) for record in page]
            self._read += records
            self._sizes += [len(json.dumps(record)) for record in records]
        return bool(page) or following is None

    def _take(self) -> list[Json]:
        count, size = 0, 0
        for length in self._sizes[: self._settings.batch_size]:
            size += length
            if count and size > PAYLOAD_LIMIT_BYTES:
                break
            count += 1
        batch, self._read, self._sizes = self._read[:count], self._read[count:], self._sizes[count:]
        return batch
