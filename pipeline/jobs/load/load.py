"""Load: put a full export into a table's targets, under the ordering rule, while the stream is being applied.

Invariant: each file's rows and its mark commit together, after the whole file has been verified. So a damaged file
leaves nothing behind, a killed load resumes, and no file counts twice. Items must add up to the manifest.

There are two strategies. A load chooses one when it begins (`pipeline.jobs.load.way`), and keeps it when it resumes. A
big load is built aside: into new tables without an index, which then get their keys and the stored rows that the rule
prefers or the export lacks, and are swapped in (`pipeline.aurora.rows.build_aside`). Any other load merges file by file
into the storage tables.

This run leads the load: it begins and ends it, and loads every file that no other run loads. Other runs may load files
at the same time (`pipeline.jobs.load.load_help`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import export_requests, loads, protection, sources
from pipeline.aurora.bookkeeping.load_lead import Lead, take_lead
from pipeline.aurora.errors import translating
from pipeline.aurora.rows import build_aside, build_indexes
from pipeline.aurora.rows.build_aside import Build
from pipeline.aurora.rows.history_fill import record_build
from pipeline.aurora.sessions.advisory_locks import giving_locks_back
from pipeline.core.errors import ConfigurationError, DataError, DiskFullError, ReplicationError, TerminalError
from pipeline.core.exports.ways import NO_LINES, Ways
from pipeline.core.model.mapping_digest import digests
from pipeline.core.ordering import Position, snapshot_position
from pipeline.dynamodb.exports.manifest import read_manifest
from pipeline.jobs.export_file import recorded
from pipeline.jobs.load.load_file import LoadWork
from pipeline.jobs.load.load_progress import LoadProgress, Progress, telling
from pipeline.jobs.load.load_watch import MarksWatch
from pipeline.jobs.load.load_workers import load_files
from pipeline.jobs.load.way import ASIDE_FROM_ITEMS, choose
from pipeline.jobs.protecting import is_protected

if TYPE_CHECKING:
    from pipeline.aurora.bookkeeping.loads import ExportRecord, FileCounts
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping
    from pipeline.dynamodb.exports.manifest import ExportManifest
    from pipeline.jobs.services import Services

# With items of this size or more in all, the workers are processes: below, starting them takes longer than they save.
PROCESSES_FROM_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load did. `applied` + `stale` + `rejected` + `ignored` = rows; stale rows were newer in Aurora already.

    With `match` patterns every item belongs to one target or to none, so `rows` equals `items`. Without them every
    item is a row of each target.
    """

    table: str
    export_id: int
    location: str
    export_arn: str | None
    snapshot_time: datetime
    as_of: datetime
    files: int
    items: int
    applied: int
    stale: int
    rejected: int
    size_bytes: int
    seconds: float
    files_resumed: int
    """Files that an earlier run of the same load had finished."""
    already_loaded: bool
    strategy: str = "merge"
    """`merge`, or `aside` when the tables were built aside and swapped in."""
    ignored: int = 0
    """Items that match no target, where the mapping says to leave such items out."""
    merged_because: tuple[str, ...] = ()
    """Why it was merged: because of the sizes, or because a swap would have lost this, even if it takes longer so."""
    aside_because: tuple[str, ...] = ()
    """Why it was built aside."""
    led_elsewhere: bool = False
    """Another run led this load; this one shared its files, or waited for its end (`pipeline.jobs.load.load_once`)."""
    ways: Ways = NO_LINES
    """How the lines that this run loaded were decoded."""

    @property
    def rows(self) -> int:
        """The number of rows that the items made, ignored ones included."""
        return self.applied + self.stale + self.rejected + self.ignored


def load(
    services: Services,
    mapping: TableMapping,
    location: str,
    *,
    margin: timedelta | None = None,
    accept_other_table: bool = False,
    workers: int = 2,
    on_progress: Callable[[LoadProgress], None] | None = None,
    aside_from: int = ASIDE_FROM_ITEMS,
    processes_from: int = PROCESSES_FROM_BYTES,
    on_lead: Callable[[Lead], None] | None = None,
) -> LoadReport:
    """Load the full export at `location` (its manifest-summary.json). Idempotent; a repeated call resumes.

    `margin` is the mapping's unless given. Exports of `aside_from` items or more may be built aside; those of
    `processes_from` bytes or more are loaded by processes. `on_lead` is called whenever files are about to be loaded,
    with what other runs need to take part (`help_load`). Raises TerminalError with the file and the reason when the
    export is damaged or is another table's, when another load of the table is running, or when tombstones were purged
    as far as the snapshot; nothing of a damaged file is in the table. Raises TransientError when the caller may try
    again.
    """
    started, mapping = time.monotonic(), services.with_key(mapping)
    expected = None if accept_other_table else mapping.table
    manifest = read_manifest(services.store(location), location, expected_table=expected)
    if manifest.kind != "full":
        raise ConfigurationError(
            f"loading {location}: it is an incremental export",
            table=mapping.name,
            hint="give a full export; `dynaurora load` without an ARN or manifest requests one",
        )
    position = snapshot_position(manifest.snapshot_time, mapping.margin if margin is None else margin)
    with services.connect(loads.LOADING) as connection, giving_locks_back(connection), ExitStack() as locked:
        loads.lock_table(connection, mapping.name)
        arn, table_id = (None, None) if accept_other_table else (manifest.table_arn, manifest.table_id)
        sources.require(connection, mapping.name, mapping.table, doing="loading", arn=arn, table_id=table_id)
        protection.require(connection, mapping, doing="loading")
        is_protected(mapping, manifest)
        locked.enter_context(export_requests.ending(connection, mapping.name, manifest.export_arn))
        way = choose(connection, mapping, manifest.item_count, aside_from=aside_from)
        record = _begin(connection, mapping, manifest, position, way.strategy)
        chosen = "" if record.status == "loaded" else way.strategy
        if record.remapped:
            build_aside.discard(connection, [record.id], mapping.name, strategy=record.strategy)
            record = replace(record, loaded_files=frozenset())
        processes = manifest.billed_size_bytes >= processes_from
        run = _Run(services, mapping, manifest, position, connection, record, workers, processes, on_progress, on_lead)
        files, counts = run.finished() if record.status == "loaded" else run.to_the_end()
    return LoadReport(
        table=mapping.name,
        export_id=record.id,
        location=location,
        export_arn=manifest.export_arn,
        snapshot_time=manifest.snapshot_time,
        as_of=position.as_of,
        files=files,
        items=counts.items,
        applied=counts.applied,
        stale=counts.stale,
        rejected=counts.rejected,
        size_bytes=counts.size_bytes,
        seconds=time.monotonic() - started,
        files_resumed=run.files_resumed,
        already_loaded=record.status == "loaded",
        strategy=run.strategy,
        ignored=counts.ignored,
        merged_because=way.why if run.strategy == chosen == "merge" else (),
        aside_because=way.why if run.strategy == chosen == "aside" else (),
        ways=run.ways,
    )


def _begin(
    connection: Connection, mapping: TableMapping, manifest: ExportManifest, position: Position, strategy: str
) -> ExportRecord:
    export = recorded(manifest, position)
    return loads.begin(connection, mapping.name, export, strategy=strategy, digests=digests(mapping))


class _CannotBeBuiltAsideError(Exception):
    """The files hold records that only a merge can set aside."""


@dataclass
class _Run:
    """One run of a load, from where an earlier one stopped to the end."""

    services: Services
    mapping: TableMapping
    manifest: ExportManifest
    position: Position
    connection: Connection
    record: ExportRecord
    workers: int
    processes: bool
    on_progress: Callable[[LoadProgress], None] | None
    on_lead: Callable[[Lead], None] | None
    files_resumed: int = 0
    ways: Ways = NO_LINES

    @property
    def strategy(self) -> str:
        """How the load is done: merged or built aside."""
        return self.record.strategy

    def to_the_end(self) -> tuple[int, FileCounts]:
        """Load what is not loaded yet, and record the end; returns the number of files and their counts."""
        try:
            try:
                builds = self._builds() if self.strategy == "aside" else ()
                files, counts = self._carry_out(builds)
            except _CannotBeBuiltAsideError:
                self._merge_instead()
                files, counts = self._carry_out(())
        except ReplicationError as error:
            if not self.connection.closed:
                if self.strategy == "aside" and isinstance(error, DiskFullError):  # writers need the space
                    build_aside.discard(self.connection, [self.record.id], self.mapping.name, strategy="aside")
                loads.finish(self.connection, self.record.id, failure=str(error))
            raise
        build_aside.discard_abandoned(self.connection, self.record.id, self.mapping.name)
        return files, counts

    def finished(self) -> tuple[int, FileCounts]:
        """Return what earlier runs have loaded."""
        self.files_resumed = len(self.record.loaded_files)
        return self._totals()

    def _carry_out(self, builds: tuple[Build, ...]) -> tuple[int, FileCounts]:
        waiting = [file for file in self.manifest.files if file.key not in self.record.loaded_files]
        self.files_resumed = len(self.manifest.files) - len(waiting)
        progress = Progress(self.manifest, waiting, self.on_progress)
        work = LoadWork(
            self.services,
            self.mapping,
            self.manifest.bucket,
            self.manifest.location,
            self.position,
            take_lead(self.connection, self.record.id),
            tuple(tuple(one.name for one in build.tables) for build in builds),
            protected=is_protected(self.mapping, self.manifest),
        )
        if waiting and self.on_lead:
            self.on_lead(work.lead)
        watch = MarksWatch(self.connection, self.record.id)
        load_files(work, waiting, progress, workers=self.workers, processes=self.processes, watch=watch)
        self.ways = progress.ways
        files_and_counts = self._totals()
        for build in builds:
            if not build.swapped:
                self._put_in_place(build, progress)
        with translating("ending the load", table=self.mapping.name), self.connection.transaction():
            if not builds:  # a swap has checked already, under the lock that keeps purges out
                loads.refuse_purged(self.connection, self.mapping.name, self.position.as_of)
            loads.finish(self.connection, self.record.id)
        return self._totals() if builds else files_and_counts

    def _put_in_place(self, build: Build, progress: Progress) -> None:
        name = build.target.view_name

        def key(stop: threading.Event) -> None:
            build_indexes.build(
                self.connection,
                build,
                sessions=self.workers,
                connect=lambda: self.services.connect("dynaurora load index"),
                stopped=stop,
            )

        def versions(stop: threading.Event) -> None:
            record_build(self.connection, build, stopped=stop.is_set, check=unchanged)

        def swap(stop: threading.Event) -> None:
            copied = build_aside.copy_over(self.connection, build)
            build_aside.swap(self.connection, build, copied, stopped=stop, tell=waiting, check=unchanged)

        def unchanged() -> None:
            protection.require(self.connection, self.mapping, doing="putting the loaded table in place")

        def waiting(who: str) -> None:
            progress.tell(f"putting {name} in place, once {who} has released it")

        try:
            progress.tell(f"building the primary key and the indexes of {name}")
            telling(progress, self.connection, key)
            if build.target.history:
                progress.tell(f"recording the versions of {name}")
                telling(progress, self.connection, versions)
            progress.tell(f"putting {name} in place")
            telling(progress, self.connection, swap)
        except DataError:  # a row that an index or a constraint refuses
            raise _CannotBeBuiltAsideError from None

    def _builds(self) -> tuple[Build, ...]:
        """Find the tables that an earlier run created, or create them; none when the load has to merge after all."""
        table, targets, as_of = self.mapping.name, self.mapping.targets, self.position.as_of
        found = build_aside.find(self.connection, self.record.id, table, targets, as_of)
        if found is not None:
            return found
        if not self.record.loaded_files and self._may_be_built_aside():
            build_aside.discard(self.connection, [self.record.id], table, strategy="aside")
            return build_aside.create(self.connection, self.record.id, table, targets, as_of)
        self._merge_instead()
        return ()

    def _may_be_built_aside(self) -> bool:
        return choose(self.connection, self.mapping, self.manifest.item_count, aside_from=0).strategy == "aside"

    def _merge_instead(self) -> None:
        """Begin again and merge: the tables built aside cannot be used."""
        build_aside.discard(self.connection, [self.record.id], self.mapping.name)
        self.record = loads.ExportRecord(self.record.id, self.record.status, "merge", frozenset())

    def _totals(self) -> tuple[int, FileCounts]:
        """Add up what is loaded; it must equal what the manifest states."""
        manifest = self.manifest
        files, counts = loads.totals(self.connection, self.record.id)
        if files != len(manifest.files) or counts.items != manifest.item_count:
            raise TerminalError(
                f"loading {manifest.location}: {counts.items} items of {files} files are loaded, and the manifest"
                f" states {manifest.item_count} items of {len(manifest.files)} files",
                table=self.mapping.name,
                hint="run the load again; if the numbers still differ, request another export",
            )
        return files, counts
