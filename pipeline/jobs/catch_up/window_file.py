"""Applying one file of an incremental export: its changes, its rejects and its mark, in one transaction.

Invariant: as for a full export's file (`pipeline.jobs.load.load_file`): it counts once, nothing commits before the
whole file has been verified, and a value that only PostgreSQL refuses is set aside alone. Changes are staged and
merged in the order of the key, deletes with them, so that a window and a batch of the stream lock rows in one order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping import loads, rejects, settled
from pipeline.aurora.bookkeeping.loads import FileCounts
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.isolating import store_isolating
from pipeline.aurora.rows.staging import Staging
from pipeline.core.decode.routing import MATCHES_NO_TARGET, NO_TARGET, Router
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import DataError
from pipeline.core.exports.export_lines import decode_incremental
from pipeline.core.exports.lines import count_lines
from pipeline.core.exports.window_routing import route_changes
from pipeline.core.streams.stream_records import Reject
from pipeline.dynamodb.exports.export_files import check_count, read_lines
from pipeline.dynamodb.exports.objects import join_location

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.exports.export_routing import Part
    from pipeline.core.exports.windows import Span, Window
    from pipeline.core.model.change import Change, Row
    from pipeline.core.model.mapping import TableMapping, Target
    from pipeline.core.ordering import Position
    from pipeline.dynamodb.exports.manifest import ExportFile
    from pipeline.jobs.load.load_file import OnLines
    from pipeline.jobs.services import Services


@dataclass(frozen=True, slots=True)
class WindowWork:
    """What all workers of a window share. It is pickled for those in other processes."""

    services: Services
    mapping: TableMapping
    bucket: str
    location: str
    position: Position
    export_id: int
    window: Window
    covering: tuple[Span, ...] = ()
    """What snapshots that end later hold (`pipeline.aurora.bookkeeping.loads.covering`)."""

    def loader(self) -> WindowFileLoader:
        """Return what applies the files, one for each worker."""
        return WindowFileLoader(self)


class WindowFileLoader:
    """Applies files, one after another. Build it once a worker: its decoders are compiled then."""

    def __init__(self, work: WindowWork) -> None:
        self.work = work
        self.router = Router(work.mapping)
        self._settled: dict[str, Counter[str]] = {target.view_name: Counter() for target in work.mapping.targets}
        self.decoders = {target: RowDecoder(target, self._settled[target.view_name]) for target in work.mapping.targets}

    def load(self, connection: Connection, file: ExportFile, on_lines: OnLines) -> FileCounts | None:
        """Apply one file; None when it was applied already. Raises with the file's name."""
        try:
            return self._load(connection, file, on_lines, isolate=False)
        except DataError:
            return self._load(connection, file, lambda _lines, _size: None, isolate=True)

    def _load(self, connection: Connection, file: ExportFile, on_lines: OnLines, *, isolate: bool) -> FileCounts | None:
        work, location = self.work, join_location(self.work.bucket, file.key)
        for counts_of_target in self._settled.values():
            counts_of_target.clear()
        with translating(f"applying {location}", table=work.mapping.name), connection.transaction():
            if not loads.claim_file(connection, work.export_id, file.key):
                return None
            stagings = {target: Staging.temporary(connection, target, deletes=True) for target in self.decoders}
            reading = _Reading(self, file, location, on_lines)
            reading.apply(connection, stagings, isolate=isolate)
            check_count(file, work.bucket, reading.lines)
            if not isolate:
                reading.applied = sum(self.merge(connection, staging) for staging in stagings.values())
            rejects.add(connection, work.mapping.name, reading.refused, source=f"export {location}")
            settled.add(connection, work.mapping.name, self._settled)
            counts = reading.counts()
            loads.mark_file(connection, work.export_id, file.key, counts)
        return counts

    def merge(self, connection: Connection, staging: Staging) -> int:
        """Merge what is staged; returns the changes taken."""
        return staging.merge(connection, self.work.mapping.name, self.work.position.as_of)

    def reject(self, target: str, line: bytes, reason: str) -> Reject:
        """Set a line aside for one target's view."""
        return Reject(target, reason, line, self.work.position)


def staged_row(target: Target, change: Change) -> Row:
    """Return a change as a row of a staging table with deletes: its key alone when it is one."""
    if change.row is not None:
        return (*change.row, "f")
    texts = dict(zip(target.primary_key, change.key, strict=True))
    return (*(texts.get(name) for name in target.stored_columns), *(None for _ in target.carried), "t")


@dataclass
class _Reading:
    """One reading of a file, and what became of its lines."""

    loader: WindowFileLoader
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

    def apply(self, connection: Connection, stagings: dict[Target, Staging], *, isolate: bool) -> None:
        """Stage every block, to be merged at the end; where PostgreSQL refuses a value, merge under savepoints."""
        work = self.loader.work
        for block in read_lines(work.services.store(work.location), work.bucket, self.file):
            for target, part in self._parts(block):
                changes = self._decode(target, part)
                if isolate:
                    self._store_isolating(connection, stagings[target], changes, part)
                else:
                    stagings[target].copy(connection, [[staged_row(target, change) for change in changes]])
            lines = count_lines(block)
            self.lines += lines
            self.size_bytes += len(block)
            self.on_lines(lines, len(block))

    def _parts(self, block: bytes) -> list[tuple[Target, Part]]:
        work, router = self.loader.work, self.loader.router
        routed = route_changes(block, router, work.window, work.covering, file=self.location, first_line=self.lines + 1)
        if router.rejects_unmatched:
            self.refused += [self.loader.reject(NO_TARGET, line, MATCHES_NO_TARGET) for line in routed.unmatched]
            self.rows += len(routed.unmatched)
        else:
            self.ignored += len(routed.unmatched)
        self.rows += routed.covered + sum(len(part.numbers) for part in routed.parts.values())
        return list(routed.parts.items())

    def _decode(self, target: Target, part: Part) -> list[Change]:
        decode = partial(
            decode_incremental,
            decoder=self.loader.decoders[target],
            position=self.loader.work.position,
            file=self.location,
        )
        changes, failures = part.decode(decode)
        self.refused += [self.loader.reject(target.view_name, line, error.message) for line, error in failures]
        return changes

    def _store_isolating(self, connection: Connection, staging: Staging, changes: Sequence[Change], part: Part) -> None:
        lines = part.block.split(b"\n")

        def store(some: Sequence[Change]) -> int:
            connection.execute(sql.SQL("TRUNCATE {}").format(staging.name))
            staging.copy(connection, [[staged_row(staging.target, change) for change in some]])
            return self.loader.merge(connection, staging)

        def refuse(change: Change, error: DataError) -> None:
            self.refused.append(self.loader.reject(staging.target.view_name, lines[change.origin], error.message))

        def judge(some: Sequence[Change]) -> dict[int, DataError]:
            return staging.judge(connection, [staged_row(staging.target, change) for change in some])

        self.applied += store_isolating(connection, changes, store, refuse, judge)
