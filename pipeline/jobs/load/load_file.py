"""Loading one file of an export: its rows, its rejects and its mark, in one transaction.

Invariant: a file counts once. A worker locks it until the transaction ends, and looks for its mark under that lock, so
two runs of one load never both load it. Nothing commits before the whole file has been verified, nor for a load that
has ended or has changed its strategy (`pipeline.aurora.bookkeeping.load_lead`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping import loads, protection, rejects, settled
from pipeline.aurora.bookkeeping.load_lead import take_part
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.staging import Staging
from pipeline.core.decode.routing import NO_TARGET, Router
from pipeline.core.errors import DataError
from pipeline.core.exports.export_lines import decode_full
from pipeline.core.exports.export_routing import route_block
from pipeline.core.exports.fast.block_decode import BlockDecoder
from pipeline.core.exports.ways import NO_LINES, Ways
from pipeline.core.model.mapping import STORAGE_SCHEMA
from pipeline.jobs.export_file import Destination, FileReading, count_nothing, read_file
from pipeline.jobs.protecting import protect_full

if TYPE_CHECKING:
    from pipeline.aurora.bookkeeping.load_lead import Lead
    from pipeline.aurora.bookkeeping.loads import FileCounts
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping
    from pipeline.core.ordering import Position
    from pipeline.dynamodb.exports.manifest import ExportFile
    from pipeline.jobs.export_file import OnLines
    from pipeline.jobs.services import Services

# A file's rows are sorted before they are merged; with less memory PostgreSQL would sort them in temporary files.
_MERGE_MEMORY = "64MB"


@dataclass(frozen=True, slots=True)
class LoadWork:
    """What all workers of a load share. It is pickled for workers in other processes."""

    services: Services
    mapping: TableMapping
    bucket: str
    location: str
    position: Position
    lead: Lead
    builds: tuple[tuple[str, ...], ...] = ()
    """The tables built aside: each target's, then its children's; empty when files are merged into storage."""
    protected: bool = False
    """Whether the files are protected already, as a scan's are."""

    @property
    def strategy(self) -> str:
        """How the load is done, as `replication.exports` names it."""
        return "aside" if self.builds else "merge"

    def loader(self) -> FileLoader:
        """Return a loader of files; each worker needs its own."""
        return FileLoader(self)


class FileLoader:
    """Loads files, one after another. Each worker builds one, because building it compiles the decoders."""

    def __init__(self, work: LoadWork) -> None:
        self._work = work
        self._router = Router(work.mapping)
        self._protect = protect_full(work.mapping, protected=work.protected)
        self._settled: dict[str, Counter[str]] = {target.view_name: Counter() for target in work.mapping.targets}
        self._decoders = [
            BlockDecoder(target, self._settled[target.view_name], apart=bool(work.builds))
            for target in work.mapping.targets
        ]

    def load(self, connection: Connection, file: ExportFile, on_lines: OnLines) -> FileCounts | None:
        """Load one file; returns None when it was loaded already. Errors name the file.

        Raises FileBusyError while another worker loads it, LoadEndedError when the load has ended or has changed its
        strategy. When PostgreSQL refuses a value, the file is read again with savepoints, to reject that record alone.
        """
        try:
            return self._load(connection, file, on_lines, isolate=False)
        except DataError:
            return self._load(connection, file, count_nothing, isolate=True)

    def _load(self, connection: Connection, file: ExportFile, on_lines: OnLines, *, isolate: bool) -> FileCounts | None:
        work, before = self._work, self._ways()
        route, store = partial(route_block, router=self._router), work.services.store(work.location)
        reading = FileReading(store, work.bucket, file, route, on_lines, self._router.rejects_unmatched, self._protect)
        for counts_of_target in self._settled.values():
            counts_of_target.clear()
        with translating(f"loading {reading.location}", table=work.mapping.name), connection.transaction():
            take_part(connection, work.mapping.name, work.lead, work.strategy)
            if not loads.claim_file(connection, work.lead.export_id, file.key, wait=False):
                return None
            made = [self._destination(connection, number) for number in range(len(self._decoders))]
            read_file(connection, reading, {each.target: each for each in made}, isolate=isolate)
            rejects.add(
                connection,
                work.mapping.name,
                reading.rejects(work.position),
                source=f"export {reading.location}",
                protection=work.mapping.protection,
            )
            settled.add(connection, work.mapping.name, self._settled)
            loads.mark_file(connection, work.lead.export_id, file.key, reading.counts())
            # At the end: from the merge on, its lock keeps out whoever changes what is protected.
            protection.require(connection, work.mapping, doing=f"loading {reading.location}")
        unmatched = sum(view_name == NO_TARGET for view_name, _, _ in reading.refused)
        ways = Ways(general=reading.rows - unmatched) if isolate else self._ways() - before
        return replace(reading.counts(), ways=ways)

    def _ways(self) -> Ways:
        served = NO_LINES
        for decoder in self._decoders:
            served += decoder.ways
        return served

    def _destination(self, connection: Connection, number: int) -> Destination:
        work, decoder = self._work, self._decoders[number]
        target, decode_each = decoder.rows.target, partial(decode_full, decoder=decoder.rows)
        if work.builds:
            build, *children = [sql.Identifier(STORAGE_SCHEMA, name) for name in work.builds[number]]
            return Destination(target, build, decoder.decode, decode_each, children=tuple(children))
        staging = Staging.temporary(connection, target)
        connection.execute(sql.SQL("SET LOCAL work_mem = {}").format(sql.Literal(_MERGE_MEMORY)))
        merge = partial(staging.merge, connection, work.mapping.name, work.position.as_of)
        return Destination(target, staging.name, decoder.decode, decode_each, merge)
