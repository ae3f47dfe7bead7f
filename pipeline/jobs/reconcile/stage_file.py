"""Stage one file of a snapshot: it is read once for all targets; its rows and its mark commit in one transaction.

Invariant: a file counts once, as in a load, and nothing of it commits before the whole file has been verified. Items
that a target cannot hold are noted by digest, not rejected: they became rejects when they arrived.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping import protection
from pipeline.aurora.compare import reconciliations
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.staging import Staging
from pipeline.core.decode.routing import Router
from pipeline.core.errors import DataError, key_digest
from pipeline.core.exports.export_lines import decode_full
from pipeline.core.exports.export_routing import route_block
from pipeline.core.exports.fast.block_decode import BlockDecoder
from pipeline.core.model.attributes import UnrepresentableError, canonical_number
from pipeline.core.model.mapping import STORAGE_SCHEMA
from pipeline.jobs.export_file import Destination, FileReading, count_nothing, read_file
from pipeline.jobs.pace import Pace
from pipeline.jobs.protecting import protect_full

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.aurora.bookkeeping.loads import FileCounts
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.attributes import AttributeValue
    from pipeline.core.model.mapping import TableMapping
    from pipeline.dynamodb.exports.manifest import ExportFile
    from pipeline.jobs.export_file import OnLines
    from pipeline.jobs.services import Services


@dataclass(frozen=True, slots=True)
class StageWork:
    """What all workers that stage a snapshot share. It is pickled for workers in other processes."""

    services: Services
    mapping: TableMapping
    bucket: str
    location: str
    run_id: int
    protected: bool = False
    """Whether the files are protected already, as a scan's are."""
    max_share: float = 1.0

    def loader(self) -> FileStager:
        """Return a stager; each worker needs its own."""
        return FileStager(self)

    def staging(self, number: int) -> Staging:
        """Return the staging table of a target."""
        return Staging(self.mapping.targets[number], sql.Identifier(STORAGE_SCHEMA, f"_{self.suffix(number)}"))

    def suffix(self, number: int) -> str:
        """Return the ending of the names that belong to a target in this run."""
        return f"reconcile_{self.run_id}_{number}"


def item_digest(mapping: TableMapping, attributes: Mapping[str, AttributeValue]) -> str:
    """Return the digest of an item's key attributes. Numbers that are equal give the same digest in any notation."""
    return key_digest(repr(_canonical(attributes.get(name))) for name in mapping.key)


def _canonical(value: AttributeValue | None) -> AttributeValue | None:
    try:
        return {"N": canonical_number(value["N"])} if value and "N" in value else value
    except UnrepresentableError:
        return value


class FileStager:
    """Stages files, one after another. Each worker builds one, because building it compiles the decoders."""

    def __init__(self, work: StageWork) -> None:
        self._work = work
        self._decoders = [BlockDecoder(target) for target in work.mapping.targets]
        self._router = Router(work.mapping)
        self._protect = protect_full(work.mapping, protected=work.protected)
        self._pace = Pace(work.max_share)

    def load(self, connection: Connection, file: ExportFile, on_lines: OnLines) -> FileCounts | None:
        """Stage one file; None if it was staged already. Errors name the file.

        When PostgreSQL refuses a value, the file is read again with savepoints, to set that item alone aside.
        """
        try:
            return self._stage(connection, file, on_lines, isolate=False)
        except DataError:
            return self._stage(connection, file, count_nothing, isolate=True)

    def _stage(
        self, connection: Connection, file: ExportFile, on_lines: OnLines, *, isolate: bool
    ) -> FileCounts | None:
        work, router = self._work, self._router
        route, store = partial(route_block, router=router), work.services.store(work.location)
        reading = FileReading(
            store,
            work.bucket,
            file,
            route,
            on_lines,
            router.rejects_unmatched,
            self._protect,
            working=self._pace.working,
        )
        with translating(f"staging {reading.location}", table=work.mapping.name), connection.transaction():
            if not reconciliations.claim_file(connection, work.run_id, file.key):
                return None
            protection.require(connection, work.mapping, doing=f"staging {reading.location}")
            destinations = {
                decoder.rows.target: Destination(
                    decoder.rows.target,
                    work.staging(number).name,
                    decoder.decode,
                    partial(decode_full, decoder=decoder.rows),
                )
                for number, decoder in enumerate(self._decoders)
            }
            read_file(connection, reading, destinations, isolate=isolate)
            reconciliations.mark_file(
                connection,
                work.run_id,
                file.key,
                items=reading.lines,
                rows=sum(destination.copied for destination in destinations.values()),
                unfit={item_digest(work.mapping, json.loads(line)["Item"]) for _, line, _ in reading.refused},
            )
            return reading.counts()
