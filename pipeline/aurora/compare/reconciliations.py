"""Records of reconciliations: each run with its progress, its counts, and its drift (the differences that it
confirmed).

Invariant: each step of a run is marked in the transaction that did it, so a killed run can resume and counts nothing
twice. Its working state and staging tables are all unlogged, so a server crash empties them together. Drift is
identified by key digest and columns, never by value.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping.proofs import prove_reconciled
from pipeline.aurora.bookkeeping.watermarks import REDRIVE_WRITER
from pipeline.aurora.errors import translating
from pipeline.aurora.schema.tables import storage
from pipeline.aurora.sessions import advisory_locks
from pipeline.aurora.sessions.clock import refuse_future
from pipeline.core.errors import TerminalError
from pipeline.core.model.mapping import DELETED, STORAGE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

# Staging tables and lists of unresolved keys: `_reconcile_<run>_<target>` and `…_left`.
_LEFTOVER = "^_reconcile_[0-9]+_[0-9]+(_left)?$"


@dataclass(frozen=True, slots=True)
class Run:
    """A run, started now or earlier."""

    id: int
    resumed: bool


@dataclass(frozen=True, slots=True)
class Drift:
    """One confirmed difference of one target."""

    target: str
    key_digest: str
    kind: str
    columns: tuple[str, ...]
    repaired: bool


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of one run, over all targets; `by_column` counts rows."""

    compared: int = 0
    in_flight: int = 0
    undecided: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    stale: int = 0
    repaired: int = 0
    rejected: int = 0
    by_column: dict[str, int] = field(default_factory=dict[str, int])
    no_proof: str | None = None
    """Why the run proves nothing of the time before its snapshot, however equal the rows are."""


def has_rows(connection: Connection, target: Target) -> bool:
    """Whether a target holds a live row."""
    found = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE NOT {})").format(storage(target), sql.Identifier(DELETED))
    with translating(f"looking for rows of {target.view_name}"):
        row = connection.execute(found).fetchone()
    return bool(row and row[0])


def lock_table(connection: Connection, table_name: str) -> None:
    """Take the table's reconciliation lock for as long as the connection lives."""
    with translating("taking the reconciliation lock", table=table_name):
        taken = advisory_locks.reconciliation(table_name).try_take(connection)
    if not taken:
        raise TerminalError(
            "reconciling: another reconciliation of this table is running",
            table=table_name,
            hint="wait for it, or end it, then run this again",
        )


@contextmanager
def table_locked(connection: Connection, table_name: str) -> Generator[None]:
    """Hold the reconciliation lock for the block. Raises TerminalError if another session holds it."""
    lock_table(connection, table_name)
    try:
        yield
    finally:
        with translating("releasing the reconciliation lock", table=table_name):
            advisory_locks.reconciliation(table_name).give_back(connection)


def begin(
    connection: Connection,
    table_name: str,
    *,
    snapshot: str,
    snapshot_time: datetime,
    as_of: datetime,
    digests: Sequence[str] = ("",),
    repairs: bool = False,
) -> Run:
    """Record the start of a reconciliation, or find the unfinished run of the same snapshot; needs the table's lock.

    Runs of another snapshot, mapping (`digests`) or intent are abandoned, and their leftovers dropped.
    """
    with translating("recording the reconciliation", table=table_name), connection.transaction():
        refuse_future(connection, table_name, snapshot_time, as_of)
        found = connection.execute(
            "SELECT id FROM replication.reconciliations WHERE table_name = %s AND snapshot = %s AND as_of = %s"
            " AND shape = ANY(%s) AND repairs = %s AND status = 'comparing' ORDER BY id DESC LIMIT 1",
            [table_name, snapshot, as_of, list(digests), repairs],
        ).fetchone()
        row = (
            found
            or connection.execute(
                "INSERT INTO replication.reconciliations (table_name, snapshot, as_of, shape, repairs, snapshot_time)"
                " VALUES (%s, %s, %s, %s, %s, %s) RETURNING id",
                [table_name, snapshot, as_of, digests[0], repairs, snapshot_time],
            ).fetchone()
        )
        run = Run(row[0] if row else 0, resumed=found is not None)
        connection.execute(
            "UPDATE replication.reconciliations SET status = 'abandoned', finished_at = clock_timestamp()"
            " WHERE table_name = %s AND status = 'comparing' AND id <> %s",
            [table_name, run.id],
        )
        drop_leftovers(connection, table_name, but=run.id)
    return run


def drop_leftovers(connection: Connection, table_name: str, *, but: int | None = None) -> None:
    """Drop the staging tables and working state of all the table's runs, or all `but` one; needs the table's lock."""
    with translating("dropping leftovers of an earlier reconciliation", table=table_name), connection.transaction():
        left = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename ~ %s"
            " AND split_part(tablename, '_', 3)::bigint IN (SELECT id FROM replication.reconciliations"
            " WHERE table_name = %s AND id IS DISTINCT FROM %s)",
            [STORAGE_SCHEMA, _LEFTOVER, table_name, but],
        ).fetchall()
        for (name,) in left:
            connection.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(STORAGE_SCHEMA, name)))
        for name in ("reconciliation_files", "reconciliation_ranges", "reconciliation_unfit"):
            connection.execute(
                sql.SQL(
                    "DELETE FROM {} AS w USING replication.reconciliations AS r WHERE r.id = w.reconciliation_id"
                    " AND r.table_name = %s AND r.id IS DISTINCT FROM %s"
                ).format(sql.Identifier("replication", name)),
                [table_name, but],
            )


def forget_work(connection: Connection, run_id: int) -> None:
    """Restart a run whose working state is gone: its counts start over; recorded drift stays."""
    with translating("restarting the reconciliation"), connection.transaction():
        for name in ("reconciliation_files", "reconciliation_ranges", "reconciliation_unfit"):
            connection.execute(
                sql.SQL("DELETE FROM {} WHERE reconciliation_id = %s").format(sql.Identifier("replication", name)),
                [run_id],
            )
        connection.execute("UPDATE replication.reconciliations SET in_flight = NULL WHERE id = %s", [run_id])


def staged_files(connection: Connection, run_id: int) -> frozenset[str]:
    """Return the keys of the files whose rows are staged."""
    with translating("reading which files are staged"):
        rows = connection.execute(
            "SELECT file_key FROM replication.reconciliation_files WHERE reconciliation_id = %s", [run_id]
        )
        return frozenset(key for (key,) in rows)


def claim_file(connection: Connection, run_id: int, file_key: str) -> bool:
    """Claim a file for the rest of the transaction; False if it is already staged.

    Waits while another transaction holds it: a worker may outlive its killed run for a moment.
    """
    with translating("claiming a file"):
        advisory_locks.file_of_reconciliation(run_id, file_key).take_for_transaction(connection)
        # A separate statement, so that it sees what the other transaction committed.
        found = connection.execute(
            "SELECT FROM replication.reconciliation_files WHERE reconciliation_id = %s AND file_key = %s",
            [run_id, file_key],
        ).fetchone()
    return found is None


def mark_file(
    connection: Connection, run_id: int, file_key: str, *, items: int, rows: int, unfit: Iterable[str]
) -> None:
    """Mark a file as staged, with the digests of items that could not be, in the transaction that stages its rows."""
    add_unfit(connection, run_id, unfit)
    with translating("marking the file as staged"):
        connection.execute(
            "INSERT INTO replication.reconciliation_files (reconciliation_id, file_key, item_count, row_count)"
            " VALUES (%s, %s, %s, %s)",
            [run_id, file_key, items, rows],
        )


def add_unfit(connection: Connection, run_id: int, digests: Iterable[str]) -> None:
    """Note items that cannot be stored, each once, inside the caller's transaction."""
    known = sorted(set(digests))  # a fixed order, so that two workers never deadlock
    if not known:
        return
    with translating("noting items that cannot be stored"):
        connection.execute(
            "INSERT INTO replication.reconciliation_unfit (reconciliation_id, item_digest)"
            " SELECT %s, unnest(%s::text[]) ON CONFLICT DO NOTHING",
            [run_id, known],
        )


def add_resolved(connection: Connection, run_id: int, drift: Sequence[Drift], *, in_flight: int) -> None:
    """Record resolved differences in the transaction that takes them off the list; a repeated one replaces its row."""
    with translating("recording drift"):
        connection.execute(
            "INSERT INTO replication.drift (reconciliation_id, target, key_digest, kind, columns, repaired)"
            " SELECT %s, u.target, u.key_digest, u.kind, string_to_array(u.columns, E'\\x1f'), u.repaired"
            " FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::boolean[])"
            " AS u (target, key_digest, kind, columns, repaired)"
            " ON CONFLICT (reconciliation_id, target, key_digest) DO UPDATE SET kind = excluded.kind,"
            " columns = excluded.columns, repaired = excluded.repaired",
            [
                run_id,
                [d.target for d in drift],
                [d.key_digest for d in drift],
                [d.kind for d in drift],
                ["\x1f".join(d.columns) for d in drift],
                [d.repaired for d in drift],
            ],
        )
        connection.execute(
            "UPDATE replication.reconciliations SET in_flight = COALESCE(in_flight, 0) + %s WHERE id = %s AND %s > 0",
            [in_flight, run_id, in_flight],
        )


def samples(connection: Connection, run_id: int, most: int) -> list[Drift]:
    """Return some of a run's drift, unrepaired first."""
    with translating("reading the drift"):
        rows = connection.execute(
            "SELECT target, key_digest, kind, columns, repaired FROM replication.drift WHERE reconciliation_id = %s"
            " ORDER BY repaired, found_at, target, key_digest LIMIT %s",
            [run_id, most],
        )
        return [
            Drift(target, digest, kind, tuple(columns), repaired) for target, digest, kind, columns, repaired in rows
        ]


def finish(connection: Connection, run_id: int, *, undecided: int, of_another_table: bool = False) -> Counts:
    """Add up and record the outcome of a run; return its counts.

    A run proves nothing with the snapshot of another table, which may be behind, nor if changes arrived late while it
    ran, because their keys may have been compared before.
    """
    with translating("recording the reconciliation"), connection.transaction():
        row = connection.execute(_ADD_UP, {"id": run_id, "undecided": undecided}).fetchone()
        counts = Counts(*row) if row else Counts()
        asked = {"id": run_id, "other": of_another_table, "late": REDRIVE_WRITER}
        (no_proof,) = connection.execute(_NO_PROOF, asked).fetchone() or (None,)
        connection.execute(
            "UPDATE replication.reconciliations SET status = 'done', finished_at = clock_timestamp(), compared = %s,"
            " in_flight = %s, undecided = %s, missing = %s, extra = %s, different = %s, stale = %s, repaired = %s,"
            " rejected = %s, by_column = %s, reason = %s WHERE id = %s",
            [
                counts.compared,
                counts.in_flight,
                counts.undecided,
                counts.missing,
                counts.extra,
                counts.different,
                counts.stale,
                counts.repaired,
                counts.rejected,
                json.dumps(counts.by_column),
                no_proof,
                run_id,
            ],
        )
        prove_reconciled(connection, run_id)
    return replace(counts, no_proof=no_proof)


_NO_PROOF = """
SELECT CASE WHEN %(other)s THEN 'the snapshot is of another table'
            WHEN EXISTS (SELECT FROM replication.watermarks AS w WHERE w.table_name = r.table_name
                            AND w.writer = %(late)s AND w.applied_at >= r.started_at)
              OR EXISTS (SELECT FROM replication.rejects AS j WHERE j.table_name = r.table_name
                            AND j.replayed_at >= r.started_at)
            THEN 'a batch was redriven, or a reject replayed, while it ran' END
  FROM replication.reconciliations AS r WHERE r.id = %(id)s
"""

_ADD_UP = """
SELECT f.row_count + w.extra - %(undecided)s, COALESCE(r.in_flight, 0), %(undecided)s::bigint,
       d.missing, d.extra, d.different, d.stale, d.repaired, u.rejected, d.by_column
  FROM replication.reconciliations AS r,
       LATERAL (SELECT COALESCE(sum(row_count), 0)::bigint AS row_count FROM replication.reconciliation_files
                 WHERE reconciliation_id = r.id) AS f,
       LATERAL (SELECT COALESCE(sum(extra), 0)::bigint AS extra FROM replication.reconciliation_ranges
                 WHERE reconciliation_id = r.id) AS w,
       LATERAL (SELECT count(*) AS rejected FROM replication.reconciliation_unfit
                 WHERE reconciliation_id = r.id) AS u,
       LATERAL (SELECT count(*) FILTER (WHERE kind = 'missing') AS missing,
                       count(*) FILTER (WHERE kind = 'extra') AS extra,
                       count(*) FILTER (WHERE kind = 'different') AS different,
                       count(*) FILTER (WHERE kind = 'stale') AS stale,
                       count(*) FILTER (WHERE repaired) AS repaired,
                       (SELECT COALESCE(json_object_agg(c.name, c.rows), '{}') FROM (
                          SELECT name, count(*) AS rows FROM replication.drift AS x, unnest(x.columns) AS name
                           WHERE x.reconciliation_id = r.id GROUP BY name ORDER BY name) AS c) AS by_column
                  FROM replication.drift WHERE reconciliation_id = r.id) AS d
 WHERE r.id = %(id)s
"""


def fail(connection: Connection, run_id: int, reason: str) -> None:
    """Record that a run failed, with the reason (which contains no attribute values)."""
    with translating("recording the reconciliation"):
        connection.execute(
            "UPDATE replication.reconciliations SET status = 'failed', finished_at = clock_timestamp(), reason = %s"
            " WHERE id = %s",
            [reason, run_id],
        )
