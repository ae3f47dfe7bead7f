"""Writes one decoded batch: changes of every target, rejects and watermark, in one transaction.

Invariant: all of a batch or none of it is written. A record with a value that only PostgreSQL refuses is isolated by
halving under savepoints, and becomes a reject; the rest of the batch is applied. If a stream's table is not the source
of record, the statements fail (`pipeline.aurora.bookkeeping.sources`), whatever this process's mapping says.

A batch is one statement per target, and one round trip for all of them, rejects included. Only child targets need a
second round trip, because it depends on which parents were accepted. Behind a pooler, a batch sends its settings too,
in its own transaction and in the same round trip.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.aurora.bookkeeping import protection, rejects, settled, sources, watermarks
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.apply import Applied, ApplyStatement
from pipeline.aurora.rows.isolating import judging, store_isolating
from pipeline.aurora.sessions.connection import BEGIN, set_for_transaction
from pipeline.core.errors import DataError, TerminalError, key_digest
from pipeline.core.model.change import coalesce
from pipeline.core.model.reject import Reject

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from psycopg import Cursor

    from pipeline.aurora.bookkeeping.watermarks import Mark
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.change import Change
    from pipeline.core.model.mapping import TableMapping, Target
    from pipeline.core.streams.stream_records import DecodedBatch, StreamRecord


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Counts over all targets. A change older than another of its key in the batch counts as stale."""

    applied: Applied
    rejected: int


class BatchWriter:
    """Writes batches of one mapping. Build it once: that composes its statements."""

    def __init__(self, mapping: TableMapping) -> None:
        self.mapping = mapping
        self._statements = {
            target: ApplyStatement(target, mapping.name, mapping.table, protection=mapping.protection)
            for target in mapping.targets
        }

    def write(
        self, connection: Connection, batch: DecodedBatch, records: Sequence[StreamRecord], mark: Mark
    ) -> BatchResult:
        """Write a batch. `records` are the batch's own, for rejects; `mark` is how far the writer will have come.

        Idempotent under the ordering rule. Raises TransientError or TerminalError; then nothing was written, or (if the
        connection was lost during COMMIT) all of it was, and writing it again changes nothing. Raises
        ConfigurationError if the mark's table is not the source of record.
        """
        try:
            return self._write(connection, batch, records, mark)
        except TerminalError:
            if not connection.closed:
                sources.refuse_batch(connection, self.mapping.name, self.mapping.table, mark.stream_arn)
                protection.require(connection, self.mapping, doing="replicating")
            raise

    def _write(
        self, connection: Connection, batch: DecodedBatch, records: Sequence[StreamRecord], mark: Mark
    ) -> BatchResult:
        work = [
            (target, changes, self._statements[target].candidates(changes))
            for target, changes in batch.changes.items()
            if changes
        ]
        doing = f"applying {len(records)} records"
        try:
            with translating(doing, table=self.mapping.name):
                if any(target.children for target, _, _ in work):
                    applied = self._write_in_two_trips(connection, work, batch, mark)
                elif len(work) == 1 and not (batch.rejects or batch.settled or connection.pooled):
                    applied = _counts(self._send_with_mark(connection, work[0], mark).fetchone(), len(work[0][1]))
                else:
                    with _one_transaction(connection):
                        sent = self._send_at_once(connection, work, batch, mark)
                    applied = _total(sent)
            return BatchResult(applied, len(batch.rejects))
        except DataError:
            with translating(doing, table=self.mapping.name), connection.transaction():
                set_for_transaction(connection)
                return self._write_isolating(connection, work, batch, records, mark)

    def _send_at_once(self, connection: Connection, work: list[_Work], batch: DecodedBatch, mark: Mark) -> list[_Sent]:
        # The first statement counts the batch; the others only count what they applied.
        marks = [replace(mark, rejected=len(batch.rejects)), *[replace(mark, records=0, batches=0)] * len(work)]
        sent = [
            (self._send_with_mark(connection, part, own), len(part[1])) for part, own in zip(work, marks, strict=False)
        ]
        if not work:
            watermarks.add_mark(connection, marks[0], *Applied())
        self._add_rejects(connection, batch, batch.rejects, mark)
        return sent

    def _send_with_mark(self, connection: Connection, work: _Work, mark: Mark) -> Cursor[tuple[Any, ...]]:
        target, changes, newest = work
        return self._statements[target].send_with_mark(connection, newest, replace(mark, candidates=len(changes)))

    def _write_in_two_trips(
        self, connection: Connection, work: list[_Work], batch: DecodedBatch, mark: Mark
    ) -> Applied:
        total = Applied()
        with _one_transaction(connection):
            sent = [self._statements[target].send(connection, newest, mark.stream_arn) for target, _, newest in work]
            for (target, changes, _), answer in zip(work, sent, strict=True):
                counts = self._statements[target].finish(connection, answer)
                total = total.plus(_counts(counts, len(changes)))
            self._add_rejects(connection, batch, batch.rejects, mark)
            watermarks.add_mark(connection, replace(mark, rejected=len(batch.rejects)), *total)
        return total

    def _add_rejects(self, connection: Connection, batch: DecodedBatch, refused: list[Reject], mark: Mark) -> None:
        rejects.add(
            connection,
            self.mapping.name,
            refused,
            source=f"stream {mark.stream_label}",
            protection=self.mapping.protection,
        )
        settled.add(connection, self.mapping.name, batch.settled)

    def _write_isolating(
        self,
        connection: Connection,
        work: list[_Work],
        batch: DecodedBatch,
        records: Sequence[StreamRecord],
        mark: Mark,
    ) -> BatchResult:
        total, refused = Applied(), list(batch.rejects)
        for target, changes, newest in work:
            counts, found = self._apply_isolating(connection, target, changes, newest, mark.stream_arn)
            total = total.plus(counts)
            refused += [
                Reject(target.view_name, reason, records[change.origin], change.position, key_digest(change.key))
                for change, reason in found
            ]
        self._add_rejects(connection, batch, refused, mark)
        watermarks.add_mark(connection, replace(mark, rejected=len(refused)), *total)
        return BatchResult(total, len(refused))

    def _apply_isolating(
        self,
        connection: Connection,
        target: Target,
        changes: Sequence[Change],
        newest: list[Change],
        stream_arn: str | None,
    ) -> tuple[Applied, list[tuple[Change, str]]]:
        """Apply the newest change of each key; if PostgreSQL refuses it, the next newest, until one is accepted.

        Otherwise a refused change would discard the older changes of its key that it replaced, possibly a delete.
        Returns the counts, and the refused changes with reasons.
        """
        total = Applied()
        refused: list[tuple[Change, str]] = []
        tried = 0
        while newest:
            found: list[tuple[Change, str]] = []
            total = total.plus(self._apply_each(connection, target, newest, found, stream_arn))
            tried += len(newest)
            refused += found
            if target.history:  # the older ones were among them
                break
            out = {id(change) for change, _ in refused}
            keys = {change.key for change, _ in found}
            newest = coalesce(change for change in changes if change.key in keys and id(change) not in out)
        return total._replace(stale=total.stale + len(changes) - tried), refused

    def _apply_each(
        self,
        connection: Connection,
        target: Target,
        changes: list[Change],
        found: list[tuple[Change, str]],
        stream_arn: str | None,
    ) -> Applied:
        """Apply changes of different keys; add those that PostgreSQL refuses to `found`, with the reason."""
        statement, doing = self._statements[target], "applying changes"
        totals: list[Applied] = []

        def store(some: Sequence[Change]) -> int:
            with translating(doing, table=self.mapping.name):
                totals.append(_counts(statement.apply(connection, some, stream_arn), len(some)))
            return len(some)

        def refuse(change: Change, error: DataError) -> None:
            found.append((change, error.message))

        store_isolating(connection, changes, store, refuse, judging(connection, statement, doing))
        return Applied(*map(sum, zip(*totals, strict=True))) if totals else Applied()


_Work = tuple["Target", "list[Change]", "list[Change]"]
_Sent = tuple["Cursor[tuple[Any, ...]]", int]
"""A sent statement, and the number of changes that it carries."""


@contextmanager
def _one_transaction(connection: Connection) -> Generator[None]:
    """Send the block's statements as one transaction: one round trip, unless the block fetches something.

    Behind a pooler each statement is a round trip: psycopg's pipeline sends a Flush after its last Sync, for which a
    pooler assigns the idle client a server connection and waits for an answer. Without BEGIN, the end of the pipeline
    would commit what was sent before the block raised.
    """
    if connection.pooled:
        with connection.transaction():
            set_for_transaction(connection)
            yield
        return
    try:
        with connection.pipeline():
            connection.execute(BEGIN)
            yield
            connection.execute("COMMIT")
    except BaseException:
        if not connection.closed:
            connection.rollback()
        raise


def _total(sent: list[_Sent]) -> Applied:
    total = Applied()
    for answer, candidates in sent:
        total = total.plus(_counts(answer.fetchone(), candidates))
    return total


def _counts(row: tuple[int, int, int, int] | None, candidates: int) -> Applied:
    applied, deleted, expired, refused = row or (0, 0, 0, 0)
    return Applied(applied, candidates - applied, deleted, expired, refused)
