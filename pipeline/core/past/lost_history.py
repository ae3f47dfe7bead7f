"""Finds which changes may never arrive, and what could lose more, from a look at the source. Pure.

Two kinds of findings. A *condition* lasts as long as it is seen (the stream is off, no Lambda reads it). A *loss* is a
span of time whose changes may never have been applied; it stays until a catch-up or a reconciliation has covered it.

Invariant: a finding says since when, and gives the command to type. Where its beginning is not proven, the span begins
earlier: catching up over too much costs little, over too little leaves the replica wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from pipeline.core.past.losses import RETENTION, Kind, Loss, stream_changed
from pipeline.core.streams.positions import label_time

if TYPE_CHECKING:
    from collections.abc import Sequence

# A change not applied after this long will soon be trimmed.
ABOUT_TO_BE_LOST = timedelta(hours=18)
NEW_IMAGES = frozenset({"NEW_IMAGE", "NEW_AND_OLD_IMAGES"})


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """Changes are lost, or are being lost."""
    WARN = "warn"
    """A loss could not be repaired, because something needed for it is missing."""
    UNKNOWN = "unknown"
    """It could not be checked."""


CONFIGURATION = frozenset(
    {
        Kind.STREAM_OFF,
        Kind.VIEW_TYPE,
        Kind.NO_MAPPING,
        Kind.MAPPING_OFF,
        Kind.MAPPING_UNKNOWN,
        Kind.MAPPING_FAULT,
        Kind.CROWDED,
        Kind.KEY_UNUSABLE,
        Kind.NO_RECOVERY,
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `since` None: unknown."""

    kind: Kind
    severity: Severity
    what: str
    since: datetime | None
    remedy: str


@dataclass(frozen=True, slots=True)
class Reader:
    """The relevant settings of an event source mapping."""

    mapping_id: str
    enabled: bool
    from_trim_horizon: bool
    function: str = ""
    """Name of the function that it invokes, with the alias if it has one."""
    function_version: str = ""
    """The published version that it invokes; empty: the latest code, or an alias."""
    filtered: bool = False
    reports_failures: bool = True
    tumbling_seconds: int = 0
    retries: int = -1
    """How often Lambda retries a batch; -1: until the stream drops it."""
    max_age_seconds: int = -1
    bisects: bool = True
    on_failure: str = ""
    """ARN of the destination for discarded batches; empty: they are lost."""
    last_result: str = ""
    parallelization: int = 1
    batching_window_seconds: int = 0

    @property
    def gives_up(self) -> bool:
        """Whether its own limits make it discard batches before the stream drops them."""
        return self.retries >= 0 or 0 <= self.max_age_seconds <= RETENTION.total_seconds()


@dataclass(frozen=True, slots=True)
class Remembered:
    """The source as it was last seen at work."""

    stream_label: str | None = None
    streamed_at: datetime | None = None
    """When the stream was last seen enabled."""
    mapping_ids: tuple[str, ...] = ()
    mapped_at: datetime | None = None
    """When one of these event source mappings was last seen enabled."""
    table_id: str | None = None
    parallelization: int | None = None
    """The most batches of one shard that they deliver at once; None: unknown."""
    batching_window_seconds: int | None = None
    """The longest that they wait before they deliver a batch."""


@dataclass(frozen=True, slots=True)
class Source:
    """A table's source as observed, and how far it is applied."""

    name: str
    """The mapping's."""
    table: str
    stream_label: str | None
    stream_enabled: bool
    view_type: str | None
    recovery_enabled: bool
    earliest_restorable: datetime | None
    readers: Sequence[Reader] | None
    """The replicator's event source mappings on the stream; None: this process may not list them."""
    remembered: Remembered = Remembered()
    proven_through: datetime | None = None
    """The probe's `caught_up_through`."""
    applied_through: datetime | None = None
    """Creation time of the newest change applied."""
    applied_label: str | None = None
    """The stream it came from."""
    oldest_waiting: datetime | None = None
    """Creation time of the oldest change that the probe has not found applied."""
    replicated: bool = False
    """Whether it is a global table, with replicas in other Regions."""
    kms_key: str = ""
    """ARN of the customer managed key that encrypts the table, if any."""
    key_unusable_since: datetime | None = None
    """Since when DynamoDB cannot use that key."""
    function: str = ""
    """The replicator's functions and how we know them, where we do; `readers` then invoke only these."""
    others: Sequence[Reader] = ()
    """Event source mappings from this stream to other functions."""
    table_id: str | None = None
    probed_label: str | None = None
    """The stream that the probe read last. The probe itself has found the losses between it and earlier streams."""

    @property
    def applied_for_certain(self) -> datetime | None:
        """A time before which every change is known to be applied.

        Without a probe: a stream's retention before the newest change applied, because one shard may be behind the
        others.
        """
        if self.proven_through is None and self.applied_through is not None:
            return self.applied_through - RETENTION
        return self.proven_through


def new_losses(source: Source, now: datetime) -> list[Loss]:
    """Return the spans of time whose changes this look at the source shows to be possibly lost."""
    return [loss for loss in (_stream_remade(source, now), _mapping_remade(source, now)) if loss is not None]


def _stream_remade(source: Source, now: datetime) -> Loss | None:
    seen = source.remembered
    before = source.probed_label or seen.stream_label or source.applied_label
    if before is None or source.stream_label is None or before == source.stream_label:
        return None
    proven = source.applied_for_certain
    if proven is None or proven >= label_time(source.stream_label):  # says nothing about the old stream
        proven = label_time(before) if seen.streamed_at is None else seen.streamed_at - RETENTION
    return stream_changed(
        source.stream_label,
        proven=proven,
        waiting=[] if source.oldest_waiting is None else [source.oldest_waiting],
        other_table=None not in (seen.table_id, source.table_id) and seen.table_id != source.table_id,
        now=now,
    )


def _mapping_remade(source: Source, now: datetime) -> Loss | None:
    known, readers = set(source.remembered.mapping_ids), source.readers
    if not known or not readers or known & {reader.mapping_id for reader in readers}:
        return None
    since = source.applied_for_certain or source.remembered.mapped_at or now - RETENTION
    if any(reader.from_trim_horizon for reader in readers) and since > now - RETENTION:
        return None  # it started with what its predecessor had not read
    return Loss(Kind.MAPPING_REMADE, min(since, now), now)


def conditions(source: Source, now: datetime) -> list[Finding]:
    """Return the lasting faults of the source, as of this look."""
    found = [_stream(source), _key(source), *_readers(source), _recovery(source), _about_to_be_lost(source, now)]
    return [finding for finding in found if finding is not None]


def _stream(source: Source) -> Finding | None:
    since = source.remembered.streamed_at
    if not source.stream_enabled:
        return Finding(
            Kind.STREAM_OFF,
            Severity.ERROR,
            f"the stream of {source.table} is off: nothing records what is written",
            since,
            f"enable it (`aws dynamodb update-table --table-name {source.table} --stream-specification"
            " StreamEnabled=true,StreamViewType=NEW_AND_OLD_IMAGES`), deploy the replicator on the new stream, then"
            " close the gap that this check will name",
        )
    if source.view_type not in NEW_IMAGES:
        return Finding(
            Kind.VIEW_TYPE,
            Severity.ERROR,
            f"the stream of {source.table} has the view type {source.view_type}, without new images: nothing of it can"
            " be applied",
            since,
            f"{change_view_type(source.table, replicated=source.replicated)}, deploy the replicator on the new stream,"
            " then close the gap that this check will name",
        )
    return None


def change_view_type(table: str, *, replicated: bool) -> str:
    """Return how to give a table a stream with new images: a view type cannot be altered."""
    command = f"`aws dynamodb update-table --table-name {table} --stream-specification StreamEnabled"
    switch = (
        f"disable the stream ({command}=false`), enable it again ({command}=true,StreamViewType=NEW_AND_OLD_IMAGES`)"
    )
    if not replicated:
        return switch
    return (
        f"{table} is a global table, whose stream DynamoDB does not let you disable while it has replicas: replicate"
        " from its replica in a Region whose stream carries new images (AWS_REGION), or remove the replicas of the"
        f" other Regions first (`--replica-updates`), {switch}, and add the replicas again"
    )


def _key(source: Source) -> Finding | None:
    if source.key_unusable_since is None:
        return None
    return Finding(
        Kind.KEY_UNUSABLE,
        Severity.ERROR,
        f"DynamoDB cannot use the key that {source.table} is encrypted with ({source.kms_key or 'not named'}):"
        " the table and its stream cannot be read, and after 7 days the table is archived",
        source.key_unusable_since,
        "enable the key in AWS KMS, and let its policy allow DynamoDB to use it",
    )


def _readers(source: Source) -> list[Finding]:
    readers, since = source.readers, source.remembered.mapped_at
    if readers is None:
        return [
            Finding(
                Kind.MAPPING_UNKNOWN,
                Severity.UNKNOWN,
                "not known whether a Lambda reads the stream: this process may not list event source mappings",
                None,
                "grant it lambda:ListEventSourceMappings",
            )
        ]
    if not source.stream_enabled:
        return []
    if not readers:
        what, feeds = "no Lambda reads the stream: it has no event source mapping", ""
        if source.others:
            feeds = ", ".join(sorted({other.function for other in source.others}))
            what = f"the replicator {source.function} does not read the stream: it feeds {feeds}"
        return [
            Finding(
                Kind.NO_MAPPING,
                Severity.ERROR,
                what,
                since,
                "deploy the replicator with the table's latest stream, and the starting position TRIM_HORIZON, within"
                " 24 hours of the oldest change that was not applied"
                + (f"; or, if {feeds} is the replicator now, set DYNAURORA_FUNCTION to it" if feeds else ""),
            )
        ]
    if any(reader.enabled for reader in readers):
        return []
    commands = " and ".join(
        f"`aws lambda update-event-source-mapping --uuid {reader.mapping_id} --enabled`" for reader in readers
    )
    what = "no Lambda reads the stream: its event source mapping is disabled"
    return [
        Finding(Kind.MAPPING_OFF, Severity.ERROR, what, since, f"enable it; it resumes where it stopped: {commands}")
    ]


def _recovery(source: Source) -> Finding | None:
    if source.recovery_enabled:
        return None
    return Finding(
        Kind.NO_RECOVERY,
        Severity.WARN,
        f"point-in-time recovery of {source.table} is off, so a gap could not be caught up from exports",
        None,
        f"enable it: `aws dynamodb update-continuous-backups --table-name {source.table}"
        " --point-in-time-recovery-specification PointInTimeRecoveryEnabled=true`",
    )


def _about_to_be_lost(source: Source, now: datetime) -> Finding | None:
    oldest = source.oldest_waiting
    if oldest is None or oldest > now - ABOUT_TO_BE_LOST or oldest <= now - RETENTION:
        return None
    return Finding(
        Kind.ABOUT_TO_BE_LOST,
        Severity.ERROR,
        f"changes of {_time(oldest)} have not been applied, and the stream drops them at {_time(oldest + RETENTION)}",
        oldest,
        "see to it that the table's Lambda function runs before that: its errors and its log say what it fails on",
    )


def remember(source: Source, now: datetime) -> Remembered:
    """Return what to remember of the source after this look."""
    before = source.remembered
    label, streamed_at = before.stream_label, before.streamed_at
    if source.stream_enabled and source.stream_label is not None:
        label, streamed_at = source.stream_label, now
    ids, mapped_at = before.mapping_ids, before.mapped_at
    if source.readers and any(reader.enabled for reader in source.readers):
        ids, mapped_at = tuple(sorted(reader.mapping_id for reader in source.readers)), now
    readers = source.readers
    return Remembered(
        label,
        streamed_at,
        ids,
        mapped_at,
        source.table_id or before.table_id,
        max((reader.parallelization for reader in readers), default=None) if readers else before.parallelization,
        max((reader.batching_window_seconds for reader in readers), default=None)
        if readers
        else before.batching_window_seconds,
    )


def _time(time: datetime | None) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC" if time else "an unknown time"
