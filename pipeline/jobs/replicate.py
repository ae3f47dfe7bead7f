"""Replicate: apply an event of a table's stream, as the Lambda function receives it.

Invariant: a record is applied, stale, or a reject, and its watermark commits with it; or the call raises and the event
source mapping delivers the batch again. Nothing is swallowed: a transient error is retried within the time left and
then raised. So is a batch of a table that is not the mapping's source of record: the database refuses all of it,
because the replicator's mapping may be old.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pipeline.aurora.bookkeeping.watermarks import Mark
from pipeline.aurora.rows.batch import BatchResult, BatchWriter
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.decode.protect import Protector
from pipeline.core.errors import ConfigurationError, ReplicationError, TransientError
from pipeline.core.mapping_files.yaml_fields import Problem
from pipeline.core.model.mapping import TableMapping
from pipeline.core.streams.event_kinds import check_source, records_of
from pipeline.core.streams.positions import is_sequence_number
from pipeline.core.streams.protected_records import protected_records
from pipeline.core.streams.stream_records import DecodedBatch, StreamDecoder, StreamRecord, StreamSource, stream_source
from pipeline.jobs.memory import collection_paused

# Records applied in one transaction. A whole batch of up to this many is all or nothing.
CHUNK_RECORDS = 2_500
# Time reserved for the answer: with less than this left, it begins no chunk and waits for no retry.
RESERVE_SECONDS = 2.0
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.1, 5.0


@dataclass(frozen=True, slots=True)
class ReplicationReport:
    """What happened to the records of one stream in one event."""

    table: str
    records: int
    applied: int
    stale: int
    deleted: int
    expired: int
    rejected: int
    lag_seconds: float | None
    """Age of the newest record at the moment it was committed."""
    last_sequence_number: str | None
    first_unprocessed: str | None
    """Sequence number to continue from if the time ran short, or a later chunk failed; else None."""
    failure: ReplicationError | None = None
    """Why the chunk that begins at `first_unprocessed` failed; it is raised if it fails when delivered again."""
    ignored: int = 0
    """Records that match no target, if the mapping says to ignore those."""
    refused: int = 0
    """Of the stale changes, those without a row that were as old as what was purged."""


class Replicator:
    """Applies events with one connection, which is kept between calls and replaced if it breaks."""

    def __init__(
        self,
        mappings: Iterable[TableMapping],
        connect: Callable[[], Connection],
        *,
        writer: str,
        connect_again: bool = True,
        with_key: Callable[[TableMapping], TableMapping] = lambda mapping: mapping,
        problems: Sequence[Problem] = (),
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`connect` opens a connection; `writer` names this replicator's row of the watermarks.

        `connect_again=False` is for a `connect` that waits for the server by itself: what it raises is final.
        `with_key` returns a mapping that hashes with the privacy key; it is called for a table's first batch.
        `problems` are those of mapping files that cannot be used, for the error about a table without a mapping.
        """
        mappings = tuple(mappings)
        self._tables = {mapping.table: _Table.of(mapping) for mapping in mappings if not mapping.hashes}
        # The key may be replaced, so the tables that need one are built for a batch, and again after an error.
        self._hashing = {mapping.table: mapping for mapping in mappings if mapping.hashes}
        self._with_key = with_key
        self._connect = connect
        self._connection: Connection | None = None
        self._writer = writer
        self._connect_again = connect_again
        self._problems = problems
        self._now, self._monotonic, self._sleep = now, monotonic, sleep

    def replicate(self, event: Mapping[str, Any] | Sequence[Any], *, deadline: float) -> list[ReplicationReport]:
        """Apply an event's records, or a bare list of them; one report for each stream in it.

        `deadline` is a time of the monotonic clock. When it is near, the remaining chunks are left: the report names
        the first sequence number that was not processed. Raises TransientError, TerminalError.
        """
        reports: list[ReplicationReport] = []
        with collection_paused():
            # All sources are known before anything is written.
            groups = [(self._source(arn, of), of) for arn, of in _by_stream(records_of(event))]
            for (source, table), records in groups:
                report = self._replicate_stream(source, table, records, deadline, first=not reports)
                reports.append(report)
                if report.first_unprocessed is not None:
                    break
        return reports

    def open(self) -> None:
        """Open the connection, unless one is open: what that raises is not a batch's fault."""
        self._opened()

    def close(self) -> None:
        """Close the connection, if one is open."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _source(self, arn: str, records: Sequence[StreamRecord]) -> tuple[StreamSource, _Table]:
        check_source(records[0])  # an event source mapping has one source
        source = stream_source(arn)
        table = self._tables.get(source.table)
        if table is None and source.table in self._hashing:
            table = self._tables[source.table] = _Table.of(self._with_key(self._hashing[source.table]))
        if table is None:
            raise _unmapped(source.table, self._problems)
        return source, table

    def _replicate_stream(
        self, source: StreamSource, table: _Table, records: Sequence[StreamRecord], deadline: float, *, first: bool
    ) -> ReplicationReport:
        """Apply records of one stream; `first` when nothing of the event is committed yet."""
        total, rejected, ignored, done, newest = None, 0, 0, 0, None
        last_sequence_number, failure = None, None
        for start in range(0, len(records), CHUNK_RECORDS):
            if start and self._monotonic() > deadline - RESERVE_SECONDS and _sequence_number(records[start]):
                break
            chunk = records[start : start + CHUNK_RECORDS]
            if table.protector:
                chunk = protected_records(chunk, table.protector)
            try:
                batch = table.decoder.decode(chunk, source.stream_label)
                mark = self._mark(table.decoder.mapping, source, batch, len(chunk))
                result = self._write(table.writer, batch, chunk, mark, deadline)
            except ReplicationError as error:
                if source.table in self._hashing:
                    self._tables.pop(source.table, None)
                if (first and not start) or _sequence_number(chunk[0]) is None:
                    raise
                failure = error  # the chunks before are committed: they must not be reported as failed
                break
            total = result.applied if total is None else total.plus(result.applied)
            rejected += result.rejected
            ignored += batch.ignored
            done = start + len(chunk)
            last_sequence_number = batch.last_sequence_number or last_sequence_number
            newest = batch.newest or newest
        applied, stale, deleted, expired, refused = total or (0, 0, 0, 0, 0)
        return ReplicationReport(
            table=table.decoder.mapping.name,
            records=done,
            applied=applied,
            stale=stale,
            deleted=deleted,
            expired=expired,
            rejected=rejected,
            lag_seconds=None if newest is None else max(0.0, self._now() - newest.as_of.timestamp()),
            last_sequence_number=last_sequence_number,
            first_unprocessed=_sequence_number(records[done]) if done < len(records) else None,
            failure=failure,
            ignored=ignored,
            refused=refused,
        )

    def _mark(self, mapping: TableMapping, source: StreamSource, batch: DecodedBatch, records: int) -> Mark:
        return Mark(
            table_name=mapping.name,
            writer=self._writer,
            stream_label=source.stream_label,
            sequence_number=batch.last_sequence_number,
            as_of=batch.newest.as_of if batch.newest else None,
            records=records,
            candidates=0,
            rejected=0,
            stream_arn=source.arn,
        )

    def _opened(self) -> Connection:
        if self._connection is not None and self._connection.closed:
            self.close()
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _write(
        self,
        writer: BatchWriter,
        batch: DecodedBatch,
        records: Sequence[StreamRecord],
        mark: Mark,
        deadline: float,
    ) -> BatchResult:
        """Write with retries: a transient error costs the connection, and is raised when the time is up."""
        wait = _FIRST_WAIT_SECONDS
        while True:
            try:
                return writer.write(self._opened(), batch, records, mark)
            except TransientError:
                final = self._connection is None and not self._connect_again
                self.close()
                if final or self._monotonic() + wait > deadline - RESERVE_SECONDS:
                    raise
                self._sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
                wait = min(wait * 2, _LONGEST_WAIT_SECONDS)


# How many problems of mapping files an error names.
_MOST_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class _Table:
    decoder: StreamDecoder
    writer: BatchWriter
    protector: Protector | None

    @classmethod
    def of(cls, mapping: TableMapping) -> _Table:
        protector = Protector(mapping) if mapping.protects else None
        return cls(StreamDecoder(mapping), BatchWriter(mapping), protector)


def _unmapped(table: str, problems: Sequence[Problem]) -> ConfigurationError:
    if not problems:
        return ConfigurationError(
            f"replicating: no mapping for the DynamoDB table {table}",
            hint=f"add a mapping file with `source: {{table: {table}, …}}`, and deploy again",
        )
    found = "; ".join(map(str, problems[:_MOST_PROBLEMS]))
    return ConfigurationError(
        f"replicating: no mapping for the DynamoDB table {table} can be used; of the files that cannot: {found}",
        hint="correct the file and deploy again; batches of the other tables are applied",
    )


def _by_stream(records: Sequence[StreamRecord]) -> list[tuple[str, list[StreamRecord]]]:
    groups = groupby(records, lambda record: record.get("eventSourceARN", ""))
    return [(str(arn), list(of)) for arn, of in groups]


def _sequence_number(record: StreamRecord) -> str | None:
    """Return a record's sequence number; None unless the event source mapping could continue from it."""
    change: Any = record.get("dynamodb")
    found = change.get("SequenceNumber") if isinstance(change, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return found if isinstance(found, str) and is_sequence_number(found) else None
