"""Reconcile: prove that a table's targets equal a snapshot of it, name what differs, and mend it when asked.

Invariant: only a settled difference is called drift. A row changed after the snapshot is in flight; what remains is
read again from DynamoDB by key, consistently, and compared again, each row with its own state now. A repair is a
snapshot like any other, so the ordering rule keeps it from undoing a newer change.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.aurora import compare, loads, reconciliations
from pipeline.aurora.apply import ApplyStatement
from pipeline.aurora.errors import translating
from pipeline.aurora.reconciliations import Counts, Drift
from pipeline.aurora.staging import Staging, store_isolating
from pipeline.core.change import Change, Row, coalesce
from pipeline.core.decode import RowDecoder
from pipeline.core.errors import ConversionError, DataError, key_digest
from pipeline.core.export_lines import decode_full
from pipeline.core.export_routing import route_block
from pipeline.core.keys import key_attributes
from pipeline.core.ordering import snapshot_position
from pipeline.core.routing import Router
from pipeline.dynamodb.export_files import check_count, count_lines, read_lines
from pipeline.dynamodb.items import read_items
from pipeline.dynamodb.manifest import read_manifest
from pipeline.dynamodb.objects import join_location

if TYPE_CHECKING:
    from pipeline.aurora.compare import Difference
    from pipeline.aurora.connection import Connection
    from pipeline.core.attributes import AttributeValue
    from pipeline.core.mapping import TableMapping, Target
    from pipeline.dynamodb.manifest import ExportFile, ExportManifest
    from pipeline.jobs.services import Services

SAMPLES = 20
_KEYS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class DriftSample:
    """One drifted row, named by the digest of its key."""

    target: str
    key_digest: str
    kind: str
    columns: tuple[str, ...]
    repaired: bool


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """What a reconciliation found. `compared` counts keys of snapshot and targets that could be decided."""

    table: str
    reconciliation_id: int
    snapshot: str
    snapshot_time: datetime
    as_of: datetime
    compared: int
    in_flight: int
    missing: int
    extra: int
    different: int
    repaired: int
    rejected: int
    """Items that a target cannot hold, or that match none: kept as rejects when they came, and no drift."""
    by_column: dict[str, int]
    samples: tuple[DriftSample, ...]
    seconds: float

    @property
    def drift(self) -> int:
        """Settled differences, repaired or not."""
        return self.missing + self.extra + self.different


def reconcile(
    services: Services,
    mapping: TableMapping,
    location: str,
    *,
    repair: bool = False,
    margin: timedelta | None = None,
    workers: int = 2,
    on_progress: Callable[[str], None] | None = None,
) -> ReconcileReport:
    """Compare every target of `mapping` with the full export at `location`; mend the drift when `repair`.

    Waits until the snapshot is older than the margin, because a change younger than that may rightly be on its
    way still. One at a time for each table. Raises TransientError, TerminalError; then nothing was repaired that
    was not a newer state of its row.
    """
    margin = mapping.margin if margin is None else margin
    say = on_progress or _say_nothing
    manifest = read_manifest(services.store(location), location, expected_table=mapping.table)
    as_of = snapshot_position(manifest.snapshot_time, margin).as_of
    run = _Run(services, mapping, manifest, margin, as_of, repair=repair)
    with services.connect("dynaurora reconcile") as connection:
        reconciliations.lock_table(connection, mapping.name)
        loads.keep_loads_out(connection, mapping.name)
        reconciliations.drop_leftovers(connection, mapping.name)
        run_id = reconciliations.begin(
            connection, mapping.name, snapshot=location, snapshot_time=manifest.snapshot_time, as_of=as_of
        )
        try:
            for number, target in enumerate(mapping.targets):
                staging = Staging.unlogged(connection, target, f"reconcile_{run_id}_{number}")
                try:
                    say(f"staging {manifest.item_count} items for {target.view_name}")
                    run.unfit |= _stage(run, staging, workers)
                    _wait_until_older(manifest.snapshot_time + margin, say)
                    say(f"comparing {target.view_name}")
                    run.compare(connection, staging, say)
                finally:
                    staging.drop(connection)
        except BaseException:
            reconciliations.fail(connection, run_id)
            raise
        run.counts.rejected = len(run.unfit)
        reconciliations.finish(connection, run_id, run.counts, run.by_column, run.drift)
    return run.report(run_id)


def _say_nothing(_: str) -> None:
    """Progress that nobody asked for."""


def _wait_until_older(moment: datetime, say: Callable[[str], None]) -> None:
    seconds = (moment - datetime.now(UTC)).total_seconds()
    if seconds > 0:
        say(f"waiting {seconds:.0f} s until the snapshot is older than the margin")
        time.sleep(seconds)


def _stage(run: _Run, staging: Staging, workers: int) -> set[str]:
    """Copy the snapshot's rows of one target to the staging table; returns the digests of items it cannot hold.

    Items that match no target are found with the first one.
    """
    files = [file for file in run.manifest.files if file.item_count]
    with ThreadPoolExecutor(max_workers=max(1, min(workers, len(files) or 1)), thread_name_prefix="stage") as pool:
        return set[str]().union(*pool.map(partial(_stage_file, run, staging), files))


def _stage_file(run: _Run, staging: Staging, file: ExportFile) -> set[str]:
    """Stage one file; again with savepoints when PostgreSQL refuses a value, to set that item alone aside."""
    try:
        return _stage_blocks(run, staging, file, isolate=False)
    except DataError:
        return _stage_blocks(run, staging, file, isolate=True)


def _stage_blocks(run: _Run, staging: Staging, file: ExportFile, *, isolate: bool) -> set[str]:
    bucket, lines = run.manifest.bucket, 0
    unfit: set[str] = set()
    location, mapping = join_location(bucket, file.key), run.mapping
    decoder, router = RowDecoder(staging.target), Router(mapping)
    finds_unmatched = router.rejects_unmatched and staging.target is mapping.targets[0]

    def refuse(row: Row, _: DataError) -> None:
        unfit.add(item_digest(mapping, key_attributes(mapping, staging.target, decoder.key_of(row))))

    with (
        run.services.connect("dynaurora reconcile worker") as connection,
        translating(f"staging {location}", table=mapping.name),
        connection.transaction(),
    ):
        for block in read_lines(run.services.store(run.manifest.location), bucket, file):
            routed = route_block(block, router, file=location, first_line=lines + 1)
            if finds_unmatched:
                unfit.update(_line_digest(mapping, line) for line in routed.unmatched)
            if part := routed.parts.get(staging.target):
                rows, failures = part.decode(partial(decode_full, decoder=decoder, file=location))
                unfit.update(_line_digest(mapping, line) for line, _ in failures)
                if isolate:
                    staging.copy_isolating(connection, rows, refuse)
                else:
                    staging.copy(connection, [rows])
            lines += count_lines(block)
        check_count(file, bucket, lines)
    return unfit


def item_digest(mapping: TableMapping, attributes: Mapping[str, AttributeValue]) -> str:
    """Name an item by the digest of its key attributes."""
    return key_digest(repr(attributes.get(name)) for name in mapping.key)


def _line_digest(mapping: TableMapping, line: bytes) -> str:
    return item_digest(mapping, json.loads(line)["Item"])


@dataclass
class _Run:
    """One reconciliation at work: what it settled so far."""

    services: Services
    mapping: TableMapping
    manifest: ExportManifest
    margin: timedelta
    as_of: datetime
    repair: bool
    counts: Counts = field(default_factory=Counts)
    by_column: Counter[str] = field(default_factory=Counter[str])
    drift: list[Drift] = field(default_factory=list[Drift])
    unfit: set[str] = field(default_factory=set[str])
    """Digests of the items that a target cannot hold."""
    started: float = field(default_factory=time.monotonic)

    def compare(self, connection: Connection, staging: Staging, say: Callable[[str], None]) -> None:
        """Compare one target with its staged snapshot and settle every difference."""
        target = staging.target
        compared, in_flight = compare.count(connection, target, staging, self.as_of)
        self.counts.compared += compared
        self.counts.in_flight += in_flight
        with self.services.connect("dynaurora reconcile settle") as settling:
            found = compare.differences(connection, target, staging, self.as_of)
            while chunk := list(islice(found, _KEYS_AT_ONCE)):
                say(f"settling {len(chunk)} differences of {target.view_name}")
                self._settle(settling, target, chunk)

    def _settle(self, connection: Connection, target: Target, chunk: Sequence[Difference]) -> None:
        """Read the keys again, compare again, and call drift what still differs."""
        decoder = RowDecoder(target)
        keys = {self._canonical(decoder, difference.key) for difference in chunk}
        again = self._read_again(decoder, sorted(keys))
        settled = self._differences(connection, decoder, again)
        self.counts.in_flight += len(again) - len(settled)
        left: set[tuple[str, ...]] = {difference.key for difference in settled}
        if self.repair and settled:
            statement = ApplyStatement(target, self.mapping.name)
            refused = self._repair(connection, statement, coalesce(c for c in again if c.key in left))
            settled = [difference for difference in settled if difference.key not in refused]
            left = {difference.key for difference in self._differences(connection, decoder, again)}
        for difference in settled:
            self._record(target, difference, repaired=self.repair and difference.key not in left)

    def _repair(self, connection: Connection, statement: ApplyStatement, changes: list[Change]) -> set[tuple[str, ...]]:
        """Apply changes; returns the keys of those that PostgreSQL refused."""
        refused: set[tuple[str, ...]] = set()

        def refuse(change: Change, _: DataError) -> None:
            refused.add(change.key)
            self.unfit.add(item_digest(self.mapping, key_attributes(self.mapping, statement.target, change.key)))

        def apply(part: Sequence[Change]) -> int:
            with translating("repairing", table=self.mapping.name):
                return statement.apply(connection, list(part))[0]

        with translating("repairing", table=self.mapping.name), connection.transaction():
            store_isolating(connection, changes, apply, refuse)
        return refused

    def _canonical(self, decoder: RowDecoder, key: tuple[str, ...]) -> tuple[str, ...]:
        """Return a stored key as the codec writes it: PostgreSQL shows 1.5 as 1.50 in a numeric(4,2)."""
        return decoder.key(key_attributes(self.mapping, decoder.target, key))

    def _record(self, target: Target, difference: Difference, *, repaired: bool) -> None:
        counts = self.counts
        setattr(counts, difference.kind, getattr(counts, difference.kind) + 1)
        counts.repaired += repaired
        self.by_column.update(difference.columns)
        digest = key_digest(difference.key)
        self.drift.append(Drift(target.view_name, digest, difference.kind, difference.columns, repaired))

    def _read_again(self, decoder: RowDecoder, keys: Sequence[tuple[str, ...]]) -> list[Change]:
        """Return each key's state now as a snapshot, leaving out items that the target cannot hold."""
        wanted = [key_attributes(self.mapping, decoder.target, key) for key in keys]
        changes: list[Change] = []
        for read in read_items(self.services.dynamodb, self.mapping.table, wanted):
            position = snapshot_position(read.read_at, self.margin)
            try:
                row = None if read.item is None else decoder.row(read.item)
                changes.append(Change(decoder.key(read.key), row, position))
            except ConversionError:
                self.unfit.add(item_digest(self.mapping, read.key))
        return changes

    def _differences(self, connection: Connection, decoder: RowDecoder, again: Sequence[Change]) -> list[Difference]:
        if not again:
            return []
        earliest = min(change.position.as_of for change in again)
        with translating("comparing items read again", table=self.mapping.name), connection.transaction():
            staging = Staging.temporary(connection, decoder.target)
            rows = [change.row for change in again if change.row is not None]

            def refuse(row: Row, _: DataError) -> None:
                key = key_attributes(self.mapping, decoder.target, decoder.key_of(row))
                self.unfit.add(item_digest(self.mapping, key))

            staging.copy_isolating(connection, rows, refuse)
            keys = [change.key for change in again]
            found = compare.differences_of_keys(connection, decoder.target, staging, keys, earliest)
        return [
            replace(difference, key=self._canonical(decoder, difference.key))
            for difference in found
            if not self._is_unfit(decoder, difference.key)
        ]

    def _is_unfit(self, decoder: RowDecoder, key: tuple[str, ...]) -> bool:
        return item_digest(self.mapping, key_attributes(self.mapping, decoder.target, key)) in self.unfit

    def report(self, run_id: int) -> ReconcileReport:
        """Return the outcome."""
        return ReconcileReport(
            table=self.mapping.name,
            reconciliation_id=run_id,
            snapshot=self.manifest.location,
            snapshot_time=self.manifest.snapshot_time,
            as_of=self.as_of,
            compared=self.counts.compared,
            in_flight=self.counts.in_flight,
            missing=self.counts.missing,
            extra=self.counts.extra,
            different=self.counts.different,
            repaired=self.counts.repaired,
            rejected=len(self.unfit),
            by_column=dict(self.by_column),
            samples=tuple(
                DriftSample(d.target, d.key_digest, d.kind, d.columns, d.repaired) for d in self.drift[:SAMPLES]
            ),
            seconds=time.monotonic() - self.started,
        )
