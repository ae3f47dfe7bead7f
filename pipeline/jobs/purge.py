"""Purge: old tombstones go, and with them what else is left over after its time.

Tombstones go as far as the retention allows, and no further than the newest snapshot that was loaded whole: what is as
old as that snapshot and comes later (a redriven batch, an old export) is then refused where its key has no row, and
rightly so, because the snapshot held its outcome. Without such a snapshot no tombstone goes. How far the stream is
applied sets no bound of its own, for the same reason.

Invariant: `purged_through` is recorded in the transaction of the first tombstone that goes, and before anything relies
on it. A purge that is killed goes on where it was.
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
# A chunk that found the table held looks so often, each lock timeout, whether it is free, before it queues again.
_LOOKS = 30
# Between two chunks, so that writers who waited for the lock come through.
_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """What a purge removed."""

    table: str
    through: datetime | None
    """Tombstones up to here are gone, and nothing that old makes a row; None: no tombstone could go."""
    bound: str
    """What set that: `retention`, `snapshot`, or `no snapshot`."""
    tombstones: int
    writers_folded: int
    """Watermarks of writers silent for longer than the retention, whose counts went into one row."""
    reconciliations: int
    exports: int
    seconds: float
    kept: dict[str, int]
    """Tombstones that something of the users' refuses to let go, by what it is: the constraint, or the SQLSTATE."""

    @property
    def next_step(self) -> str:
        """What a person does about the tombstones that were kept."""
        return (
            "they are rows of deleted items, without values: delete the rows that refer to them, or drop the constraint"
            " or declare it ON DELETE CASCADE or SET NULL; let a trigger or rule pass _deleted rows; then purge again"
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
    """Purge one table; `retention` is how long tombstones and bookkeeping are kept, `on_progress` is told tombstones.

    Each chunk of `rows` keeps the table's writers waiting for its own short transaction. Raises TerminalError while a
    load of the table runs, TransientError when the lock cannot be had: run it again.
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
    kept = purge.Kept()
    while True:
        before = len(kept.places)
        removed = _chunk(connection, target, table_name, through, rows, kept)
        if not removed and len(kept.places) == before:
            break
        yield removed
        time.sleep(_PAUSE_SECONDS)
    reasons.update(kept.reasons)


def _chunk(
    connection: Connection, target: Target, table_name: str, through: datetime, rows: int, kept: purge.Kept
) -> int:
    """Purge a chunk; who waits for its lock keeps writers waiting, so after a first try it waits without queueing."""
    storage = [tables.storage(target)]
    held: list[lock_holders.Holder] = []
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return purge.purge_chunk(connection, target, table_name, through, rows=rows, kept=kept)
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
    """Remove old runs, and staging tables that runs which were killed have left, unless one is at work now."""
    try:
        with reconciliations.table_locked(connection, table_name):
            reconciliations.drop_leftovers(connection, table_name)
    except TerminalError:  # it is: the next purge will find what is left
        pass
    return remains.drop_reconciliations(connection, table_name, before)
