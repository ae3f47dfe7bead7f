"""Reconcile: compare a table's targets with a snapshot of it, list the differences, and repair them on request.

Invariant: only a proven difference is called drift (`pipeline.jobs.reconcile.verdict`). Each step is marked where its
work is done, so that a killed run resumes with the same snapshot: its files are staged once, its keys compared once.

The snapshot is staged beside the target, file by file; each file is read once for all targets. The database compares
range by range and keeps the list of differences; they are resolved from that list. The client never holds more than a
chunk.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import export_requests, loads, probes, protection, sources
from pipeline.aurora.bookkeeping.applied_through import AppliedThrough, applied_through
from pipeline.aurora.compare import reconciliations
from pipeline.aurora.compare.candidates import Candidates, Left
from pipeline.aurora.compare.compare import Comparison
from pipeline.aurora.sessions.advisory_locks import giving_locks_back
from pipeline.core.errors import ConfigurationError, ReplicationError, TerminalError, TransientError
from pipeline.core.model.mapping_digest import digests
from pipeline.core.ordering import snapshot_position
from pipeline.dynamodb.exports.manifest import read_manifest
from pipeline.jobs.clocks import refuse_wrong_clock, source_now
from pipeline.jobs.load.load import PROCESSES_FROM_BYTES
from pipeline.jobs.load.load_progress import LoadProgress, Progress
from pipeline.jobs.load.load_workers import load_files
from pipeline.jobs.pace import Bounds
from pipeline.jobs.probe.lost_history import readers_when_late, why_not_delivered
from pipeline.jobs.probe.probe import probe
from pipeline.jobs.protecting import is_protected
from pipeline.jobs.reconcile.compare_ranges import Comparing
from pipeline.jobs.reconcile.reconcile_report import SAMPLES, DriftSample, ReconcileReport
from pipeline.jobs.reconcile.settle import Settler
from pipeline.jobs.reconcile.stage_file import StageWork
from pipeline.jobs.reconcile.verdict import SnapshotTime

if TYPE_CHECKING:
    from pipeline.aurora.compare.reconciliations import Counts, Drift
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.attributes import Item
    from pipeline.core.model.mapping import TableMapping
    from pipeline.dynamodb.exports.manifest import ExportManifest
    from pipeline.jobs.services import Services

__all__ = ["Bounds", "DriftSample", "ReconcileReport", "reconcile"]

_LAG_LOOK_SECONDS = 2.0
_SAY_SECONDS = 5.0
# Reconciliation stops waiting for replication that has not moved for this long, while others may wait for this run.
_STILL_SECONDS = 90.0
_TICK_EVERY = timedelta(seconds=5)
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS, _WAIT_GROWTH = 0.5, 10.0, 1.5
# How long after the margin a replicator may still deliver; after that nothing more is expected of it.
_GRACE = timedelta(seconds=10)


def reconcile(
    services: Services,
    mapping: TableMapping,
    location: str,
    *,
    repair: bool = False,
    margin: timedelta | None = None,
    accept_other_table: bool = False,
    workers: int = 2,
    on_progress: Callable[[str], None] | None = None,
    bounds: Bounds | None = None,
    show_keys: bool = False,
    processes_from: int = PROCESSES_FROM_BYTES,
) -> ReconcileReport:
    """Compare every target of `mapping` with the full snapshot at `location`; with `repair`, repair the drift.

    One at a time for each table; no load of the table runs meanwhile. A run that was killed or ended by a
    TransientError resumes when it is called again with the same location. `bounds` limits what it takes of Aurora and
    how long it waits for replication; `show_keys` names keys in the samples. Snapshots of `processes_from` bytes or
    more are staged by processes. Raises TransientError, TerminalError; each repair made before that wrote a newer
    state of its row.
    """
    margin, mapping = mapping.margin if margin is None else margin, services.with_key(mapping)
    expected = None if accept_other_table else mapping.table
    manifest = read_manifest(services.store(location), location, expected_table=expected)
    if manifest.kind != "full":
        raise ConfigurationError(
            f"reconciling with {location}: it is an incremental export, which does not say what a table holds",
            table=mapping.name,
            hint="give a full export; `dynaurora reconcile` without an ARN or manifest requests one",
        )
    started, as_of = time.monotonic(), snapshot_position(manifest.snapshot_time, margin).as_of
    saying = _Saying(on_progress)
    with services.connect("dynaurora reconcile") as connection, giving_locks_back(connection), ExitStack() as locked:
        reconciliations.lock_table(connection, mapping.name)
        loads.keep_loads_out(connection, mapping.name)
        arn, table_id = (None, None) if accept_other_table else (manifest.table_arn, manifest.table_id)
        sources.require(connection, mapping.name, mapping.table, doing="reconciling", arn=arn, table_id=table_id)
        protection.require(connection, mapping, doing="reconciling")
        is_protected(mapping, manifest)
        _look_at_clocks(services, mapping, margin if repair else None, connection, saying)
        locked.enter_context(export_requests.ending(connection, mapping.name, manifest.export_arn))
        begun = reconciliations.begin(
            connection,
            mapping.name,
            snapshot=location,
            snapshot_time=manifest.snapshot_time,
            as_of=as_of,
            digests=digests(mapping),
            repairs=repair,
        )
        run = _Run(
            services,
            mapping,
            manifest,
            SnapshotTime(manifest.snapshot_time, margin),
            begun.id,
            workers,
            bounds or Bounds(),
            saying,
            repair=repair,
            show_keys=show_keys,
            processes=manifest.billed_size_bytes >= processes_from,
        )
        try:
            undecided, applied = run.carry_out(connection, resumed=begun.resumed)
        except TerminalError as error:
            if not connection.closed:
                reconciliations.fail(connection, begun.id, str(error))
                reconciliations.drop_leftovers(connection, mapping.name)
            raise
        counts = reconciliations.finish(connection, begun.id, undecided=undecided, of_another_table=accept_other_table)
        samples = run.samples(connection)
        reconciliations.drop_leftovers(connection, mapping.name)
    return run.report(counts, samples, applied, resumed=begun.resumed, seconds=time.monotonic() - started)


def _look_at_clocks(
    services: Services, mapping: TableMapping, margin: timedelta | None, connection: Connection, say: _Saying
) -> None:
    """Read the source's clock; if it does not answer, go on, as equal rows do not need it. `margin` is for repairs."""
    try:
        source_now(services, mapping)
    except ReplicationError as error:
        say(f"using this host's clock: {error}")
    else:
        if margin is not None:
            refuse_wrong_clock(services, mapping, margin, "repairing", connection, say)


class _Saying:
    """Reports to the caller what is being done; several threads may report, one at a time."""

    def __init__(self, tell: Callable[[str], None] | None) -> None:
        self._tell, self._lock = tell, threading.Lock()
        self._told = 0.0

    def __call__(self, text: str) -> None:
        if self._tell:
            with self._lock:
                self._tell(text)

    def now_and_then(self, text: str) -> None:
        """Report, unless the last report was a moment ago."""
        if time.monotonic() - self._told > _SAY_SECONDS:
            self._told = time.monotonic()
            self(text)


@dataclass
class _Run:
    """One reconciliation in progress."""

    services: Services
    mapping: TableMapping
    manifest: ExportManifest
    snapshot: SnapshotTime
    id: int
    workers: int
    bounds: Bounds
    say: _Saying
    repair: bool
    show_keys: bool
    processes: bool
    keys: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    """Keys of the first rows with drift, by target and digest."""
    lag_looked_at: float = 0.0
    cannot_probe: bool = False

    def carry_out(self, connection: Connection, *, resumed: bool) -> tuple[int, AppliedThrough]:
        """Stage, compare and resolve; returns how many rows stay undecided, and how far replication is."""
        work = StageWork(
            self.services,
            self.mapping,
            self.manifest.bucket,
            self.manifest.location,
            self.id,
            is_protected(self.mapping, self.manifest),
            max_share=self.bounds.max_share,
        )
        self._stage(connection, work, resumed=resumed)
        self._wait_until_older(connection)
        settlers: list[Settler] = []
        for number, target in enumerate(self.mapping.targets):
            candidates = Candidates.of(target, work.suffix(number))
            comparison = Comparison(self.id, target, work.staging(number), candidates, self.snapshot.as_of)
            self.say(f"comparing {target.view_name}")
            comparison.index(connection, helpers=self.workers - 1 if self.bounds.max_share == 1 else 0)
            rows = self.manifest.item_count
            Comparing(self.services, comparison, number, rows, self.bounds, self._pause).carry_out(
                connection, self.workers
            )
            settlers.append(self._settler(connection, number, candidates))
            if left := candidates.left(connection).keys:
                self.say(f"resolving {left} differences of {target.view_name}")
                settlers[-1].look(connection, self._pause, changed=False)
                settlers[-1].look(connection, self._pause, changed=True, most=self.bounds.most_read_again)
        self._settle_rest(connection, settlers)
        return sum(settler.give_up(connection) for settler in settlers), self._applied(connection)

    def _settler(self, connection: Connection, number: int, candidates: Candidates) -> Settler:
        return Settler(
            services=self.services,
            mapping=self.mapping,
            target=self.mapping.targets[number],
            candidates=candidates,
            run_id=self.id,
            snapshot=self.snapshot,
            baseline=loads.newest_loaded(connection, self.mapping.name),
            repair=self.repair,
            patience=self.bounds.patience,
            on_drift=self._note_key,
        )

    def _note_key(self, drift: Drift, attributes: Item) -> None:
        if self.show_keys and len(self.keys) < SAMPLES:
            self.keys[drift.target, drift.key_digest] = json.dumps(attributes, separators=(",", ":"))

    def _stage(self, connection: Connection, work: StageWork, *, resumed: bool) -> None:
        """Stage the files that are not staged yet."""
        done = reconciliations.staged_files(connection, self.id)
        waiting = [file for file in self.manifest.files if file.key not in done]
        files = len(self.manifest.files)
        if resumed:
            self.say(f"resuming reconciliation {self.id}: {files - len(waiting)} of {files} files are staged")
        if not done:
            reconciliations.forget_work(connection, self.id)
        for number, target in enumerate(self.mapping.targets):
            work.staging(number).create(connection)
            candidates = Candidates.of(target, work.suffix(number))
            candidates.create(connection)
            if not done:  # left over from a run whose marks are gone
                work.staging(number).clear(connection)
                candidates.clear(connection)
        self._pause(connection)
        progress = Progress(self.manifest, waiting, self._tell_staging)
        workers = self.workers if self.bounds.max_share == 1 else 1
        load_files(work, waiting, progress, workers=workers, processes=self.processes)

    def _tell_staging(self, progress: LoadProgress) -> None:
        self.say.now_and_then(
            f"staged {progress.rows_done:,} of {progress.rows:,} items, {progress.rows_per_second:,.0f} items/s"
        )

    def _applied(self, connection: Connection) -> AppliedThrough:
        return applied_through(
            connection, self.mapping.name, now=self.services.clock.now(), margin=self.snapshot.margin
        )

    def _wait_until_older(self, connection: Connection) -> None:
        """Wait until the snapshot is older than the margin, where how far replication is can only be assumed.

        If both snapshot and targets are empty, nothing can differ, so there is no wait.
        """
        if not self.manifest.item_count and not any(
            reconciliations.has_rows(connection, target) for target in self.mapping.targets
        ):
            return
        until = self.snapshot.time + self.snapshot.margin
        while (left := (until - self.services.clock.now()).total_seconds()) > 0:
            if self._applied(connection).basis != "assumption":
                return
            self.say.now_and_then(
                f"waiting {left:.0f} s until the snapshot is older than the margin, as no probe says how far"
                f" replication is (`dynaurora status {self.mapping.name} --probe` is one)"
            )
            time.sleep(min(left, _SAY_SECONDS))

    def _pause(self, connection: Connection) -> None:
        """Wait while a probe says that replication is too far behind. Raises TransientError if that takes long."""
        if time.monotonic() - self.lag_looked_at < _LAG_LOOK_SECONDS:
            return
        self.lag_looked_at = time.monotonic()
        deadline = time.monotonic() + self.bounds.patience.total_seconds()
        while (lag := self._lag(connection)) > self.bounds.max_lag:
            self.say.now_and_then(f"pausing: replication is {lag.total_seconds():.0f} s behind")
            if time.monotonic() > deadline:
                raise TransientError(
                    f"reconciling: replication is {lag.total_seconds():.0f} s behind and did not catch up within"
                    f" {self.bounds.patience.total_seconds():.0f} s",
                    table=self.mapping.name,
                    hint=f"{self._why_behind()}see `dynaurora status {self.mapping.name}`; run it again with the same"
                    " snapshot to resume",
                )
            time.sleep(_LAG_LOOK_SECONDS)

    def _why_behind(self) -> str:
        """Say why changes may never arrive, where the event source mappings show it."""
        try:
            seen = readers_when_late(self.services, self.mapping)
        except ReplicationError:
            return ""
        return "".join(f"{why}; " for why in why_not_delivered(seen[1])) if seen is not None else ""

    def _lag(self, connection: Connection) -> timedelta:
        applied = self._applied(connection)
        return applied.lag(self.services.clock.now()) if applied.basis == "probe" else timedelta(0)

    def _settle_rest(self, connection: Connection, settlers: list[Settler]) -> None:
        """Look again at undecided rows, as replication passes the states that were read."""
        deadline = time.monotonic() + self.bounds.patience.total_seconds()
        wait = _FIRST_WAIT_SECONDS
        moved, moved_at = (datetime.min.replace(tzinfo=UTC), None), time.monotonic()
        while any(_left(connection, settlers)):
            self._look_at_stream(connection)
            applied = self._applied(connection)
            if moved != (applied.through, applied.newest):
                moved, moved_at = (applied.through, applied.newest), time.monotonic()
            for settler in settlers:
                settler.look(connection, _go_on, ready=settler.applied(connection, self.services.clock.now()).at_best)
            left = _left(connection, settlers)
            keys = sum(each.keys for each in left)
            if not keys or time.monotonic() + wait > deadline:
                return
            if self.cannot_probe and _hopeless(left, applied, self.snapshot.margin, self.services.clock.now()):
                return
            if time.monotonic() - moved_at > _STILL_SECONDS and not any(each.proven for each in left):
                return  # replication is not moving: waiting would be in vain
            self.say.now_and_then(f"waiting until replication has passed the states that {keys} rows differ from")
            time.sleep(wait)
            wait = min(_LONGEST_WAIT_SECONDS, wait * _WAIT_GROWTH)

    def _look_at_stream(self, connection: Connection) -> None:
        """Run a tick of the probe if no sensor does: nothing else shows that an idle table is caught up."""
        if self.cannot_probe:
            return
        tick = probes.read_tick(connection, self.mapping.name)
        if tick is not None and self.services.clock.now() - tick.ticked_at < _TICK_EVERY:
            return
        try:
            probe(self.services, self.mapping)
        except ReplicationError as error:
            self.cannot_probe = True
            self.say(f"deciding without the probe: {error}")

    def samples(self, connection: Connection) -> tuple[DriftSample, ...]:
        """Return some of the drift."""
        return tuple(
            DriftSample(d.target, d.key_digest, d.kind, d.columns, d.repaired, self.keys.get((d.target, d.key_digest)))
            for d in reconciliations.samples(connection, self.id, SAMPLES)
        )

    def report(
        self,
        counts: Counts,
        samples: tuple[DriftSample, ...],
        applied: AppliedThrough,
        *,
        resumed: bool,
        seconds: float,
    ) -> ReconcileReport:
        """Make the report."""
        lag = None if applied.basis == "assumption" else applied.lag(self.services.clock.now()).total_seconds()
        return ReconcileReport(
            table=self.mapping.name,
            reconciliation_id=self.id,
            snapshot=self.manifest.location,
            snapshot_time=self.snapshot.time,
            as_of=self.snapshot.as_of,
            compared=counts.compared,
            in_flight=counts.in_flight,
            missing=counts.missing,
            extra=counts.extra,
            different=counts.different,
            repaired=counts.repaired,
            no_proof=counts.no_proof,
            rejected=counts.rejected,
            by_column=counts.by_column,
            samples=samples,
            seconds=seconds,
            stale=counts.stale,
            undecided=counts.undecided,
            behind_seconds=lag if counts.undecided else None,
            resumed=resumed,
        )


def _go_on(_: Connection) -> None:
    """Do not pause: this step waits for replication anyway."""


def _left(connection: Connection, settlers: list[Settler]) -> list[Left]:
    left = [settler.candidates.left(connection) for settler in settlers]
    return [each for each in left if each.keys]


def _hopeless(left: list[Left], applied: AppliedThrough, margin: timedelta, now: datetime) -> bool:
    """Return whether how far replication is can only be assumed, and no time to come would decide by it."""
    if applied.basis != "assumption" or any(each.proven for each in left):
        return False
    newest_read = max((each.newest_read for each in left if each.newest_read), default=None)
    if applied.newest is None:
        return True
    return newest_read is not None and now - margin > newest_read + _GRACE
