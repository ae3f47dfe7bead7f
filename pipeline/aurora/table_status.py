"""How far each table is, in one query over the bookkeeping: watermarks, rejects, the last load and reconciliation.

Invariant: reads only, takes no lock, and costs the same however many rows the tables hold: counts of rows are the
planner's estimates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.aurora import tables
from pipeline.aurora.connection import literal
from pipeline.aurora.errors import translating

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from pipeline.aurora.connection import Connection
    from pipeline.core.mapping import TableMapping


@dataclass(frozen=True, slots=True)
class LastLoad:
    """The load that was begun last."""

    location: str
    status: str
    snapshot_time: datetime
    item_count: int
    files_loaded: int
    file_count: int
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class LastReconciliation:
    """The last reconciliation that was brought to its end."""

    finished_at: datetime
    snapshot_time: datetime
    compared: int
    drift: int
    repaired: int


@dataclass(frozen=True, slots=True)
class TableStatus:
    """How far one table is. Counts are sums over every writer since it began."""

    table: str
    rows_estimate: int | None
    """Rows stored for all targets, tombstones included, as the planner estimates them; None before its first look."""
    watermark_as_of: datetime | None
    """Creation time of the newest change applied, whole seconds."""
    applied_at: datetime | None
    """When the newest batch was committed."""
    lag_seconds: float | None
    """How far behind the newest batch was as it was committed. Says nothing of an idle table, nor of a dead writer."""
    writers: int
    batches: int
    records: int
    applied: int
    stale: int
    deleted: int
    expired: int
    rejected: int
    rejects_waiting: int
    """Rejects that nobody has replayed yet."""
    last_load: LastLoad | None
    last_reconciliation: LastReconciliation | None


def read_statuses(connection: Connection, mappings: Iterable[TableMapping]) -> list[TableStatus]:
    """Read the status of each mapping's table. Raises TerminalError when the bookkeeping is not installed."""
    wanted = list(mappings)
    names = [mapping.name for mapping in wanted]
    storage = [tables.storage(target).as_string(connection) for m in wanted for target in m.targets]
    owners = [mapping.name for mapping in wanted for _ in mapping.targets]
    with translating("reading how far the tables are"):
        rows = connection.execute(literal(_QUERY), [names, owners, storage]).fetchall()
    by_name = {row[0]: row for row in rows}
    return [_status(by_name[name]) for name in names]


def _status(row: tuple[object, ...]) -> TableStatus:
    counts, load, reconciliation = row[:14], row[14:22], row[22:]
    return TableStatus(
        *counts,  # type: ignore[arg-type]  # the query's columns, in the order of the fields
        last_load=LastLoad(*load) if load[0] is not None else None,  # type: ignore[arg-type]
        last_reconciliation=LastReconciliation(*reconciliation) if reconciliation[0] is not None else None,  # type: ignore[arg-type]
    )


_QUERY = """
WITH wanted AS (SELECT name FROM unnest(%s::text[]) AS name),
estimates AS (
    SELECT owner, sum(c.reltuples) FILTER (WHERE c.reltuples >= 0)::bigint AS rows
    FROM unnest(%s::text[], %s::text[]) AS s(owner, storage)
    JOIN pg_class AS c ON c.oid = to_regclass(s.storage)
    GROUP BY owner
)
SELECT wanted.name, estimates.rows, newest.watermark, newest.applied_at,
       CASE WHEN newest.as_of IS NOT NULL
            THEN greatest(0, extract(epoch FROM newest.applied_at - newest.as_of))::float8 END,
       COALESCE(total.writers, 0), COALESCE(total.batches, 0)::bigint, COALESCE(total.records, 0)::bigint,
       COALESCE(total.applied, 0)::bigint, COALESCE(total.stale, 0)::bigint, COALESCE(total.deleted, 0)::bigint,
       COALESCE(total.expired, 0)::bigint, COALESCE(total.rejected, 0)::bigint, COALESCE(waiting.rejects, 0),
       e.location, e.status, e.snapshot_time, e.item_count, e.files_loaded, e.file_count, e.started_at, e.finished_at,
       r.finished_at, r.snapshot_time, r.compared, r.drift, r.repaired
FROM wanted
LEFT JOIN estimates ON estimates.owner = wanted.name
LEFT JOIN LATERAL (
    SELECT max(as_of) OVER () AS watermark, applied_at, as_of FROM replication.watermarks
    WHERE table_name = wanted.name ORDER BY applied_at DESC LIMIT 1
) AS newest ON true
LEFT JOIN LATERAL (
    SELECT count(*) AS writers, sum(batches) AS batches, sum(records) AS records, sum(applied) AS applied,
           sum(stale) AS stale, sum(deleted) AS deleted, sum(expired) AS expired, sum(rejected) AS rejected
    FROM replication.watermarks WHERE table_name = wanted.name
) AS total ON true
LEFT JOIN LATERAL (
    SELECT count(*) AS rejects FROM replication.rejects WHERE table_name = wanted.name AND replayed_at IS NULL
) AS waiting ON true
LEFT JOIN LATERAL (
    SELECT x.*, (SELECT count(*) FROM replication.export_files WHERE export_id = x.id) AS files_loaded
    FROM replication.exports AS x WHERE x.table_name = wanted.name ORDER BY x.id DESC LIMIT 1
) AS e ON true
LEFT JOIN LATERAL (
    SELECT finished_at, snapshot_time, compared, missing + extra + different AS drift, repaired
    FROM replication.reconciliations WHERE table_name = wanted.name AND status = 'done' ORDER BY id DESC LIMIT 1
) AS r ON true
"""
