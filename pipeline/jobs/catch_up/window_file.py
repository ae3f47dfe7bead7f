"""Applying one file of an incremental export: its changes, its rejects and its mark, in one transaction.

Invariant: as for a full export's file (`pipeline.jobs.load.load_file`): it counts once, and nothing commits before the
whole file has been verified. Changes and deletes are staged together and merged in key order, so that a window and a
stream batch lock rows in the same order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import loads, protection, rejects, settled
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.staging import Staging
from pipeline.core.decode.routing import Router
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import DataError
from pipeline.core.exports.export_lines import decode_incremental
from pipeline.core.exports.fast.block_decode import Decoded
from pipeline.core.exports.window_routing import route_changes
from pipeline.core.types.copy_text import copy_text
from pipeline.jobs.export_file import Destination, FileReading, count_nothing, read_file
from pipeline.jobs.protecting import protect_incremental

if TYPE_CHECKING:
    from pipeline.aurora.bookkeeping.loads import FileCounts
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.exports.export_lines import Failure
    from pipeline.core.exports.windows import Span, Window
    from pipeline.core.model.change import Row
    from pipeline.core.model.mapping import TableMapping, Target
    from pipeline.core.ordering import Position
    from pipeline.dynamodb.exports.manifest import ExportFile
    from pipeline.jobs.export_file import OnLines
    from pipeline.jobs.services import Services


@dataclass(frozen=True, slots=True)
class WindowWork:
    """What all workers of a window share. It is pickled for workers in other processes."""

    services: Services
    mapping: TableMapping
    bucket: str
    location: str
    position: Position
    export_id: int
    window: Window
    covering: tuple[Span, ...] = ()
    """What snapshots that end later contain (`pipeline.aurora.bookkeeping.loads.covering`)."""

    def loader(self) -> WindowFileLoader:
        """Return an applier of files; each worker needs its own."""
        return WindowFileLoader(self)


class WindowFileLoader:
    """Applies files, one after another. Each worker builds one."""

    def __init__(self, work: WindowWork) -> None:
        self._work = work
        self._router = Router(work.mapping)
        self._protect = protect_incremental(work.mapping)
        self._settled: dict[str, Counter[str]] = {target.view_name: Counter() for target in work.mapping.targets}
        self._decoders = {
            target: RowDecoder(target, self._settled[target.view_name]) for target in work.mapping.targets
        }

    def load(self, connection: Connection, file: ExportFile, on_lines: OnLines) -> FileCounts | None:
        """Apply one file; None when it was applied already. Errors name the file."""
        try:
            return self._load(connection, file, on_lines, isolate=False)
        except DataError:
            return self._load(connection, file, count_nothing, isolate=True)

    def _load(self, connection: Connection, file: ExportFile, on_lines: OnLines, *, isolate: bool) -> FileCounts | None:
        work = self._work
        route = partial(route_changes, router=self._router, window=work.window, spans=work.covering)
        store = work.services.store(work.location)
        reading = FileReading(store, work.bucket, file, route, on_lines, self._router.rejects_unmatched, self._protect)
        for counts_of_target in self._settled.values():
            counts_of_target.clear()
        with translating(f"applying {reading.location}", table=work.mapping.name), connection.transaction():
            if not loads.claim_file(connection, work.export_id, file.key):
                return None
            destinations = {target: self._destination(connection, target) for target in work.mapping.targets}
            read_file(connection, reading, destinations, isolate=isolate)
            rejects.add(
                connection,
                work.mapping.name,
                reading.rejects(work.position),
                source=f"export {reading.location}",
                protection=work.mapping.protection,
            )
            settled.add(connection, work.mapping.name, self._settled)
            loads.mark_file(connection, work.export_id, file.key, reading.counts())
            # At the end: from the merge on, its lock keeps out whoever changes what is protected.
            protection.require(connection, work.mapping, doing=f"applying {reading.location}")
        return reading.counts()

    def _destination(self, connection: Connection, target: Target) -> Destination:
        work, decoder = self._work, self._decoders[target]
        staging = Staging.temporary(connection, target, deletes=True)

        def decode_each(block: bytes, *, file: str, first_line: int) -> tuple[list[Row], list[Failure]]:
            changes, failures = decode_incremental(block, decoder, work.position, file=file, first_line=first_line)
            return [staging.row(change) for change in changes], failures

        def decode(block: bytes, *, file: str, first_line: int) -> Decoded:
            rows, failures = decode_each(block, file=file, first_line=first_line)
            return Decoded(copy_text(rows), len(rows), failures)

        merge = partial(staging.merge, connection, work.mapping.name, work.position.as_of)
        return Destination(target, staging.name, decode, decode_each, merge, deletes=True)
