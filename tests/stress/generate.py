"""The random driver: from a seed, one run of many keys, each key its own history.

A run's exports, purges and stream labels belong to the table, so its keys share them. Each key has its own life (its
writes, their times, its clock), and its records travel in their own way (batch, order, repetition, loss).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from tests.stress.source import SECOND, SourceTable
from tests.stress.target import MARGIN_MICROSECONDS, ONE_TARGET, TWO_TARGETS, Snapshot, TargetSystem
from tests.stress.world import LARGEST_BLUR, LARGEST_LAG, LARGEST_LEAD, Counts, World

KEYS = 200
STEPS = 70

PAUSES = [1, SECOND // 10, SECOND // 2, SECOND, SECOND, 3 * SECOND, MARGIN_MICROSECONDS, 20 * SECOND]


def run_histories(system: TargetSystem, seed: int, folder: Path, *, keys: int = KEYS, steps: int = STEPS) -> Counts:
    """Generate and carry out one run. Raises Unequal. The same seed gives the same run."""
    run = _Run(system, random.Random(seed), folder, keys)
    run.live(steps)
    run.end()
    return run.world.counts


class _Run:
    def __init__(self, system: TargetSystem, source: random.Random, folder: Path, keys: int) -> None:
        self.random = source
        mapping = TWO_TARGETS if source.random() < 0.25 else ONE_TARGET
        exact = source.random() < 0.5  # clocks that agree make ties between records and snapshots common
        offset = [-LARGEST_LAG, -LARGEST_LAG, LARGEST_LEAD, source.randint(-LARGEST_LAG, LARGEST_LEAD)]
        offsets = [0 if exact else source.choice(offset) for _ in range(keys)]
        self.blur = 0 if exact else LARGEST_BLUR
        self.busy = source.random() < 0.5
        self.world = World(system, mapping, SourceTable(mapping.table, keys, offsets), folder)

    def live(self, steps: int) -> None:
        actions: dict[Callable[[], object], int] = {
            self.write: 30,
            self.pause: 10,
            self.deliver_next: 20,
            self.set_aside: 4,
            self.redrive: 4,
            self.redeliver: 8,
            self.lose: 1,
            self.toggle_stream: 2,
            self.export: 3,
            self.export_at_once: 4,
            self.merge_file: 8,
            self.roll_back_file: 2,
            self.load: 1,
            self.export_window: 2,
            self.read_again: 3,
            self.apply_reads: 5,
            self.purge: 5,
            self.race: 4,
        }
        for action in self.random.choices(list(actions), list(actions.values()), k=steps):
            action()
            self.world.check_step()

    def end(self) -> None:
        self.closing_second()
        world = self.world
        world.settle(lambda: self.random.random() < 0.4)
        if self.random.random() < 0.5:
            everything = list(range(len(world.source.records)))
            self.random.shuffle(everything)
            world.heal_by_reads(everything[: self.random.choice([200, len(everything)])])
        elif world.in_doubt:
            world.heal()
        world.repeat(self.some_delivered())
        world.purge(world.latest_creation())
        world.repeat(self.some_delivered())
        world.replay(self.shuffled_batches, except_keys=world.in_doubt)
        world.purge(world.heal())
        world.replay(self.shuffled_batches, except_keys=set())

    # The source.

    def write(self) -> None:
        source, world = self.random, self.world
        for _ in range(source.randint(1, max(1, len(world.source.keys) // 2))):
            world.counts.writes += 1
            key = source.randrange(len(world.source.keys))
            draw = source.random()
            if draw < 0.65:
                world.source.put(key, self.number_step())
            else:
                world.source.delete(key, self.number_step(), expired=draw > 0.9)
            if source.random() < 0.1:
                world.source.tick(source.choice(PAUSES[:4]))

    def number_step(self) -> int:
        return self.random.choice([1, 1, 10**6, 10**18, 10 ** self.random.randint(0, 37)])

    def pause(self) -> None:
        self.world.source.tick(self.random.choice(PAUSES))
        if self.random.random() < 0.5:
            self.to_whole_second()

    def to_whole_second(self) -> None:
        self.world.source.tick(-self.world.source.now % SECOND)

    def toggle_stream(self) -> None:
        if self.world.source.streaming:
            self.world.source.disable_stream()
        else:
            self.world.source.enable_stream()

    def closing_second(self) -> None:
        """Make the last second of every run a busy one and lose some of its records, so that repairs meet ties."""
        for key in self.world.source.keys:
            if self.random.random() < 0.3:
                self.world.read_again(key)
        self.world.source.enable_stream()
        self.to_whole_second()
        for again in range(3):
            if again == 2 and self.random.random() < 0.5:
                self.world.source.disable_stream()
            for key in self.world.source.keys:
                if self.random.random() < 0.4:
                    self.world.counts.writes += 1
                    self.world.source.put(key, self.number_step())
                elif self.random.random() < 0.2:
                    self.world.source.delete(key, self.number_step())
        for shard in self.world.shards_waiting():
            self.world.aside += self.shuffled_batches([i for i in self.world.poll(shard, 10**6) if not self.is_lost(i)])
        self.random.shuffle(self.world.aside)

    def is_lost(self, index: int) -> bool:
        if self.random.random() < 0.1:
            self.world.lose([index])
            return True
        return False

    # Delivery.

    def next_batch(self) -> list[int]:
        """Return records not delivered yet, usually in order; the contract does not require order."""
        shards = self.world.shards_waiting()
        batch = self.world.poll(self.random.choice(shards), self.random.choice([1, 5, 30, 100])) if shards else []
        if self.random.random() < 0.25:
            self.random.shuffle(batch)
        return batch

    def deliver(self, indices: list[int], lane: int = 0) -> None:
        if indices:
            self.world.deliver(indices, lane)
            self.world.batches.append(indices)

    def deliver_next(self) -> None:
        for _ in range(3):
            batch = self.next_batch()
            if len(batch) > 1 and self.random.random() < 0.2:  # Lambda bisects a batch that failed
                middle = self.random.randrange(1, len(batch))
                self.deliver(batch[:middle])
                self.deliver(batch[middle:])
            else:
                self.deliver(batch)

    def set_aside(self) -> None:
        if batch := self.next_batch():
            self.world.aside.append(batch)

    def redrive(self) -> None:
        if self.world.aside:
            self.deliver(self.world.aside.pop(self.random.randrange(len(self.world.aside))))

    def redeliver(self) -> None:
        """Deliver again: the same batch, one that overlaps it, or records picked from everywhere in any order."""
        self.deliver(self.old_records())

    def old_records(self) -> list[int]:
        world, draw = self.world, self.random.random()
        if not world.batches:
            return []
        batch = self.random.choice(world.batches)
        if draw < 0.3:
            return batch
        if draw < 0.5:
            start = self.random.randrange(len(batch))
            return batch[start:] + self.next_batch()
        known = sorted(world.delivered)
        return [self.random.choice(known) for _ in range(self.random.randint(1, 60))]

    def lose(self) -> None:
        self.world.lose(self.next_batch())

    # Snapshots.

    def export(self, close: float = 0.5) -> Snapshot:
        if self.random.random() < close:  # so that writes fall where margin, blur and clocks are only just enough
            self.write()
            self.world.source.tick(self.random.choice([SECOND, 2 * SECOND, 3 * SECOND, 3 * SECOND]))
        if self.random.random() < 0.7:
            self.to_whole_second()
        ages = [0, 2 * self.blur, 2 * self.blur, self.random.randint(0, 2 * self.blur)]
        return self.world.take_snapshot(
            self.blur, lambda _: self.random.choice(ages), lambda _: self.random.randrange(3)
        )

    def export_at_once(self) -> None:
        """Write, export and merge, without a newer record in between that would decide instead."""
        snapshot = self.export(close=1)
        for shard in self.world.shards_waiting():
            self.deliver(self.world.poll(shard, 10**6))
        for file in range(3):
            self.world.merge(snapshot, file)

    def merge_file(self) -> None:
        if self.world.snapshots:
            snapshot = self.random.choice(self.world.snapshots)
            self.world.merge(snapshot, self.random.randrange(3))

    def roll_back_file(self) -> None:
        """Kill a load while it merges a file, and deliver a batch that waits for it or overtakes it."""
        if self.world.snapshots:
            snapshot, file = self.random.choice(self.world.snapshots), self.random.randrange(3)
            batch = self.next_batch()
            self.world.counts.races += 1
            self.world.system.race(
                lambda lane: self.world.merge(snapshot, file, lane),
                lambda lane: self.deliver(batch, lane),
                commit=False,
            )

    def load(self) -> None:
        snapshot = self.export()
        if self.random.random() < 0.5:
            self.world.load(snapshot, interrupt_after=self.random.randrange(3))
            self.world.check_step()
            if self.random.random() < 0.5:
                self.deliver_next()
                return  # left unfinished: a newer export may follow
        self.world.load(snapshot)

    def export_window(self) -> None:
        start = self.world.source.now - self.random.choice([SECOND, 10 * SECOND, 10**6 * SECOND])
        self.world.export_window(start)

    def read_again(self) -> None:
        if self.random.random() < 0.5:
            self.to_whole_second()
        for _ in range(self.random.randint(1, 60)):
            self.world.read_again(self.random.randrange(len(self.world.source.keys)))

    def apply_reads(self) -> None:
        reads = [read for read in self.world.reads if self.random.random() < 0.5]
        self.random.shuffle(reads)
        self.world.apply_mixed(self.old_records() + self.next_batch(), reads)

    def purge(self) -> None:
        """Purge, and deliver younger records a second time: their tombstones must still be there."""
        world, through = self.world, self.purge_time()
        world.purge(through)
        younger = [i for i in sorted(world.delivered) if world.source.records[i].created > through]
        self.deliver([i for i in younger if self.random.random() < 0.5])

    def purge_time(self) -> int:
        through = self.world.source.now - self.random.choice([0, 2 * SECOND, 20 * SECOND, 20 * SECOND, 60 * SECOND])
        return through - through % SECOND if self.random.random() < 0.7 else through

    # Two writers at once.

    def race(self) -> None:
        self.world.counts.races += 1
        (first, batch), (second, _) = self.racer(), self.racer()
        commit = self.random.random() < 0.8
        self.world.system.race(first, second, commit=commit)
        if not commit:  # a batch that was rolled back is delivered again; it may contain records never seen before
            self.deliver(batch)

    def racer(self) -> tuple[Callable[[int], None], list[int]]:
        """Return what one of two writers does, and the batch that it delivers, if any."""
        world, draw = self.world, self.random.random()
        if draw < 0.3 and world.snapshots:
            snapshot, file = self.random.choice(world.snapshots), self.random.randrange(3)
            return lambda lane: world.merge(snapshot, file, lane), []
        if draw < 0.45:
            through = self.purge_time()
            world.unsettled |= {r.key for r in world.source.records if r.created <= through}
            return lambda lane: world.purge(through, lane), []
        batch = self.old_records()
        return lambda lane: self.deliver(batch, lane), batch

    def some_delivered(self) -> list[list[int]]:
        return self.shuffled_batches([i for i in sorted(self.world.delivered) if self.random.random() < 0.5])

    def shuffled_batches(self, indices: list[int]) -> list[list[int]]:
        self.random.shuffle(indices)
        size = self.random.choice([50, 200, 500])
        return [indices[start : start + size] for start in range(0, len(indices), size)]
