"""Take part in a load that another run leads, so that several processes, tasks or hosts share its files.

Invariant: the lead begins and ends the load and needs no other run for it. A run that takes part only loads files that
nobody has loaded, through the same code as the lead. It never creates, drops or swaps a table. If the load has ended
before it starts, it does nothing; when the load ends, it ends too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.bookkeeping.load_lead import Lead, led_load
from pipeline.aurora.rows import build_aside
from pipeline.core.errors import ConfigurationError, ReplicationError
from pipeline.core.model.mapping_digest import digests
from pipeline.core.ordering import Position
from pipeline.dynamodb.exports.manifest import read_manifest
from pipeline.jobs.load.load import PROCESSES_FROM_BYTES
from pipeline.jobs.load.load_file import LoadWork
from pipeline.jobs.load.load_progress import LoadProgress, Progress
from pipeline.jobs.load.load_watch import LeadWatch
from pipeline.jobs.load.load_workers import load_files
from pipeline.jobs.protecting import is_protected

if TYPE_CHECKING:
    from pipeline.aurora.bookkeeping.load_lead import LedLoad
    from pipeline.aurora.rows.build_aside import Build
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.services import Services


@dataclass(frozen=True, slots=True)
class HelpReport:
    """What a run did that took part in a load: the files it loaded itself."""

    table: str
    export_id: int
    files: int
    seconds: float
    outcome: str
    """Why it ended, in words."""


NOTHING_LEFT = "every file is loaded, or another run is loading it"
ENDED_BEFORE = "the load had ended, or had begun again, before this run joined it: this run did nothing"
ENDED_MEANWHILE = "the load ended, or began again: the files that this run had not finished were rolled back"


def help_load(
    services: Services,
    mapping: TableMapping,
    lead: Lead,
    *,
    workers: int = 2,
    on_progress: Callable[[LoadProgress], None] | None = None,
    processes_from: int = PROCESSES_FROM_BYTES,
) -> HelpReport:
    """Load files of the load that `lead` leads, until none is left.

    When the load has ended, that is an outcome, not an error. Raises ConfigurationError when this run reads another
    mapping than the load uses, and otherwise what the load itself would raise; the lead then loads those files.
    """
    started, mapping = time.monotonic(), services.with_key(mapping)
    with closing(services.connect("dynaurora load helper")) as connection:
        help_ = _Help(services, mapping, lead, connection, workers, processes_from, on_progress)
        files, outcome = help_.to_the_end()
    return HelpReport(mapping.name, lead.export_id, files, time.monotonic() - started, outcome)


@dataclass(frozen=True, slots=True)
class _Help:
    services: Services
    mapping: TableMapping
    lead: Lead
    connection: Connection
    workers: int
    processes_from: int
    on_progress: Callable[[LoadProgress], None] | None

    def to_the_end(self) -> tuple[int, str]:
        """Return how many files were loaded, and why it ended."""
        found = self._led()
        work = self._work(found) if found else None
        if found is None or work is None:
            return 0, ENDED_BEFORE
        manifest = read_manifest(self.services.store(found.location), found.location, expected_table=None)
        loaded = loads.loaded_files(self.connection, self.lead.export_id)
        waiting = [file for file in manifest.files if file.key not in loaded]
        progress = Progress(manifest, waiting, self.on_progress)
        try:
            load_files(
                replace(work, bucket=manifest.bucket, protected=is_protected(self.mapping, manifest)),
                waiting,
                progress,
                workers=self.workers,
                processes=manifest.billed_size_bytes >= self.processes_from,
                watch=LeadWatch(self.connection, self.mapping.name, self.lead, found),
                to_the_end=False,
            )
        except ReplicationError:
            if self.connection.closed or self._led() == found:
                raise
            return progress.files_loaded, ENDED_MEANWHILE
        return progress.files_loaded, NOTHING_LEFT

    def _led(self) -> LedLoad | None:
        return led_load(self.connection, self.mapping.name, self.lead)

    def _work(self, found: LedLoad) -> LoadWork | None:
        """Return what the load's workers share; None when its tables are gone, because then the load is gone too."""
        mapping, export_id = self.mapping, self.lead.export_id
        if found.mapping_digest not in digests(mapping):
            raise ConfigurationError(
                "loading: this run reads another mapping than the load uses",
                table=mapping.name,
                hint="deploy the same mappings to all run workers; the load continues without this run",
            )
        builds: tuple[Build, ...] | None = ()
        if found.strategy == "aside":
            builds = build_aside.find(self.connection, export_id, mapping.name, mapping.targets, found.as_of)
        if builds is None:
            return None
        names = tuple(tuple(one.name for one in build.tables) for build in builds)
        return LoadWork(self.services, mapping, "", found.location, Position(found.as_of), self.lead, names)
