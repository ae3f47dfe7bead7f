"""Resolve differences: read each again from DynamoDB, compare it again, judge it, record it and, if asked, repair it.

Invariant: a key leaves the list of differences in the transaction that records its drift and its repair. A repair is a
snapshot like any other, so the ordering rule keeps it from undoing a newer change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import rejects
from pipeline.aurora.bookkeeping.applied_through import AppliedThrough, AppliedToKeys, applied_to_keys
from pipeline.aurora.compare import compare, reconciliations
from pipeline.aurora.compare.candidates import Look
from pipeline.aurora.compare.reconciliations import Drift
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.apply import ApplyStatement
from pipeline.aurora.rows.isolating import judging, store_isolating
from pipeline.aurora.rows.staging import Staging
from pipeline.core.decode.keys import key_attributes
from pipeline.core.decode.routing import NO_TARGET
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import ConversionError, DataError, key_digest
from pipeline.core.model.attributes import canonical_number
from pipeline.core.model.change import Change, Row
from pipeline.core.ordering import Position, snapshot_position, supersedes
from pipeline.core.streams.stream_records import keys_digest
from pipeline.jobs.clocks import refuse_wrong_clock
from pipeline.jobs.protecting import read_again
from pipeline.jobs.reconcile.stage_file import item_digest
from pipeline.jobs.reconcile.verdict import SnapshotTime, Verdict, judge

if TYPE_CHECKING:
    from pipeline.aurora.bookkeeping.rejects import ItemReject
    from pipeline.aurora.compare.candidates import Candidate, Candidates
    from pipeline.aurora.compare.compare import Compared
    from pipeline.aurora.compare.key_ranges import Key
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.attributes import Item
    from pipeline.core.model.mapping import TableMapping, Target
    from pipeline.jobs.services import Services

KEYS_AT_ONCE = 300
# Positions are precise to the second.
_GRAIN = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class _Read:
    """A candidate with the source's current state. `change` None: the target cannot hold it."""

    candidate: Candidate
    key: Key
    """The primary key's texts as the codec writes them: in a numeric(4,2) PostgreSQL shows 1.5 as 1.50."""
    attributes: Item
    """The item's key attributes."""
    read_at: datetime
    change: Change | None


@dataclass
class _Outcome:
    """The results of a chunk of candidates."""

    drift: list[Drift] = field(default_factory=list[Drift])
    settled: list[int] = field(default_factory=list[int])
    looks: list[Look] = field(default_factory=list[Look])
    in_flight: int = 0


@dataclass(kw_only=True)
class Settler:
    """Resolves the differences of one target."""

    services: Services
    mapping: TableMapping
    target: Target
    candidates: Candidates
    run_id: int
    snapshot: SnapshotTime
    baseline: datetime | None
    """The time of the newest full load's snapshot: a live row that is older holds an older state."""
    repair: bool
    patience: timedelta
    on_drift: Callable[[Drift, Item], None]

    def __post_init__(self) -> None:
        self._decoder = RowDecoder(self.target)
        self._statement = ApplyStatement(
            self.target, self.mapping.name, self.mapping.table, protection=self.mapping.protection
        )

    def look(
        self,
        connection: Connection,
        pause: Callable[[Connection], None],
        *,
        changed: bool | None = None,
        ready: AppliedThrough | None = None,
        most: int | None = None,
    ) -> int:
        """Look at every candidate once: those changed since the snapshot, those not changed, or all; at most `most`.

        With `ready`, only at those that replication has now passed. Returns how many.
        """
        after, seen = 0, 0
        while most is None or seen < most:
            pause(connection)
            chunk = self.candidates.next(
                connection,
                after=after,
                most=KEYS_AT_ONCE if most is None else min(KEYS_AT_ONCE, most - seen),
                changed=changed,
                ready=(self.services.clock.now(), ready.read_covered) if ready else None,
            )
            if not chunk:
                break
            self._settle(connection, chunk)
            after, seen = chunk[-1].number, seen + len(chunk)
        return seen

    def applied(self, connection: Connection, now: datetime, keys: Sequence[Key] = ()) -> AppliedToKeys:
        """Return how far replication is for these keys of the target."""
        return applied_to_keys(
            connection, self.mapping.name, self.target.view_name, keys, now=now, margin=self.snapshot.margin
        )

    def give_up(self, connection: Connection) -> int:
        """Record drift that is proven and could not be repaired in time; returns how many rows stay undecided."""
        after = 0
        while chunk := self.candidates.next(connection, after=after, most=KEYS_AT_ONCE):
            after = chunk[-1].number
            if proven := [candidate for candidate in chunk if candidate.proven]:
                self._settle(connection, proven, last=True)
        return self.candidates.left(connection).keys

    def _settle(self, connection: Connection, chunk: Sequence[Candidate], *, last: bool = False) -> None:
        before = compare.marks(connection, self.target, [candidate.key for candidate in chunk])
        reads = self._read_again(chunk)
        now = self.services.clock.now()
        applied = self.applied(connection, now, [read.key for read in reads])
        outcome = _Outcome()
        with translating("settling differences", table=self.mapping.name), connection.transaction():
            unfit = {item_digest(self.mapping, read.attributes) for read in reads if read.change is None}
            staging = self._staged(connection, reads, unfit)
            keys = [read.candidate.key for read in reads]
            drifted: list[tuple[_Read, Compared]] = []
            for read, mark, compared in zip(
                reads, before, compare.compare_keys(connection, self.target, staging, keys), strict=True
            ):
                if item_digest(self.mapping, read.attributes) in unfit:
                    outcome.settled.append(read.candidate.number)
                    continue
                verdict = judge(
                    read.candidate, compared, before=mark, applied=applied.of(read.key), snapshot=self.snapshot, now=now
                )
                if verdict is Verdict.DRIFT:
                    drifted.append((read, compared))
                elif verdict is Verdict.RIGHT:
                    outcome.in_flight += 1
                    outcome.settled.append(read.candidate.number)
                else:
                    outcome.looks.append(_look(read, mark, compared))
            self._settle_drift(connection, staging, drifted, unfit, outcome, applied.behind, last=last, now=now)
            reconciliations.add_unfit(connection, self.run_id, unfit)
            reconciliations.add_resolved(connection, self.run_id, outcome.drift, in_flight=outcome.in_flight)
            self.candidates.remove(connection, outcome.settled)
            self.candidates.keep(connection, outcome.looks)

    def _read_again(self, chunk: Sequence[Candidate]) -> list[_Read]:
        """Read each candidate's item, consistently."""
        decoder, mapping = self._decoder, self.mapping
        attributes = [key_attributes(mapping, self.target, candidate.key) for candidate in chunk]
        found_reads = read_again(self.services, mapping, attributes)
        reads = {_identity(mapping, read.key): read for read in found_reads}
        found: list[_Read] = []
        for candidate, keys in zip(chunk, attributes, strict=True):
            read = reads[_identity(mapping, keys)]
            position = snapshot_position(read.read_at, self.snapshot.margin)
            key, change = candidate.key, None
            try:
                key = decoder.key(keys)
                change = Change(key, None if read.item is None else decoder.row(read.item), position)
            except ConversionError:
                pass  # it is handled as an item that the target cannot hold
            found.append(_Read(candidate, key, read.key, read.read_at, change))
        return found

    def _staged(self, connection: Connection, reads: Sequence[_Read], unfit: set[str]) -> Staging:
        """Stage the source's states, so that PostgreSQL compares them as it would store them."""
        staging = Staging.temporary(connection, self.target)
        rows = [read.change.row for read in reads if read.change and read.change.row is not None]

        def refuse(row: Row, _: DataError) -> None:
            key = key_attributes(self.mapping, self.target, self._decoder.key_of(row))
            unfit.add(item_digest(self.mapping, key))

        staging.copy_isolating(connection, rows, refuse)
        return staging

    def _settle_drift(
        self,
        connection: Connection,
        staging: Staging,
        drifted: Sequence[tuple[_Read, Compared]],
        unfit: set[str],
        outcome: _Outcome,
        behind: Mapping[Key, Position],
        *,
        last: bool,
        now: datetime,
    ) -> None:
        """Repair drift if asked and if the ordering rule allows it; record it, or keep it until it may be repaired."""
        after = {read.candidate.number: compared for read, compared in drifted}
        repairable = [(read, found) for read, found in drifted if self.repair and _may_replace(read, found)]
        if repairable:
            refused = self._repair(connection, [read.change for read, _ in repairable if read.change])
            unfit |= {item_digest(self.mapping, read.attributes) for read, _ in repairable if read.key in refused}
            again = compare.compare_keys(
                connection, self.target, staging, [read.candidate.key for read, _ in repairable]
            )
            after |= {read.candidate.number: compared for (read, _), compared in zip(repairable, again, strict=True)}
        kinds = self._kinds(connection, drifted, behind)
        for read, found in drifted:
            number, left = read.candidate.number, after[read.candidate.number]
            if item_digest(self.mapping, read.attributes) in unfit:
                outcome.settled.append(number)
            elif left.kind is not None and left.mark != found.mark:
                outcome.looks.append(Look(number, None, None, proven=False, not_before=None))  # a newer change came
            elif left.kind is not None and self._worth_waiting(read, found, now) and not last:
                not_before = _repairable_from(found, self.snapshot.margin)
                outcome.looks.append(Look(number, found.mark, read.read_at, proven=True, not_before=not_before))
            else:
                digest = key_digest(read.key)
                repaired = left.kind is None
                drift = Drift(
                    self.target.view_name, digest, kinds.get(number, found.kind or ""), found.columns, repaired
                )
                outcome.settled.append(number)
                outcome.drift.append(drift)
                self.on_drift(drift, read.attributes)

    def _worth_waiting(self, read: _Read, found: Compared, now: datetime) -> bool:
        """Whether a row that is too new to repair will be old enough before the wait ends."""
        from_when = _repairable_from(found, self.snapshot.margin)
        return self.repair and from_when is not None and read.read_at < from_when <= now + self.patience

    def _kinds(
        self, connection: Connection, drifted: Sequence[tuple[_Read, Compared]], behind: Mapping[Key, Position]
    ) -> dict[int, str]:
        """Return which of the different rows are stale: there is evidence that they hold an older state.

        `behind` holds changes that, as the probe saw, have not arrived.
        """
        different = [(read, found) for read, found in drifted if found.kind == "different" and found.as_of]
        waiting = rejects.waiting_of_items(
            connection, self.mapping.name, [(keys_digest(read.attributes), read.attributes) for read, _ in different]
        )
        stale: dict[int, str] = {}
        for index, (read, found) in enumerate(different):
            if found.as_of is None:  # pragma: no cover - only rows with a time are passed in
                continue
            behind_load = self.baseline is not None and found.as_of < self.baseline
            behind_reject = is_behind(found, self.target, waiting.get(index, ()))
            missed = behind.get(read.key)
            behind_stream = missed is not None and supersedes(missed, Position(found.as_of, found.version))
            if behind_load or behind_stream or behind_reject is not None:
                stale[read.candidate.number] = "stale"
        return stale

    def _repair(self, connection: Connection, changes: Sequence[Change]) -> set[Key]:
        """Apply changes; returns the keys of those that PostgreSQL refused."""
        refuse_wrong_clock(self.services, self.mapping, self.snapshot.margin, "repairing", connection)
        refused: set[Key] = set()

        def refuse(change: Change, _: DataError) -> None:
            refused.add(change.key)

        def apply(part: Sequence[Change]) -> int:
            with translating("repairing", table=self.mapping.name):
                return self._statement.apply(connection, list(part))[0]

        judge = judging(connection, self._statement, "repairing")
        store_isolating(connection, self._statement.candidates(changes), apply, refuse, judge)
        return refused


def is_behind(found: Compared, target: Target, waiting: Sequence[ItemReject]) -> ItemReject | None:
    """Return the newest waiting reject of the item for this target, if the stored row is older than it."""
    stored = None if found.as_of is None else Position(found.as_of, found.version)
    of_target = (reject for reject in waiting if reject.target in {target.view_name, NO_TARGET})
    return next((reject for reject in of_target if stored is None or supersedes(reject.position, stored)), None)


def _look(read: _Read, before: str, compared: Compared) -> Look:
    """Keep a look for the next: the earlier one if the row has not changed since, as replication passes it sooner."""
    candidate = read.candidate
    if candidate.mark is not None and candidate.mark == compared.mark:
        return Look(candidate.number, candidate.mark, candidate.read_at, proven=False, not_before=None)
    if before == compared.mark:
        return Look(candidate.number, before, read.read_at, proven=False, not_before=None)
    return Look(candidate.number, None, None, proven=False, not_before=None)


def _may_replace(read: _Read, found: Compared) -> bool:
    if read.change is None:
        return False
    return found.as_of is None or supersedes(read.change.position, Position(found.as_of, found.version))


def _repairable_from(found: Compared, margin: timedelta) -> datetime | None:
    return None if found.as_of is None else found.as_of + margin + _GRAIN


def _identity(mapping: TableMapping, attributes: Item) -> str:
    """Name an item by its key attributes, numbers by value: DynamoDB answers `1` where `1.0` was asked for."""
    return key_digest(
        f"{tag}{canonical_number(value) if tag == 'N' else value}"
        for name in mapping.key
        for tag, value in attributes[name].items()
    )
