"""Read the shards of a stream for one tick of the probe, within limits of time, records and pace.

It reads breadth first, in rounds: one page of each shard that needs one, many shards side by side, then the next round.
So reading many shards takes the time of the calls, not of the pauses. A round ends after a second, and no more shards
are begun than fit into a round, so that those that are begun reach their ends even when the time is too short for all.
A shard that was not read to its end, because the tick's time was up or its reads were throttled, is resumed in the next
tick. A shard is skipped to its end only if it had its whole share and is still hopelessly behind.

Invariant: a shard counts as read through a time only when it is closed and gave its last page, gave enough empty pages
in a row, or gave a record that was made later: a shard that is written all the time has no end. What is skipped to keep
up with a busy shard is returned (`passed`), never forgotten.
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

# Pages requested of one shard in a tick, throttled requests included: more would take reads away from its Lambda.
PAGES_OF_A_SHARD = 12
RECORDS_OF_A_TICK = 50_000
# Between two pages of one shard. It allows 5 reads a second (DynamoDB guide, quotas), and its Lambda takes 4.
PAUSE_SECONDS = 1.0
# Shards of one table read side by side.
READERS = 32
# Empty pages in a row that count as the end: more where the place may be far back.
EMPTY_AT_END, EMPTY_AT_END_OPENED = 2, 4
# Iterators live 15 minutes.
ITERATOR_LIFE = timedelta(minutes=14)
# A shard further behind than this, that would not reach its end within this many ticks, is skipped to its end.
TOO_FAR_BEHIND, TICKS_TO_CATCH_UP = timedelta(minutes=5), 20
# A shard whose newest record is younger than this is at its end, as far as a lag can tell.
_PRESENT_SECONDS = 3.0
# Creation times are whole seconds.
_GRAIN_SECONDS = 1.0
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one tick. `deadline` is a time of the monotonic clock."""

    deadline: float
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    pages: int = PAGES_OF_A_SHARD
    records: int = RECORDS_OF_A_TICK


@dataclass(frozen=True, slots=True)
class PassedBy:
    """A stretch of a shard that was skipped without being read."""

    shard_id: str
    after: str
    """Sequence number of the last record read before it."""
    since: datetime
    """When that record was made, to the second."""
    ending: str | None
    """The shard's last sequence number, if it is closed; None: it is open, and continues after the stretch."""
    until: datetime
    """Everything in the stretch was made before this."""


@dataclass(slots=True)
class ShardReading:
    """What a tick read of one shard."""

    shard: Shard
    progress: ShardProgress
    records: list[KeyRecord] = field(default_factory=list["KeyRecord"])
    at_end: bool = False
    """False: the next tick resumes it."""
    trimmed: bool = False
    """The stream may have dropped records before they were read."""
    passed: PassedBy | None = None
    requests: int = 0
    pages: int = 0
    """The requests that got an answer."""
    empty: int = 0
    """Empty pages in a row."""
    empty_at_end: int = EMPTY_AT_END_OPENED
    beyond: bool = False
    """It read a record that was made after the time through which the shard is to be read."""
    unreachable: bool = False
    not_before: float = 0.0
    """When its next page may be requested, by the monotonic clock."""


class ShardsReader:
    """Reads shards side by side, within the limits of one tick."""

    def __init__(self, stream: StreamReader, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._records = 0
        self._failed = False
        self._lock = Lock()

    def read(self, listed: Sequence[Shard], known: dict[str, ShardProgress], through: datetime) -> list[ShardReading]:
        """Continue to read every unfinished shard, starting with the ones that were read longest ago.

        `through` is the time through which a shard counts as read once its end is reached. Raises UnreachableError when
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
            if not all(served):  # begin only as many as fit into a round, so that those reach their ends
                room = max(READERS, self._stream.calls - calls)

    def _time_is_left(self) -> bool:
        limits = self._limits
        return not self._failed and limits.monotonic() < limits.deadline and self._records < limits.records

    def _step(self, reading: ShardReading, *, through: datetime, until: float) -> bool:
        """Read one page of a shard, unless the round that ends at `until` is over; returns whether it was tried.

        If it was throttled or failed, it is due again later.
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
            self._failed = True  # the others need not continue
            raise
        return True

    def _judge(self, reading: ShardReading, page: Page, through: datetime) -> None:
        """Record whether this page reached the shard's end."""
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
        """Return how many empty pages count as the end: few if it was at its end not long ago."""
        was_there = place.read_through is not None and self._limits.now() - place.read_through < ITERATOR_LIFE
        return EMPTY_AT_END if was_there and self._iterator_lives(place) else EMPTY_AT_END_OPENED

    def _iterator_lives(self, place: ShardProgress) -> bool:
        if place.iterator is None or place.iterator_at is None:
            return False
        return self._limits.now() - place.iterator_at < ITERATOR_LIFE

    def _open(self, reading: ShardReading) -> bool:
        """Open the shard at its last place, or at the oldest record there is; False when the shard is gone."""
        opened = self._stream.open(reading.progress.shard_id, after=reading.progress.sequence_number)
        reading.trimmed = reading.trimmed or opened.trimmed
        reading.progress = replace(reading.progress, iterator=opened.iterator, iterator_at=self._limits.now())
        if opened.iterator is None:
            self._finish(reading)
        return opened.iterator is not None

    def _page(self, reading: ShardReading) -> Page | None:
        """Read a page and move the place after it; None when the shard is gone."""
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
        """Skip to the shard's end if reading on would never reach it, or not soon."""
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
            return  # throttled: it is resumed from its place

    def _had_its_share(self, reading: ShardReading, shards: int) -> bool:
        """Whether the shard's own backlog ended its reading: not the time, throttling, or the other shards' share."""
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
