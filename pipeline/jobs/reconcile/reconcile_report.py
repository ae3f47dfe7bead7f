"""What a reconciliation reports: counts by kind and column, samples, how far it could decide, and how fast it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from datetime import datetime


SAMPLES = 20


@dataclass(frozen=True, slots=True)
class DriftSample:
    """One row with drift, named by the digest of its key, and by the key where that was allowed."""

    target: str
    key_digest: str
    kind: str
    columns: tuple[str, ...]
    repaired: bool
    key: str | None = None
    """The item's key attributes as JSON; None unless asked for."""


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """What a reconciliation found. `compared` counts keys of snapshot and targets that could be decided."""

    table: str
    reconciliation_id: int
    snapshot: str
    snapshot_time: datetime
    as_of: datetime
    compared: int
    in_flight: int
    """Rows that differed from the snapshot because they were changed since, and were right when read again."""
    missing: int
    extra: int
    different: int
    repaired: int
    rejected: int
    """Items that a target cannot hold, or that match no target: they became rejects on arrival and are not drift."""
    by_column: dict[str, int]
    samples: tuple[DriftSample, ...]
    seconds: float
    stale: int = 0
    """Rows that differ and are proven to hold an older state."""
    undecided: int = 0
    """Rows that differ when we don't know whether replication had reached the state that they differ from."""
    behind_seconds: float | None = None
    """How far behind replication was at the end, where rows are undecided; None where it is not known."""
    no_proof: str | None = None
    """Why the run proves nothing of the time before its snapshot, however equal the rows are; None: it does."""
    resumed: bool = False
    """Whether this run resumed an earlier one that was killed or had failed; `seconds` are then this run's alone."""

    @property
    def drift(self) -> int:
        """Proven differences, repaired or not."""
        return self.missing + self.extra + self.different + self.stale

    @property
    def items_per_second(self) -> float:
        """Keys decided per second, including the time spent waiting for replication."""
        return round(self.compared / self.seconds, 1) if self.seconds else 0.0

    @property
    def verdict(self) -> Literal["equal", "repaired", "drift", "undecided"]:
        """The outcome in a word; drift that is left outweighs undecided rows."""
        if self.drift > self.repaired:
            return "drift"
        if self.undecided:
            return "undecided"
        return "repaired" if self.drift else "equal"

    @property
    def needs_person(self) -> bool:
        """Whether someone must look: drift is left, or replication is known to be too far behind to judge."""
        return self.drift > self.repaired or (self.undecided > 0 and self.behind_seconds is not None)

    @property
    def why_undecided(self) -> str | None:
        """Why rows could not be decided, in a sentence, with the next step; None when all were."""
        if not self.undecided:
            return None
        what = f"{self.undecided} rows differ and could not be decided"
        if self.behind_seconds is None:
            return (
                f"{what}: they were changed since the snapshot, and no probe says how far replication is;"
                " run the probe, or reconcile with a newer snapshot"
            )
        return (
            f"{what}: replication is {_duration(self.behind_seconds)} behind; see `dynaurora status {self.table}`,"
            " and reconcile again once it has caught up"
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
