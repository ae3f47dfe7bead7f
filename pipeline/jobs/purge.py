"""Purge: remove old tombstones, and leftovers.

A history loses what is older than it keeps, gets the partitions that it will need, and versions of rows that have none.

Tombstones are removed as far as the retention allows, and no further than the newest snapshot that was loaded whole.
What is as old as that snapshot and arrives later (a redriven batch, an old export) is then refused if its key has no
row. That is right, because the snapshot contained its outcome. Without such a snapshot no tombstone is removed. For the
same reason, how far the stream is applied sets no limit of its own.

Invariant: `purged_through` is recorded in the transaction of the first tombstone that is removed, and before anything
relies on it. A purge that was killed resumes where it was.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pipeline.aurora.bookkeeping import histories, loads, remains
from pipeline.aurora.compare import reconciliations
from pipeline.aurora.rows import history_purge, purge
from pipeline.aurora.rows.history_fill import fill
from pipeline.aurora.schema import history_tables, lock_holders, tables
from pipeline.aurora.sessions.clock import database_now
from pipeline.core.errors import ConfigurationError, TerminalError, TransientError, UnreachableError
from pipeline.core.exports.windows import RECOVERY

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from psycopg import sql

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping, Target

DEFAULT_RETENTION = timedelta(days=30)
_ATTEMPTS = 5
# A chunk that found the table held looks this often, each lock timeout, whether it is free, before it queues again.
_LOOKS = 30
# Between two chunks, so that writers that waited for the lock get it.
_PAUSE_SECONDS = 0.02

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """What a purge removed."""

    table: str
    through: datetime | None
    """Tombstones up to here are gone, and nothing that old creates a row; None: no tombstone could be removed."""
    bound: str
    """What set that: `retention`, `snapshot`, or `no snapshot`."""
    tombstones: int
    writers_folded: int
    """Watermarks of writers silent for longer than the retention, whose counts went into one row."""
    reconciliations: int
    exports: int
    seconds: float
    kept: dict[str, int]
    """Tombstones that something of the user's refuses to delete, by constraint or SQLSTATE."""
    versions: int = 0
    """Versions of histories that were older than what is kept."""
    unrecorded: int = 0
    """Stored rows that had no version, because a writer does not know of the history."""

    @property
    def next_step(self) -> str:
        """What a person does about the tombstones that were kept."""
        return (
            "they are rows of deleted items, without values: delete the rows that refer to them, or drop the constraint"
            " or declare it ON DELETE CASCADE or SET NULL; let triggers and rules allow _deleted rows; then purge again"
        )


def purge_table(
    connection: Connection,
    mapping: TableMapping,
    *,
    retention: timedelta = DEFAULT_RETENTION,
    now: datetime | None = None,
    rows: int = purge.CHUNK_ROWS,
    on_progress: Callable[[int], None] | None = None,
) -> PurgeReport:
    """Purge one table; `retention` is how long tombstones and bookkeeping are kept, `on_progress` gets the tombstones.

    Each chunk of `rows` makes the table's writers wait for its own short transaction. Raises TerminalError while a load
    of the table runs, TransientError if the lock cannot be taken: run it again.
    """
    if retention <= timedelta(0):
        raise ConfigurationError("purging: the retention must be above 0", table=mapping.name)
    started, now = time.monotonic(), now or database_now(connection)
    tombstones, reasons = 0, Counter[str]()
    with loads.table_locked(connection, mapping.name):
        through, bound = _bound(connection, mapping, now - retention)
        if through is not None:
            for target in mapping.targets:
                for removed in _chunks(connection, target, mapping.name, through, rows, reasons):
                    tombstones += removed
                    if on_progress:
                        on_progress(tombstones)
        versions, unrecorded = _purge_histories(connection, mapping, now)
        # Exports of windows that can still be asked for again keep a longer retention.
        exports = remains.drop_exports(connection, mapping.name, now - max(retention, RECOVERY))
    return PurgeReport(
        table=mapping.name,
        through=through,
        bound=bound,
        tombstones=tombstones,
        writers_folded=remains.fold_writers(connection, mapping.name, now - retention),
        reconciliations=_drop_reconciliations(connection, mapping.name, now - retention),
        exports=exports,
        seconds=time.monotonic() - started,
        kept=dict(reasons),
        versions=versions,
        unrecorded=unrecorded,
    )


def _purge_histories(connection: Connection, mapping: TableMapping, now: datetime) -> tuple[int, int]:
    """Return how many versions were dropped, and how many stored rows had none."""
    dropped = unrecorded = 0
    for target in mapping.targets:
        if target.history is None or histories.read(connection, target) is None:
            continue

        def locking(work: Callable[[], T], target: Target = target) -> T:
            return _waiting_for(connection, mapping.name, [history_tables.versions(target)], work)

        # The default partition is emptied first, so that what is older than a partition's end finds it.
        for start, end in history_purge.missing(connection, target, now):
            locking(partial(history_purge.add_partition, connection, target, start, end))
        for partition in history_purge.expired(connection, target, now):
            dropped += locking(partial(history_purge.drop_partition, connection, target, partition))
        dropped += locking(partial(history_purge.tidy, connection, target, mapping.name, now))
        unrecorded += fill(connection, mapping.name, target)
    return dropped, unrecorded


def _bound(connection: Connection, mapping: TableMapping, by_retention: datetime) -> tuple[datetime | None, str]:
    snapshot = purge.newest_whole_snapshot(connection, mapping.name)
    if snapshot is None:
        return None, "no snapshot"
    return (by_retention, "retention") if by_retention <= snapshot else (snapshot, "snapshot")


def _chunks(
    connection: Connection, target: Target, table_name: str, through: datetime, rows: int, reasons: Counter[str]
) -> Generator[int]:
    """Purge a target chunk by chunk; yields the tombstones removed, and counts in `reasons` what was kept."""
    sweep = purge.Sweep()
    while True:
        removed = _chunk(connection, target, table_name, through, rows, sweep)
        if sweep.ended:
            break
        yield removed
        time.sleep(_PAUSE_SECONDS)
    reasons.update(sweep.kept)


def _chunk(
    connection: Connection, target: Target, table_name: str, through: datetime, rows: int, sweep: purge.Sweep
) -> int:
    return _waiting_for(
        connection,
        table_name,
        [tables.storage(target)],
        lambda: purge.purge_chunk(connection, target, table_name, through, rows=rows, sweep=sweep),
        only_writers=True,
    )


def _waiting_for(
    connection: Connection,
    table_name: str,
    relations: list[sql.Identifier],
    work: Callable[[], T],
    *,
    only_writers: bool = False,
) -> T:
    """Do work that locks relations. Queueing for a lock makes others wait, so after a first try it does not queue."""
    held: list[lock_holders.Holder] = []
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return work()
        except UnreachableError:
            raise
        except TransientError as error:
            if held or attempt == _ATTEMPTS:
                held = lock_holders.holders(connection, relations, only_writers=only_writers)
                raise TransientError(error.message, table=table_name, hint=lock_holders.way_out(held)) from None
            time.sleep(random.uniform(0.1, 1.0))  # noqa: S311 - jitter, not a secret
            held = lock_holders.wait_until_free(
                connection,
                relations,
                pause=lambda: time.sleep(purge.LOCK_SECONDS),
                looks=_LOOKS,
                only_writers=only_writers,
            )
    raise AssertionError  # pragma: no cover - the last attempt returns or raises


def _drop_reconciliations(connection: Connection, table_name: str, before: datetime) -> int:
    """Remove old runs, and staging tables of killed runs, unless a reconciliation is running now."""
    try:
        with reconciliations.table_locked(connection, table_name):
            reconciliations.drop_leftovers(connection, table_name)
    except TerminalError:  # it is: the next purge will find what is left
        pass
    return remains.drop_reconciliations(connection, table_name, before)
