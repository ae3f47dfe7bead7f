"""Draws a probe tick's conclusions from what the database remembers and what the tick saw. Pure; time is given.

Invariants: `caught_up_through` is never later than a change that is missing. `settled_through` is never later than a
change that the replicator may still bring. A change that is missing is listed as waiting under its key, or lies within
an open loss.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.core.past.losses import NOT_BY_CATCH_UP, RETENTION, Kind, Loss, merged, stream_changed
from pipeline.core.past.memory import Conclusion, Memory, Rules, ShardSight, Sight
from pipeline.core.past.probing import (
    GONE_AFTER,
    Applied,
    ShardProgress,
    State,
    Unread,
    Waiting,
    earliest,
    frontier,
    lineages,
    not_arrived,
)
from pipeline.core.streams.positions import label_time

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Creation times are whole seconds.
_GRAIN = timedelta(seconds=1)
# How far this machine's clock and the source's may still disagree after the difference was measured.
_CLOCKS = timedelta(seconds=2)
# A shard is still once nothing was read or applied in it for this long and in this many ticks.
STILL_AFTER, STILL_TICKS = timedelta(seconds=60), 2
# A tick that follows another within this time shows nothing new.
_APART = timedelta(seconds=10)


def conclude(memory: Memory, sight: Sight, now: datetime, rules: Rules) -> Conclusion:
    """Return what to remember after a tick. `now` is the source's clock."""
    same = memory.stream_label == sight.stream_label
    kept = memory if same else replace(memory, shards={}, waiting=(), read_through=memory.settled_through)
    read = [change.as_of for one in sight.shards for change in one.sightings]
    newest = _latest(memory.newest_read, sight.newest, *read)
    if same and _overlooked(memory, sight, newest, now):  # an empty page was mistaken for some shard's end
        sight = replace(sight, shards=[_not_ended(kept.shards, one) for one in sight.shards])
    shards = _shards(kept, sight, now, rules)
    waiting = _waiting(kept, sight, shards, now, rules)
    changed = _stream_changed(memory, sight, now)
    losses, waiting = _losses(memory, sight, waiting, [*changed, *_gaps(memory, sight, now, rules)], now, rules)
    settles_from = label_time(sight.stream_label) + rules.margin if changed else memory.settles_from
    settled = _settled_read(kept.read_through, sight, shards, settles_from, now, rules)
    on_way = [change.since for change in waiting if change.state is State.ON_ITS_WAY]
    after = Memory(
        stream_label=sight.stream_label,
        table_id=sight.table_id or memory.table_id,
        ticked_at=now,
        caught_up_through=_caught_up(memory.caught_up_through, shards, waiting, losses),
        settled_through=None if settled is None else min([settled, *on_way]),
        read_through=settled,
        settles_from=settles_from,
        newest_read=newest,
        shards=shards,
        waiting=waiting,
        losses=losses,
    )
    ended = bool(sight.shards) and all(one.at_end and not one.held for one in sight.shards)
    return Conclusion(after, read_whole=ended and sight.stream_enabled)


def _caught_up(
    before: datetime | None,
    shards: Mapping[str, ShardProgress],
    waiting: Sequence[Waiting],
    losses: Sequence[Loss],
) -> datetime | None:
    """Return the time before which every change is in Aurora."""
    claimed = earliest(shard.read_through for shard in frontier(shards.values())) or before
    if claimed is None or any(loss.kind in NOT_BY_CATCH_UP for loss in losses):
        return None  # nothing shows that what another table held before its stream began is in Aurora
    return min([claimed, *(change.since for change in waiting), *(loss.since for loss in losses)])


def _overlooked(memory: Memory, sight: Sight, newest: datetime | None, now: datetime) -> bool:
    """Whether the replicator applied a newer record than the probe read: then an empty page was not the end."""
    applied = sight.applied_through
    if applied is None or sight.applied_label != sight.stream_label or applied < now - RETENTION + timedelta(hours=1):
        return False
    if any(one.held for one in sight.shards):
        return False
    unread = [shard.unread for shard in memory.shards.values()] + [one.passed for one in sight.shards]
    passed = (span.until + _CLOCKS for span in unread if span is not None)
    return (newest is None or newest < applied) and all(until <= applied for until in passed)


def _not_ended(known: Mapping[str, ShardProgress], one: ShardSight) -> ShardSight:
    before = known.get(one.progress.shard_id)
    read_through = before.read_through if before else None
    return replace(one, at_end=False, progress=replace(one.progress, read_through=read_through))


def _shards(memory: Memory, sight: Sight, now: datetime, rules: Rules) -> dict[str, ShardProgress]:
    """Return the shards, each with how far it is applied, and since when it is still.

    Progress in a shard proves the same progress in its ancestors: a replicator finishes a shard before its successors.
    """
    seen = {one.progress.shard_id: one for one in sight.shards}
    before = {name: memory.shards.get(name, ShardProgress(name, None)) for name in seen}
    applied = {name: shard.applied for name, shard in before.items()}
    moved = {name: _moved(one, before[name]) for name, one in seen.items()}
    ended = {name: one.at_end for name, one in seen.items()}
    looked_up = [*memory.waiting, *(change for one in sight.shards for change in (*one.sightings, *one.scouted))]
    for change in looked_up:
        name, found = change.shard_id, sight.stored.applied(change)
        if name in seen and found is not None:
            known = before[name].applied
            moved[name] |= found.version == change.version or _further(known, found) != known
            applied[name] = _further(applied[name], found)
    for line in lineages({name: one.progress for name, one in seen.items()}):
        first = line[0].shard_id
        for name in (ancestor.shard_id for ancestor in line[1:]):
            applied[name] = _further(applied[name], applied[first])
            # Nobody looks into what a held shard took before it was closed.
            moved[name] |= moved[first] or (before[first].moved_at is None and seen[name].held)
            ended[name] &= ended[first]
    shards: dict[str, ShardProgress] = {}
    since_tick = now - memory.ticked_at if memory.ticked_at is not None else timedelta(0)
    paused = since_tick >= STILL_AFTER + rules.batching_window
    for name, one in seen.items():
        # Nobody knows what happened while no tick ran: the database may have been away, and the replicator with it.
        begins = moved[name] or before[name].moved_at is None or (paused and before[name].still_ticks < STILL_TICKS)
        shards[name] = replace(
            one.progress,
            read_through=_read_through(one, before[name]),
            applied=applied[name],
            moved_at=now if begins else before[name].moved_at,
            still_ticks=0 if moved[name] else before[name].still_ticks + (ended[name] and since_tick >= _APART),
            unread=_unread(before[name].unread, one.passed, applied[name], now, rules),
        )
    return shards


def _read_through(one: ShardSight, before: ShardProgress) -> datetime | None:
    """Return the time through which a shard was read: one found closed did not take later writes."""
    if not one.progress.finished or before.finished:
        return one.progress.read_through
    return _latest(before.read_through, *(change.as_of for change in one.sightings))


def _moved(one: ShardSight, before: ShardProgress) -> bool:
    read_on = one.progress.sequence_number != before.sequence_number
    return read_on or bool(one.sightings or one.scouted or one.passed)


def _further(one: Applied | None, other: Applied | None) -> Applied | None:
    return max((a for a in (one, other) if a is not None), key=lambda applied: applied.version, default=None)


def _unread(
    before: Unread | None, passed: Unread | None, applied: Applied | None, now: datetime, rules: Rules
) -> Unread | None:
    """Return the unread stretch that the replicator may still be in; None once it has applied a change after it."""
    if before is not None and passed is not None:
        return Unread(min(before.since, passed.since), max(before.until, passed.until))
    unread = passed or before
    if unread is None or now >= unread.until + GONE_AFTER:
        return None
    behind = applied is not None and applied.as_of + _GRAIN > unread.until + _overtaking(rules)
    return None if behind else unread


def _overtaking(rules: Rules) -> timedelta:
    """How long after a younger change of the same shard a change may still be applied."""
    return timedelta(0) if rules.parallelization == 1 else rules.margin + rules.batching_window


def _waiting(
    memory: Memory, sight: Sight, shards: Mapping[str, ShardProgress], now: datetime, rules: Rules
) -> list[Waiting]:
    """Return what has not arrived, each with its state."""
    changes = [*memory.waiting, *(change for one in sight.shards for change in one.sightings)]
    left = not_arrived(changes, sight.stored, sight.proof, rules.margin)
    return [replace(change, state=_state(change, shards.get(change.shard_id), now, rules)) for change in left]


def _state(change: Waiting, shard: ShardProgress | None, now: datetime, rules: Rules) -> State:
    if change.state.lost:
        return change.state
    if change.as_of <= now - RETENTION:
        return State.TRIMMED
    if shard is None:  # the stream no longer lists it
        return change.state
    applied = shard.applied
    if applied and change.version < applied.version and change.as_of <= applied.as_of - _overtaking(rules):
        return State.PASSED
    return State.STUCK if _is_still(shard, now, rules) else State.ON_ITS_WAY


def _is_still(shard: ShardProgress, now: datetime, rules: Rules) -> bool:
    return (
        shard.moved_at is not None
        and shard.still_ticks >= STILL_TICKS
        and now - shard.moved_at >= STILL_AFTER + rules.batching_window
    )


def _stream_changed(memory: Memory, sight: Sight, now: datetime) -> list[Loss]:
    """Return what may be lost between this stream and the one read or applied before."""
    before = memory.stream_label or sight.applied_label
    if before is None or before == sight.stream_label:
        return []
    proven = memory.caught_up_through or (memory.ticked_at or sight.applied_through or now) - RETENTION
    return [
        stream_changed(
            sight.stream_label,
            proven=proven,
            waiting=[change.since for change in memory.waiting],
            other_table=None not in (memory.table_id, sight.table_id) and memory.table_id != sight.table_id,
            now=now,
        )
    ]


def _gaps(memory: Memory, sight: Sight, now: datetime, rules: Rules) -> list[Loss]:
    """Return the time that no tick covers and the stream no longer holds, and the stretches that were skipped."""
    unread = [one.passed for one in sight.shards if one.passed is not None]
    gaps = [Loss(Kind.UNREAD, span.since, span.until) for span in unread]
    kept_since = now - RETENTION
    # The stream may still bring an older state from the margin before a snapshot, and lose a newer one.
    known = _latest(sight.loaded and sight.loaded - rules.margin, sight.proof.reconciled)
    if memory.stream_label is None:
        return gaps if known is None else [*gaps, *_gap_before_first(sight, known, kept_since)]
    if memory.stream_label != sight.stream_label:
        return gaps
    begun = label_time(sight.stream_label)
    if not memory.shards and begun < kept_since and sight.stream_enabled:  # seen before its first shard
        gaps.append(Loss(Kind.GAP, begun, kept_since))
    parents = {one.progress.parent_id for one in sight.shards}
    seen = {one.progress.shard_id: one for one in sight.shards}
    for place in frontier(memory.shards.values()):
        if place.finished and not sight.stream_enabled:
            continue  # nothing follows it
        since = place.read_through or memory.caught_up_through or known
        followed = place.finished and place.shard_id in parents  # by shards that may have lost changes already
        if since is not None and since < kept_since and (followed or _lost_place(place, seen.get(place.shard_id))):
            gaps.append(Loss(Kind.GAP, since, kept_since))
    return gaps


def _gap_before_first(sight: Sight, known: datetime, kept_since: datetime) -> list[Loss]:
    """Return the time before the very first tick whose changes are neither known to be in Aurora nor in the stream."""
    begun = label_time(sight.stream_label)
    if kept_since > begun:
        return [Loss(Kind.GAP, known, kept_since)] if known < kept_since else []
    # The stream holds everything since it began, and no other stream brought anything: a later snapshot has the rest.
    return [Loss(Kind.GAP, known, begun)] if max([known, sight.loaded or known]) < begun else []


def _lost_place(place: ShardProgress, one: ShardSight | None) -> bool:
    """Whether records after the place may have been dropped unread. A place without a number cannot show it."""
    if one is None or one.trimmed:
        return True
    return place.sequence_number is None and not place.finished and (one.at_end or bool(one.sightings))


def _losses(
    memory: Memory, sight: Sight, waiting: list[Waiting], found: list[Loss], now: datetime, rules: Rules
) -> tuple[list[Loss], list[Waiting]]:
    """Return the open losses, and what waits; lost changes are left out of it when they are too many to keep by key."""
    lost = [change for change in waiting if change.state.lost]
    stuck = [change for change in waiting if change.state is State.STUCK and change.since <= now - rules.warn]
    kept = len(lost) <= rules.most_lost
    by_key = [Loss(change.state.loss, change.since, change.as_of, keys_kept=kept) for change in lost]
    by_key += [Loss(Kind.STUCK, change.since, change.as_of, keys_kept=True) for change in stuck]
    before = {loss.kind: loss.found_at for loss in memory.losses}
    open_ones = [
        replace(loss, found_at=before.get(loss.kind) or now)
        for loss in merged([*(loss for loss in memory.losses if not loss.keys_kept), *found, *by_key])
        if not sight.proof.closes(loss, rules.margin)
    ]
    return open_ones, waiting if kept else [change for change in waiting if not change.state.lost]


def _settled_read(
    before: datetime | None,
    sight: Sight,
    shards: Mapping[str, ShardProgress],
    settles_from: datetime | None,
    now: datetime,
    rules: Rules,
) -> datetime | None:
    """Return the time before which nothing unread is still on its way.

    In a still shard nothing is on its way: neither after the place, nor in a skipped stretch.
    """
    if not shards and not sight.stream_enabled:
        return sight.through
    ended = {one.progress.shard_id for one in sight.shards if one.at_end}
    still = {name for name in ended if _is_still(shards[name], now, rules)}
    times: list[datetime | None] = [
        # A closed shard was read whole; its successors may not be listed yet, unless the stream is off.
        sight.through
        if shard.shard_id in still and not (shard.finished and sight.stream_enabled)
        else shard.read_through
        for shard in frontier(shards.values())
    ]
    times += [shard.unread.since for name, shard in shards.items() if shard.unread is not None and name not in still]
    known = [time for time in times if time is not None]
    if not known or len(known) < len(times):
        return None if before is None else min([before, *known])
    read = min(known)
    return before if settles_from is not None and read < settles_from else read


def _latest(*times: datetime | None) -> datetime | None:
    return max((time for time in times if time is not None), default=None)
