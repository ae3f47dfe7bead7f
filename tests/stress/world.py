"""Source and target side by side: what can happen between them, and what must hold at every step and in the end.

Invariants checked:
- at every step each view shows, for each key, a state that the source really had, and its source time never goes
  back by more than the contract allows (`BACKWARD_BOUND`): no resurrection, no regression;
- a snapshot replaces a streamed row only if it is really newer: the margin covers the errors of clocks, of whole
  seconds and of an export's blur;
- when every record has been delivered, every key whose records all counted equals the source;
- when the stream lost records, one snapshot and the removal of what it lacks make every key equal;
- delivering, loading and applying everything again changes no key whose records all counted;
- once tombstones are purged through that snapshot it changes no key at all, even if lost records turn up again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.core import ordering
from pipeline.core.model.change import Change
from pipeline.core.model.mapping import TableMapping
from tests.stress.source import NEVER, SECOND, SHARDS, Record, SourceTable, moment
from tests.stress.target import MARGIN, MARGIN_MICROSECONDS, Rows, Snapshot, TargetSystem

# How far the assumed clocks may be off, chosen so that the margin just covers them: 1 + 2 + 2 = 5 seconds.
LARGEST_LAG = 2 * SECOND
"""How far the clock of creation times may be behind the table's."""
LARGEST_LEAD = 3 * SECOND
LARGEST_BLUR = 2 * SECOND
"""An export may contain or lack what was written this close to its time (DynamoDB guide: about a minute)."""
BACKWARD_BOUND = MARGIN_MICROSECONDS + LARGEST_BLUR + LARGEST_LEAD + SECOND


class Unequal(AssertionError):  # noqa: N818 - the finding, not an error of ours
    """The target differs from what the source says it must show."""


@dataclass(slots=True)
class Counts:
    """What a run did."""

    writes: int = 0
    deliveries: int = 0
    """Records given to the product, repetitions included."""
    steps: int = 0
    races: int = 0
    merges: int = 0
    loads: int = 0
    purges: int = 0

    def add(self, other: Counts) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class World:
    """One run: a source of some keys, the stream's state of delivery, snapshots taken, and the target."""

    system: TargetSystem
    mapping: TableMapping
    source: SourceTable
    folder: Path
    counts: Counts = field(default_factory=Counts)
    waiting: dict[tuple[str, int], deque[int]] = field(default_factory=dict[tuple[str, int], "deque[int]"])
    aside: list[list[int]] = field(default_factory=list[list[int]])
    """Batches that went to the on-failure destination."""
    batches: list[list[int]] = field(default_factory=list[list[int]])
    lost: list[int] = field(default_factory=list[int])
    snapshots: list[Snapshot] = field(default_factory=list[Snapshot])
    reads: list[tuple[int, str | None, int]] = field(default_factory=list[tuple[int, "str | None", int]])
    """States with a time, not applied yet: re-reads by key, and lines of incremental exports."""
    delivered: set[int] = field(default_factory=set[int])
    unsettled: set[int] = field(default_factory=set[int])
    """Keys that only a snapshot can put right: the stream lost a record, or it came after a purge had passed it."""
    purged_through: int = NEVER
    latest_snapshot: int = NEVER
    _seen: int = 0
    _shown: list[dict[int, str]] = field(default_factory=list[dict[int, str]])
    _streamed: list[dict[int, str | None]] = field(default_factory=list[dict[int, "str | None"]])
    _reached: list[dict[int, int]] = field(default_factory=list[dict[int, int]])

    def __post_init__(self) -> None:
        self.system.reset(self.mapping)
        self._shown = [{} for _ in self.mapping.targets]
        self._streamed = [{} for _ in self.mapping.targets]
        self._reached = [dict.fromkeys(self.source.keys, NEVER) for _ in self.mapping.targets]

    # The stream.

    def poll(self, shard: tuple[str, int], size: int) -> list[int]:
        """Take the next batch of a shard."""
        self._collect()
        queue = self.waiting[shard]
        return [queue.popleft() for _ in range(min(size, len(queue)))]

    def shards_waiting(self) -> list[tuple[str, int]]:
        self._collect()
        return [shard for shard, queue in self.waiting.items() if queue]

    def deliver(self, indices: Sequence[int], lane: int = 0) -> None:
        """Give records to the replicator as one event."""
        self._note(indices)
        self.counts.deliveries += len(indices)
        self.system.replicate([self.source.records[i].event for i in indices], lane)

    def lose(self, indices: Iterable[int]) -> None:
        """Let the stream's 24 hours pass: lost records may turn up much later, from the on-failure destination."""
        for i in indices:
            self.lost.append(i)
            self.unsettled.add(self.source.records[i].key)

    # Snapshots.

    def take_snapshot(self, blur: int, age_of: Callable[[int], int], file_of: Callable[[int], int]) -> Snapshot:
        """Export the table as of `blur` ago: each key as it was up to `blur` before that time, or since.

        `age_of` says for a key how long before now its state was read, up to twice the blur.
        """
        now = self.source.now
        files: list[Rows] = [[], [], []]
        for key in self.source.keys:
            state = self.source.state_at(key, now - min(age_of(key), 2 * blur))
            if state is not None:
                files[file_of(key) % len(files)].append((key, state))
        snapshot = Snapshot(len(self.snapshots), now - blur, files)
        self._took(snapshot.time)
        self.snapshots.append(snapshot)
        return snapshot

    def merge(self, snapshot: Snapshot, file: int, lane: int = 0) -> None:
        self.counts.merges += 1
        self.system.merge(snapshot.files[file], ordering.snapshot_position(moment(snapshot.time), MARGIN).as_of, lane)

    def load(self, snapshot: Snapshot, *, interrupt_after: int | None = None) -> None:
        """Load with the load job, unless tombstones were purged past the snapshot: it would refuse."""
        if snapshot.time - MARGIN_MICROSECONDS > self.purged_through:
            self.counts.loads += 1
            self.system.load(snapshot, self.folder / f"{id(self)}", interrupt_after=interrupt_after)

    def export_window(self, start: int) -> None:
        """Take an incremental export from `start` to now; its lines wait in `reads`."""
        self._took(self.source.now)
        changed = self.source.changed_between(start, self.source.now)
        self.reads += [(key, state, self.source.now) for key, state in changed.items()]

    def read_again(self, key: int) -> None:
        """Read a key consistently, as a repair does; the state waits in `reads`."""
        self._took(self.source.now)
        self.reads.append((key, self.source.items.get(key), self.source.now))

    def apply_mixed(self, indices: Sequence[int], reads: Sequence[tuple[int, str | None, int]]) -> None:
        """Apply records and read states as one coalesced batch."""
        self._note(indices)
        self.counts.deliveries += len(indices)
        self.system.apply_mixed([self.source.records[i].event for i in indices], [self._changes(r) for r in reads])

    def purge(self, through: int, lane: int = 0) -> None:
        self.counts.purges += 1
        self.purged_through = max(self.purged_through, through)
        self.system.purge(moment(through), lane)

    # What must hold.

    def check_step(self) -> None:
        """Check that each view shows states that were true, none older than the contract allows."""
        self.counts.steps += 1
        for number, (shown, streamed) in enumerate(zip(self.system.shown(), self.system.streamed(), strict=True)):
            before = self._shown[number]
            for key in before.keys() | shown.keys():
                if before.get(key) != shown.get(key):
                    self._check_moved(number, key, shown.get(key))
            for key in self._streamed[number].keys() & (shown.keys() - streamed.keys()):
                self._check_replaced(number, key, self._streamed[number][key], shown[key])
            self._shown[number], self._streamed[number] = shown, streamed

    def settle(self, mixes: Callable[[], bool] = lambda: False) -> None:
        """Deliver the rest, and check every key that the stream could bring to the source's state."""
        for batch in self.aside:
            if mixes():  # with older reads of the same keys, which must lose in the batch as they would in the row
                keys = {self.source.records[i].key for i in batch}
                self.apply_mixed(batch, [read for read in self.reads if read[0] in keys])
            else:
                self.deliver(batch)
            self.check_step()
        self.aside.clear()
        for shard in self.shards_waiting():
            self.deliver(self.poll(shard, 10**6))
            self.check_step()
        self._check_equal(except_keys=self.in_doubt, when="after every record")

    @property
    def in_doubt(self) -> set[int]:
        """Return the keys that the stream alone cannot bring to the source's state."""
        return self.unsettled | self.source.unrecorded

    def heal(self) -> int:
        """Load one export as soon as the contract allows, remove what it lacks; return its `as_of`."""
        time = self._first_sufficient_time()
        healing = Snapshot(len(self.snapshots), time, [sorted(self.source.items.items())])
        self.snapshots.append(healing)
        self.merge(healing, 0)
        extra = {key for shown in self.system.shown() for key in shown} - self.source.items.keys()
        if extra:
            repairs = [(key, None, time) for key in sorted(extra)]
            self.reads += repairs
            self.apply_mixed([], repairs)
        self.check_step()
        self._check_equal(except_keys=set(), when="after a snapshot and the removal of what it lacks")
        return time - MARGIN_MICROSECONDS

    def heal_by_reads(self, records: list[int]) -> None:
        """Read every key again at that same moment, and apply it in one batch with `records`, including lost ones."""
        time = self._first_sufficient_time()
        reads = [(key, self.source.items.get(key), time) for key in self.source.keys]
        self.reads += reads
        self.apply_mixed(records, reads)
        self.check_step()
        self._check_equal(except_keys=set(), when="after every key was read again")

    def _first_sufficient_time(self) -> int:
        """Move to the time whose `as_of` ties with the latest creation time, unless something is there already."""
        time = max(self.source.now, self.latest_creation() + MARGIN_MICROSECONDS)
        time = max(time, self.latest_snapshot + 1, self.purged_through + MARGIN_MICROSECONDS + 1)
        self.source.tick(time - self.source.now)
        self._took(time)
        return time

    def repeat(self, batches: list[list[int]]) -> None:
        """Deliver some of what was delivered, once all is equal: nothing changes, whatever is left out."""
        for batch in batches:
            self.deliver(batch)
        self.check_step()
        self._check_equal(except_keys=set(), when="after some records were delivered again")

    def latest_creation(self) -> int:
        return max((record.created for record in self.source.records), default=self.source.now)

    def replay(self, order: Callable[[list[int]], list[list[int]]], *, except_keys: set[int]) -> None:
        """Deliver everything again, lost records too, load every snapshot and apply every read: nothing changes.

        `except_keys`: an item whose removal no stream recorded left no tombstone, so a state of it from before, in
        an older snapshot, has nothing to lose against until a purge covers it (docs/decisions/0002-ordering.md).
        """
        everything = list(range(len(self.source.records)))
        for batch in order(everything):
            self.apply_mixed(batch, [])
        for snapshot in self.snapshots:
            for file in range(len(snapshot.files)):
                self.merge(snapshot, file)
        if self.reads:
            self.apply_mixed([], self.reads)
        self.check_step()
        self._check_equal(except_keys=except_keys, when="after everything was delivered again")

    # Inside.

    def _collect(self) -> None:
        for index in range(self._seen, len(self.source.records)):
            self.waiting.setdefault(self.source.records[index].shard, deque()).append(index)
        self._seen = len(self.source.records)

    def _note(self, indices: Sequence[int]) -> None:
        """Before records are first handed over: find those that the contract refuses, because a purge passed them."""
        new = [i for i in indices if i not in self.delivered]
        late = [self.source.records[i] for i in new if self.source.records[i].created <= self.purged_through]
        if late:
            stored = self.system.stored_keys()
            self.unsettled |= {record.key for record in late if record.key not in stored}
        self.delivered.update(new)

    def note_racing_purge(self, records: Iterable[Record], through: int) -> None:
        """Run a purge beside the delivery of `records`: which comes first is not known."""
        self.unsettled |= {record.key for record in records if record.created <= through}

    def _took(self, time: int) -> None:
        self.latest_snapshot = max(self.latest_snapshot, time)

    def _changes(self, read: tuple[int, str | None, int]) -> tuple[Change, ...]:
        key, state, time = read
        position = ordering.snapshot_position(moment(time), MARGIN)
        row = None if state is None else (str(key), state)
        return tuple(Change((str(key),), row, position) for _ in self.mapping.targets)

    def _check_moved(self, number: int, key: int, state: str | None) -> None:
        reached = self._reached[number]
        spans = self._spans(key, state)
        allowed = [start for start, end in spans if end >= reached[key] - BACKWARD_BOUND]
        if not allowed:
            what = "never had" if not spans else "had long before"
            raise Unequal(f"target {number} shows key {key} as {state}, a state the source {what}")
        reached[key] = max(reached[key], min(allowed))

    def _check_replaced(self, number: int, key: int, streamed: str | None, state: str) -> None:
        since = min(start for start, _ in self._spans(key, streamed))
        if max(end for _, end in self._spans(key, state)) < since:
            raise Unequal(f"target {number}: an older snapshot, {state}, replaced the streamed {streamed} of key {key}")

    def _spans(self, key: int, state: str | None) -> list[tuple[int, int]]:
        """Return from when until when the source had this state: once or never; an absent item may have several."""
        timeline = self.source.timeline[key]
        ends = [time for time, _ in timeline[1:]] + [self.source.now]
        return [(start, end) for (start, had), end in zip(timeline, ends, strict=True) if had == state]

    def _check_equal(self, *, except_keys: set[int], when: str) -> None:
        for number, shown in enumerate(self.system.shown()):
            for key in self.source.keys:
                if key not in except_keys and shown.get(key) != self.source.items.get(key):
                    raise Unequal(
                        f"{when}, target {number} shows key {key} as {shown.get(key)},"
                        f" and the source has {self.source.items.get(key)}"
                    )


SHARD_NUMBERS = range(SHARDS)
