"""Explain one item: what the source holds now, what is stored, and what each flow knows about it.

Invariant: it writes nothing, and shows no values unless asked. Its verdict is as careful as a reconciliation's: a
difference is drift only if no change on its way can explain it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from pipeline.aurora.bookkeeping import item_records, protection, rejects, sources
from pipeline.aurora.bookkeeping.applied_through import AppliedThrough, applied_through
from pipeline.aurora.bookkeeping.item_records import FoundDrift, OpenPromotion, TableState, WriterMark
from pipeline.aurora.bookkeeping.rejects import ItemReject
from pipeline.aurora.compare import compare
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.staging import Staging
from pipeline.core.decode.routing import Router
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import ConversionError, DataError, key_digest
from pipeline.core.streams.positions import stream_and_sequence
from pipeline.core.streams.stream_records import keys_digest
from pipeline.jobs.protecting import read_again
from pipeline.jobs.reconcile.settle import is_behind

if TYPE_CHECKING:
    from pipeline.aurora.compare.compare import Compared
    from pipeline.aurora.compare.key_ranges import Key
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.attributes import Item
    from pipeline.core.model.mapping import TableMapping, Target
    from pipeline.dynamodb.items import ItemRead
    from pipeline.jobs.services import Services

WaitedFor = Literal["equal", "cannot be stored", "behind", "drift", "in flight", "not routed"]
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ItemInTarget:
    """One target's row of the item, against the source."""

    target: str
    key_digest: str
    """As drift is recorded."""
    state: Literal["live", "tombstone", "absent"]
    as_of: datetime | None
    version: int | None
    stream_created: datetime | None
    sequence_number: str | None
    """The parts of `version`: the stream that brought the row, and the place in it; None for a snapshot's row."""
    verdict: WaitedFor
    why: str
    next_step: str | None
    kind: str | None
    """missing, extra or different; None if nothing differs, or nothing can be compared."""
    columns: dict[str, bool]
    """Whether each column is equal, if both sides have a row."""
    values: dict[str, tuple[str | None, str | None]]
    """The source's and the stored text of each column; empty unless asked for."""
    drift: list[FoundDrift]
    promotions: list[OpenPromotion]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of one item."""

    table: str
    key_digest: str
    """As rejects of the stream are recorded."""
    source: Literal["exists", "absent"]
    read_at: datetime
    attributes: int
    """How many attributes the item has."""
    applied_through: datetime
    applied_basis: str
    state: TableState
    writers: list[WriterMark]
    rejects: list[ItemReject]
    """Those of the item that wait."""
    targets: list[ItemInTarget] = field(default_factory=list[ItemInTarget])

    @property
    def needs_person(self) -> bool:
        """Whether something is wrong and will not become right by itself."""
        return any(target.verdict in {"behind", "drift", "cannot be stored"} for target in self.targets)


def explain(
    services: Services, mapping: TableMapping, key: Item, *, values: bool = False, patience: timedelta = timedelta(0)
) -> Explanation:
    """Explain the item with the key attributes `key` (wire form). Waits up to `patience` for replication to pass it.

    Raises TransientError, TerminalError.
    """
    mapping = services.with_key(mapping)
    with services.connect("dynaurora reconcile key") as connection:
        sources.require(connection, mapping.name, mapping.table, doing="explaining an item")
        protection.require(connection, mapping, doing="explaining an item")
        deadline = time.monotonic() + patience.total_seconds()
        looking = _Looking(services, mapping, connection, key)
        found = looking.look(values=values)
        while any(target.verdict == "in flight" for target in found.targets) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
            found = looking.look(values=values)
    return found


@dataclass
class _Looking:
    services: Services
    mapping: TableMapping
    connection: Connection
    key: Item
    first_looks: dict[str, tuple[str, datetime]] = field(default_factory=dict[str, tuple[str, datetime]])
    """By target, the row's mark at the first look that found it wrong, and when the source was read then."""

    def look(self, *, values: bool) -> Explanation:
        connection, mapping = self.connection, self.mapping
        targets = Router(mapping).route(self.key)
        before = {target: self._mark(target) for target in targets}
        (read,) = read_again(self.services, mapping, [self.key])
        applied = applied_through(connection, mapping.name, now=self.services.clock.now(), margin=mapping.margin)
        digest = keys_digest(read.key)
        waiting = rejects.waiting_of_items(connection, mapping.name, [(digest, read.key)]).get(0, [])
        explanation = Explanation(
            table=mapping.name,
            key_digest=digest,
            source="absent" if read.item is None else "exists",
            read_at=read.read_at,
            attributes=len(read.item or ()),
            applied_through=applied.through,
            applied_basis=applied.basis,
            state=item_records.table_state(connection, mapping.name),
            writers=item_records.writer_marks(connection, mapping.name),
            rejects=waiting,
        )
        for target in targets:
            explanation.targets.append(
                self._in_target(target, before[target], read, applied, explanation, values=values)
            )
        return explanation

    def _mark(self, target: Target) -> str:
        try:
            (mark,) = compare.marks(self.connection, target, [RowDecoder(target).key(self.key)])
        except ConversionError:
            return ""
        return mark

    def _in_target(
        self,
        target: Target,
        before: str,
        read: ItemRead,
        applied: AppliedThrough,
        explanation: Explanation,
        *,
        values: bool,
    ) -> ItemInTarget:
        decoder, name = RowDecoder(target), target.view_name
        reason, compared, texts = None, None, dict[str, tuple[str | None, str | None]]()
        key: Key = ()
        try:
            key = decoder.key(read.key)
            row = None if read.item is None else decoder.row(read.item)
        except ConversionError as error:
            reason, row = error.message, None
        if key:
            with translating("comparing the item", table=self.mapping.name), self.connection.transaction():
                staging = Staging.temporary(self.connection, target)
                try:
                    if row is not None:
                        with self.connection.transaction():
                            staging.copy(self.connection, [[row]])
                except DataError as error:
                    reason = error.message
                (compared,) = compare.compare_keys(self.connection, target, staging, [key])
                if values:
                    texts = compare.texts_of_key(self.connection, target, staging, key)
        verdict, why, step = self._judge(target, before, compared, reason, read, applied, explanation.rejects)
        stream, sequence = (
            stream_and_sequence(compared.version) if compared and compared.version is not None else (None, None)
        )
        digest = key_digest(key)
        both = compared is not None and reason is None and compared.deleted is False and read.item is not None
        return ItemInTarget(
            target=name,
            key_digest=digest,
            state="absent"
            if compared is None or compared.deleted is None
            else "tombstone"
            if compared.deleted
            else "live",
            as_of=compared.as_of if compared else None,
            version=compared.version if compared else None,
            stream_created=stream,
            sequence_number=sequence,
            verdict=verdict,
            why=why,
            next_step=step,
            kind=compared.kind if compared and reason is None else None,
            columns={column: column not in compared.columns for column in _compared(target)}
            if both and compared
            else {},
            values=texts,
            drift=item_records.drift_of(self.connection, self.mapping.name, name, [digest]),
            promotions=item_records.promotions_of(self.connection, self.mapping.name, name),
        )

    def _judge(
        self,
        target: Target,
        before: str,
        compared: Compared | None,
        reason: str | None,
        read: ItemRead,
        applied: AppliedThrough,
        waiting: list[ItemReject],
    ) -> tuple[WaitedFor, str, str | None]:
        """Return the verdict, why, and the next step."""
        table = self.mapping.name
        if reason is not None or compared is None:
            step = f"correct the mapping, then `dynaurora rejects replay {table}`"
            return "cannot be stored", f"the target cannot hold the item: {reason}", step
        if compared.kind is None:
            return "equal", "the stored row is what the source holds", None
        behind = is_behind(compared, target, waiting)
        if behind:
            step = f"see `dynaurora rejects show {behind.id}`, then `dynaurora rejects replay {table}`"
            return "behind", f"a newer state of the item waits as reject {behind.id}", step
        mark, read_at = self.first_looks.get(target.view_name, (before, read.read_at))
        if mark != compared.mark:
            mark, read_at = before, read.read_at
        self.first_looks[target.view_name] = (mark, read_at)
        if mark == compared.mark and read_at <= applied.read_covered:
            passed = f"replication has passed {read_at:%Y-%m-%d %H:%M:%S} UTC, when that was read"
            return "drift", f"the row is {compared.kind}, and {passed}", f"run `dynaurora reconcile {table} --repair`"
        known = f"is known to be at {applied.through:%Y-%m-%d %H:%M:%S} UTC"
        if applied.basis == "assumption":
            known = "is not watched by a probe, so it is not known how far it is"
        step = f"ask again in a while; `dynaurora reconcile {table}` decides"
        return "in flight", f"the row is {compared.kind}, and a change may be on its way: replication {known}", step


def _compared(target: Target) -> Mapping[str, None]:
    """Return the names of the columns that are compared, without the key's."""
    names = [name for name in target.stored_columns if name not in target.primary_key]
    return dict.fromkeys([*names, *(child.view_name for child in target.children)])
