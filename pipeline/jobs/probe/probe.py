"""Probe: the end-to-end lag of a table. It is right even when nothing is written, and leaves the user's table alone.

A tick reads what has arrived in the table's stream since the last tick and asks Aurora for the rows of those keys.
`pipeline.core.past.conclude` draws the conclusions. Between ticks, `replication` keeps the place in each shard and the
changes that wait, so a tick may run anywhere, and after any pause.

Invariant: a tick asks Aurora as of one moment, after it has read the stream; and it costs no more than its limits
(`pipeline.jobs.probe.probe_shards`).
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import probes, sources
from pipeline.aurora.bookkeeping.probes import ProbeState, Tick, one_moment
from pipeline.core.decode.routing import NO_TARGET, Router
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import ConversionError
from pipeline.core.past.conclude import conclude
from pipeline.core.past.memory import MOST_WAITING, Conclusion, Rules, ShardSight, Sight
from pipeline.core.past.probing import SETTLE, ShardProgress, State, Stored, Unread, Waiting, not_arrived
from pipeline.core.streams.positions import streamed_position
from pipeline.dynamodb.streams.shards import StreamReader, latest_stream
from pipeline.jobs.probe.probe_scout import scout
from pipeline.jobs.probe.probe_shards import READERS, Limits, ShardsReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping
    from pipeline.core.ordering import Position
    from pipeline.core.past.probing import Row
    from pipeline.dynamodb.streams.shards import KeyRecord, Shard, TableStream
    from pipeline.jobs.probe.probe_shards import ShardReading
    from pipeline.jobs.services import Services

TICK_SECONDS = 15.0
# The lag that counts as a finding where the mapping's `freshness` does not say.
WARN = timedelta(minutes=5)
_STATEMENT_SECONDS = 20.0


def probe(
    services: Services,
    mapping: TableMapping,
    *,
    limits: Limits | None = None,
    settle: timedelta = SETTLE,
) -> Tick:
    """Run one tick for a table and return its findings, or those of another tick that finished first.

    AWS calls: 1 DescribeTable, 1 DescribeStream for each 100 shards, and 2 GetRecords for each open shard when nothing
    was written; opening a shard takes one or two more, and GetShardIterator. Statements: 5 to read the state, 1 for
    each target that changed, 1 for rejects where something waits, 3 to 7 to record the findings. Raises
    TransientError, TerminalError (no stream; a table that was not migrated, or is not the source of record).
    """
    limits = limits or Limits(time.monotonic() + TICK_SECONDS)
    with services.connect("dynaurora probe", statement_timeout_seconds=_STATEMENT_SECONDS) as connection:
        state = probes.read_state(connection, mapping.name)
        memory = replace(state.memory, waiting=_of_mapping(mapping, state.memory.waiting))
        found = _read_stream(services, mapping, state, limits, settle)
        stored = _look_up(connection, mapping, state, [*memory.waiting, *found.changes])
        sight = Sight(
            stream_label=found.stream.label,
            through=found.through,
            shards=found.shards,
            stored=stored,
            newest=found.newest,
            stream_enabled=found.stream.enabled,
            table_id=found.stream.table_id,
            applied_label=state.applied_label,
            applied_through=state.applied_through,
            proof=state.proof,
            loaded=state.loaded,
        )
        rules = Rules(mapping.margin, mapping.freshness.get("warn", WARN), state.parallelization, state.batching_window)
        concluded = conclude(memory, sight, services.clock.source_time(limits.now()), rules)
        tick = _tick(concluded, found, services.clock.ahead)
        if not probes.save(connection, mapping.name, state, tick, concluded):
            return probes.read_tick(connection, mapping.name) or tick
        if state.record is not None:
            sources.note_seen(connection, mapping.name, state.record, found.stream.arn, found.stream.table_id)
    return tick


@dataclass(frozen=True, slots=True)
class _Found:
    """What a tick read of the stream. `calls` counts AWS calls."""

    stream: TableStream
    through: datetime
    shards: list[ShardSight]
    newest: datetime | None
    """Creation time of the newest record."""
    calls: int
    records: int

    @property
    def changes(self) -> list[Waiting]:
        """All that was seen in the stream."""
        return [change for shard in self.shards for change in (*shard.sightings, *shard.scouted)]


def _read_stream(
    services: Services, mapping: TableMapping, state: ProbeState, limits: Limits, settle: timedelta
) -> _Found:
    stream = latest_stream(services.dynamodb, mapping.table, services.clock)
    if state.record is not None and (other := state.record.differences(mapping.table, stream.arn)):
        raise sources.refusal(mapping.name, state.record, other, doing="probing")
    reader = StreamReader(services.streams, stream.arn, services.shard_pages)
    host_now = limits.now
    limits = replace(limits, now=lambda: services.clock.source_time(host_now()))
    through = limits.now() - settle
    listed = reader.shards()
    same = state.memory.stream_label == stream.label
    known = dict(state.memory.shards) if same else {}
    held = _held(state.memory.waiting) if same else set[str]()
    finder = _Finder(mapping, stream.label)
    readings = ShardsReader(reader, limits).read(
        [shard for shard in listed if shard.shard_id not in held], known, through
    )
    shards = [_sight(finder, reading) for reading in readings]
    with ThreadPoolExecutor(READERS, thread_name_prefix="scout") as threads:
        look = partial(_scouted, finder, reader, limits, known)
        shards += threads.map(look, [shard for shard in listed if shard.shard_id in held])
    records = [record for reading in readings for record in reading.records]
    newest = max(map(_second, records), default=None)
    return _Found(stream, through, shards, newest, reader.calls + 1, len(records))


def _held(waiting: Sequence[Waiting]) -> set[str]:
    """Return the shards that this tick does not read further: so much waits already that more would not help."""
    not_lost = [change.shard_id for change in waiting if not change.state.lost]
    return set(not_lost) if len(not_lost) >= MOST_WAITING else set()


def _sight(finder: _Finder, reading: ShardReading) -> ShardSight:
    passed = Unread(reading.passed.since, reading.passed.until) if reading.passed else None
    return ShardSight(
        # A scout's place would be too old by the time one is needed again.
        replace(reading.progress, scout=None, scout_at=None),
        finder.sightings(reading.progress.shard_id, reading.records),
        at_end=reading.at_end,
        trimmed=reading.trimmed,
        passed=passed,
    )


def _scouted(
    finder: _Finder, reader: StreamReader, limits: Limits, known: Mapping[str, ShardProgress], shard: Shard
) -> ShardSight:
    place = known.get(shard.shard_id, ShardProgress(shard.shard_id, shard.parent_id))
    seen = scout(reader, limits, shard, place)
    return ShardSight(
        seen.progress, at_end=seen.at_end, held=True, scouted=finder.sightings(shard.shard_id, seen.records)
    )


def _second(record: KeyRecord) -> datetime:
    return datetime.fromtimestamp(record.created_at // 1, UTC)


class _Finder:
    """Finds the rows that a record concerns, by its key alone."""

    def __init__(self, mapping: TableMapping, stream_label: str) -> None:
        self._router = Router(mapping)
        self._decoders = {target: RowDecoder(target) for target in mapping.targets}
        self._label = stream_label

    def sightings(self, shard_id: str, records: Iterable[KeyRecord]) -> list[Waiting]:
        """Return one for each record and target; none for a record that the mapping leaves out."""
        found: list[Waiting] = []
        for record in records:
            position = streamed_position(self._label, record.sequence_number, record.created_at)
            version = position.version or 0
            for name, key in self._rows(record):
                found.append(Waiting(name, key, version, position.as_of, position.as_of, shard_id))
        return found

    def _rows(self, record: KeyRecord) -> list[tuple[str, tuple[str, ...]]]:
        targets = self._router.route(record.keys)
        if not targets:
            return [(NO_TARGET, ())] if self._router.rejects_unmatched else []
        rows: list[tuple[str, tuple[str, ...]]] = []
        for target in targets:
            try:
                rows.append((target.view_name, self._decoders[target].key(record.keys)))
            except ConversionError:
                rows.append((target.view_name, ()))  # it can only become a reject
        return rows


def _of_mapping(mapping: TableMapping, waiting: Sequence[Waiting]) -> list[Waiting]:
    """Drop what waited for a target that the mapping no longer has, or has given another key."""
    lengths = {target.view_name: {0, len(target.primary_key)} for target in mapping.targets} | {NO_TARGET: {0}}
    return [change for change in waiting if len(change.key) in lengths.get(change.target, ())]


def _look_up(connection: Connection, mapping: TableMapping, state: ProbeState, changes: Sequence[Waiting]) -> Stored:
    """Return what Aurora holds for these changes, all as of one moment."""
    if not changes:
        return Stored({}, (), state.purged_through)
    positions: dict[Row, Position] = {}
    with one_moment(connection):
        for target in mapping.targets:
            name = target.view_name
            keys = sorted({change.key for change in changes if change.target == name and change.key})
            positions |= {(name, key): at for key, at in probes.stored_positions(connection, target, keys).items()}
        left = not_arrived(changes, Stored(positions, (), state.purged_through), state.proof, mapping.margin)
        if not left:
            return Stored(positions, (), state.purged_through)
        rows = {change.row for change in left}
        versions = [change.version for change in changes if change.row in rows]
        return Stored(positions, *probes.set_aside(connection, mapping.name, versions))


def _tick(concluded: Conclusion, found: _Found, clock_ahead: timedelta | None) -> Tick:
    memory = concluded.memory
    waiting = [change for change in memory.waiting if not change.state.lost]
    return Tick(
        stream_label=found.stream.label,
        ticked_at=memory.ticked_at or found.through,
        caught_up_through=memory.caught_up_through,
        settled_through=memory.settled_through,
        read_through=memory.read_through,
        settles_from=memory.settles_from,
        table_id=memory.table_id,
        newest_read=memory.newest_read,
        read_whole=concluded.read_whole,
        waiting=len(waiting),
        oldest_waiting=waiting[0].since if waiting else None,
        stuck=sum(change.state is State.STUCK for change in waiting),
        lost=len(memory.waiting) - len(waiting),
        shards=sum(not shard.finished for shard in memory.shards.values()),
        calls=found.calls,
        records=found.records,
        clock_ahead_seconds=None if clock_ahead is None else clock_ahead.total_seconds(),
    )
