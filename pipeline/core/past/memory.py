"""What a probe tick starts from and ends with: the table's rules, what the database remembers, what the tick saw.

The database keeps the memory beside the rows that it describes. So after a restore, a clone or a rollback the memory
still agrees with the rows: the probe's places in the shards go back too, the probe reads the stream again from there,
and looks up each change. Nobody has to report the restore.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.core.past.losses import Proof
from pipeline.core.past.probing import ShardProgress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from pipeline.core.past.losses import Loss
    from pipeline.core.past.probing import Stored, Unread, Waiting

# With this many keys on their way, the probe stops reading the shards that have some. It keeps at most this many lost
# changes by key.
MOST_WAITING = MOST_LOST = 10_000


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings from a table's mapping and its event source mapping."""

    margin: timedelta
    warn: timedelta = timedelta(minutes=5)
    """The lag at which the mapping's `freshness` warns; a change stuck for longer is a finding."""
    parallelization: int | None = 1
    """Batches of a shard that the replicator works on at once: above 1 they overtake each other. None (unknown) counts
    as above 1, so that no change is called lost while it is on its way."""
    batching_window: timedelta = timedelta(0)
    """How long the replicator may wait before it takes a batch."""
    most_lost: int = MOST_LOST
    """Keep at most this many lost changes by key."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the database remembers about a table's past from one tick to the next."""

    stream_label: str | None = None
    """The label of the stream that the last tick read; None before the first tick."""
    table_id: str | None = None
    """DynamoDB's id of the table that the last tick read."""
    ticked_at: datetime | None = None
    caught_up_through: datetime | None = None
    """Every change made before this time is in Aurora, was overtaken there, or waits as a reject. May go back."""
    settled_through: datetime | None = None
    """No change made before this time is still on its way: what is missing will not come by itself."""
    read_through: datetime | None = None
    """The same for keys that have no known change on its way."""
    settles_from: datetime | None = None
    """An earlier stream may still bring changes; they lose against anything read from the source after this time."""
    newest_read: datetime | None = None
    """Creation time of the newest record read in any tick."""
    shards: Mapping[str, ShardProgress] = field(default_factory=dict[str, ShardProgress])
    """The shards of `stream_label`, by name."""
    waiting: Sequence[Waiting] = ()
    losses: Sequence[Loss] = ()
    """The open losses, one of each kind."""


@dataclass(frozen=True, slots=True)
class ShardSight:
    """What a tick saw in a shard."""

    progress: ShardProgress
    """Its place after reading. Fields that only `conclude` fills in may still have their old values."""
    sightings: Sequence[Waiting] = ()
    """One for each target of each record read since the place, whether it arrived or not."""
    at_end: bool = False
    """The shard was read to its end."""
    trimmed: bool = False
    """The stream no longer holds the place where the last tick stopped."""
    passed: Unread | None = None
    """A stretch after the sightings that was skipped unread."""
    held: bool = False
    """So many changes wait that the place stays where it is; `at_end` is then that of the scout, which reads from the
    end."""
    scouted: Sequence[Waiting] = ()
    """Sightings of records that the scout saw; the normal reading reaches them later."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a tick saw."""

    stream_label: str
    through: datetime
    """A shard that was read to its end counts as read through this time."""
    shards: Sequence[ShardSight]
    """All shards that the stream lists, including those not read in this tick."""
    stored: Stored
    """Covers every change in `memory.waiting` and every sighting."""
    newest: datetime | None = None
    """Creation time of the newest record read, even if no target takes it."""
    stream_enabled: bool = True
    table_id: str | None = None
    applied_label: str | None = None
    """The stream from which a change was last applied."""
    applied_through: datetime | None = None
    """Creation time of the newest change applied from that stream."""
    proof: Proof = field(default_factory=Proof)
    loaded: datetime | None = None
    """Time of the newest snapshot that was loaded whole."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """The result of a tick."""

    memory: Memory
    read_whole: bool
    """Whether the stream is on and every shard was read to its end."""
