"""Lost history: whether changes were lost, will be lost soon, or could be lost; and which command repairs that.

It looks at the table's stream and point-in-time recovery, at the event source mappings that read the stream, at their
on-failure destinations, and at what the probe knows. It makes five AWS calls for a table, and as many statements.

Invariant: it reports what it may not read as not known. It starts nothing: each finding names the command.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import loads, losses, probes, watermarks
from pipeline.aurora.errors import translating
from pipeline.core.past import lost_history, reader_faults
from pipeline.core.past.loss_remedies import Means, as_finding
from pipeline.core.past.losses import merged
from pipeline.core.past.lost_history import Finding, Reader, Remembered, Source
from pipeline.dynamodb import tables
from pipeline.dynamodb.streams.event_sources import event_source_mappings, waiting_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.aurora.bookkeeping.probes import ProbeState
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping
    from pipeline.dynamodb.streams.event_sources import EventSourceMapping
    from pipeline.dynamodb.tables import SourceTable
    from pipeline.jobs.services import Services

_STATEMENT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class OnFailure:
    """Discarded batches at the on-failure destination. `count` None: not known, for the reason given."""

    count: int | None
    oldest: datetime | None
    where: str
    """`s3://bucket/prefix`, or why it is not known."""
    more: bool = False
    """There are more than were counted."""


@dataclass(frozen=True, slots=True)
class HistoryReport:
    """The findings on one table, the worst first."""

    table: str
    findings: list[Finding]
    on_failure: OnFailure
    table_arn: str
    readers: Sequence[EventSourceMapping] | None
    """This deployment's event source mappings of its stream; None: this process may not list them."""


@dataclass(frozen=True, slots=True)
class Functions:
    """The replicator's functions, as far as they are known."""

    of_table: frozenset[str]
    """Those that must read the stream: the one that DYNAURORA_FUNCTION names, or those that have written the table."""
    of_database: frozenset[str] = frozenset()
    """Those that have written other tables of the database."""
    named: bool = False
    """By DYNAURORA_FUNCTION."""

    def __str__(self) -> str:
        names = ", ".join(sorted(self.of_table))
        return f"{names} ({'DYNAURORA_FUNCTION' if self.named else 'which has written the table'})" if names else ""


@dataclass(frozen=True, slots=True)
class Readers:
    """The event source mappings of a stream: this deployment's, and others'."""

    functions: Functions
    ours: Sequence[EventSourceMapping]
    others: Sequence[EventSourceMapping] = ()


def lost_history_report(
    services: Services, mapping: TableMapping, *, now: Callable[[], datetime] | None = None
) -> HistoryReport:
    """Look at a table's source once and record the findings. Raises TransientError, TerminalError."""
    table, mappings = stream_readers(services, mapping)
    at = (now or services.clock.now)()
    with _connect(services) as connection:
        readers = split_readers(mappings or (), known_functions(services, connection, mapping.name))
        state = probes.read_state(connection, mapping.name)
        remembered = losses.recall(connection, mapping.name)
        source = _source(mapping, table, None if mappings is None else readers, state, remembered)
        before = state.memory.losses
        found = merged([*before, *lost_history.new_losses(source, at)])
        kept = [loss for loss in found if not state.proof.closes(loss, mapping.margin)]
        with connection.transaction():
            losses.replace(connection, mapping.name, before, kept)
            losses.remember(connection, mapping.name, lost_history.remember(source, at), at)
        snapshots = loads.snapshot_times(connection, mapping.name) if kept else []
    means = Means(mapping.name, mapping.margin, table.pitr_enabled, table.earliest_restorable, snapshots)
    findings = [as_finding(loss, means) for loss in kept] + [
        *lost_history.conditions(source, at),
        *reader_faults.reader_faults(source),
    ]
    order = list(lost_history.Severity)
    worst_first = sorted(findings, key=lambda finding: order.index(finding.severity))
    ours = None if mappings is None else readers.ours
    return HistoryReport(mapping.name, worst_first, _on_failure(services, ours), table.arn, ours)


def stream_readers(
    services: Services, mapping: TableMapping
) -> tuple[SourceTable, Sequence[EventSourceMapping] | None]:
    """Return the source table and the event source mappings of its stream; None where this process may not list them.

    Raises TransientError, TerminalError.
    """
    table = tables.describe(services.dynamodb, mapping.table, services.clock)
    return table, event_source_mappings(services.functions, table.stream_arn) if table.stream_arn else []


def _source(
    mapping: TableMapping,
    table: SourceTable,
    readers: Readers | None,
    state: ProbeState,
    remembered: Remembered,
) -> Source:
    """`readers` None: this process may not list them."""
    coming = [change.since for change in state.memory.waiting if not change.state.lost]
    return Source(
        name=mapping.name,
        table=mapping.table,
        stream_label=table.stream_label,
        stream_enabled=table.stream_enabled,
        view_type=table.stream_view_type,
        recovery_enabled=table.pitr_enabled,
        earliest_restorable=table.earliest_restorable,
        readers=None if readers is None else [as_reader(found) for found in readers.ours],
        others=[as_reader(found) for found in readers.others] if readers else (),
        function=str(readers.functions) if readers else "",
        replicated=table.replicated,
        kms_key=table.kms_key,
        key_unusable_since=table.key_unusable_since,
        remembered=remembered,
        proven_through=state.memory.caught_up_through,
        applied_through=state.applied_through,
        applied_label=state.applied_label,
        oldest_waiting=coming[0] if coming else None,
        table_id=table.table_id,
        probed_label=state.memory.stream_label,
    )


def known_functions(services: Services, connection: Connection, table_name: str) -> Functions:
    """Return the functions that are this deployment's replicator: the setting's, or those known to have written.

    So another environment's Lambda function on the same stream is not taken for ours.
    """
    if services.settings.function:
        return Functions(frozenset({services.settings.function}), named=True)
    with translating("looking which functions write here", table=table_name):
        return Functions(*watermarks.functions(connection, table_name))


def split_readers(mappings: Sequence[EventSourceMapping], functions: Functions) -> Readers:
    """Separate this deployment's event source mappings from others'; if nothing is known, all may be ours."""
    for known in (functions.of_table, functions.of_database):
        ours = [found for found in mappings if any(found.feeds(function) for function in known)]
        if ours or (known and known is functions.of_table):
            return Readers(functions, ours, [found for found in mappings if found not in ours])
    return Readers(functions, list(mappings))


def as_reader(found: EventSourceMapping) -> Reader:
    """Return the facts about an event source mapping that are judged."""
    return Reader(
        found.mapping_id,
        found.enabled,
        found.starting_position == "TRIM_HORIZON",
        function=found.function.partition(":")[0] if found.function_version else found.function,
        function_version=found.function_version,
        filtered=found.filtered,
        reports_failures=found.reports_failures,
        tumbling_seconds=found.tumbling_seconds,
        retries=found.retries,
        max_age_seconds=found.max_age_seconds,
        bisects=found.bisects,
        on_failure=found.on_failure,
        last_result=found.last_result,
        parallelization=found.parallelization,
        batching_window_seconds=found.batching_window_seconds,
    )


def readers_when_late(services: Services, mapping: TableMapping) -> tuple[SourceTable, Readers] | None:
    """Look up who should have applied the waiting changes; None where event source mappings may not be listed."""
    table, mappings = stream_readers(services, mapping)
    if mappings is None:
        return None
    with _connect(services) as connection:
        return table, split_readers(mappings, known_functions(services, connection, mapping.name))


def why_not_delivered(readers: Readers) -> list[str]:
    """Return why waiting changes may never arrive, as far as the stream's event source mappings show."""
    if not readers.ours:
        feeds = f"; it feeds {', '.join(found.function for found in readers.others)} instead" if readers.others else ""
        return [f"no event source mapping hands the stream to the replicator{feeds}"]
    asleep = [f"event source mapping {one.mapping_id} is {one.state}" for one in readers.ours if not one.enabled]
    return [*asleep, *reader_faults.never_delivered([as_reader(found) for found in readers.ours])]


def _connect(services: Services) -> Connection:
    return services.connect("dynaurora lost history", statement_timeout_seconds=_STATEMENT_SECONDS)


def _on_failure(services: Services, mappings: Sequence[EventSourceMapping] | None) -> OnFailure:
    if mappings is None:
        return OnFailure(None, None, "this process may not list event source mappings (lambda:ListEventSourceMappings)")
    buckets = [(found.on_failure_bucket, found.on_failure_prefix) for found in mappings if found.on_failure_bucket]
    if not buckets:
        kept = any(found.on_failure for found in mappings)
        return OnFailure(None, None, "they go to a queue or a topic, not to S3" if kept else "none is kept")
    count, oldest, more = 0, None, False
    for bucket, prefix in buckets:
        found = waiting_objects(services.s3, bucket or "", prefix)
        if found is None:
            return OnFailure(None, None, f"this process may not list s3://{bucket}/{prefix} (s3:ListBucket)")
        count, more = count + found.count, more or found.more
        oldest = min((time for time in (oldest, found.oldest) if time is not None), default=None)
    return OnFailure(count, oldest, ", ".join(f"s3://{bucket}/{prefix}" for bucket, prefix in buckets), more)
