"""How far replication is known to have come: what a comparison with the source's state may rest on.

Invariant: `through` never claims more than its basis gives. A probe proves it; where no probe is running, batches that
come late are evidence that replication is behind; and otherwise it is assumed, and said to be, that it is no further
behind than the margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from pipeline.aurora import probes
from pipeline.aurora.errors import translating

if TYPE_CHECKING:
    from pipeline.aurora.connection import Connection

# A batch that was committed longer ago than this says nothing of replication's lag now.
_RECENT = timedelta(seconds=20)
# A table to which nothing was applied for so long, and that no probe can look at, is taken for idle.
_IDLE = timedelta(minutes=20)
# A probe that has not ticked for this long says nothing either.
_PROBE_STOPPED = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class AppliedThrough:
    """Every change that the source made until `through` has been applied, on the strength of `basis`."""

    through: datetime
    basis: Literal["probe", "late batches", "assumption"]
    newest: datetime | None
    """Creation time of the newest change applied."""

    def lag(self, now: datetime) -> timedelta:
        """How far replication is known to be behind; nothing where it is only assumed not to be."""
        return timedelta(0) if self.basis == "assumption" else max(timedelta(0), now - self.through)

    def covers_snapshot(self, snapshot_time: datetime, margin: timedelta, now: datetime) -> bool:
        """Whether what the snapshot holds must have been applied: it may hold changes of up to a margin later.

        Where it is only assumed, something newer than the snapshot must have arrived too, unless for so long nothing
        has that the table seems to be idle.
        """
        if self.basis == "assumption":
            idle = self.newest is None or self.newest < now - _IDLE
            return now >= snapshot_time + margin and (idle or (self.newest or now) >= snapshot_time)
        return self.through >= snapshot_time + margin

    @property
    def read_covered(self) -> datetime:
        """States read from the source until then must have been applied.

        Where it is only assumed, something that the source made later must have arrived too: a replicator that is
        dead has no lag that an assumption would know.
        """
        if self.basis == "assumption":
            return min(self.through, self.newest) if self.newest else datetime.min.replace(tzinfo=self.through.tzinfo)
        return self.through


def applied_through(connection: Connection, table_name: str, *, now: datetime, margin: timedelta) -> AppliedThrough:
    """Return how far the table's stream is known to be applied, as of `now`. Reads; takes no lock."""
    with translating("reading how far replication is", table=table_name):
        row = connection.execute(
            "SELECT max(as_of), max(as_of) FILTER (WHERE applied_at > %s) FROM replication.watermarks"
            " WHERE table_name = %s",
            [now - _RECENT, table_name],
        ).fetchone()
    newest, recent = row or (None, None)
    proven = caught_up_through(connection, table_name, now)
    if proven is not None:
        return AppliedThrough(proven, "probe", newest)
    if recent is not None and recent < now - margin - _RECENT:
        return AppliedThrough(recent, "late batches", newest)
    return AppliedThrough(now - margin, "assumption", newest)


def caught_up_through(connection: Connection, table_name: str, now: datetime) -> datetime | None:
    """Return the time through which the probe has proven the table caught up; None: not known, or no longer."""
    tick = probes.read_tick(connection, table_name)
    if tick is None or tick.ticked_at < now - _PROBE_STOPPED:
        return None
    return tick.caught_up_through
