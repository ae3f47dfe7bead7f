"""Reading the shards of a stream for one tick of the probe: bounded in time, in records and in pace.

It reads breadth first, in rounds: one page of each shard that needs one, many shards side by side, then the next round.
So many shards take the time of the calls, not of the pauses. A round ends after a second, and no more shards are begun
than a round suffices for, so that they come to their ends where the time does not suffice for all. A shard that was not
read to its end, because the tick's time was up or its reads were throttled, is resumed in the next tick where it was
left; only one that had its whole share and is still hopelessly behind is passed by.

Invariant: a shard counts as read through a time only when it is closed and gave its last page, gave enough empty pages
one after another, or gave a record that was made later: a shard that is written to all the time has no end. What is
passed by to keep up with a busy shard is returned (`passed`), never forgotten.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

from pipeline.core.errors import TransientError, UnreachableError
from pipeline.core.past.probing import ShardProgress
from pipeline.dynamodb.streams.shards import LostPlaceError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.dynamodb.streams.shards import KeyRecord, Page, Shard, StreamReader

# Pages asked for of one shard in a tick, throttled requests included: more would take reads away from its Lambda.
PAGES_OF_A_SHARD = 12
RECORDS_OF_A_TICK = 50_000
# Between two pages of one shard. It allows 5 reads a second (DynamoDB guide, quotas), and its Lambda takes 4.
PAUSE_SECONDS = 1.0
# Shards of one table read side by side.
READERS = 32
# Empty pages in a row that are taken for the end: more where the place may lie far back.
EMPTY_AT_END, EMPTY_AT_END_OPENED = 2, 4
# Iterators live 15 minutes.
ITERATOR_LIFE = timedelta(minutes=14)
# A shard that is further behind than this, and that would not be at its end after so many ticks, is read from its end.
TOO_FAR_BEHIND, TICKS_TO_CATCH_UP = timedelta(minutes=5), 20
# A shard whose newest record was made so short a time ago is at its end, for all that a lag can tell.
_PRESENT_SECONDS = 3.0
# Creation times are whole seconds.
_GRAIN_SECONDS = 1.0
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one tick. `deadline` is a time of the monotonic clock."""

    deadline: float
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    pages: int = PAGES_OF_A_SHARD
    records: int = RECORDS_OF_A_TICK


@dataclass(frozen=True, slots=True)
class PassedBy:
    """A stretch of a shard that was passed by without being read."""

    shard_id: str
    after: str
    """Sequence number of the last record read before it."""
    since: datetime
    """When that record was made, to the second."""
    ending: str | None
    """The shard's last sequence number, where it is closed; None: it is open, and goes on behind the stretch."""
    until: datetime
    """Everything in the stretch was made before this."""


@dataclass(slots=True)
class ShardReading:
    """What a tick read of one shard."""

    shard: Shard
    progress: ShardProgress
    records: list[KeyRecord] = field(default_factory=list["KeyRecord"])
    at_end: bool = False
    """False: it is resumed in the next tick."""
    trimmed: bool = False
    """The stream has dropped records, perhaps, before they were read."""
    passed: PassedBy | None = None
    requests: int = 0
    pages: int = 0
    """The requests that were answered."""
    empty: int = 0
    """Empty pages in a row."""
    empty_at_end: int = EMPTY_AT_END_OPENED
    beyond: bool = False
    """A record was read that was made later than the time that the shard is to be read through."""
    unreachable: bool = False
    not_before: float = 0.0
    """When its next page may be asked for, by the monotonic clock."""


class ShardsReader:
    """Reads shards side by side, within the limits of one tick."""

    def __init__(self, stream: StreamReader, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._records = 0
        self._failed = False
        self._lock = Lock()

    def read(self, listed: Sequence[Shard], known: dict[str, ShardProgress], through: datetime) -> list[ShardReading]:
        """Read on in every shard that is not finished, the ones read longest ago first.

        `through` is the time up to which a shard that is read to its end counts as read. Raises UnreachableError when
        the stream cannot be reached twice in a row, TerminalError.
        """
        readings = [
            ShardReading(shard, known.get(shard.shard_id, ShardProgress(shard.shard_id, shard.parent_id)))
            for shard in listed
        ]
        waiting: list[ShardReading] = []
        for reading in readings:
            if reading.progress.finished:
                reading.at_end = True
            else:
                waiting.append(reading)
        waiting.sort(key=lambda reading: (reading.progress.iterator_at or _NEVER, reading.shard.closed))
        if waiting:
            with ThreadPoolExecutor(min(READERS, len(waiting)), thread_name_prefix="probe") as threads:
                self._rounds(threads, waiting, through)
                list(threads.map(partial(self._pass_by_if_hopeless, shards=len(waiting)), waiting))
        for reading in waiting:
            if reading.at_end:
                reading.progress = replace(reading.progress, read_through=through)
        return readings

    def _rounds(self, threads: ThreadPoolExecutor, waiting: Sequence[ShardReading], through: datetime) -> None:
        limits = self._limits
        for reading in waiting:
            reading.empty_at_end = self._empty_at_end(reading.progress)
        new, begun, room = deque(waiting), list[ShardReading](), len(waiting)
        while (new or begun) and self._time_is_left():
            taken = [new.popleft() for _ in range(min(len(new), max(0, room - len(begun))))]
            start = max(limits.monotonic(), min(reading.not_before for reading in [*begun, *taken]))
            limits.sleep(max(0.0, min(start, limits.deadline) - limits.monotonic()))
            calls, due = self._stream.calls, [reading for reading in [*begun, *taken] if reading.not_before <= start]
            served = list(threads.map(partial(self._step, through=through, until=start + PAUSE_SECONDS), due))
            new.extendleft(reading for reading in reversed(taken) if not reading.requests)
            begun = [r for r in [*begun, *taken] if not r.at_end and 0 < r.requests < limits.pages]
            if not all(served):  # as many are begun as calls fit into a round, so that they come to their ends
                room = max(READERS, self._stream.calls - calls)

    def _time_is_left(self) -> bool:
        limits = self._limits
        return not self._failed and limits.monotonic() < limits.deadline and self._records < limits.records

    def _step(self, reading: ShardReading, *, through: datetime, until: float) -> bool:
        """Read one page of a shard, unless the round that ends at `until` is over: return whether that was tried.

        Throttled or broken off, it is due again later.
        """
        now = self._limits.monotonic()
        if now >= until or not self._time_is_left():
            return False
        reading.requests += 1
        reading.not_before = now + PAUSE_SECONDS
        try:
            page = self._page(reading)
            reading.unreachable = False
            if page is not None:
                self._judge(reading, page, through)
        except TransientError as error:  # UnreachableError is one
            if isinstance(error, UnreachableError) and reading.unreachable:
                self._failed = True
                raise
            reading.unreachable = isinstance(error, UnreachableError)
        except Exception:
            self._failed = True  # the others need not read on
            raise
        return True

    def _judge(self, reading: ShardReading, page: Page, through: datetime) -> None:
        """Say whether the shard's end was reached by this page."""
        reading.pages += 1
        reading.empty = 0 if page.records else reading.empty + 1
        if page.records:
            newest = page.records[-1].created_at
            reading.beyond = reading.beyond or newest > through.timestamp() + _GRAIN_SECONDS
            if reading.beyond and newest >= self._limits.now().timestamp() - _PRESENT_SECONDS:
                reading.at_end = True
        if page.following is None or reading.empty >= reading.empty_at_end:
            reading.at_end = True

    def _empty_at_end(self, place: ShardProgress) -> int:
        """Return how many empty pages count as the end: few where it was at its end not long ago."""
        was_there = place.read_through is not None and self._limits.now() - place.read_through < ITERATOR_LIFE
        return EMPTY_AT_END if was_there and self._iterator_lives(place) else EMPTY_AT_END_OPENED

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
        if not self._iterator_lives(reading.progress) and not self._open(reading):
            return None
        try:
            page = self._stream.page(reading.progress.iterator or "")
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
        if not self._open(reading):
            return None
        reading.empty_at_end = EMPTY_AT_END_OPENED
        try:
            return self._stream.page(reading.progress.iterator or "")
        except LostPlaceError:
            raise TransientError("reading the stream: a place just opened was lost", hint="try again") from None

    def _finish(self, reading: ShardReading) -> None:
        reading.progress = replace(reading.progress, iterator=None, iterator_at=None, finished=True)
        reading.at_end = True

    def _pass_by_if_hopeless(self, reading: ShardReading, *, shards: int) -> None:
        """Go to the shard's end where reading on would never, or not soon, reach it."""
        if reading.at_end or reading.beyond:
            reading.at_end = True
            return
        if not reading.records or reading.empty or not self._had_its_share(reading, shards):
            return
        first, last = reading.records[0].created_at, reading.records[-1].created_at
        now = self._limits.now()
        behind, advanced = now.timestamp() - last, last - first
        if behind < TOO_FAR_BEHIND.total_seconds() or behind <= advanced * TICKS_TO_CATCH_UP:
            return
        try:
            self._pass_by(reading, datetime.fromtimestamp(last // 1, UTC), now)
        except TransientError:
            return  # throttled: it is read on from where it is

    def _had_its_share(self, reading: ShardReading, shards: int) -> bool:
        """Whether the shard's own backlog ended its reading: not the time, nor throttling, nor what others had."""
        limits = self._limits
        out_of_records = self._records >= limits.records
        return reading.pages >= limits.pages or (out_of_records and len(reading.records) * shards >= limits.records)

    def _pass_by(self, reading: ShardReading, since: datetime, now: datetime) -> None:
        shard, after = reading.shard, reading.records[-1].sequence_number
        if shard.closed:
            self._finish(reading)
        else:
            iterator = self._stream.open(shard.shard_id, latest=True).iterator
            reading.progress = replace(reading.progress, iterator=iterator, iterator_at=now, sequence_number=None)
            reading.at_end = True
        reading.passed = PassedBy(shard.shard_id, after, since, shard.ending, now)
