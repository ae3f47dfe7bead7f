"""Promote: fill new columns of the mapping from the jsonb column, while replication continues.

Invariant: an attribute is in the jsonb column of a row only if the row was last written by a replicator that did not
know its column (one that knows it leaves it out). So what is found there is newer than what the column holds, and
replaces it. A row that anyone writes meanwhile is left as it is. So promoting never undoes a newer value, may be
interrupted and run again, and ends with a pass over all keys that found nothing more to do.

Deploy the mapping to every replicator first. One that still runs with the old mapping does not touch the new column. If
it writes an item that has the attribute, the next pass picks that up. If it writes one that no longer has it, the
column of a row that was already promoted keeps the old value, which only reconciliation can see.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping.settled import add as add_resolved
from pipeline.aurora.errors import translating
from pipeline.aurora.rows import promotion as promotions
from pipeline.aurora.rows.promotion import FilledRow, Promotion, StoredRow
from pipeline.aurora.sessions import advisory_locks
from pipeline.aurora.sessions.advisory_locks import giving_locks_back
from pipeline.core.errors import ConfigurationError, ConversionError, DataError, TerminalError, TransientError
from pipeline.core.types.conversion import converter
from pipeline.core.types.stored_json import attribute_value, parse

if TYPE_CHECKING:
    from pipeline.aurora.rows.promotion import Key
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping, Target
    from pipeline.jobs.services import Services

LONGEST_LOCK_SECONDS = 1.0
"""The limit: a statement that takes longer is cancelled and retried with half the rows."""
_WANTED_SECONDS = 0.1
_FIRST_ROWS, _FEWEST_ROWS, _MOST_ROWS = 1_000, 10, 20_000
_SURVEYED_ROWS = 50_000
_MOST_PASSES = 5
_ATTEMPTS = 20
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class PromotedAttribute:
    """What became of one attribute of one target."""

    target: str
    attribute: str
    columns: tuple[str, ...]
    waiting: int
    """Rows that were to be looked at when it began."""
    filled: int
    """Rows that were changed."""
    settled: int
    """Values among these that a column could not hold, and that its `on_error` made NULL or cut."""
    refused: dict[str, int]
    """Values that a column cannot hold, by column and reason: they stay in the jsonb column, and the column is NULL."""
    passes: int
    finished: bool
    """Whether the last pass over all keys found nothing to do. If not, something still writes without the column."""


@dataclass(frozen=True, slots=True)
class PromoteReport:
    """What a promotion did. `longest_lock_seconds`: the longest transaction that held row locks, commit included."""

    table: str
    attributes: tuple[PromotedAttribute, ...]
    seconds: float
    longest_lock_seconds: float

    @property
    def refused(self) -> int:
        """Values left in the jsonb columns."""
        return sum(sum(attribute.refused.values()) for attribute in self.attributes)

    @property
    def finished(self) -> bool:
        """Whether nothing more waits."""
        return all(attribute.finished for attribute in self.attributes)


@dataclass(frozen=True, slots=True)
class PromoteProgress:
    """The progress: `rows_done` of `rows` that waited for this attribute."""

    target: str
    attribute: str
    rows_done: int
    rows: int


def promote(
    services: Services,
    mapping: TableMapping,
    *,
    attribute: str | None = None,
    on_progress: Callable[[PromoteProgress], None] | None = None,
) -> PromoteReport:
    """Fill the columns of every attribute that waits in a jsonb column. Idempotent; after an interruption, it resumes.

    `attribute`: only this one. Raises ConfigurationError if no target has a jsonb column or no column takes the
    attribute, TerminalError if another promotion of the table is running or the database does not have the columns
    (migrate first), TransientError if rows cannot be written in time.
    """
    started = time.monotonic()
    targets = [target for target in mapping.targets if target.unmapped]
    if not targets:
        raise ConfigurationError(
            "promoting: no target keeps unmapped attributes, so there is nothing to fill a column from",
            table=mapping.name,
            hint=f"load the table instead: `dynaurora load {mapping.name}`",
        )
    if attribute is not None and attribute not in promotable(mapping):
        raise ConfigurationError(
            f"promoting: no column of the mapping can be filled from an attribute {attribute}",
            table=mapping.name,
            hint=f"the attributes are {', '.join(promotable(mapping)) or 'none'}",
        )
    with services.connect("dynaurora promote") as connection, _alone(connection, mapping.name):
        work = _Work(connection, mapping.name, on_progress or (lambda _: None), _FIRST_ROWS)
        # The stored rows first: whoever reads both meanwhile finds the value where most look for it.
        every = [*targets, *(table for target in targets for table in promotions.tables_of_history(target))]
        done = [found for target in every for found in _promote_target(work, target, attribute)]
    return PromoteReport(mapping.name, tuple(done), time.monotonic() - started, work.longest_lock_seconds)


def promotable(mapping: TableMapping) -> list[str]:
    """Return the attributes whose columns could be filled from a jsonb column, in the mapping's order."""
    found = [one.attribute for target in mapping.targets if target.unmapped for one in promotions_of(target)]
    return list(dict.fromkeys(found))


def promotions_of(target: Target) -> list[Promotion]:
    """Return what a target's columns could be filled from, one for each attribute."""
    matched = {attribute for attribute, _ in target.match}  # known from the key, and not repeated in jsonb
    columns = [c for c in target.columns if c.name not in target.primary_key and c.path[0] not in matched]
    attributes = dict.fromkeys(str(column.path[0]) for column in columns)
    found = {name: tuple(column for column in columns if column.path[0] == name) for name in attributes}
    return [
        Promotion(target, name, filled, any(len(column.path) == 1 for column in filled))
        for name, filled in found.items()
    ]


@contextmanager
def _alone(connection: Connection, table: str) -> Generator[None]:
    with translating("locking the table's promotion", table=table):
        taken = advisory_locks.promotion(table).try_take(connection)
    if not taken:
        raise TerminalError(
            "another promotion of this table is running", table=table, hint="wait for it; run this again if it failed"
        )
    with giving_locks_back(connection):
        yield


@dataclass(slots=True)
class _Work:
    connection: Connection
    table: str
    tell: Callable[[PromoteProgress], None]
    rows: int
    """Stored rows that the next range spans."""
    longest_lock_seconds: float = 0.0


@dataclass(slots=True)
class _Counts:
    filled: int = 0
    skipped: int = 0
    settled: int = 0
    seen: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])


def _promote_target(work: _Work, target: Target, attribute: str | None) -> list[PromotedAttribute]:
    possible = [one for one in promotions_of(target) if attribute in {None, one.attribute}]
    if not possible:
        return []
    waiting = _survey(work, possible)
    return [_promote(work, one, count) for one, count in zip(possible, waiting, strict=True) if count]


def _survey(work: _Work, possible: list[Promotion]) -> list[int]:
    """Count range by range, because one read of a large table would block whoever wants to alter it."""
    totals, after = [0] * len(possible), None
    while True:
        end = possible[0].range_end(work.connection, after, _SURVEYED_ROWS)
        counts = promotions.survey(work.connection, possible, after, end)
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        if end is None:
            return totals
        after = end


def _promote(work: _Work, promotion: Promotion, waiting: int) -> PromotedAttribute:
    counts = _Counts()
    after = promotions.resume_after(work.connection, work.table, promotion)
    finished, passes = False, 0
    while not finished and passes < _MOST_PASSES:
        counts.refused.clear()
        filled, counts.skipped = counts.filled, 0
        _pass(work, promotion, counts, after, waiting)
        passes += 1
        finished = after is None and counts.filled == filled and not counts.skipped
        after = None
    with work.connection.transaction():
        promotions.mark(work.connection, work.table, promotion, None, filled=0, finished=True)
    return PromotedAttribute(
        target=promotion.target.view_name,
        attribute=promotion.attribute,
        columns=tuple(column.name for column in promotion.columns),
        waiting=waiting,
        filled=counts.filled,
        settled=counts.settled,
        refused=dict(counts.refused),
        passes=passes,
        finished=finished,
    )


def _pass(work: _Work, promotion: Promotion, counts: _Counts, after: Key | None, waiting: int) -> None:
    """Go through the keys after `after`."""
    convert = _Convert(promotion)
    failures = 0
    while True:
        end = promotion.range_end(work.connection, after, work.rows)
        fills = [_fill(convert, row) for row in promotion.read(work.connection, after, end)]
        try:
            if fills:
                _write(work, promotion, fills, counts, end)
            else:
                work.rows = min(_MOST_ROWS, work.rows * 2)
        except TransientError as error:
            failures += 1
            _try_again(work, error, failures)
            continue
        failures = 0
        counts.seen += len(fills)
        work.tell(PromoteProgress(promotion.target.view_name, promotion.attribute, min(counts.seen, waiting), waiting))
        if end is None:
            return
        after = end


def _try_again(work: _Work, error: TransientError, failures: int) -> None:
    if work.connection.closed or failures == _ATTEMPTS:
        raise error
    work.rows = max(_FEWEST_ROWS, work.rows // 2)
    time.sleep(_PAUSE_SECONDS)


@dataclass(frozen=True, slots=True)
class _Fill:
    """A row to fill, and the result of its conversion."""

    row: FilledRow
    settled: Counter[str]
    refused: tuple[str, ...]


class _Convert:
    """The columns' converters, and the values that their `on_error` has changed so far."""

    def __init__(self, promotion: Promotion) -> None:
        self.promotion = promotion
        self.settled: Counter[str] = Counter()
        self.columns = [(column, converter(column, settled=self.settled)) for column in promotion.columns]


def _fill(convert: _Convert, row: StoredRow) -> _Fill:
    if row.deleted:  # a writer that did not know the column left its value in the tombstone
        return _Fill(FilledRow(row.key, row.xmin, (None,) * len(convert.columns), take_out=False), Counter(), ())
    root = parse(row.json) if row.json is not None else None
    values: list[str | None] = []
    refused: list[str] = []
    convert.settled.clear()
    for column, converted in convert.columns:
        attribute = attribute_value(root, column) if row.json is not None else None
        try:
            values.append(converted(attribute))
        except ConversionError as error:
            values.append(None)
            refused.append(f"{column.name}: {error.reason}")
    take_out = convert.promotion.whole and row.json is not None and not refused
    filled = FilledRow(row.key, row.xmin, tuple(values), take_out=take_out)
    return _Fill(filled, convert.settled.copy(), tuple(refused))


def _write(work: _Work, promotion: Promotion, fills: list[_Fill], counts: _Counts, end: Key | None) -> None:
    """Write a range and its mark in one transaction, and size the next range by the time it took."""
    refused: Counter[str] = Counter(reason for fill in fills for reason in fill.refused)
    started = time.monotonic()
    with translating("promoting", table=work.table), work.connection.transaction():
        work.connection.execute(
            "SELECT set_config('statement_timeout', %s, true), set_config('lock_timeout', %s, true)",
            [str(int(LONGEST_LOCK_SECONDS * 1000))] * 2,
        )
        changed, skipped = _write_isolating(work, promotion, fills, refused)
        settled: Counter[str] = sum((fill.settled for fill in changed if fill.settled), Counter[str]())
        add_resolved(work.connection, work.table, {promotion.target.view_name: settled})
        promotions.mark(work.connection, work.table, promotion, end, filled=len(changed), finished=False)
    seconds = time.monotonic() - started
    counts.filled += len(changed)
    counts.settled += settled.total()
    counts.skipped += skipped
    counts.refused += refused
    if changed:
        work.longest_lock_seconds = max(work.longest_lock_seconds, seconds)
    if seconds > _WANTED_SECONDS:
        work.rows = max(_FEWEST_ROWS, work.rows // 2)
    elif seconds < _WANTED_SECONDS / 2:
        work.rows = min(_MOST_ROWS, work.rows * 2)


def _write_isolating(
    work: _Work, promotion: Promotion, fills: list[_Fill], refused: Counter[str]
) -> tuple[list[_Fill], int]:
    """Write; return what was changed, and how many rows others held or had changed.

    A value that only PostgreSQL refuses is found by halving and left where it is.
    """
    try:
        with work.connection.transaction():
            written = promotion.write(work.connection, [fill.row for fill in fills])
            return [fills[index] for index in written.changed], written.skipped
    except DataError:
        if len(fills) == 1:
            refused[f"{', '.join(column.name for column in promotion.columns)}: PostgreSQL refuses the value"] += 1
            return [], 0
    middle = len(fills) // 2
    changed, skipped = _write_isolating(work, promotion, fills[:middle], refused)
    more, more_skipped = _write_isolating(work, promotion, fills[middle:], refused)
    return changed + more, skipped + more_skipped
