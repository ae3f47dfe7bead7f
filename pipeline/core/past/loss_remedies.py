"""Describes a loss in words, and names the command that closes it. Pure; time is given.

Invariant: the printed command runs and closes the loss: its range is long enough for a catch-up, and no snapshot loaded
since cuts it short.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.core.exports.windows import SHORTEST, round_up, shortest_range, whole_seconds
from pipeline.core.past.losses import NOT_BY_CATCH_UP, Kind
from pipeline.core.past.lost_history import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.core.past.losses import Loss

_WHAT = {
    Kind.PASSED: "the replicator has applied later changes, and will not come back for these (after a restore of the"
    " database, or a batch that Lambda discarded)",
    Kind.TRIMMED: "the stream dropped changes before they were applied",
    Kind.STUCK: "changes wait in the stream, and the replicator applies nothing",
    Kind.GAP: "no tick of the probe covers this time, and the stream no longer holds it: we don't know whether its"
    " changes were applied",
    Kind.UNREAD: "a shard was too busy for the probe to read all of it: we don't know whether these changes were"
    " applied",
    Kind.STREAM_REMADE: "the stream was disabled and enabled again: no stream has the changes made in between",
    Kind.TABLE_RECREATED: "the table was deleted and created again: rows of the deleted table are still in Aurora",
    Kind.REPOINTED: "the mapping was pointed at another table: rows of the previous table are still in Aurora",
    Kind.MAPPING_REMADE: "the event source mapping was created again, and skips what the previous one had not read",
}
_CERTAIN = {Kind.PASSED, Kind.TRIMMED, Kind.STUCK}


@dataclass(frozen=True, slots=True)
class Means:
    """What is available to repair a table."""

    name: str
    """The mapping's."""
    margin: timedelta
    recovery: bool = True
    """Whether point-in-time recovery is on; assumed on where unknown."""
    earliest: datetime | None = None
    """How far it reaches back; None: unknown."""
    snapshots: Sequence[datetime] = ()
    """Times of the loaded snapshots."""


def as_finding(loss: Loss, means: Means) -> Finding:
    """Return a loss as a finding, with its remedy."""
    verb = "are missing" if loss.kind in _CERTAIN and loss.keys_kept else "may be missing"
    return Finding(
        loss.kind,
        Severity.WARN if loss.kind is Kind.UNREAD else Severity.ERROR,
        f"{_WHAT[loss.kind]}; changes made from {_time(loss.since)} to {_time(loss.until)} {verb}",
        loss.since,
        remedy(loss, means),
    )


def remedy(loss: Loss, means: Means) -> str:
    """Return what to do, in the words to type."""
    reload = (
        f"`dynaurora load {means.name}{{scan}}`, then `dynaurora reconcile {means.name}{{scan}} --repair`, which also"
        " removes rows deleted in the meantime"
    )
    if loss.kind in NOT_BY_CATCH_UP:
        return f"run a full load, {reload.format(scan='' if means.recovery else ' --scan')}"
    start, end = catch_up_range(loss, means)
    if not means.recovery:
        why = "point-in-time recovery is off, so it cannot be caught up"
        return f"{why}: run a full load, {reload.format(scan=' --scan')}"
    if means.earliest is not None and means.earliest > start:
        why = f"point-in-time recovery reaches back to {_time(means.earliest)} only, so it cannot be caught up"
        return f"{why}: run a full load, {reload.format(scan='')}"
    command = f"run `dynaurora catch-up {means.name} --from {_iso(start)} --to {_iso(end)}`"
    if loss.kind is not Kind.STUCK:
        return command
    return (
        "look at the errors and the log of the table's Lambda function, which resumes where it stopped; if there are"
        " none, the database was restored to an earlier moment, and nothing will bring these changes by itself:"
        f" {command}"
    )


def catch_up_range(loss: Loss, means: Means) -> tuple[datetime, datetime]:
    """Return the range that a catch-up must cover to close the loss, in whole seconds: it ends past the margin.

    A snapshot shortly before the end would cut the catch-up short, so the range then ends later.
    """
    least = shortest_range(means.margin, SHORTEST)
    end = whole_seconds(loss.until + means.margin) + timedelta(seconds=1)
    for snapshot in sorted(means.snapshots):
        if end - least < snapshot < end:
            end = round_up(snapshot) + least
    start = loss.since - means.margin
    if means.earliest is None or means.earliest <= end - least:
        return whole_seconds(min(start, end - least)), end
    return whole_seconds(start), max(end, round_up(start + least))


def _iso(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"


def _time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
