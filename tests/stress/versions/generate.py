"""From a seed, the versions of many keys, and two orders in which they come."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tests.stress.versions.world import PAST_SECONDS, SPAN_SECONDS, Side, System, Version

KEYS = 400
STATES = ["a0", "a1", "b1", "-0", "c2", None]


@dataclass
class Counts:
    """What runs did."""

    histories: int = 0
    versions: int = 0
    writes: int = 0
    checks: int = 0

    def add(self, other: Counts) -> None:
        self.histories += other.histories
        self.versions += other.versions
        self.writes += other.writes
        self.checks += other.checks


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The versions of a full export, or, with deletes, of a window."""

    versions: tuple[Version, ...]

    @property
    def whole(self) -> bool:
        """Whether it could be a full export that is not from the future."""
        return all(version.state for version in self.versions) and self.versions[0].seconds < PAST_SECONDS


def run_versions(system: System, seed: int, *, keys: int = KEYS) -> Counts:
    """Generate and carry out one run. Raises Unequal. The same seed gives the same run."""
    chance = random.Random(seed)
    streamed, snapshots = _streamed(chance, keys), _snapshots(chance, keys)
    counts = Counts(histories=keys, versions=len(streamed) + sum(len(one.versions) for one in snapshots))
    sides = system.reset()
    late = [version for version in streamed if chance.random() < 0.1]
    streamed = [version for version in streamed if version not in late]
    for side in sides:
        counts.writes += _deliver(side, chance, streamed, snapshots)
        side.fill()
        side.check()
        counts.checks += 1
    side = chance.choice(sides)
    for days in sorted(chance.sample(range(6), 2)):
        side.purge(days)
        counts.writes += _again(side, chance, streamed, snapshots)
        side.fill()
        side.check()
        counts.checks += 1
    (other,) = (one for one in sides if one is not side)
    _come_late(other, chance, late, keys)
    return counts


def _come_late(side: Side, chance: random.Random, late: list[Version], keys: int) -> None:
    """Deliver changes after a proof that Aurora has them all, then others, and some that were made when it ends."""
    begin = int(chance.choice([0, 3, SPAN_SECONDS]) * chance.random())
    end = begin + chance.choice([3, 40, SPAN_SECONDS // 2])
    side.prove(begin, end)
    chance.shuffle(late)
    within = [version for version in late if begin <= version.seconds < end]
    for start in range(0, len(within), 20):
        side.stream(within[start : start + 20])
    side.check_ends()
    after = [
        Version(key, end + chance.choice([0, 1, 50]), 10**39 + key, chance.choice(STATES))
        for key in range(keys)
        if chance.random() < 0.5
    ]
    side.stream([*(version for version in late if version not in within), *after])
    side.check_live(whatever_came_late=True)


def _again(side: Side, chance: random.Random, streamed: Sequence[Version], snapshots: Sequence[Snapshot]) -> int:
    """Deliver some of it again, after a purge."""
    for snapshot in chance.sample(snapshots, len(snapshots) // 2):
        side.merge(snapshot.versions)
    if some := chance.sample(list(streamed), len(streamed) // 4):
        side.stream(some)
    return 1 + len(snapshots) // 2


def _streamed(chance: random.Random, keys: int) -> list[Version]:
    found: list[Version] = []
    for key in range(keys):
        run_back = chance.random() < 0.1
        spans = [0, 5, 5, 100, 80_000 if run_back else SPAN_SECONDS]
        # Times that run back are within a day of each other; some of them on both sides of a partition's end.
        first = chance.choice([0, 86_370, 2 * 86_400 - 40]) if run_back else 0
        times = sorted(first + chance.choice(spans) * chance.random() for _ in range(chance.randint(0, 6)))
        if run_back:
            chance.shuffle(times)
        number = 0
        for time in times:
            number += chance.choice([1, 10**9, 10 ** chance.randint(0, 38)])
            found.append(Version(key, int(time), number, chance.choice(STATES)))
    return found


def _snapshots(chance: random.Random, keys: int) -> list[Snapshot]:
    times = {chance.choice([3, 5, 50, SPAN_SECONDS]) * chance.random() for _ in range(chance.randint(1, 4))}
    made: list[Snapshot] = []
    for time in {chance.choice([time, int(time), int(time)]) for time in times}:
        states = STATES[:-1] if chance.random() < 0.5 else STATES
        made.append(
            Snapshot(
                tuple(Version(key, time, 0, chance.choice(states)) for key in range(keys) if chance.random() < 0.8)
            )
        )
    return [one for one in made if one.versions]


def _deliver(side: Side, chance: random.Random, streamed: Sequence[Version], snapshots: Sequence[Snapshot]) -> int:
    """Deliver everything at least once, in an order of its own; return the number of writes."""
    waiting: list[tuple[str, Sequence[Version]]] = [(_way(chance, one), one.versions) for one in snapshots]
    records = sorted(streamed, key=lambda version: version.seconds)
    if chance.random() < 0.7:
        chance.shuffle(records)
    while records:
        size = chance.choice([1, 20, 100, 1_000])
        waiting.append((chance.choice(["stream", "stream", "repair"]), records[:size]))
        records = records[size:]
    waiting += chance.sample(waiting, len(waiting) // 3)
    chance.shuffle(waiting)
    for way, versions in waiting:
        _write(side, chance, way, versions, streamed)
    return len(waiting)


def _way(chance: random.Random, snapshot: Snapshot) -> str:
    return chance.choice(["merge", "merge", "repair", "mixed", *(["aside"] if snapshot.whole else [])])


def _write(
    side: Side, chance: random.Random, way: str, versions: Sequence[Version], streamed: Sequence[Version]
) -> None:
    if way == "stream":
        side.stream(versions)
    elif way == "repair":
        side.repair(versions)
    elif way == "mixed":  # a batch of records and of states that were read again
        mixed = [*versions, *chance.sample(list(streamed), len(streamed) // 4)]
        chance.shuffle(mixed)
        side.repair(mixed)
    elif way == "aside":
        side.build_aside(versions, chance.sample(list(streamed), len(streamed) // 10), killed=chance.random() < 0.5)
    else:
        for file in range(2):
            if part := versions[file::2]:
                if chance.random() < 0.2:
                    side.merge(part, killed=True)
                side.merge(part)
