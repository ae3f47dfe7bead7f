"""The product in a world: it gathers what a tick sees, lets the real `conclude` reason, and keeps its memory.

Invariant: everything that is believed, printed or decided comes from `pipeline.core`. This module only reads shards, as
`pipeline.jobs.probe.probe_shards` does. The memory is in the world's database, so a restore puts it back.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

from pipeline.aurora.bookkeeping.applied_through import AppliedThrough
from pipeline.core.past.conclude import conclude
from pipeline.core.past.loss_remedies import Means, remedy
from pipeline.core.past.losses import Kind, Loss
from pipeline.core.past.memory import Memory, Rules, ShardSight, Sight
from pipeline.core.past.probing import SETTLE, ShardProgress, State, Stored, Unread, Waiting
from pipeline.dynamodb.clock import SourceClock, in_doubt
from tests.stress.operations.source import RETENTION
from tests.stress.operations.world import MARGIN, START

if TYPE_CHECKING:
    from tests.stress.operations.source import Record, Shard
    from tests.stress.operations.world import World

VIEW = "public.Orders"
ITERATOR_LIFE = timedelta(minutes=14)
PROBE_STOPPED = timedelta(minutes=5)
TOO_FAR_BEHIND = timedelta(minutes=5)


class WrongClock(Exception):  # noqa: N818 - a refusal, as the command has it
    """The host's clock is off by a margin: nothing may be written with a position from it."""


class Product:
    """What runs of the product believe and print."""

    future_waited_for = timedelta(minutes=20)

    def __init__(self, world: World) -> None:
        self.world = world
        self.ticks = 0
        self.throttled: set[str] = set()
        self.most_records = 1_000
        """The most records that a tick reads of a shard."""
        self.passes_by = False
        """Whether shards too busy for a tick are skipped."""
        self.knows_mapping = True
        """Whether it may look at event source mappings."""
        self.most_waiting = self.most_lost = 10_000
        self._called = 0.0
        """Seconds that calls of the source took; the world stands still for them."""
        self.clock = self.new_clock()
        self.scouted = False
        """Whether the last tick left places where they were."""

    @property
    def reads_all(self) -> bool:
        """Whether a tick reads everything that the stream shows."""
        return not self.throttled and self.most_records >= 1_000 and not self.scouted

    # The clock: the product's own, on a host whose clock may be wrong, with answers in whole seconds.

    def new_clock(self) -> SourceClock:
        """Return the clock that a process begins with."""
        return SourceClock(self.host_now, self._monotonic)

    def now(self) -> datetime:
        """Return the time that the product takes for the source's."""
        return self.clock.now()

    def ask(self) -> datetime:
        """Call the source; return its time just before."""
        return self.clock.ask(self._answer)[1]

    def host_now(self) -> datetime:
        return self.world.now + self.world.host_ahead

    def refuse_wrong_clock(self) -> None:
        """Raise WrongClock if `pipeline.jobs.clocks.refuse_wrong_clock` refuses to write positions."""
        if not self.clock.asked_lately:
            self.ask()
        if in_doubt(self.clock.ahead, MARGIN):
            raise WrongClock

    def _monotonic(self) -> float:
        return (self.world.now - START).total_seconds() + self._called

    def _answer(self) -> dict[str, Any]:
        took = self.world.random.choice([0.0, 0.0, 0.1, 1.5])
        said = self.world.now + timedelta(seconds=took * self.world.random.random())
        self._called += took
        return {"ResponseMetadata": {"HTTPHeaders": {"date": format_datetime(said, usegmt=True)}}}

    # What is believed.

    @property
    def memory(self) -> Memory:
        return self.world.database.memory or Memory()

    def applied(self) -> AppliedThrough:
        return self._applied(self.memory.settled_through)

    def applied_to(self, key: int) -> AppliedThrough:
        memory = self.memory
        on_way = any(w.key == (str(key),) and w.state is State.ON_ITS_WAY for w in memory.waiting)
        return self._applied(memory.settled_through if on_way else memory.read_through)

    def _applied(self, through: datetime | None) -> AppliedThrough:
        memory, now = self.memory, self.now()
        newest = max(self.world.database.watermarks.values(), default=None)
        if through is not None and memory.ticked_at is not None and memory.ticked_at > now - PROBE_STOPPED:
            return AppliedThrough(through, "probe", newest)
        return AppliedThrough(now - MARGIN, "assumption", newest)

    def lag(self) -> timedelta:
        applied = self.applied()
        return applied.lag(self.now()) if applied.basis == "probe" else timedelta(0)

    # A tick.

    def tick(self) -> bool:
        """Run a tick; returns False if there is no stream, or another table is the source of record."""
        world, database, memory = self.world, self.world.database, self.memory
        stream = world.table.stream
        if stream is None or world.table.name != database.source:
            return False
        self.ask()
        now = self.now()
        same = memory.stream_label == stream.label
        full = sum(not waiting.state.lost for waiting in memory.waiting) >= self.most_waiting
        waits = {waiting.shard_id for waiting in memory.waiting if not waiting.state.lost}
        through, self.scouted = now - SETTLE, full
        sights = [
            self._read(shard, memory.shards.get(name) if same else None, now, scouts=full and same and name in waits)
            for name, shard in stream.listed(world.now).items()
        ]
        label = max(database.watermarks, default=None)
        sight = Sight(
            stream_label=stream.label,
            through=through,
            shards=sights,
            stored=self._stored(),
            stream_enabled=stream.enabled,
            table_id=world.table.table_id,
            applied_label=label,
            applied_through=database.watermarks[label] if label else None,
            proof=database.proof,
            loaded=max((export.time for export in database.exports if export.by_load), default=None),
        )
        concluded = conclude(memory, sight, now, replace(self.rules(), most_lost=self.most_lost))
        database.memory = concluded.memory
        if database.source_id != world.table.table_id:  # `pipeline.aurora.bookkeeping.sources.note_seen`
            database.source_id, database.first_label = world.table.table_id, stream.label
        self.ticks += 1
        return True

    def rules(self) -> Rules:
        replicator = self.world.replicator
        if replicator is None or not self.knows_mapping:
            return Rules(MARGIN, parallelization=None)
        return Rules(
            MARGIN, parallelization=replicator.factor, batching_window=timedelta(seconds=replicator.window_seconds)
        )

    def _stored(self) -> Stored:
        database = self.world.database
        positions = {(VIEW, (str(key),)): row.position for key, row in database.rows.items()}
        return Stored(positions, database.rejects.keys(), database.purged_through)

    def _read(self, shard: Shard, known: ShardProgress | None, now: datetime, *, scouts: bool) -> ShardSight:
        place = known or ShardProgress(shard.name, shard.parent)
        if place.finished:
            return ShardSight(place, at_end=True)
        if shard.name in self.throttled:
            return ShardSight(place)
        if scouts:
            return self._scout(shard, place, now)
        number, trimmed = _opened(shard, place, now)
        shown = shard.after(number, self.world.now)
        records = shown[: self.most_records]
        at_end, passed = len(records) == len(shown), None
        last = records[-1].number if records else number
        if records:
            place = replace(place, sequence_number=str(last))
        if not at_end and records and self.passes_by and now - records[-1].position.as_of > TOO_FAR_BEHIND:
            passed = Unread(records[-1].position.as_of, now)
            last, at_end = shown[-1].number, True
            place = replace(place, sequence_number=None)
        finished = at_end and shard.closed is not None and _all_shown(shard, last)
        place = replace(
            place,
            iterator=None if finished else str(last),
            iterator_at=None if finished else now,
            read_through=now - SETTLE if at_end else place.read_through,
            finished=finished,
            scout=None,
            scout_at=None,
        )
        return ShardSight(place, _sightings(shard, records), at_end=at_end, trimmed=trimmed, passed=passed)

    def _scout(self, shard: Shard, place: ShardProgress, now: datetime) -> ShardSight:
        """Continue the look from the shard's end, while the place stays."""
        if shard.closed is not None:
            return ShardSight(place, at_end=True, held=True)
        shown = shard.after(0, self.world.now)
        if place.scout is None or place.scout_at is None or now - place.scout_at >= ITERATOR_LIFE:
            place = replace(place, scout=str(shown[-1].number if shown else 0), scout_at=now)
            return ShardSight(place, held=True)
        seen = [record for record in shown if record.number > int(place.scout or 0)]
        place = replace(place, scout=str(seen[-1].number) if seen else place.scout, scout_at=now)
        return ShardSight(place, at_end=True, held=True, scouted=_sightings(shard, seen))

    # What is printed.

    def losses(self) -> list[Loss]:
        return list(self.memory.losses)

    def remedies(self) -> list[tuple[str, str]]:
        """Return what is printed now: the kind of each finding, and its remedy."""
        world = self.world
        if world.table.name != world.database.source:
            return [("source", "`dynaurora repoint orders`")]
        kept = any(r.given_up and not world.refuses(r.stream) for r in world.replicators)
        found = [("on_failure", "`dynaurora redrive orders`")] if kept else []
        return [*found, *((loss.kind.value, self._remedy(loss)) for loss in self.memory.losses)]

    def _remedy(self, loss: Loss) -> str:
        world = self.world
        return remedy(
            loss,
            Means(
                "orders",
                MARGIN,
                earliest=world.table.recovery_since,
                snapshots=[export.time for export in world.database.exports if not export.is_seam],
            ),
        )

    def repoint(self, name: str, table_id: str) -> None:
        """Switch the source of record, as `dynaurora repoint` does."""
        database, now = self.world.database, self.now()
        stream = self.world.table.stream
        database.source, database.source_id, database.first_label = name, table_id, stream.label if stream else None
        database.covers, database.exports, database.watermarks, database.reconciliations = (), (), {}, ()
        database.memory = Memory(losses=[Loss(Kind.REPOINTED, now, now)])


def _opened(shard: Shard, place: ShardProgress, now: datetime) -> tuple[int, bool]:
    """Return the number after which to read, and whether the place was gone."""
    if place.iterator is not None and place.iterator_at is not None and now - place.iterator_at < ITERATOR_LIFE:
        return int(place.iterator), shard.dropped > int(place.iterator)
    number = int(place.sequence_number or 0)
    return number, 0 < number <= shard.dropped


def _all_shown(shard: Shard, last: int) -> bool:
    return not shard.records or shard.records[-1].number <= last


def _sightings(shard: Shard, records: list[Record]) -> list[Waiting]:
    return [Waiting(VIEW, (str(r.key),), r.version, r.position.as_of, r.position.as_of, shard.name) for r in records]


__all__ = ["RETENTION", "Product"]
