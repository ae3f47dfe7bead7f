"""Records loads: the exports, and the files loaded from them.

Invariant: a file's mark commits with its rows, so a killed load resumes at its first unmarked file and no file counts
twice. A session's advisory lock ensures that only one load of a table runs at a time; it ends with the session.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping.load_lead import await_files
from pipeline.aurora.errors import translating
from pipeline.aurora.sessions import advisory_locks
from pipeline.aurora.sessions.clock import refuse_future
from pipeline.core.errors import TerminalError, UnusableSnapshotError
from pipeline.core.exports.ways import NO_LINES, Ways
from pipeline.core.exports.windows import Span

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.exports.windows import Window


# The application name of a session that requests an export: it holds the load lock until DynamoDB has answered.
REQUESTING, LOADING = "dynaurora export", "dynaurora load"
_REQUEST_SECONDS, _LOOK_AGAIN_SECONDS = 30.0, 0.2


class FileBusyError(Exception):
    """Another session is loading the file."""


class LoadRunningError(TerminalError):
    """Another session holds the table's load lock. `by_load`: it runs a load, possibly the same one."""

    by_load: bool = False


class OlderSnapshotError(UnusableSnapshotError):
    """A newer snapshot of the table was loaded whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A finished export or scan, as recorded."""

    kind: str
    """`full`, `incremental` or `scan`."""
    location: str
    export_arn: str | None = None
    snapshot_time: datetime
    as_of: datetime
    """The time that its rows count as."""
    from_time: datetime | None = None
    """For an incremental export, when its window begins."""
    is_seam: bool = False
    item_count: int
    file_count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """An export, as recorded in `replication.exports`."""

    id: int
    status: str
    strategy: str
    """`merge` or `aside`, as chosen when the load first began."""
    loaded_files: frozenset[str]
    remapped: bool = False
    """The mapping has changed since; the tables built aside must be discarded."""


@dataclass(frozen=True, slots=True)
class FileCounts:
    """What happened to a file's items. A key that the file holds twice counts as stale the second time.

    `ignored` are items that match no target, if the mapping says to ignore those. `ways` are not stored.
    """

    items: int = 0
    applied: int = 0
    stale: int = 0
    rejected: int = 0
    size_bytes: int = 0
    ignored: int = 0
    ways: Ways = field(default=NO_LINES, kw_only=True)


def lock_table(connection: Connection, table_name: str) -> None:
    """Take the table's load lock until the connection ends. Raises TerminalError if another session holds it.

    Returns once no file of the previous load is being loaded; raises TransientError if one still is after the wait.
    """
    with translating("taking the load lock", table=table_name):
        taken, holder = _take_load_lock(connection, table_name)
        if taken:
            await_files(connection, table_name)
            return
    since = f", since {holder[1]:%Y-%m-%d %H:%M:%S} UTC" if holder and holder[1] else ""
    who = f" (backend {holder[0]}, {holder[2]}{since})" if holder else ""
    error = LoadRunningError(
        f"loading: another load of this table is running{who}",
        table=table_name,
        hint="wait for it, or end it, then run this again; what it has loaded stays loaded",
    )
    error.by_load = holder is not None and holder[2] == LOADING
    raise error


def _take_load_lock(
    connection: Connection, table_name: str, *, shared: bool = False
) -> tuple[bool, tuple[int, datetime | None, str] | None]:
    """Try to take the load lock; return whether that succeeded, and otherwise who holds it.

    Waits for a run that only requests an export, which holds it briefly: jobs that start in the same minute must not
    make each other fail.
    """
    lock = advisory_locks.load(table_name)
    until = time.monotonic() + _REQUEST_SECONDS
    while True:
        if lock.try_take(connection, shared=shared):
            return True, None
        holder = lock.holder(connection)
        passing = holder is None or holder[2] == REQUESTING
        if not passing or time.monotonic() > until:
            return False, holder
        time.sleep(_LOOK_AGAIN_SECONDS)


def try_lock_scan(connection: Connection, table_name: str) -> bool:
    """Exclude other scans of the table until the connection ends; False if one is running."""
    with translating("taking the scan lock", table=table_name):
        return advisory_locks.scan(table_name).try_take(connection)


@contextmanager
def table_locked(connection: Connection, table_name: str) -> Generator[None]:
    """Hold the load lock for the block. Raises TerminalError if another session holds it.

    Releases it explicitly, because the server may release a closed session's lock too late for the next run.
    """
    lock_table(connection, table_name)
    try:
        yield
    finally:
        with translating("releasing the load lock", table=table_name):
            advisory_locks.load(table_name).give_back(connection)


def keep_loads_out(connection: Connection, table_name: str) -> None:
    """Hold the load lock shared until the connection ends, so that no load begins. Raises if one is running."""
    with translating("blocking loads", table=table_name):
        taken, _ = _take_load_lock(connection, table_name, shared=True)
    if not taken:
        raise TerminalError(
            "reconciling: the table is being loaded, so some rows are not there yet",
            table=table_name,
            hint="wait until the load has finished, then run this again",
        )
    await_files(connection, table_name, shared=True)


def begin(
    connection: Connection, table_name: str, export: Export, *, strategy: str = "merge", digests: Sequence[str] = ("",)
) -> ExportRecord:
    """Record the start of an export's load, or find its earlier record, with the files already loaded.

    `strategy` is for a load that begins; one that resumes keeps its own. `digests` are the mapping's
    (`mapping_digest.digests`): files loaded under another mapping do not count, or, if their rows are already in the
    table, the load is refused. Refuses a snapshot of the whole table that is not newer than `purged_through`, or older
    than a fully loaded one, because items deleted since could come back. For an incremental export, `covering` decides
    line by line.
    """
    with translating("recording the load", table=table_name), connection.transaction():
        refuse_future(connection, table_name, export.snapshot_time, export.as_of)
        row = connection.execute(_BEGIN, {"table_name": table_name, "strategy": strategy, "digest": digests[0],
                                          **asdict(export)}).fetchone()  # fmt: skip
        if row is None:  # pragma: no cover - RETURNING of an upsert without condition always gives a row
            raise TerminalError("recording the load: PostgreSQL returned no row", table=table_name)
        if row[1] != "loaded" and export.kind != "incremental":
            refuse_purged(connection, table_name, export.as_of)
            _refuse_older(connection, table_name, export.as_of)
        record = ExportRecord(row[0], row[1], row[2], loaded_files(connection, row[0]))
        return record if row[3] in digests else _remapped(connection, table_name, record, digests[0])


_BEGIN = """
INSERT INTO replication.exports AS e (table_name, kind, location, export_arn, snapshot_time, as_of, item_count,
    file_count, size_bytes, strategy, shape, from_time, is_seam)
VALUES (%(table_name)s, %(kind)s, %(location)s, %(export_arn)s, %(snapshot_time)s, %(as_of)s, %(item_count)s,
    %(file_count)s, %(size_bytes)s, %(strategy)s, %(digest)s, %(from_time)s, %(is_seam)s)
ON CONFLICT (table_name, location, as_of) DO UPDATE SET reason = NULL,
    status = CASE WHEN e.status = 'loaded' THEN 'loaded' ELSE 'loading' END
RETURNING id, status, strategy, e.shape
"""


def _remapped(connection: Connection, table_name: str, record: ExportRecord, digest: str) -> ExportRecord:
    """Restart a load whose mapping has changed; refuse if its rows are already in the table.

    They have the same `as_of` as the rows that would be loaded now, so the ordering rule would keep them.
    """
    in_the_table = (
        record.status == "loaded"
        or connection.execute(
            "SELECT 1 FROM replication.exports AS e WHERE id = %s AND (EXISTS (SELECT FROM replication.builds AS b"
            " WHERE b.export_id = e.id AND b.swapped_at IS NOT NULL) OR e.strategy = 'merge' AND EXISTS"
            " (SELECT FROM replication.export_files AS f WHERE f.export_id = e.id))",
            [record.id],
        ).fetchone()
    )
    if in_the_table:
        raise UnusableSnapshotError(
            "loading: the mapping was changed since this export was loaded, and loading it again would not change its"
            " rows",
            table=table_name,
            hint="load a newer export: `dynaurora load` without an ARN or manifest requests one",
        )
    connection.execute("UPDATE replication.exports SET shape = %s WHERE id = %s", [digest, record.id])
    return replace(record, remapped=True)


def refuse_purged(connection: Connection, table_name: str, as_of: datetime) -> None:
    """Raise TerminalError if tombstones were purged through a snapshot's `as_of`.

    Call this in the transaction that makes a snapshot's rows count. If a key has no row, its tombstone may have been
    purged, so a deleted item could come back, or an existing one would be refused.
    """
    with translating("reading how far tombstones were purged", table=table_name):
        row = connection.execute(
            "SELECT purged_through FROM replication.tables WHERE name = %s AND purged_through >= %s",
            [table_name, as_of],
        ).fetchone()
    if row:
        raise UnusableSnapshotError(
            f"loading: the snapshot counts as of {as_of:%Y-%m-%d %H:%M:%S} UTC, and tombstones were purged through"
            f" {row[0]:%Y-%m-%d %H:%M:%S} UTC, so items deleted since could come back",
            table=table_name,
            hint="load a newer export",
        )


def _refuse_older(connection: Connection, table_name: str, as_of: datetime) -> None:
    """Raise OlderSnapshotError if a newer snapshot was loaded whole.

    A snapshot does not say what is absent. If the stream missed a delete, there is no tombstone against the item in an
    older snapshot, and it would come back (docs/decisions/0002-ordering.md).
    """
    newest = newest_loaded(connection, table_name)
    if newest is not None and newest > as_of:
        raise OlderSnapshotError(
            f"loading: the snapshot counts as of {as_of:%Y-%m-%d %H:%M:%S} UTC, and one of {newest:%Y-%m-%d %H:%M:%S}"
            " UTC is already loaded: an item deleted between them could come back",
            table=table_name,
            hint="load a newer export, or reconcile with one",
        )


def newest_loaded(connection: Connection, table_name: str) -> datetime | None:
    """Return the `as_of` of the newest full snapshot that was loaded whole; None if there is none."""
    with translating("looking for earlier loads", table=table_name):
        row = connection.execute(
            "SELECT max(as_of) FROM replication.exports WHERE table_name = %s AND status = 'loaded'"
            " AND kind <> 'incremental'",
            [table_name],
        ).fetchone()
    return row[0] if row else None


def loaded_export_arns(connection: Connection, table_name: str) -> list[str]:
    """Return the ARNs of the exports that were loaded whole, without scans, newest first."""
    with translating("looking for earlier loads", table=table_name):
        rows = connection.execute(
            "SELECT export_arn FROM replication.exports WHERE table_name = %s AND status = 'loaded'"
            " AND kind <> 'scan' AND export_arn IS NOT NULL ORDER BY id DESC",
            [table_name],
        ).fetchall()
    return [arn for (arn,) in rows]


def status_of(connection: Connection, export_id: int) -> str | None:
    """Return the status of an export's load; None if it was removed."""
    with translating("looking for the load"):
        row = connection.execute("SELECT status FROM replication.exports WHERE id = %s", [export_id]).fetchone()
    return row[0] if row else None


def loaded_since(connection: Connection, table_name: str, since: datetime) -> int | None:
    """Return the number of the latest export that was fully loaded since then; None if there is none."""
    with translating("looking for a finished load", table=table_name):
        row = connection.execute(
            "SELECT id FROM replication.exports WHERE table_name = %s AND status = 'loaded' AND kind <> 'incremental'"
            " AND finished_at >= %s ORDER BY finished_at DESC LIMIT 1",
            [table_name, since],
        ).fetchone()
    return row[0] if row else None


def covering(connection: Connection, table_name: str, as_of: datetime) -> list[Span]:
    """Return the spans covered by fully loaded snapshots that count as of a later time than an incremental export's
    `as_of`.

    If an item's last write in the window is in one of these spans, that snapshot, which ends later, covers it: its row
    there is newer, or missing because the item was deleted since, and then nothing may bring it back.
    """
    with translating("reading what was loaded", table=table_name):
        rows = connection.execute(
            "SELECT CASE WHEN kind = 'incremental' THEN from_time END,"
            " CASE WHEN kind = 'incremental' THEN snapshot_time ELSE as_of END FROM replication.exports"
            " WHERE table_name = %(table)s AND status = 'loaded' AND as_of >= %(as_of)s AND (kind <> 'incremental'"
            " OR as_of > %(as_of)s AND from_time IS NOT NULL)",
            {"table": table_name, "as_of": as_of},
        ).fetchall()
    return [Span(start, end) for start, end in rows]


def snapshot_times(connection: Connection, table_name: str) -> list[datetime]:
    """Return the times of the snapshots whose rows may be in the table, fully or partly loaded, without seams."""
    with translating("reading what was loaded", table=table_name):
        rows = connection.execute(
            "SELECT DISTINCT snapshot_time FROM replication.exports WHERE table_name = %s AND NOT is_seam", [table_name]
        ).fetchall()
    return [moment for (moment,) in rows]


def find_window(
    connection: Connection, table_name: str, window: Window, as_of: datetime
) -> tuple[str, str, str | None] | None:
    """Return location, status and ARN of a window's export; None if no load of one was started."""
    with translating("looking for the window's export", table=table_name):
        return connection.execute(
            "SELECT location, status, export_arn FROM replication.exports WHERE table_name = %s"
            " AND kind = 'incremental' AND from_time = %s AND snapshot_time = %s AND as_of = %s"
            " ORDER BY status <> 'loaded', id DESC LIMIT 1",
            [table_name, window.start, window.end, as_of],
        ).fetchone()


def begin_again(connection: Connection, export_id: int, strategy: str) -> None:
    """Delete the marks of a load's files, so that it starts over. Inside the caller's transaction."""
    with translating("restarting the load"):
        connection.execute("DELETE FROM replication.export_files WHERE export_id = %s", [export_id])
        connection.execute("UPDATE replication.exports SET strategy = %s WHERE id = %s", [strategy, export_id])


def claim_file(connection: Connection, export_id: int, file_key: str, *, wait: bool = True) -> bool:
    """Claim a file for the rest of the transaction; False if it is already loaded.

    While another transaction holds it, wait, or raise FileBusyError: a worker of a killed load may outlive it for a
    moment, and other runs may load files of the same export.
    """
    with translating("claiming a file"):
        lock = advisory_locks.file_of_load(export_id, file_key)
        if wait:
            lock.take_for_transaction(connection)
        elif not lock.try_take_for_transaction(connection):
            raise FileBusyError
        # A separate statement, so that it sees what the other transaction committed.
        found = connection.execute(
            "SELECT FROM replication.export_files WHERE export_id = %s AND file_key = %s", [export_id, file_key]
        ).fetchone()
    return found is None


def loaded_files(connection: Connection, export_id: int) -> frozenset[str]:
    """Return the files that are marked as loaded, whoever loaded them."""
    with translating("reading which files are loaded"):
        rows = connection.execute("SELECT file_key FROM replication.export_files WHERE export_id = %s", [export_id])
        return frozenset(key for (key,) in rows)


def mark_file(connection: Connection, export_id: int, file_key: str, counts: FileCounts) -> None:
    """Mark a file as loaded, in the transaction that loads its rows. Raises if it is already marked."""
    with translating("marking the file as loaded"):
        connection.execute(
            "INSERT INTO replication.export_files (export_id, file_key, item_count, size_bytes, applied,"
            " stale, rejected, ignored) VALUES (%s, %s, %s, %s, %s, %s, %s, %s)",
            [
                export_id,
                file_key,
                counts.items,
                counts.size_bytes,
                counts.applied,
                counts.stale,
                counts.rejected,
                counts.ignored,
            ],
        )


def totals(connection: Connection, export_id: int) -> tuple[int, FileCounts]:
    """Return how many files are loaded, and the sum of their counts; rows overtaken in a build count as stale."""
    with translating("adding up the load"):
        row = connection.execute(
            "SELECT count(file_key), COALESCE(sum(item_count), 0)::bigint,"
            " COALESCE(sum(applied), 0)::bigint - o.overtaken, COALESCE(sum(stale), 0)::bigint + o.overtaken,"
            " COALESCE(sum(rejected), 0)::bigint, COALESCE(sum(size_bytes), 0)::bigint,"
            " COALESCE(sum(ignored), 0)::bigint"
            " FROM (SELECT COALESCE(sum(overtaken), 0)::bigint AS overtaken"
            " FROM replication.builds WHERE export_id = %(id)s) AS o"
            " LEFT JOIN replication.export_files ON export_id = %(id)s GROUP BY o.overtaken",
            {"id": export_id},
        ).fetchone()
    files, *counts = row or (0, 0, 0, 0, 0, 0, 0)
    return files, FileCounts(*counts)


def finish(connection: Connection, export_id: int, *, failure: str | None = None) -> None:
    """Record the load's outcome: loaded, or failed with the reason (which contains no attribute values)."""
    with translating("recording the end of the load"):
        connection.execute(
            "UPDATE replication.exports SET status = %s, reason = %s, finished_at = clock_timestamp() WHERE id = %s",
            ["failed" if failure else "loaded", failure, export_id],
        )
