"""Histories of operations: from a seed, one world, what happens to it, and a person who follows the printed commands.

Invariant: the same seed gives the same history. Whatever went wrong, the end is the same: people repair what the
conditions name (functions, event source mappings, streams), and the printed commands must do the rest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

from tests.stress.operations.commands import Commands, printed
from tests.stress.operations.oracle import Oracle, Wrong
from tests.stress.operations.product import Product
from tests.stress.operations.situations import first_tick_late, lost_before_the_load, situation
from tests.stress.operations.source import SECOND
from tests.stress.operations.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.core.past.memory import Memory

SHORT = (1, 5, 15, 30, 30, 60, 120, 300)
LONG = (1_200, 7_200, 28_800, 72_000, 86_000, 87_000, 108_000, 260_000)
TICK_SECONDS = 30
WARN = timedelta(minutes=5)
AT_WORK_AFTER = timedelta(minutes=10)
MOST_ROUNDS = 8
"""The most visits of a person, each a command or two, until everything is as in the source."""


@dataclass(slots=True)
class Counts:
    """What histories did."""

    writes: int = 0
    ticks: int = 0
    commands: int = 0
    most_commands: int = 0
    most_ticks: int = 0
    faults: Counter[str] = field(default_factory=Counter[str])

    def add(self, other: Counts) -> None:
        self.writes += other.writes
        self.ticks += other.ticks
        self.commands += other.commands
        self.most_commands = max(self.most_commands, other.most_commands)
        self.most_ticks = max(self.most_ticks, other.most_ticks)
        self.faults += other.faults


def run_history(seed: int, trace: Callable[[str], None] | None = None) -> Counts:
    """Generate and carry out one history. Raises Wrong."""
    history = History(seed, trace)
    history.live()
    history.end()
    history.counts.writes = history.world.writes
    history.counts.ticks = history.product.ticks
    return history.counts


class History:
    """One history in progress."""

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.random = random = Random(seed)
        self.say: Callable[[str], None] = trace or _say_nothing
        self.counts = Counts()
        self.healthy = random.random() < 0.2
        self.world = World(random, random.choice([2, 3, 5]))
        self.world.settings = {
            "factor": random.choice([1, 1, 1, 3]),
            "window_seconds": (window := random.choice([1, 1, 1, 60, 300])),
            "lags": random.choice([(0,), (0, 1, 2), (0, 2, 20, 50)]) + ((window,) if window > 1 else ()),
            "max_age": random.choice([timedelta(hours=20), timedelta(hours=20), None]),
            "keeps_failures": random.choice([0.0, 0.5, 1.0]),
        }
        self.world.deploy()
        self.product = Product(self.world)
        if not self.healthy and random.random() < 0.2:  # more changes wait, or are lost, than are kept
            self.product.most_waiting, self.product.most_lost = random.choice([(1, 10_000), (2, 2), (10_000, 1)])
        self.product.knows_mapping = self.world.settings["window_seconds"] > 1 or random.random() < 0.8
        self.commands = Commands(self.world, self.product, self.meanwhile, self.tick)
        self.oracle = Oracle(self.world, self.product, healthy=self.healthy)
        self.quiet = False
        self.earlier_come_late = random.random() < 0.5
        """Whether functions of earlier streams stay as they are until the remedies were followed."""
        self.faults = self._faults()
        self.begin()

    def _faults(self) -> list[Callable[[], None]]:
        if self.healthy:
            return [self.idle, self.clock]
        every = [
            self.restore,
            self.restore,
            self.clone,
            self.recreate,
            self.repoint,
            self.stream_off,
            self.kill,
            self.kill,
            self.mapping_off,
            self.map_again,
            self.poison,
            self.away,
            self.away,
            self.clock,
            self.throttle,
            self.busy,
            self.situation,
            self.situation,
            self.situation,
        ]
        return self.random.sample(every, self.random.randint(1, 4))

    def begin(self) -> None:
        """A table that is loaded and proven."""
        for _ in range(self.random.randint(1, 6)):
            self.write()
        self.pause(self.random.choice(SHORT))
        late = not self.healthy and self.random.random() < 0.1
        if late and self.random.random() < 0.5:
            lost_before_the_load(self)
        assert self.commands.run("load orders").code == 0
        if late:
            first_tick_late(self)
        elif self.random.random() < 0.9:
            self.tick()
        self.world.backup()

    # Living.

    def live(self) -> None:
        calm = [self.write, self.write, self.write, self.pause, self.pause, self.tick, self.tick, self.tick, self.split]
        rare = [self.purge, self.visit, self.reconcile, self.fix, self.fix]
        if not self.healthy and self.random.random() < 0.3:
            self.counts.faults["situation"] += 1
            self.situation()
        for _ in range(self.random.randint(10, 30)):
            draw = self.random.random()
            if draw < 0.12 and self.faults:
                fault = self.random.choice(self.faults)
                self.counts.faults[fault.__name__] += 1
                self.say(f"{self.at()} {fault.__name__}")
                fault()
            else:
                self.random.choice(rare if draw > 0.88 else calm)()
            self.world.backup()

    def at(self) -> str:
        return f"{self.world.now:%d %H:%M:%S}"

    def write(self) -> None:
        for _ in range(self.random.randint(1, 3)):
            key = self.random.choice(self.world.keys)
            draw = self.random.random()
            self.world.write(key, remove=draw < 0.25, unfit=draw > 0.97)
            self.say(f"{self.at()} write {key} {self.world.table.items.get(key)}")

    def pause(self, seconds: float | None = None) -> None:
        self.world.advance(self.random.choice(SHORT) if seconds is None else seconds)

    def meanwhile(self, seconds: float) -> None:
        """Let the world go on while a command waits."""
        if not self.quiet and self.random.random() < 0.2:
            self.write()
        if not self.quiet and self.clock in self.faults and self.random.random() < 0.1:
            self.clock()
        self.world.advance(seconds)
        if self.random.random() < 0.3:
            self.tick()

    def tick(self) -> None:
        before = self.product.memory
        if self.product.tick():
            self.say(f"{self.at()} tick: {told(self.product.memory)}")
            self.oracle.tick(before)

    def split(self) -> None:
        stream = self.world.table.stream
        if stream is not None and stream.enabled:
            stream.roll(self.random.choice(stream.open_shards()), self.world.now, split=True)

    def purge(self) -> None:
        self.world.purge(self.random.choice([0, 3_600, 86_400]) * SECOND)

    def reconcile(self) -> None:
        self.say(f"{self.at()} reconcile")
        outcome = self.commands.run("reconcile orders")
        if self.healthy and (outcome.drift or outcome.code == 3):
            raise Wrong(f"reconcile calls {outcome.drift} drift, code {outcome.code}, where nothing went wrong")

    def visit(self) -> int:
        """Follow one of the printed remedies; returns how many commands that took."""
        remedies = self.product.remedies()
        if self.healthy and remedies:
            raise Wrong(f"{remedies} where nothing went wrong")
        if not remedies:
            return 0
        self.end_earlier_streams()
        _, text = self.random.choice(remedies)
        return self.follow_text(text)

    def follow_text(self, text: str) -> int:
        """Follow a remedy; returns how many commands that took."""
        return sum(self.follow(command) for command in printed(text))

    def follow(self, command: str) -> int:
        for attempt in range(1, 4):
            outcome = self.commands.run(command)
            self.say(f"{self.at()} {command}: {outcome}")
            if outcome.code == 2 and not outcome.hint:
                raise Wrong(f"the printed command is refused: {command}: {outcome.why}")
            if not outcome.hint:
                return attempt
            if outcome.hint == "clock":
                self.world.host_ahead = timedelta(0)
            else:
                command = outcome.hint
        return 3

    # What goes wrong.

    def restore(self) -> None:
        draw = self.random.random()
        backups = self.world.backups
        chosen = self.random.choice(backups[-3:] if draw < 0.5 else backups)
        self.world.restore(chosen[1])
        self.say(f"        to {chosen[0]:%d %H:%M:%S}")

    def clone(self) -> None:
        """The database is cloned, with or without a delay, and a new event source mapping begins on the clone."""
        self.world.restore(
            self.random.choice(self.world.backups)[1] if self.random.random() < 0.7 else self.world.database
        )
        if self.world.table.stream is not None:
            self.oracle.rewound = True
            self.world.deploy(from_trim_horizon=self.random.random() < 0.7)

    def recreate(self) -> None:
        now = dict(self.world.table.items)
        items = self.random.choice([{}, now, {key: state for key, state in now.items() if self.random.random() < 0.5}])
        self.world.recreate_table(items)
        self.away_or_not()
        self.world.enable_stream()

    def repoint(self) -> None:
        """The table is restored under another name, and the mapping is pointed at that."""
        world, old = self.world, self.world.table
        time = world.now - self.random.choice([300, 3_600, 86_400]) * SECOND
        items = {key: state for key in world.keys if (state := old.state_at(key, time)) is not None}
        world.table = world.create_table(f"{old.name}-restored", items)
        world.enable_stream()
        world.advance(self.random.choice([5, 600]))
        for _ in range(self.random.randint(0, 2)):
            world.write(self.random.choice(world.keys), table=old)

    def stream_off(self) -> None:
        self.world.disable_stream()
        self.away_or_not()
        if self.random.random() < 0.6:
            self.world.enable_stream()

    def kill(self) -> None:
        for replicator in self.world.replicators:
            replicator.dead = True
        self.away_or_not()

    def mapping_off(self) -> None:
        for replicator in self.world.replicators:
            replicator.enabled = False
        self.away_or_not()

    def map_again(self) -> None:
        if self.world.table.stream_on:
            self.oracle.rewound = True
            self.world.deploy(from_trim_horizon=self.random.random() < 0.5)

    def poison(self) -> None:
        if self.world.replicator:
            self.world.replicator.poisoned += self.random.randint(1, 3)

    def clock(self) -> None:
        self.world.host_ahead = self.random.choice([-900, -400, -200, -3, 5, 240, 301, 900]) * SECOND

    def throttle(self) -> None:
        stream = self.world.table.stream
        if stream is not None and stream.shards:
            self.product.throttled = {self.random.choice(list(stream.shards))}
        self.away_or_not()

    def busy(self) -> None:
        """A tick reads only a record or two of a shard; what is far behind is skipped."""
        self.product.most_records, self.product.passes_by = self.random.randint(1, 2), self.random.random() < 0.8
        for _ in range(self.random.randint(1, 2)):
            self.write()
            self.pause(self.random.choice([5, 310, 400]))
            self.write()
            self.tick()

    def away(self) -> None:
        """The probe does not tick for minutes to days."""
        for _ in range(self.random.randint(1, 4)):
            if self.random.random() < 0.6:
                self.write()
            self.pause(self.random.choice(LONG))

    def idle(self) -> None:
        """The probe ticks hourly, or a few times a day."""
        self.pause(self.random.choice([1_200, 7_200, 28_800, 72_000]))
        self.tick()
        self.pause(TICK_SECONDS)
        self.tick()

    def situation(self) -> None:
        situation(self)

    def away_or_not(self) -> None:
        if self.random.random() < 0.5:
            self.away()
        elif self.random.random() < 0.5:
            self.write()
            self.pause()

    def fix(self) -> None:
        """A person repairs what conditions name."""
        self.product.throttled, self.product.most_records = set(), 1_000
        if self.world.table.stream is None or not self.world.table.stream.enabled:
            self.world.enable_stream()
        if self.world.replicator is None:
            self.world.deploy()
        self.world.put_right(earlier=not self.earlier_come_late)

    def end(self) -> None:
        self.quiet = True
        self.say(f"{self.at()} end")
        if self.random.random() < 0.4:
            self.quiet_as_it_is()
        self.fix()
        if self.world.table.name != self.world.database.source:
            self.counts.commands += self.visit()
        self.world.advance(400)
        self.tick()
        since = self.world.now
        self.check_settles()
        for _ in range(5):
            self.pause(90)
            self.tick()
        self.oracle.dated()
        ticks = self.product.ticks
        commands = self.follow_all()
        self.counts.commands += commands
        self.counts.most_commands, self.counts.most_ticks = commands, self.product.ticks - ticks
        claim = self.product.memory.caught_up_through
        if claim is None or claim < since:
            raise Wrong(f"all is applied, but the claim is only caught up through {claim}, at {self.world.now}")
        outcome = self.commands.run("reconcile orders")
        if outcome.code or outcome.drift or outcome.undecided:
            raise Wrong(f"at the end reconcile says {outcome}")
        self.come_late()

    def follow_all(self) -> int:
        """Follow printed commands until there are none, and nothing waits; returns how many commands that took."""
        commands = 0
        for _ in range(MOST_ROUNDS):
            if not self.product.remedies() and not self.product.memory.waiting and not self.product.scouted:
                break
            commands += self.visit()
            self.pause(TICK_SECONDS if self.product.remedies() else 400)
            self.tick()
        if self.product.remedies() or self.product.memory.waiting:
            raise Wrong(f"after {commands} commands still {self.product.remedies()} {self.product.memory.waiting}")
        self.oracle.equal()
        return commands

    def come_late(self) -> None:
        """After the remedies, functions of earlier streams bring what they hold; none of it may undo a newer state."""
        self.earlier_come_late = False
        self.end_earlier_streams()
        self.tick()
        self.oracle.equal()

    def end_earlier_streams(self) -> None:
        """Let functions of earlier streams bring what they hold, if they do so before a remedy is followed."""
        if self.earlier_come_late:
            return
        self.world.put_right(latest=False)
        self.pause(60 + self.world.settings["window_seconds"])

    def quiet_as_it_is(self) -> None:
        """The stream is quiet, whatever is broken: within two ticks every row can be decided."""
        if self.world.table.name != self.world.database.source or self.world.table.stream is None:
            return
        self.product.throttled, self.product.most_records = set(), 1_000
        self.end_earlier_streams()
        self.tick()
        self.pause(400)
        self.tick()
        self.check_settles()
        self.world.host_ahead = timedelta(0)  # otherwise nothing is repaired, and the refusal says why
        self.product.clock = self.product.new_clock()
        outcome = self.commands.run("reconcile orders --repair")
        self.say(f"{self.at()} {outcome}")
        if outcome.undecided or outcome.code:
            raise Wrong(f"the stream is quiet, and reconcile --repair says {outcome}")
        self.tick()
        self.oracle.equal()

    def check_settles(self) -> None:
        """Two ticks after the last one that found something to read, decisions cover all that was made before."""
        since, settled = self.world.now, None
        for _ in range(3):
            since = self.world.now
            self.pause(TICK_SECONDS + 5 + self.world.settings["window_seconds"])
            self.tick()
            for _ in range(1 + self.product.scouted):  # a scout begins in one tick and sees in the next
                self.pause(TICK_SECONDS)
                self.tick()
            memory = self.product.memory
            settled = memory.settled_through
            if memory.ticked_at is None or (settled is not None and settled >= since - timedelta(seconds=16)):
                return
            if not any(place.moved_at and place.moved_at > since + 2 * SECOND for place in memory.shards.values()):
                break
        raise Wrong(f"the stream is quiet since {since}, and settled is {settled} at {self.world.now}")


def told(memory: Memory) -> str:
    """Describe a tick's conclusions in a line."""
    waiting = [f"{change.key[0]} {change.state.value}" for change in memory.waiting]
    losses = [f"{loss.kind.value} {_time(loss.since)} to {_time(loss.until)}" for loss in memory.losses]
    through = f"caught up {_time(memory.caught_up_through)}, settled {_time(memory.settled_through)}"
    return f"{through}, waiting {waiting}, losses {losses}"


def _time(time: datetime | None) -> str:
    return "never" if time is None else f"{time:%d %H:%M:%S}"


def _say_nothing(_: str) -> None:
    """Report the history to nobody."""
