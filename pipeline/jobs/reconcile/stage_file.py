"""Staging one file of a snapshot: read once for all targets, its rows and its mark in one transaction.

Invariant: a file counts once, as in a load, and nothing of it commits before the whole file has been verified. Items
that a target cannot hold are noted by digest, and are no rejects: those were kept when the items came.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.compare import reconciliations
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.staging import Staging
from pipeline.core.decode.keys import key_attributes
from pipeline.core.decode.routing import Router
from pipeline.core.errors import DataError, key_digest
from pipeline.core.exports.export_lines import decode_full
from pipeline.core.exports.export_routing import route_block
from pipeline.core.exports.fast.block_decode import BlockDecoder
from pipeline.core.model.mapping import STORAGE_SCHEMA
from pipeline.dynamodb.exports.export_files import check_count, read_lines
from pipeline.dynamodb.exports.objects import join_location
from pipeline.jobs.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from psycopg import Copy

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.exports.export_routing import Part
    from pipeline.core.model.attributes import AttributeValue
    from pipeline.core.model.change import Row
    from pipeline.core.model.mapping import TableMapping
    from pipeline.dynamodb.exports.manifest import ExportFile
    from pipeline.jobs.load.load_file import OnLines
    from pipeline.jobs.services import Services


@dataclass(frozen=True, slots=True)
class StageWork:
    """What all workers that stage a snapshot share. It is pickled for those in other processes."""

    services: Services
    mapping: TableMapping
    bucket: str
    location: str
    run_id: int
    max_share: float = 1.0

    def loader(self) -> FileStager:
        """Make a worker's stager."""
        return FileStager(self)

    def staging(self, number: int) -> Staging:
        """Name the staging table of a target."""
        return Staging(self.mapping.targets[number], sql.Identifier(STORAGE_SCHEMA, f"_{self.suffix(number)}"))

    def suffix(self, number: int) -> str:
        """Name what belongs to a target in this run."""
        return f"reconcile_{self.run_id}_{number}"


def item_digest(mapping: TableMapping, attributes: Mapping[str, AttributeValue]) -> str:
    """Name an item by the digest of its key attributes."""
    return key_digest(repr(attributes.get(name)) for name in mapping.key)


class FileStager:
    """Stages files, one after another. Build it once a worker: its decoders are compiled then."""

    def __init__(self, work: StageWork) -> None:
        self._work = work
        self._decoders = {target: BlockDecoder(target) for target in work.mapping.targets}
        self._router = Router(work.mapping)
        self._pace = Pace(work.max_share)

    def load(self, connection: Connection, file: ExportFile, on_lines: OnLines) -> None:
        """Stage one file, unless it is staged. Raises with the file's name.

        When PostgreSQL refuses a value, the file is read again with savepoints, to set that item alone aside.
        """
        try:
            self._stage(connection, file, on_lines, isolate=False)
        except DataError:
            self._stage(connection, file, _count_nothing, isolate=True)

    def _stage(self, connection: Connection, file: ExportFile, on_lines: OnLines, *, isolate: bool) -> None:
        work, location = self._work, join_location(self._work.bucket, file.key)
        with translating(f"staging {location}", table=work.mapping.name), connection.transaction():
            if not reconciliations.claim_file(connection, work.run_id, file.key):
                return
            reading = _Reading(work.mapping)
            stagings = {staging.target: staging for staging in map(work.staging, range(len(work.mapping.targets)))}
            with ExitStack() as stack:
                # A connection can do one COPY at a time: one a file for a single target, otherwise one a block.
                only = (
                    _opened(connection, next(iter(stagings.values()))) if len(stagings) == 1 and not isolate else None
                )
                copy = stack.enter_context(only) if only else None
                for block in read_lines(work.services.store(work.location), work.bucket, file):
                    with self._pace.working():
                        routed = route_block(block, self._router, file=location, first_line=reading.lines + 1)
                        if self._router.rejects_unmatched:
                            reading.set_aside(routed.unmatched)
                        for target, part in routed.parts.items():
                            if isolate:
                                self._copy_isolating(connection, stagings[target], part, reading, location)
                            else:
                                self._copy(connection, copy, stagings[target], part, reading, location)
                        reading.lines += routed.lines
                        on_lines(routed.lines, len(block))
            check_count(file, work.bucket, reading.lines)
            reconciliations.mark_file(
                connection, work.run_id, file.key, items=reading.lines, rows=reading.rows, unfit=reading.unfit
            )

    def _copy(
        self,
        connection: Connection,
        opened: Copy | None,
        staging: Staging,
        part: Part,
        reading: _Reading,
        location: str,
    ) -> None:
        decoded = part.decode(partial(self._decoders[staging.target].decode, file=location))
        reading.rows += decoded.rows
        reading.set_aside([line for line, _ in decoded.failures])
        if opened:
            opened.write(decoded.text)
        else:
            with _opened(connection, staging) as copy:
                copy.write(decoded.text)

    def _copy_isolating(
        self, connection: Connection, staging: Staging, part: Part, reading: _Reading, location: str
    ) -> None:
        decoder = self._decoders[staging.target].rows
        rows, failures = part.decode(partial(decode_full, decoder=decoder, file=location))
        reading.set_aside([line for line, _ in failures])
        reading.rows += len(rows)

        def refuse(row: Row, _: DataError) -> None:
            key = key_attributes(self._work.mapping, staging.target, decoder.key_of(row))
            reading.unfit.add(item_digest(self._work.mapping, key))
            reading.rows -= 1

        staging.copy_isolating(connection, rows, refuse)


def _opened(connection: Connection, staging: Staging):  # noqa: ANN202  inferred: a COPY to be entered
    return connection.cursor().copy(staging.copy_statement)


def _count_nothing(_lines: int, _size_bytes: int) -> None:
    """Progress of a second reading: its lines were counted by the first."""


@dataclass
class _Reading:
    """One reading of a file: its lines, the rows they gave, and the items that cannot be stored, by digest."""

    mapping: TableMapping
    lines: int = 0
    rows: int = 0
    unfit: set[str] = field(default_factory=set[str])

    def set_aside(self, lines: Sequence[bytes]) -> None:
        self.unfit.update(item_digest(self.mapping, json.loads(line)["Item"]) for line in lines)
