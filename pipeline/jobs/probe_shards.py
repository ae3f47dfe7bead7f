"""Reading the shards of a stream for one tick of the probe: bounded in time, in records and in pace.

Invariant: a shard counts as read through a time only when it is closed and gave its last page, gave enough empty pages
one after another, or gave a record that was made later: a shard that is written to all the time has no end. What is
passed by to keep up with a busy shard is said (`passed_until`), never forgotten.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

from pipeline.core.errors import TransientError, UnreachableError
from pipeline.core.probing import ShardProgress
from pipeline.dynamodb.shards import LostPlaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.dynamodb.shards import KeyRecord, Page, Shard, StreamReader

# Reading more in a tick would take the reads of a shard away from its Lambda (5 a second, of which it uses 4).
PAGES_OF_A_SHARD = 12
RECORDS_OF_A_TICK = 50_000
# Two pages at once, then one a second.
PAGES_AT_ONCE, PAUSE_SECONDS = 2, 1.0
# Empty pages in a row that are taken for the end: more where the place was just opened and may lie far back.
EMPTY_AT_END, EMPTY_AT_END_OPENED = 2, 4
# Iterators live 15 minutes.
ITERATOR_LIFE = timedelta(minutes=14)
# A shard that is further behind than this, and that would not be at its end after so many ticks, is read from its end.
TOO_FAR_BEHIND, TICKS_TO_CATCH_UP = timedelta(minutes=5), 20
# Creation times are whole seconds.
_GRAIN_SECONDS = 1.0
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one tick. `deadline` is a time of the monotonic clock."""

    deadline: float
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    pages: int = PAGES_OF_A_SHARD
    records: int = RECORDS_OF_A_TICK


@dataclass(slots=True)
class ShardReading:
    """What a tick read of one shard."""

    progress: ShardProgress
    records: list[KeyRecord] = field(default_factory=list["KeyRecord"])
    at_end: bool = False
    trimmed: bool = False
    """The stream has dropped records, perhaps, before they were read."""
    passed_until: datetime | None = None
    """Records made before this time were passed by without being read."""


class ShardsReader:
    """Reads shards side by side, within the limits of one tick."""

    def __init__(self, stream: StreamReader, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._records = 0
        self._lock = Lock()

    def read(self, listed: Sequence[Shard], known: dict[str, ShardProgress], through: datetime) -> list[ShardReading]:
        """Read on in every shard that is not finished, the ones read longest ago first.

        `through` is the time up to which a shard that is read to its end counts as read. A shard that time did not
        suffice for is returned as it was. Raises UnreachableError, TerminalError; throttling ends a shard's reading.
        """
        places = [
            (shard, known.get(shard.shard_id, ShardProgress(shard.shard_id, shard.parent_id))) for shard in listed
        ]
        never = datetime.min.replace(tzinfo=UTC)
        places.sort(key=lambda place: (place[0].closed, place[1].read_through or never))
        if not places:
            return []
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="probe") as threads:
            return list(threads.map(partial(self._read, through=through), *zip(*places, strict=True)))

    def _read(self, shard: Shard, place: ShardProgress, *, through: datetime) -> ShardReading:
        reading = ShardReading(place)
        if place.finished:
            reading.at_end = True
            return reading
        try:
            self._follow(reading, through)
        except UnreachableError:
            raise
        except TransientError:
            return reading  # throttled: not at its end, which the tick tells, and read on in the next
        if not reading.at_end:
            self._pass_by_if_hopeless(shard, reading)
        if reading.at_end:
            reading.progress = replace(reading.progress, read_through=through)
        return reading

    def _follow(self, reading: ShardReading, through: datetime) -> None:
        limits, pages, empty, passed = self._limits, 0, 0, False
        if limits.monotonic() >= limits.deadline:
            return
        opened = not self._iterator_lives(reading.progress)
        if opened and not self._open(reading):
            return
        while limits.monotonic() < limits.deadline and pages < limits.pages and self._records < limits.records:
            if pages >= PAGES_AT_ONCE:
                limits.sleep(PAUSE_SECONDS)
            page = self._page(reading)
            if page is None:
                return
            pages += 1
            empty = 0 if page.records else empty + 1
            if page.records and page.records[-1].created_at > through.timestamp() + _GRAIN_SECONDS:
                passed = True
            if page.following is None or empty == (EMPTY_AT_END_OPENED if opened else EMPTY_AT_END):
                reading.at_end = True
                return
        reading.at_end = passed

    def _iterator_lives(self, place: ShardProgress) -> bool:
        if place.iterator is None or place.iterator_at is None:
            return False
        return self._limits.now() - place.iterator_at < ITERATOR_LIFE

    def _open(self, reading: ShardReading) -> bool:
        """Open the shard where it was left, or at the oldest record there is; False when it is gone."""
        opened = self._stream.open(reading.progress.shard_id, after=reading.progress.sequence_number)
        reading.trimmed = reading.trimmed or opened.trimmed
        reading.progress = replace(reading.progress, iterator=opened.iterator, iterator_at=self._limits.now())
        if opened.iterator is None:
            self._finish(reading)
        return opened.iterator is not None

    def _page(self, reading: ShardReading) -> Page | None:
        """Read a page and go on behind it; None when the shard is gone."""
        if reading.progress.iterator is None:
            return None
        try:
            page = self._stream.page(reading.progress.iterator)
        except LostPlaceError:
            page = self._page_again(reading)
            if page is None:
                return None
        last = page.records[-1].sequence_number if page.records else reading.progress.sequence_number
        reading.records += page.records
        with self._lock:
            self._records += len(page.records)
        reading.progress = replace(
            reading.progress, iterator=page.following, iterator_at=self._limits.now(), sequence_number=last
        )
        if page.following is None:
            self._finish(reading)
        return page

    def _page_again(self, reading: ShardReading) -> Page | None:
        self._open(reading)
        if reading.progress.iterator is None:
            return None
        try:
            return self._stream.page(reading.progress.iterator)
        except LostPlaceError:
            raise TransientError("reading the stream: a place just opened was lost", hint="try again") from None

    def _finish(self, reading: ShardReading) -> None:
        reading.progress = replace(reading.progress, iterator=None, iterator_at=None, finished=True)
        reading.at_end = True

    def _pass_by_if_hopeless(self, shard: Shard, reading: ShardReading) -> None:
        """Go to the shard's end where reading on would never, or not soon, reach it."""
        if not reading.records:
            return
        first, last = reading.records[0].created_at, reading.records[-1].created_at
        behind, advanced = self._limits.now().timestamp() - last, last - first
        if behind < TOO_FAR_BEHIND.total_seconds() or behind <= advanced * TICKS_TO_CATCH_UP:
            return
        if shard.closed:
            self._finish(reading)
        else:
            iterator = self._stream.open(shard.shard_id, latest=True).iterator
            reading.progress = replace(
                reading.progress, iterator=iterator, iterator_at=self._limits.now(), sequence_number=None
            )
            reading.at_end = True
        reading.passed_until = self._limits.now()
