"""Catch up: apply what was written in a range of the past, from incremental exports of its windows.

It restores everything the stream lost, deletes included, up to the range's end less the margin, within the table's
point-in-time recovery. It uses no read capacity of the table except for the few items that are read again by key.

Invariant: each file's changes and its mark commit together, after the whole file has been verified. So a killed
catch-up resumes, a repeated one changes nothing, and nothing newer is undone, because every change goes through the
ordering rule. Windows are applied in order, each followed by the windows that overlap it and end no later
(`pipeline.core.exports.windows`): these count only for what it does not contain.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import export_requests, loads, losses, proofs, protection, sources
from pipeline.aurora.errors import translating
from pipeline.aurora.schema import lock_holders, tables
from pipeline.core.errors import ConfigurationError, ReplicationError, TerminalError
from pipeline.core.exports.windows import Window, seam, shortest_range, split, whole_seconds, windows_from_cuts
from pipeline.core.model.mapping_digest import digests
from pipeline.core.ordering import snapshot_position
from pipeline.dynamodb.exports.manifest import read_manifest
from pipeline.jobs.catch_up.window_exports import check_range, request_window, shortest_window, too_close
from pipeline.jobs.catch_up.window_file import WindowWork
from pipeline.jobs.clocks import refuse_wrong_clock
from pipeline.jobs.export_file import recorded
from pipeline.jobs.load.load import PROCESSES_FROM_BYTES
from pipeline.jobs.load.load_progress import Progress
from pipeline.jobs.load.load_workers import load_files
from pipeline.jobs.read_again import ReadAgain, read_untold
from pipeline.jobs.snapshots.accept_export import accept_export, check_export_arn
from pipeline.jobs.snapshots.export_requests import resume_hint
from pipeline.jobs.snapshots.snapshot import wait

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from pipeline.aurora.bookkeeping.loads import ExportRecord, FileCounts
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping
    from pipeline.core.ordering import Position
    from pipeline.dynamodb.exports.manifest import ExportManifest
    from pipeline.dynamodb.tables import SourceTable
    from pipeline.jobs.services import Services

# Exports requested ahead of the one that is being applied. DynamoDB runs 300 at once for an account (service quotas).
_EXPORTS_AT_ONCE = 16
# How long to wait for a batch that is being applied: longer than a replicator's statement may take.
_LOOKS, _LOOK_SECONDS = 240, 0.25


@dataclass(frozen=True, slots=True)
class WindowReport:
    """What one window's export came to. `applied` + `stale` + `rejected` + `ignored` = its items, times targets."""

    start: datetime
    end: datetime
    is_seam: bool
    """It overlaps its neighbours: a seam, or a window that begins at a snapshot's time within another one."""
    location: str
    export_arn: str | None
    as_of: datetime
    files: int
    items: int
    applied: int
    stale: int
    """Older than the stored state, or covered by a snapshot that ends later."""
    rejected: int
    ignored: int
    size_bytes: int
    already_applied: bool


@dataclass(frozen=True, slots=True)
class CatchUpReport:
    """What a catch-up did, over all its windows. It ends earlier than asked if a load was made just before that end."""

    table: str
    start: datetime
    end: datetime
    healed_through: datetime
    """Everything written before this is now as DynamoDB has it: the end less the margin."""
    windows: tuple[WindowReport, ...]
    items: int
    applied: int
    stale: int
    rejected: int
    ignored: int
    read_again: int
    """Items read again by key, because the stream had brought them in the range and the exports do not contain them."""
    removed: int
    """Rows among those whose item no longer exists."""
    seconds: float


def catch_up(
    services: Services,
    mapping: TableMapping,
    start: datetime,
    end: datetime,
    *,
    margin: timedelta | None = None,
    workers: int = 2,
    timeout: timedelta | None = None,
    on_progress: Callable[[str], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> CatchUpReport:
    """Apply what was written from `start`, inclusive, to `end`, exclusive (aware; whole seconds).

    Idempotent; a repeated call resumes, its exports too. `timeout` is how long to wait for each export, the setting's
    unless given. Raises ConfigurationError for an impossible range; TerminalError when part of it is beyond the
    table's recovery window, an export is damaged, or another load of the table is running; TransientError when the
    caller may try again.
    """
    started, say, mapping = time.monotonic(), on_progress or _say_nothing, services.with_key(mapping)
    margin = mapping.margin if margin is None else margin
    asked = Window(whole_seconds(start), whole_seconds(end))
    with services.connect("dynaurora catch-up") as connection:  # before any wait
        sources.require(connection, mapping.name, mapping.table, doing="catching up")
        protection.require(connection, mapping, doing="catching up")
        refuse_wrong_clock(services, mapping, margin, f"catching up {asked}", connection, say)
    source = check_range(services, mapping, asked, margin, say)
    run = _Run(services, mapping, margin, workers, say, on_notice or say, timeout)
    planned = run.plan(asked, source)
    reports: list[WindowReport] = []
    for first in range(0, len(planned), _EXPORTS_AT_ONCE):
        group = planned[first : first + _EXPORTS_AT_ONCE]
        exports = [run.export_of(source, window) for window, _ in group]
        for (location, arn), (_, is_seam) in zip(exports, group, strict=True):
            reports.append(run.apply(location or run.wait(arn), arn, is_seam=is_seam))
    healed = Window(asked.start, max(window.end for window, _ in planned))
    _close(services, mapping, healed, margin, say)
    say("reading items again that no export contains")
    told = Window(min(window.start for window, _ in planned), healed.end)  # the first seam begins before the range
    again = read_untold(services, mapping, told, margin)
    with services.connect("dynaurora catch-up") as connection:
        losses.note_caught_up(connection, mapping.name, healed.start, healed.end)
    return _report(mapping, healed, margin, reports, again, started)


def apply_export(
    services: Services,
    mapping: TableMapping,
    *,
    export_arn: str | None = None,
    location: str | None = None,
    margin: timedelta | None = None,
    accept_other_table: bool = False,
    workers: int = 2,
    timeout: timedelta | None = None,
    on_progress: Callable[[str], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> CatchUpReport:
    """Apply one existing incremental export, given its ARN or the location of its manifest-summary.json.

    Raises as `catch_up` does, and for an export of another table unless `accept_other_table`. A single export has no
    seams: changes of its last minutes may need the next window. Nor does it have windows that begin at the snapshots
    within it: the report's claim ends at the first of those.
    """
    started, say, mapping = time.monotonic(), on_progress or _say_nothing, services.with_key(mapping)
    margin = mapping.margin if margin is None else margin
    notify = on_notice or say
    run = _Run(services, mapping, margin, workers, say, notify, timeout, accept_other_table=accept_other_table)
    if location is None:
        check_export_arn(mapping, export_arn or "", accept_other_table=accept_other_table)
        location = run.wait(export_arn)
    accept_export(services, mapping, location, accept_other_table=accept_other_table, notify=notify)
    report = run.apply(location, export_arn, is_seam=False)
    told = Window(report.start, report.end)
    with services.connect("dynaurora catch-up") as connection:
        cuts = loads.snapshot_times(connection, mapping.name)
    healed = Window(told.start, min([told.end, *(whole_seconds(cut) for cut in cuts if told.start < cut < told.end)]))
    return _report(mapping, healed, margin, [report], read_untold(services, mapping, told, margin), started)


def _close(
    services: Services, mapping: TableMapping, healed: Window, margin: timedelta, say: Callable[[str], None]
) -> None:
    """Mark the range as proven: a change from it that the stream still brings is now stale.

    Waits for batches that began before, so that reading again finds the rows they write. Anyone who holds the tables
    for longer is not a replicator, because replicators have time limits.
    """
    with services.connect("dynaurora catch-up") as connection:
        proofs.prove_caught_up(connection, mapping.name, healed.start, healed.end, margin)
        lock_holders.wait_until_free(
            connection,
            [tables.storage(target) for target in mapping.targets],
            pause=lambda: time.sleep(_LOOK_SECONDS),
            looks=_LOOKS,
            only_writers=True,
            tell=lambda who: say(f"waiting for {who}, which is applying a batch"),
        )


def _say_nothing(_: str) -> None:
    """Report progress to nobody."""


def _report(
    mapping: TableMapping,
    asked: Window,
    margin: timedelta,
    windows: list[WindowReport],
    again: ReadAgain,
    started: float,
) -> CatchUpReport:
    return CatchUpReport(
        table=mapping.name,
        start=asked.start,
        end=asked.end,
        healed_through=asked.end - margin,
        windows=tuple(windows),
        items=sum(window.items for window in windows),
        applied=sum(window.applied for window in windows),
        stale=sum(window.stale for window in windows),
        rejected=sum(window.rejected for window in windows),
        ignored=sum(window.ignored for window in windows),
        read_again=again.items,
        removed=again.removed,
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """One catch-up in progress."""

    services: Services
    mapping: TableMapping
    margin: timedelta
    workers: int
    say: Callable[[str], None]
    notify: Callable[[str], None]
    timeout: timedelta | None
    accept_other_table: bool = False

    def plan(self, asked: Window, source: SourceTable) -> list[tuple[Window, bool]]:
        """Return the windows of the range in order, with False; after each, with True, the windows that overlap it.

        Those are the seam at its beginning, and the windows that begin at the times of snapshots within it. Raises
        ConfigurationError where a load's time is too close to both ends of the range.
        """
        shortest = shortest_window(self.services)
        least = shortest_range(self.margin, shortest)
        with self.services.connect("dynaurora catch-up") as connection:
            self.require_source(connection, source.arn, source.table_id)
            cuts = loads.snapshot_times(connection, self.mapping.name)
        windows = split(asked.start, asked.end, cuts=cuts, shortest=least)
        if not windows:
            raise too_close(self.mapping, asked, cuts, least)
        from_cuts = windows_from_cuts(windows, cuts, shortest=least)
        planned: list[tuple[Window, bool]] = []
        for window in windows:
            planned.append((window, False))
            across = seam(
                window.start, self.margin, earliest=source.earliest_restorable, end=windows[-1].end, shortest=shortest
            )
            if across is not None:
                planned.append((across, True))
            planned += [(other, True) for other in from_cuts if window.start < other.end <= window.end]
        return planned

    def require_source(self, connection: Connection, arn: str, table_id: str | None) -> None:
        """Raise ConfigurationError unless the mapping's table, the one of the ARN, is the source of record."""
        if self.accept_other_table:
            arn, table_id = "", None
        mapping = self.mapping
        sources.require(connection, mapping.name, mapping.table, doing="catching up", arn=arn, table_id=table_id)
        protection.require(connection, mapping, doing="catching up")

    def export_of(self, source: SourceTable, window: Window) -> tuple[str | None, str | None]:
        """Return the window's export (location, ARN): one that an earlier run began to apply, or a new one."""
        as_of = snapshot_position(window.end, self.margin).as_of
        with self.services.connect("dynaurora catch-up") as connection:
            known = loads.find_window(connection, self.mapping.name, window, as_of)
        if known is not None:
            return known[0], known[2]
        self.say(f"requesting the export of {window}")
        return None, request_window(self.services, self.mapping, source, window, self.say)

    def wait(self, export_arn: str | None) -> str:
        """Wait until an export is complete; returns its manifest's location."""
        if export_arn is None:
            raise ConfigurationError("catching up: neither an export's ARN nor its manifest is given")
        self.say(f"waiting for the export {export_arn}")
        return wait(
            self.services,
            export_arn,
            hint=resume_hint(export_arn),
            timeout=self.timeout,
            say=self.say,
            notify=self.notify,
        )

    def apply(self, location: str, export_arn: str | None, *, is_seam: bool) -> WindowReport:
        """Apply a complete export."""
        expected = None if self.accept_other_table else self.mapping.table
        manifest = read_manifest(self.services.store(location), location, expected_table=expected)
        if manifest.from_time is None:
            raise ConfigurationError(
                f"catching up from {location}: it is a full export",
                table=self.mapping.name,
                hint=f"load it: `dynaurora load {self.mapping.name} --manifest {location}`",
            )
        window = Window(manifest.from_time, manifest.snapshot_time)
        position = snapshot_position(window.end, self.margin)
        with (
            self.services.connect("dynaurora catch-up") as connection,
            loads.table_locked(connection, self.mapping.name),
            export_requests.ending(connection, self.mapping.name, manifest.export_arn),
        ):
            self.require_source(connection, manifest.table_arn, manifest.table_id)
            record = self._begin(connection, manifest, position, is_seam=is_seam)
            if record.status != "loaded":
                self._apply(connection, manifest, window, position, record)
            counts = self._totals(connection, manifest, record)
        return WindowReport(
            start=window.start,
            end=window.end,
            is_seam=is_seam,
            location=location,
            export_arn=export_arn or manifest.export_arn,
            as_of=position.as_of,
            files=len(manifest.files),
            items=counts.items,
            applied=counts.applied,
            stale=counts.stale,
            rejected=counts.rejected,
            ignored=counts.ignored,
            size_bytes=counts.size_bytes,
            already_applied=record.status == "loaded",
        )

    def _begin(
        self, connection: Connection, manifest: ExportManifest, position: Position, *, is_seam: bool
    ) -> ExportRecord:
        export = recorded(manifest, position, is_seam=is_seam)
        return loads.begin(connection, self.mapping.name, export, digests=digests(self.mapping))

    def _apply(
        self,
        connection: Connection,
        manifest: ExportManifest,
        window: Window,
        position: Position,
        record: ExportRecord,
    ) -> None:
        self.say(f"applying {manifest.item_count} items of {window}")
        work = WindowWork(
            self.services,
            self.mapping,
            manifest.bucket,
            manifest.location,
            position,
            record.id,
            window,
            tuple(loads.covering(connection, self.mapping.name, position.as_of)),
        )
        waiting = [file for file in manifest.files if file.key not in record.loaded_files]
        processes = manifest.billed_size_bytes >= PROCESSES_FROM_BYTES
        try:
            load_files(work, waiting, Progress(manifest, waiting, None), workers=self.workers, processes=processes)
            self._totals(connection, manifest, record)
        except ReplicationError as error:
            if not connection.closed:
                loads.finish(connection, record.id, failure=str(error))
            raise
        with translating("ending the window", table=self.mapping.name):
            loads.finish(connection, record.id)

    def _totals(self, connection: Connection, manifest: ExportManifest, record: ExportRecord) -> FileCounts:
        """Add up what is applied; it must equal what the manifest states."""
        files, counts = loads.totals(connection, record.id)
        if files != len(manifest.files) or counts.items != manifest.item_count:
            raise TerminalError(
                f"catching up from {manifest.location}: {counts.items} items of {files} files are applied, and the"
                f" manifest states {manifest.item_count} items of {len(manifest.files)} files",
                table=self.mapping.name,
                hint="run it again; if the numbers still differ, request another export",
            )
        return counts
