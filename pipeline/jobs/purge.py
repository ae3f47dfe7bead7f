"""Purge: remove old tombstones, and leftovers.

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
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import loads, remains
from pipeline.aurora.compare import reconciliations
from pipeline.aurora.rows import purge
from pipeline.aurora.schema import lock_holders, tables
from pipeline.aurora.sessions.clock import database_now
from pipeline.core.errors import ConfigurationError, TerminalError, TransientError, UnreachableError
from pipeline.core.exports.windows import RECOVERY

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping, Target

DEFAULT_RETENTION = timedelta(days=30)
_ATTEMPTS = 5
# A chunk that found the table held looks this often, each lock timeout, whether it is free, before it queues again.
_LOOKS = 30
# Between two chunks, so that writers that waited for the lock get it.
_PAUSE_SECONDS = 0.02


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
    )


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
    """Purge a chunk. Queueing for its lock makes writers wait, so after a first try it waits without queueing."""
    storage = [tables.storage(target)]
    held: list[lock_holders.Holder] = []
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return purge.purge_chunk(connection, target, table_name, through, rows=rows, sweep=sweep)
        except UnreachableError:
            raise
        except TransientError as error:
            if held or attempt == _ATTEMPTS:
                held = lock_holders.holders(connection, storage, only_writers=True)
                raise TransientError(error.message, table=table_name, hint=lock_holders.way_out(held)) from None
            time.sleep(random.uniform(0.1, 1.0))  # noqa: S311 - jitter, not a secret
            held = lock_holders.wait_until_free(
                connection, storage, pause=lambda: time.sleep(purge.LOCK_SECONDS), looks=_LOOKS, only_writers=True
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
