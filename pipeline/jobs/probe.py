"""Probe: the end-to-end lag of a table, true also when nothing is written, and without touching the user's table.

A tick reads what has arrived in the table's stream since the last one and asks Aurora for the rows of those keys. A
change whose row is older waits; the age of the oldest that waits is the lag. Between ticks the place in each shard
and what waits are kept in `replication`, so a tick may run anywhere, and after any pause.

Invariant: nothing is claimed that was not seen (`pipeline.core.probing`), and a tick costs no more than its limits
(`pipeline.jobs.probe_shards`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.aurora import probes
from pipeline.aurora.probes import ProbeState, Tick
from pipeline.core.decode import RowDecoder
from pipeline.core.errors import ConversionError
from pipeline.core.ordering import label_time, streamed_position
from pipeline.core.probing import RETENTION, SETTLE, Waiting, caught_up, read_through, still_waiting
from pipeline.core.routing import NO_TARGET, Router
from pipeline.dynamodb.shards import StreamReader, latest_stream
from pipeline.jobs.probe_shards import Limits, ShardsReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.aurora.connection import Connection
    from pipeline.core.mapping import TableMapping
    from pipeline.core.ordering import Position
    from pipeline.core.probing import ShardProgress
    from pipeline.dynamodb.shards import KeyRecord, TableStream
    from pipeline.jobs.probe_shards import ShardReading
    from pipeline.jobs.services import Services

TICK_SECONDS = 15.0
# With so many keys waiting the table is known to be behind: nothing more is read until they have arrived.
MOST_WAITING = 10_000
_STATEMENT_SECONDS = 20.0


def probe(
    services: Services,
    mapping: TableMapping,
    *,
    limits: Limits | None = None,
    settle: timedelta = SETTLE,
) -> Tick:
    """Run one tick for a table and return what it found, or what another found that came first.

    Calls of AWS: 1 DescribeTable, 1 DescribeStream for each 100 shards, and for each open shard 2 GetRecords when
    nothing was written; one or two more, and GetShardIterator, where a shard is opened. Statements: 4 to read the
    state, 1 for each target that changed, 1 for rejects where something waits, 3 to 5 to keep what was found.
    Raises TransientError, TerminalError (no stream; a table that was not migrated).
    """
    limits = limits or Limits(time.monotonic() + TICK_SECONDS)
    with services.connect("dynaurora probe", statement_timeout_seconds=_STATEMENT_SECONDS) as connection:
        state = probes.read_state(connection, mapping.name)
        found = _read_stream(services, mapping, state, limits, settle)
        waiting = _sift(connection, mapping, state, [*state.waiting, *found.sightings])
        tick, shards = _conclude(state, found, waiting, limits.now())
        if not probes.save(connection, mapping.name, state, tick, shards, waiting):
            return probes.read_tick(connection, mapping.name) or tick
    return tick


@dataclass(frozen=True, slots=True)
class _Found:
    """What a tick read of the stream. `calls` are those of AWS."""

    stream: TableStream
    shards: list[ShardProgress]
    sightings: list[Waiting]
    at_end: bool
    passed_until: datetime | None
    trimmed: bool
    newest: datetime | None
    calls: int
    records: int


def _read_stream(
    services: Services, mapping: TableMapping, state: ProbeState, limits: Limits, settle: timedelta
) -> _Found:
    stream = latest_stream(services.dynamodb, mapping.table)
    reader = StreamReader(services.streams, stream.arn)
    through = limits.now() - settle
    listed = reader.shards()
    same = state.last is not None and state.last.stream_label == stream.label
    readings: list[ShardReading] = []
    known = state.shards if same else {}
    if len(state.waiting) < MOST_WAITING:
        readings = ShardsReader(reader, limits).read(listed, known, through)
    shards = [reading.progress for reading in readings] or list(known.values())
    finder = _Finder(mapping, stream.label)
    sightings = [seen for reading in readings for seen in finder.sightings(reading.progress.shard_id, reading.records)]
    return _Found(
        stream=stream,
        shards=shards,
        sightings=sightings,
        at_end=bool(readings) and all(reading.at_end for reading in readings),
        passed_until=max((r.passed_until for r in readings if r.passed_until is not None), default=None),
        trimmed=any(reading.trimmed for reading in readings)
        or any(not place.finished for name, place in known.items() if name not in {s.shard_id for s in listed}),
        newest=max((_second(record) for reading in readings for record in reading.records), default=None),
        calls=reader.calls + 1,
        records=sum(len(reading.records) for reading in readings),
    )


def _second(record: KeyRecord) -> datetime:
    return datetime.fromtimestamp(record.created_at // 1, UTC)


class _Finder:
    """Says for which rows a record is, by its key alone."""

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


def _sift(
    connection: Connection, mapping: TableMapping, state: ProbeState, sightings: Sequence[Waiting]
) -> list[Waiting]:
    """Return what has not arrived in Aurora."""
    # What waited for a target that the mapping has lost, or has given another key, waits no more.
    lengths = {target.view_name: {0, len(target.primary_key)} for target in mapping.targets} | {NO_TARGET: {0}}
    ours = [seen for seen in sightings if len(seen.key) in lengths.get(seen.target, ())]
    if not ours:
        return []
    stored: dict[tuple[str, tuple[str, ...]], Position] = {}
    for target in mapping.targets:
        name = target.view_name
        keys = sorted({seen.key for seen in ours if seen.target == name and seen.key})
        stored |= {(name, key): at for key, at in probes.stored_positions(connection, target, keys).items()}
    left = still_waiting(ours, stored, (), state.purged_through)
    if not left:
        return left
    rows = {(change.target, change.key) for change in left}
    candidates = [seen for seen in ours if (seen.target, seen.key) in rows]
    rejected = probes.rejected_versions(connection, mapping.name, [seen.version for seen in candidates])
    return still_waiting(candidates, stored, rejected, state.purged_through)


def _conclude(
    state: ProbeState, found: _Found, waiting: Sequence[Waiting], now: datetime
) -> tuple[Tick, list[ShardProgress]]:
    """Return what the tick found, and the shards to go on from."""
    last = state.last
    unread_until = _latest(last and last.unread_until, found.passed_until, _relabelled_at(state, found.stream.label))
    newest = _latest(last and last.newest_read, found.newest)
    overlooked = _overlooked(state, found.stream.label, newest, unread_until, now)
    whole = found.at_end and found.stream.enabled and not overlooked
    shards = found.shards
    if overlooked:  # an empty page was taken for an end, and it is not known of which shard
        shards = [replace(shard, read_through=_known_through(state, shard)) for shard in shards]
    tick = Tick(
        stream_label=found.stream.label,
        ticked_at=now,
        caught_up_through=caught_up(
            last and last.caught_up_through,
            read_through(shards),
            waiting=waiting,
            unread_until=unread_until,
            now=now,
        ),
        unread_until=unread_until,
        newest_read=newest,
        hole_since=_hole(state, found, now) if waiting or not whole else None,
        read_whole=whole,
        waiting=len(waiting),
        oldest_waiting=waiting[0].since if waiting else None,
        shards=sum(not shard.finished for shard in shards),
        calls=found.calls,
        records=found.records,
    )
    return tick, shards


def _known_through(state: ProbeState, shard: ShardProgress) -> datetime | None:
    known = state.shards.get(shard.shard_id)
    return known.read_through if known else None


def _relabelled_at(state: ProbeState, label: str) -> datetime | None:
    """Return when the stream was made, if changes are known to have come from another one before.

    That one may still be read by a Lambda, and this probe no longer does.
    """
    before = state.last.stream_label if state.last else state.applied_label
    return None if before is None or before == label else label_time(label)


def _hole(state: ProbeState, found: _Found, now: datetime) -> datetime | None:
    """Return since when the stream has dropped changes unread, if it has.

    What is behind them in their shard was applied or not: when nothing waits, the Lambda had come past them.
    """
    last = state.last
    if last is None:
        applied = state.applied_through
        return applied - RETENTION if applied is not None and applied < now - RETENTION else None
    if last.hole_since is not None or not found.trimmed:
        return last.hole_since
    return min(last.ticked_at, last.caught_up_through or last.ticked_at - RETENTION)


def _overlooked(
    state: ProbeState, label: str, newest: datetime | None, unread_until: datetime | None, now: datetime
) -> bool:
    """Whether the Lambda has applied a newer record than this probe has read: then it is not at the end."""
    applied = state.applied_through
    if applied is None or state.applied_label != label or applied < now - RETENTION + timedelta(hours=1):
        return False
    return (newest is None or newest < applied) and (unread_until is None or unread_until <= applied)


def _latest(*times: datetime | None) -> datetime | None:
    return max((time for time in times if time is not None), default=None)
