"""The status of each table: last load, watermarks, rejects, last reconciliation, from schema `replication`.

Invariant: reads only and takes no lock. One statement reads all figures, so they are from one moment. Its cost does not
depend on the size of the tables, because row counts are the planner's estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row

from pipeline.aurora.bookkeeping import bookkeeping, watermarks
from pipeline.aurora.errors import translating
from pipeline.aurora.schema import tables

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping


@dataclass(frozen=True, slots=True)
class TableStatus:
    """Figures of one table; None if there has been no load, change or reconciliation yet."""

    name: str
    load_kind: str | None
    load_status: str | None
    load_reason: str | None
    load_snapshot_time: datetime | None
    load_finished_at: datetime | None
    load_items: int | None
    load_items_done: int | None
    load_files: int | None
    load_files_done: int | None
    rows_estimate: int | None
    """Rows stored for all targets, tombstones included, as the planner estimates them; None before its first look."""
    writers: int
    batches: int
    applied_at: datetime | None
    """When the last batch of the stream committed."""
    newest_change: datetime | None
    """Creation time of the newest change applied, to the second."""
    lag_seconds: float | None
    """How far behind the newest batch was when it was committed. Says nothing about an idle table or a dead writer."""
    records: int
    applied: int
    stale: int
    deleted: int
    expired: int
    rejected: int
    rejects_waiting: int
    oldest_reject: datetime | None
    reconciliation_status: str | None
    reconciliation_snapshot_time: datetime | None
    reconciliation_finished_at: datetime | None
    compared: int | None
    in_flight: int | None
    missing: int | None
    extra: int | None
    different: int | None
    behind: int | None
    """Rows that the last reconciliation found stale, which means that they hold an older state."""
    repaired: int | None
    purged_through: datetime | None
    refused: int = 0
    """Of the stale changes, those without a row that were not newer than `purged_through`."""
    caught_up_through: datetime | None = None
    """The time that the newest caught-up window counts as of."""
    caught_up_at: datetime | None = None
    undecided: int | None = None
    """Rows that the last reconciliation could not decide."""
    load_broken_off: bool | None = None
    """Whether the last load is unfinished and no session leads it."""

    @property
    def attention(self) -> tuple[str, ...]:
        """What a person must look at, with the next step."""
        found = (self.missing, self.extra, self.different, self.behind)
        drift = sum(count or 0 for count in found) - (self.repaired or 0)
        return tuple(
            what
            for what, so in (
                (f"the last load failed: {self.load_reason}; run `dynaurora load {self.name}`",
                 self.load_status == "failed"),
                (f"the last load broke off; run `dynaurora load {self.name}{' --scan' * (self.load_kind == 'scan')}`,"
                 " which resumes it", bool(self.load_broken_off)),
                (f"{self.rejects_waiting} rejects wait; see `dynaurora rejects list {self.name}`",
                 self.rejects_waiting > 0),
                (f"the last reconciliation failed; run `dynaurora reconcile {self.name}`",
                 self.reconciliation_status == "failed"),
                (f"{drift} drifted rows were not repaired; run `dynaurora reconcile {self.name} --repair`", drift > 0),
                (f"{self.undecided} rows were not decided by the last reconciliation (snapshot of"
                 f" {str(self.reconciliation_snapshot_time)[:19]} UTC); run `dynaurora reconcile {self.name}`",
                 (self.undecided or 0) > 0),
            )
            if so
        )  # fmt: skip


def read_status(connection: Connection, mappings: Sequence[TableMapping]) -> dict[str, TableStatus]:
    """Read the status of the mappings' tables, by name; tables that are not registered (not migrated) are left out."""
    if not bookkeeping.installed(connection):
        return {}
    with translating("reading the status"), connection.cursor(row_factory=class_row(TableStatus)) as cursor:
        parameters: dict[str, Any] = {
            "names": [mapping.name for mapping in mappings],
            "not_live": list(watermarks.WRITERS_NOT_LIVE),
            "owners": [mapping.name for mapping in mappings for _ in mapping.targets],
            "storage": [tables.storage(target).as_string(connection) for m in mappings for target in m.targets],
        }
        return {status.name: status for status in cursor.execute(_STATUS, parameters)}


_STATUS = """
SELECT t.name, l.kind AS load_kind, l.status AS load_status, l.reason AS load_reason,
       l.snapshot_time AS load_snapshot_time, l.finished_at AS load_finished_at, l.item_count AS load_items,
       l.status = 'loading' AND l.started_at < now() - interval '1 minute' AND NOT EXISTS (
         SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
            AND classid::bigint = l.lead >> 32 AND objid::bigint = l.lead & 4294967295) AS load_broken_off,
       f.items AS load_items_done, l.file_count AS load_files, f.files AS load_files_done,
       z.rows_estimate, w.writers, w.batches, w.applied_at, w.newest_change, w.lag_seconds,
       w.records, w.applied, w.stale, w.deleted, w.expired, w.rejected, j.rejects_waiting, j.oldest_reject,
       r.status AS reconciliation_status, r.snapshot_time AS reconciliation_snapshot_time,
       r.finished_at AS reconciliation_finished_at, r.compared, r.in_flight, r.missing, r.extra, r.different,
       r.stale AS behind, r.repaired, r.undecided, t.purged_through, w.refused, c.caught_up_through, c.caught_up_at
  FROM replication.tables AS t
  LEFT JOIN LATERAL (SELECT * FROM replication.exports AS e WHERE e.table_name = t.name AND e.kind <> 'incremental'
                     ORDER BY e.started_at DESC, e.id DESC LIMIT 1) AS l ON true
  LEFT JOIN LATERAL (SELECT count(*) AS files, COALESCE(sum(item_count), 0)::bigint AS items
                       FROM replication.export_files AS x WHERE x.export_id = l.id) AS f ON l.id IS NOT NULL
 CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE live) AS writers, max(applied_at) FILTER (WHERE live) AS applied_at,
              max(as_of) FILTER (WHERE live) AS newest_change,
              (array_agg(GREATEST(0, extract(epoch FROM applied_at - as_of))::float8 ORDER BY applied_at DESC)
                 FILTER (WHERE live AND as_of IS NOT NULL))[1] AS lag_seconds,
              COALESCE(sum(batches), 0)::bigint AS batches,
              COALESCE(sum(records), 0)::bigint AS records, COALESCE(sum(applied), 0)::bigint AS applied,
              COALESCE(sum(stale), 0)::bigint AS stale, COALESCE(sum(refused), 0)::bigint AS refused,
              COALESCE(sum(deleted), 0)::bigint AS deleted,
              COALESCE(sum(expired), 0)::bigint AS expired, COALESCE(sum(rejected), 0)::bigint AS rejected
         FROM (SELECT *, writer <> ALL (%(not_live)s) AS live FROM replication.watermarks) AS m
        WHERE m.table_name = t.name) AS w
 CROSS JOIN LATERAL (
       SELECT count(*) AS rejects_waiting, min(rejected_at) AS oldest_reject
         FROM replication.rejects AS x WHERE x.table_name = t.name AND x.replayed_at IS NULL) AS j
  LEFT JOIN LATERAL (SELECT * FROM replication.reconciliations AS c WHERE c.table_name = t.name
                     ORDER BY c.started_at DESC, c.id DESC LIMIT 1) AS r ON true
 CROSS JOIN LATERAL (
       SELECT max(as_of) AS caught_up_through, max(finished_at) AS caught_up_at
         FROM replication.exports AS e
        WHERE e.table_name = t.name AND e.kind = 'incremental' AND e.status = 'loaded') AS c
 CROSS JOIN LATERAL (
       SELECT sum(c.reltuples) FILTER (WHERE c.reltuples >= 0)::bigint AS rows_estimate
         FROM unnest(%(owners)s::text[], %(storage)s::text[]) AS s(owner, storage)
         JOIN pg_class AS c ON c.oid = to_regclass(s.storage)
        WHERE s.owner = t.name) AS z
 WHERE t.name = ANY (%(names)s)
 ORDER BY t.name
"""
