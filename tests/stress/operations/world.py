"""One world: a source, its streams, the functions that read them, the database, and what people do to all of these.

Invariant: rows change only by `pipeline.core.ordering`. The database is a value that a restore replaces whole: rows,
bookkeeping and the product's memory. A restore does not touch what is elsewhere (checkpoints of the event source
mappings, discarded batches, the source). Time moves only in `advance`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipeline.core import ordering
from pipeline.core.ordering import Position, accepts
from pipeline.core.past.losses import Proof
from tests.stress.operations.source import SECOND, Record, Shard, Stream, Table

if TYPE_CHECKING:
    from random import Random

START = datetime(2026, 3, 2, 8, 0, 0, tzinfo=UTC)
MARGIN = timedelta(minutes=5)
WRITE_STEP = timedelta(milliseconds=7)
MOST_BACKUPS = 80
FUNCTIONS_DONE = 900


@dataclass(frozen=True, slots=True)
class Row:
    """A stored row; `state` None: a tombstone."""

    position: Position
    state: str | None


@dataclass(frozen=True, slots=True)
class Export:
    """A snapshot that was applied. `since` None: a full one."""

    time: datetime
    since: datetime | None = None
    is_seam: bool = False
    by_load: bool = False


@dataclass(frozen=True, slots=True)
class Reconciled:
    """A reconciliation that was done. `clean`: nothing undecided, nothing left unrepaired."""

    as_of: datetime
    clean: bool


@dataclass(slots=True)
class Database:
    """The content of a backup. `memory` is the product's own, and immutable."""

    rows: dict[int, Row] = field(default_factory=dict[int, Row])
    rejects: dict[int, tuple[str, datetime]] = field(default_factory=dict[int, tuple[str, datetime]])
    """Rejected states, with their times, by the version of their record."""
    unfit: set[str] = field(default_factory=set[str])
    """Rejected states that a snapshot brought."""
    purged_through: datetime | None = None
    watermarks: dict[str, datetime] = field(default_factory=dict[str, datetime])
    """Creation time of the newest change applied, by stream label."""
    exports: tuple[Export, ...] = ()
    covers: tuple[tuple[datetime, datetime], ...] = ()
    """Ranges that catch-ups finished."""
    reconciliations: tuple[Reconciled, ...] = ()
    source: str = ""
    """Name of the table that is the source of record."""
    source_id: str = ""
    first_label: str | None = None
    """When the table replaced another: records of older streams are refused."""
    memory: Any = None
    _proof: tuple[Any, Proof] | None = None

    @property
    def proof(self) -> Proof:
        """The ranges that catch-ups and reconciliations have proven."""
        of = self.covers, self.reconciliations
        if self._proof is None or self._proof[0] != of:
            clean = max((run.as_of for run in self.reconciliations if run.clean), default=None)
            self._proof = of, Proof.of(self.covers, clean)
        return self._proof[1]

    def copy(self) -> Database:
        return replace(
            self,
            rows=dict(self.rows),
            rejects=dict(self.rejects),
            unfit=set(self.unfit),
            watermarks=dict(self.watermarks),
        )

    def apply(self, key: int, position: Position, state: str | None) -> None:
        """Apply a candidate under the ordering rule."""
        if state is not None and state.startswith("!"):
            if position.version is None:
                self.unfit.add(state)
            else:
                self.rejects[position.version] = (state, position.as_of)
            return
        row = self.rows.get(key)
        taken = accepts(position, row.position if row else None, self.purged_through)
        proven = taken and self.proof.shows(position.as_of, position.as_of, MARGIN)
        shown = row is not None and row.state is not None
        if taken and not ordering.comes_too_late(position, deleted=state is None, shown=shown, proven=proven):
            self.rows[key] = Row(position, state)

    def shown(self, key: int) -> str | None:
        row = self.rows.get(key)
        return row.state if row else None

    def set_aside(self) -> set[str]:
        return self.unfit.union(state for state, _ in self.rejects.values())


@dataclass(slots=True)
class Replicator:
    """An event source mapping and its function, on one stream. In each shard, or lane of it, strictly in order."""

    uuid: str
    stream: Stream
    from_trim_horizon: bool = True
    factor: int = 1
    window_seconds: int = 1
    max_age: timedelta | None = timedelta(hours=20)
    keeps_failures: float = 1.0
    """The probability that a discarded batch is kept: the destination may exist only at times."""
    enabled: bool = True
    dead: bool = False
    """Every batch fails."""
    works_from: datetime = START
    """When it was last repaired."""
    poisoned: int = 0
    """This many of the next records fail until their batch is discarded."""
    lags: tuple[int, ...] = (0, 0, 1, 2)
    """Seconds; each shard draws from these how far it is behind."""
    done: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """The last number handled, for each lane of each shard."""
    lag: dict[tuple[str, int], timedelta] = field(default_factory=dict[tuple[str, int], timedelta])
    finished: set[str] = field(default_factory=set[str])
    given_up: list[Record] = field(default_factory=list[Record])
    """Stored at the on-failure destination."""

    def begin(self, now: datetime) -> None:
        """Take the starting position: LATEST skips what is there."""
        if self.from_trim_horizon:
            return
        for shard in self.stream.shards.values():
            shown = shard.after(0, now)
            self.done[shard.name] = [shown[-1].number if shown else 0] * self.factor
            if shard.closed is not None:
                self.finished.add(shard.name)

    def run(self, world: World) -> None:
        """Deliver what is visible by now, as far as the function is fast enough."""
        if not self.enabled:
            return
        for shard in self.stream.listed(world.now).values():
            if shard.name in self.finished:
                continue
            parent_open = shard.parent in self.stream.shards and shard.parent not in self.finished
            if not parent_open:
                self._shard(world, shard)

    def _shard(self, world: World, shard: Shard) -> None:
        places = self.done.setdefault(shard.name, [0] * self.factor)
        waiting = shard.after(min(places), world.now)
        for lane in range(self.factor) if waiting else ():
            lag = self.lag.get((shard.name, lane))
            if lag is None or world.random.random() < 0.1:
                lag = self.lag[shard.name, lane] = world.random.choice(self.lags) * SECOND
            for record in waiting:
                if record.number <= places[lane] or (self.factor > 1 and record.key % self.factor != lane):
                    continue
                if not self._hand_on(world, record, lag):
                    break
                places[lane] = record.number
        if shard.closed is not None and (not shard.records or self._at_end(shard, places)):
            self.finished.add(shard.name)

    def _at_end(self, shard: Shard, places: list[int]) -> bool:
        return all(
            record.number <= places[record.key % self.factor if self.factor > 1 else 0] for record in shard.records
        )

    def _hand_on(self, world: World, record: Record, lag: timedelta) -> bool:
        """Handle a record; returns False if neither it nor the records after it are handled yet."""
        if self.max_age is not None and world.now - record.made > self.max_age:
            self._give_up(world, record)
            return True
        if self.dead or record.seen + lag > world.now or world.refuses(self.stream):
            return False
        if self.poisoned:
            self.poisoned -= 1
            self._give_up(world, record)
            return True
        world.database.apply(record.key, record.position, record.state)
        label = self.stream.label
        newest = world.database.watermarks.get(label, record.position.as_of)
        world.database.watermarks[label] = max(newest, record.position.as_of)
        return True

    def _give_up(self, world: World, record: Record) -> None:
        if world.random.random() < self.keeps_failures:
            self.given_up.append(record)

    def undelivered(self, now: datetime) -> list[Record]:
        """Return what is visible in the stream and still has to be delivered."""
        left: list[Record] = []
        for shard in self.stream.shards.values():
            if shard.name not in self.finished:
                places = self.done.get(shard.name, [0] * self.factor)
                left += [
                    record
                    for record in shard.records
                    if record.seen <= now and record.number > places[record.key % self.factor if self.factor > 1 else 0]
                ]
        return left


class World:
    """All of it, and the events that people or nobody cause."""

    def __init__(self, random: Random, keys: int) -> None:
        self.random, self.now = random, START
        self.keys = range(keys)
        self.trim_slack = random.choice([0, 0, 10, 60]) * 60 * SECOND
        self.listed_longer = random.choice([0, 0, 60]) * 60 * SECOND
        """How much longer than its records a closed shard is listed."""
        self.host_ahead = timedelta(0)
        """How far the clock of the host that runs the product is ahead."""
        self.writes = self._tables = self._mappings = 0
        self.tables: list[Table] = []
        self.streams: list[Stream] = []
        self.replicators: list[Replicator] = []
        self.database = Database()
        self.backups: list[tuple[datetime, Database]] = []
        self.settings: dict[str, Any] = {}
        """The settings of the event source mappings that people deploy."""
        self.table = self.create_table("Orders", {})
        self.database.source, self.database.source_id = self.table.name, self.table.table_id
        self.enable_stream()

    # Time.

    def advance(self, seconds: float) -> None:
        """Let time pass. A working function finishes what it was late for long before a pause of hours ends."""
        for part in (seconds,) if seconds <= FUNCTIONS_DONE else (FUNCTIONS_DONE, seconds - FUNCTIONS_DONE):
            self.now += timedelta(seconds=part)
            for replicator in self.replicators:
                replicator.run(self)
            for stream in self.streams:
                stream.age(self.now, self.trim_slack, self.listed_longer)

    def backup(self) -> None:
        self.backups.append((self.now, self.database.copy()))
        if len(self.backups) > MOST_BACKUPS:
            del self.backups[1 :: len(self.backups) // 8]

    # The source.

    def create_table(self, name: str, items: dict[int, str]) -> Table:
        self._tables += 1
        self.now += WRITE_STEP
        table = Table(name, f"table-{self._tables}", self.keys, self.now, items, self.random)
        self.tables.append(table)
        return table

    def write(self, key: int, *, remove: bool = False, unfit: bool = False, table: Table | None = None) -> None:
        self.now += WRITE_STEP
        self.writes += 1
        state = None if remove else f"{'!' if unfit else ''}w{self.writes}"
        (table or self.table).write(key, state, self.now)

    def enable_stream(self, *, mapped: bool = True) -> None:
        if not self.table.stream_on:
            self.now += WRITE_STEP
            self.streams.append(self.table.enable_stream(self.now))
            if mapped:
                self.deploy()

    def disable_stream(self) -> None:
        if self.table.stream is not None and self.table.stream.enabled:
            self.now += WRITE_STEP
            self.table.stream.disable(self.now)

    def recreate_table(self, items: dict[int, str]) -> None:
        """Delete the table and create one with its name and these items."""
        self.disable_stream()
        self.advance(self.random.choice([5, 60, 900]))
        self.table = self.create_table(self.table.name, items)

    # The functions.

    def put_right(self, *, latest: bool = True, earlier: bool = True) -> None:
        """Let every function that does not work do so again: of the latest stream, and of earlier ones."""
        for replicator in self.replicators:
            if not (latest if replicator.stream is self.table.stream else earlier):
                continue
            if replicator.dead or not replicator.enabled:
                replicator.works_from = self.now
            replicator.dead, replicator.enabled, replicator.poisoned = False, True, 0

    def deploy(self, *, from_trim_horizon: bool = True, **settings: Any) -> Replicator:  # noqa: ANN401 - a replicator's
        """Map the table's stream to the replicator, replacing other event source mappings of that stream."""
        stream = self.table.stream
        assert stream is not None
        self._mappings += 1
        uuid = f"esm-{self._mappings}"
        made = Replicator(uuid, stream, from_trim_horizon, **{**self.settings, **settings})
        made.works_from = self.now
        made.begin(self.now)
        for other in self.replicators:
            if other.stream is stream:
                other.enabled = False
                made.given_up += other.given_up
                other.given_up = []
        self.replicators = [*(r for r in self.replicators if r.stream is not stream), made]
        return made

    @property
    def replicator(self) -> Replicator | None:
        """The one that reads the table's latest stream."""
        return next((each for each in self.replicators if each.stream is self.table.stream), None)

    def refuses(self, stream: Stream) -> bool:
        """Whether the database refuses records of this stream, because it is not that of the source of record."""
        first = self.database.first_label
        return stream.table.name != self.database.source or (first is not None and stream.label < first)

    def on_their_way(self) -> list[Record]:
        """Return what some replicator will still deliver."""
        return [
            record
            for replicator in self.replicators
            if replicator.enabled and not self.refuses(replicator.stream)
            for record in replicator.undelivered(self.now)
        ]

    # The database.

    def restore(self, to: Database) -> None:
        """Replace the database with an earlier state. Checkpoints of functions stay where they are."""
        self.database = to.copy()

    def purge(self, retention: timedelta) -> None:
        """Purge old tombstones, no further than the newest full snapshot that was loaded."""
        database = self.database
        loaded = [export.time - MARGIN for export in database.exports if export.by_load]
        if loaded:
            through = min(self.now - retention, max(loaded))
            database.purged_through = max(database.purged_through or through, through)
            database.rows = {
                key: row for key, row in database.rows.items() if row.state is not None or row.position.as_of > through
            }
