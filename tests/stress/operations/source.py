"""DynamoDB under operations: tables that are recreated, streams that end and are recreated, shards that split.

Invariant: it shares no code with the product except the ordering contract's positions. `Table.log` is the oracle: every
write, recorded by a stream or not. Time is virtual and true; only the product's own clock may be wrong.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.core.ordering import Position
from pipeline.core.streams.positions import streamed_position

if TYPE_CHECKING:
    from collections.abc import Iterable
    from random import Random

SECOND = timedelta(seconds=1)
RETENTION = timedelta(hours=24)
SHARD_LIFE = timedelta(hours=4)
FIRST_NUMBER = 10**20
# An export may contain or lack what was written this close to its time (DynamoDB guide: about a minute).
BLUR_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a stream. `state` None: the item was removed."""

    key: int
    number: int
    made: datetime
    seen: datetime
    """A reader of the stream gets it from this time on."""
    state: str | None
    position: Position

    @property
    def version(self) -> int:
        assert self.position.version is not None
        return self.position.version

    @property
    def unfit(self) -> bool:
        """The target cannot hold the item: the record becomes a reject."""
        return self.state is not None and self.state.startswith("!")


@dataclass(slots=True)
class Shard:
    """`records` are those not trimmed, in the order of their numbers."""

    name: str
    parent: str | None
    opened: datetime
    keys: set[int]
    listed: datetime
    """DescribeStream lists it from this time on."""
    records: list[Record] = field(default_factory=list[Record])
    closed: datetime | None = None
    dropped: int = 0
    """The number of the last record that was trimmed."""

    def after(self, number: int, now: datetime) -> list[Record]:
        """Return what a reader after `number` gets, up to the first record that is not visible yet."""
        start = bisect_right(self.records, number, key=lambda record: record.number) if number else 0
        end = start
        while end < len(self.records) and self.records[end].seen <= now:
            end += 1
        return self.records[start:end]


class Stream:
    """One stream of one table, with the label from its creation."""

    def __init__(self, table: Table, keys: Iterable[int], now: datetime, random: Random) -> None:
        self.table, self.made, self.enabled = table, now, True
        self.label = now.replace(tzinfo=None).isoformat(timespec="milliseconds")
        self.shards: dict[str, Shard] = {}
        self.number = FIRST_NUMBER
        self.longest_delay = 5
        self._random = random
        self._shards_made = 0
        self._of_key: dict[int, Shard] = {}
        self._open(None, set(keys), now)

    def put(self, key: int, state: str | None, now: datetime) -> Record:
        """Record a write. Records of one shard become visible in order."""
        random = self._random
        self.number += 1 if random.random() < 0.7 else 10 ** random.randint(1, 12)
        shard = self._of_key[key]
        seen = now + random.randint(0, self.longest_delay) * SECOND
        if shard.records:
            seen = max(seen, shard.records[-1].seen)
        position = streamed_position(self.label, str(self.number), now.timestamp())
        record = Record(key, self.number, now, seen, state, position)
        shard.records.append(record)
        return record

    def roll(self, shard: Shard, now: datetime, *, split: bool) -> None:
        """Close a shard and begin its successors."""
        shard.closed = now
        keys = sorted(shard.keys)
        if split and len(keys) > 1:
            half = self._random.randint(1, len(keys) - 1)
            self._random.shuffle(keys)
            parts = [set(keys[:half]), set(keys[half:])]
        else:
            parts = [set(keys)]
        for part in parts:
            self._open(shard.name, part, now)

    def listed(self, now: datetime) -> dict[str, Shard]:
        return {name: shard for name, shard in self.shards.items() if shard.listed <= now}

    def open_shards(self) -> list[Shard]:
        return [shard for shard in self.shards.values() if shard.closed is None]

    def disable(self, now: datetime) -> None:
        self.enabled = False
        for shard in self.open_shards():
            shard.closed = now

    def age(self, now: datetime, slack: timedelta, listed_longer: timedelta) -> None:
        """Roll old shards, and drop what is older than the stream keeps."""
        if self.enabled:
            for _ in range(2):
                for shard in self.open_shards():
                    if now - shard.opened > SHARD_LIFE:
                        closed = shard.opened + max(SHARD_LIFE, (now - shard.opened) / 2)
                        newest = [record.made for record in shard.records[-1:]]
                        self.roll(shard, min(now, max(closed, *newest, closed)), split=False)
        horizon = now - RETENTION - slack
        for shard in list(self.shards.values()):
            if shard.records and shard.records[0].made <= horizon:
                old = bisect_right(shard.records, horizon, key=lambda record: record.made)
                shard.dropped = shard.records[old - 1].number
                del shard.records[:old]
            if shard.closed is not None and shard.closed <= horizon - listed_longer:
                del self.shards[shard.name]

    def _open(self, parent: str | None, keys: set[int], now: datetime) -> None:
        self._shards_made += 1
        listed = now + self._random.choice([0, 0, 0, 8]) * SECOND
        shard = Shard(f"{self.made:%d%H%M%S%f}-{self._shards_made:04d}", parent, now, keys, listed)
        self.shards[shard.name] = shard
        for key in keys:
            self._of_key[key] = shard


@dataclass(frozen=True, slots=True)
class Write:
    """One write of an item; `record` None if no stream was on."""

    made: datetime
    state: str | None
    record: Record | None


class Table:
    """A DynamoDB table with integer keys. A state is a text that belongs to one write; None is absent."""

    def __init__(
        self, name: str, table_id: str, keys: range, now: datetime, items: dict[int, str], random: Random
    ) -> None:
        self.name, self.table_id, self.keys, self.made = name, table_id, keys, now
        self.items = dict(items)
        self.log: dict[int, list[Write]] = {key: [Write(now, items.get(key), None)] for key in keys}
        self.recovery_since = now
        """Point-in-time recovery can export from this time on."""
        self.stream: Stream | None = None
        self._random = random

    @property
    def stream_on(self) -> bool:
        return self.stream is not None and self.stream.enabled

    def enable_stream(self, now: datetime) -> Stream:
        self.stream = Stream(self, self.keys, now, self._random)
        return self.stream

    def write(self, key: int, state: str | None, now: datetime) -> Record | None:
        """Put or remove an item. Removing what is not there writes no record, as in DynamoDB."""
        if state is None and key not in self.items:
            return None
        if state is None:
            del self.items[key]
        else:
            self.items[key] = state
        record = self.stream.put(key, state, now) if self.stream is not None and self.stream.enabled else None
        self.log[key].append(Write(now, state, record))
        return record

    def state_at(self, key: int, time: datetime) -> str | None:
        """Return the item as it was at a time; as it was at first, before that."""
        writes = self.log[key]
        return writes[max(0, bisect_right(writes, time, key=lambda write: write.made) - 1)].state

    def snapshot(self, time: datetime, now: datetime) -> dict[int, str]:
        """Export the table as of a time: each item as it was up to a minute before that, or after it, up to now."""
        blurred = (
            (key, self.state_at(key, min(now, time + self._random.randint(-BLUR_SECONDS, BLUR_SECONDS) * SECOND)))
            for key in self.keys
        )
        return {key: state for key, state in blurred if state is not None}

    def window(self, start: datetime, end: datetime) -> dict[int, tuple[datetime, str | None]]:
        """Export what was written in [start, end): when last, and its state then.

        What was absent before and after is not in it, whatever happened between.
        """
        told: dict[int, tuple[datetime, str | None]] = {}
        for key, writes in self.log.items():
            first = bisect_left(writes, start, lo=1, key=lambda write: write.made)
            last = bisect_left(writes, end, lo=1, key=lambda write: write.made)
            if first < last and not (writes[first - 1].state is None and writes[last - 1].state is None):
                told[key] = (writes[last - 1].made, writes[last - 1].state)
        return told

    def right_until(self, key: int, state: str | None, kept: Iterable[str | None]) -> datetime | None:
        """Return until when a row of this state was right, and would not miss a change; None: it is right now.

        `kept` are states that the target cannot hold and that were rejected, visibly: the row may be behind them. A
        state that this table never had was never right: the result is the table's beginning.
        """
        writes, accounted = self.log[key], {state, *kept}
        at = next((at for at in range(len(writes) - 1, -1, -1) if writes[at].state in accounted), None)
        if at is None:
            return self.made
        return writes[at + 1].made if at + 1 < len(writes) else None
