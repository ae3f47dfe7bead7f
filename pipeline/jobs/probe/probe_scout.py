"""Look at the end of a shard that the probe does not read further, because so many of its changes wait already.

Only the end shows whether the replicator has passed the waiting changes, or whether nothing moves in the shard. What
the scout reads is read again when the probe gets there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.core.errors import TransientError, UnreachableError
from pipeline.dynamodb.streams.shards import LostPlaceError
from pipeline.jobs.probe.probe_shards import EMPTY_AT_END, ITERATOR_LIFE, PAUSE_SECONDS

if TYPE_CHECKING:
    from pipeline.core.past.probing import ShardProgress
    from pipeline.dynamodb.streams.shards import KeyRecord, Shard, StreamReader
    from pipeline.jobs.probe.probe_shards import Limits


@dataclass(frozen=True, slots=True)
class Scouted:
    """What was seen at a shard's end, and where to look next."""

    progress: ShardProgress
    records: list[KeyRecord]
    at_end: bool
    """It continued from its last place and reached the end."""


def scout(stream: StreamReader, limits: Limits, shard: Shard, place: ShardProgress) -> Scouted:
    """Read what was added at the shard's end since the last look: two pages at most. The first look only marks it."""
    if shard.closed:
        return Scouted(place, [], at_end=True)
    records: list[KeyRecord] = []
    try:
        if place.scout is None or place.scout_at is None or limits.now() - place.scout_at >= ITERATOR_LIFE:
            iterator = stream.open(shard.shard_id, latest=True).iterator
            return Scouted(replace(place, scout=iterator, scout_at=limits.now()), [], at_end=False)
        iterator, empty = place.scout, 0
        for number in range(EMPTY_AT_END):
            if number:
                limits.sleep(PAUSE_SECONDS)
            if limits.monotonic() >= limits.deadline:
                break
            page = stream.page(iterator)
            records += page.records
            empty += not page.records
            iterator = page.following
            if iterator is None:
                break
    except LostPlaceError:
        return Scouted(replace(place, scout=None, scout_at=None), records, at_end=False)
    except UnreachableError:
        raise
    except TransientError:
        return Scouted(place, records, at_end=False)  # throttled: the next tick looks again
    at_end = iterator is None or empty == EMPTY_AT_END
    return Scouted(replace(place, scout=iterator, scout_at=limits.now()), records, at_end=at_end)
