"""Loading one file of an export: its rows, its rejects and its mark, in one transaction.

Invariant: a file counts once. It is taken under a lock that ends with the transaction, and its mark is looked for under
that lock, so that two runs of one load never both load it. Nothing commits before the whole file has been verified,
nor for a load that has ended or goes on another way (`pipeline.aurora.bookkeeping.load_lead`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping import loads, rejects, settled
from pipeline.aurora.bookkeeping.load_lead import take_part
from pipeline.aurora.bookkeeping.loads import FileCounts
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.isolating import copied_types, refused_values, store_isolating
from pipeline.aurora.rows.staging import Staging, copy_statement
from pipeline.core.decode.routing import MATCHES_NO_TARGET, NO_TARGET, Router
from pipeline.core.errors import DataError
from pipeline.core.exports.export_lines import decode_full
from pipeline.core.exports.export_routing import route_block
from pipeline.core.exports.fast.block_decode import BlockDecoder
from pipeline.core.model.mapping import STORAGE_SCHEMA
from pipeline.core.streams.stream_records import Reject
from pipeline.core.types.copy_text import copy_text
from pipeline.dynamodb.exports.export_files import check_count, read_lines
from pipeline.dynamodb.exports.objects import join_location

if TYPE_CHECKING:
    from psycopg import Copy

    from pipeline.aurora.bookkeeping.load_lead import Lead
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.exports.export_routing import Part, RoutedBlock
    from pipeline.core.model.change import Row
    from pipeline.core.model.mapping import TableMapping, Target
    from pipeline.core.ordering import Position
    from pipeline.dynamodb.exports.manifest import ExportFile
    from pipeline.jobs.services import Services

_COPYING = "copying rows"
_Line = tuple["Row", bytes]
"""A row, and the line that it was."""

OnLines = Callable[[int, int], None]
"""Told the lines of each block read, and its size in bytes."""

# A file's rows are sorted before they are merged; without memory for it they would go through temporary files.
_MERGE_MEMORY = "64MB"


@dataclass(frozen=True, slots=True)
class LoadWork:
    """What all workers of a load share. It is pickled for those in other processes."""

    services: Services
    mapping: TableMapping
    bucket: str
    location: str
    position: Position
    lead: Lead
    builds: tuple[str, ...] = ()
    """Names of the tables built aside, one a target; none when files are merged into storage."""

    @property
    def strategy(self) -> str:
        """How the load goes, as `replication.exports` has it."""
        return "aside" if self.builds else "merge"

    def loader(self) -> FileLoader:
        """Return what loads the files, one for each worker."""
        return FileLoader(self)


class FileLoader:
    """Loads files, one after another. Build it once a worker: its decoders are compiled then."""

    def __init__(self, work: LoadWork) -> None:
        self._work = work
        self._settled: list[Counter[str]] = [Counter() for _ in work.mapping.targets]
        self._decoders = [
            BlockDecoder(target, counts) for target, counts in zip(work.mapping.targets, self._settled, strict=True)
        ]
        self.router = Router(work.mapping)

    def load(self, connection: Connection, file: ExportFile, on_lines: OnLines) -> FileCounts | None:
        """Load one file; None when it was loaded already. Raises with the file's name.

        Raises FileBusyError when another worker has it in its hands, LoadEndedError when the load does not go on so.
        When PostgreSQL refuses a value, the file is read again with savepoints, to set that record alone aside.
        """
        try:
            return self._load(connection, file, on_lines, isolate=False)
        except DataError:
            return self._load(connection, file, _count_nothing, isolate=True)

    def _load(self, connection: Connection, file: ExportFile, on_lines: OnLines, *, isolate: bool) -> FileCounts | None:
        work, location = self._work, join_location(self._work.bucket, file.key)
        for counts_of_target in self._settled:
            counts_of_target.clear()
        with translating(f"loading {location}", table=work.mapping.name), connection.transaction():
            take_part(connection, work.mapping.name, work.lead, work.strategy)
            if not loads.claim_file(connection, work.lead.export_id, file.key, wait=False):
                return None
            destinations = [self._destination(connection, number) for number in range(len(self._decoders))]
            counting = _Counting(self, file, location, on_lines)
            if isolate:
                counting.copy_isolating(connection, destinations)
            else:
                counting.copy(connection, destinations)
            check_count(file, work.bucket, counting.lines)
            if not isolate:
                counting.applied = sum(each.settle(connection) for each in destinations)
            rejects.add(connection, work.mapping.name, counting.refused, source=f"export {location}")
            settled.add(connection, work.mapping.name, self._settled_by_target())
            counts = counting.counts()
            loads.mark_file(connection, work.lead.export_id, file.key, counts)
        return counts

    def _settled_by_target(self) -> dict[str, Counter[str]]:
        names = [target.view_name for target in self._work.mapping.targets]
        return dict(zip(names, self._settled, strict=True))

    def blocks(self, file: ExportFile):  # noqa: ANN201  inferred: an iterator of blocks
        """Read the file's lines in blocks."""
        return read_lines(self._work.services.store(self._work.location), self._work.bucket, file)

    def reject(self, target: str, line: bytes, reason: str) -> Reject:
        """Set a line aside for one target's view."""
        return Reject(target, reason, line, self._work.position)

    def _destination(self, connection: Connection, number: int) -> _Destination:
        decoder, work = self._decoders[number], self._work
        if work.builds:
            return _Destination(decoder, sql.Identifier(STORAGE_SCHEMA, work.builds[number]))
        staging = Staging.temporary(connection, decoder.rows.target)
        connection.execute(sql.SQL("SET LOCAL work_mem = {}").format(sql.Literal(_MERGE_MEMORY)))
        return _Destination(decoder, staging.name, _Merge(staging, work.mapping.name, work.position))


def _count_nothing(_lines: int, _size_bytes: int) -> None:
    """Progress of a second reading: its lines were counted by the first."""


@dataclass(frozen=True, slots=True)
class _Merge:
    staging: Staging
    mapping_name: str
    position: Position


@dataclass
class _Destination:
    """Where a target's rows go: a table built aside, where they stay, or a staging table, to be merged from there."""

    decoder: BlockDecoder
    name: sql.Identifier
    merge: _Merge | None = None
    rows: int = 0
    stored: bool = False
    """Whether the staging table holds rows that were merged already."""

    @property
    def target(self) -> Target:
        return self.decoder.rows.target

    def opened(self, connection: Connection) -> AbstractContextManager[Copy]:
        return connection.cursor().copy(copy_statement(self.target, self.name))

    def settle(self, connection: Connection) -> int:
        """Merge what was copied, where it is to be; returns the rows taken."""
        if self.merge is None:
            return self.rows
        return self.merge.staging.merge(connection, self.merge.mapping_name, self.merge.position.as_of)

    def store(self, connection: Connection, rows: Sequence[Row]) -> int:
        """Copy rows, and merge them where they are to be, under the caller's savepoint."""
        if self.merge and self.stored:  # what was refused is rolled back: a truncation for each would cost more
            connection.execute(sql.SQL("TRUNCATE {}").format(self.name))
        with translating(_COPYING), self.opened(connection) as copy:
            copy.write(copy_text(rows))
        self.rows = len(rows)
        taken = self.settle(connection)
        self.stored = True
        return taken


@dataclass
class _Counting:
    """One reading of a file, and what became of its lines."""

    loader: FileLoader
    file: ExportFile
    location: str
    on_lines: OnLines
    lines: int = 0
    size_bytes: int = 0
    rows: int = 0
    """Lines times their targets, those rejected for having none included."""
    applied: int = 0
    ignored: int = 0
    refused: list[Reject] = field(default_factory=list[Reject])

    def counts(self) -> FileCounts:
        stale = self.rows - self.applied - len(self.refused)
        return FileCounts(self.lines, self.applied, stale, len(self.refused), self.size_bytes, self.ignored)

    def copy(self, connection: Connection, destinations: Sequence[_Destination]) -> None:
        """Copy every block as text: one COPY a file, or, as a connection can only do one at a time, one a block."""
        with ExitStack() as stack:
            only = stack.enter_context(destinations[0].opened(connection)) if len(destinations) == 1 else None
            for block in self.loader.blocks(self.file):
                routed = self._route(block)
                for each, part in self._parts(routed, destinations):
                    decoded = part.decode(partial(each.decoder.decode, file=self.location))
                    if only:
                        only.write(decoded.text)
                    else:
                        with each.opened(connection) as copy:
                            copy.write(decoded.text)
                    each.rows += decoded.rows
                    for line, error in decoded.failures:
                        self.refused.append(self.loader.reject(each.target.view_name, line, error.message))
                self._count(block, routed)

    def copy_isolating(self, connection: Connection, destinations: Sequence[_Destination]) -> None:
        """Store every block under savepoints, halved where PostgreSQL refuses."""
        for block in self.loader.blocks(self.file):
            routed = self._route(block)
            for each, part in self._parts(routed, destinations):
                self._store_isolating(connection, each, part)
            self._count(block, routed)

    def _store_isolating(self, connection: Connection, destination: _Destination, part: Part) -> None:
        view_name, types = destination.target.view_name, copied_types(destination.target)
        rows, failures = part.decode(partial(decode_full, decoder=destination.decoder.rows, file=self.location))
        self.refused += [self.loader.reject(view_name, line, error.message) for line, error in failures]
        failed = {line for line, _ in failures}  # equal lines fail alike
        lines = [line for line in part.block.split(b"\n")[:-1] if line not in failed]

        def store(some: Sequence[_Line]) -> int:
            return destination.store(connection, [row for row, _ in some])

        def judge(some: Sequence[_Line]) -> dict[int, DataError]:
            return refused_values(connection, types, [row for row, _ in some], _COPYING)

        def refuse(refused: _Line, error: DataError) -> None:
            self.refused.append(self.loader.reject(view_name, refused[1], error.message))

        self.applied += store_isolating(connection, list(zip(rows, lines, strict=True)), store, refuse, judge)

    def _route(self, block: bytes) -> RoutedBlock:
        return route_block(block, self.loader.router, file=self.location, first_line=self.lines + 1)

    def _parts(self, routed: RoutedBlock, destinations: Sequence[_Destination]) -> list[tuple[_Destination, Part]]:
        """Return each destination's lines of a block, and set aside or count those that are no one's."""
        if self.loader.router.rejects_unmatched:
            self.refused += [self.loader.reject(NO_TARGET, line, MATCHES_NO_TARGET) for line in routed.unmatched]
            self.rows += len(routed.unmatched)
        else:
            self.ignored += len(routed.unmatched)
        self.rows += sum(len(part.numbers) for part in routed.parts.values())
        return [(each, routed.parts[each.target]) for each in destinations if each.target in routed.parts]

    def _count(self, block: bytes, routed: RoutedBlock) -> None:
        self.lines += routed.lines
        self.size_bytes += len(block)
        self.on_lines(routed.lines, len(block))
