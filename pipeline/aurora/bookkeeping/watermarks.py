"""Watermarks: how far each writer has applied a table's stream, and the counts of its changes.

Invariant: a mark commits in the transaction of its changes. Each writer has its own row, so writers never queue.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping.sources import of_record

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection

# Writers whose rows say nothing about the stream's progress: late batches, and the sums of writers that are gone.
REDRIVE_WRITER, GONE_WRITERS = "redrive", "writers that are gone"
WRITERS_NOT_LIVE = (REDRIVE_WRITER, GONE_WRITERS)
_LAMBDA = "lambda:"


def lambda_writer(function: str, environment: str) -> str:
    """Return the writer's name for one execution environment of a Lambda function."""
    return f"{_LAMBDA}{function}:{environment}"


def functions(connection: Connection, table_name: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names of the Lambda functions that write this table, and of those that write any other one.

    Functions that stopped a day before the newest write of a table no longer count: another function has replaced them,
    or the database is a copy of theirs.
    """
    rows = connection.execute(_FUNCTIONS, {"table": table_name, "writers": f"{_LAMBDA}%"}).fetchall()
    here = frozenset(function for function, of_table in rows if of_table)
    return here, frozenset(function for function, _ in rows) - here


_FUNCTIONS = """
SELECT split_part(writer, ':', 2), table_name = %(table)s
  FROM (SELECT table_name, writer, applied_at, max(applied_at) OVER (PARTITION BY table_name) AS newest
          FROM replication.watermarks WHERE writer LIKE %(writers)s) AS w
 WHERE applied_at > newest - interval '1 day' GROUP BY 1, 2
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far one writer has applied a table's stream with one batch."""

    table_name: str
    writer: str
    stream_label: str
    sequence_number: str | None
    as_of: datetime | None
    records: int
    candidates: int
    """Changes sent to the target; those that were not applied were stale."""
    rejected: int
    batches: int = 1
    """0 for further targets of a batch, which the first target's statement counts."""
    stream_arn: str | None = None
    """Its table must be the source of record."""

    def parameters(self) -> list[object]:
        """Values for MARK_APPLIED, in order."""
        return [
            self.table_name,
            self.writer,
            self.stream_label,
            self.sequence_number,
            self.as_of,
            self.records,
            self.candidates,
            self.rejected,
            self.batches,
        ]


_KEEP_MARK = """
 ON CONFLICT (table_name, writer) DO UPDATE SET stream_label = excluded.stream_label,
 sequence_number = COALESCE(excluded.sequence_number, w.sequence_number),
 as_of = GREATEST(w.as_of, excluded.as_of), applied_at = clock_timestamp(),
 batches = w.batches + excluded.batches, records = w.records + excluded.records, applied = w.applied + excluded.applied,
 stale = w.stale + excluded.stale, deleted = w.deleted + excluded.deleted, expired = w.expired + excluded.expired,
 rejected = w.rejected + excluded.rejected, refused = w.refused + excluded.refused"""

_MARK_COLUMNS = (
    "table_name, writer, stream_label, sequence_number, as_of, applied_at, batches, records,"
    " applied, stale, deleted, expired, rejected, refused"
)

# A further common table expression for the apply statement: its counts go straight to the watermark.
MARK_APPLIED = sql.SQL(
    f", m AS (SELECT %s::text t, %s::text w, %s::text l, %s::numeric s, %s::timestamptz a,"  # noqa: S608 - constants only
    f" %s::bigint r, %s::bigint c, %s::bigint j, %s::bigint b),"
    f" mark AS (INSERT INTO replication.watermarks AS w ({_MARK_COLUMNS})"
    " SELECT t, w, l, s, a, clock_timestamp(), b, r, n.applied, c - n.applied, n.deleted, n.expired, j, n.refused"
    " FROM m, (SELECT count(*) AS applied, count(*) FILTER (WHERE deleted) AS deleted,"
    " count(*) FILTER (WHERE expired) AS expired, (SELECT n FROM refused) AS refused"
    f" FROM applied) AS n{_KEEP_MARK})"
)

_MARK_COUNTED = sql.SQL(
    f"INSERT INTO replication.watermarks AS w ({_MARK_COLUMNS})"
    " SELECT %(table_name)s::text, %(writer)s, %(stream_label)s, %(sequence_number)s::numeric, %(as_of)s::timestamptz,"
    " clock_timestamp(), 1, %(records)s, %(applied)s, %(stale)s, %(deleted)s, %(expired)s, %(rejected)s, %(refused)s"
    " WHERE {of_record}" + _KEEP_MARK
).format(
    of_record=of_record(
        sql.SQL("%(table_name)s::text"),
        sql.SQL("split_part(split_part(%(stream_arn)s::text, ':table/', 2), '/', 1)"),
        sql.SQL("%(stream_arn)s::text"),
    )
)


def add_mark(
    connection: Connection, mark: Mark, applied: int, stale: int, deleted: int, expired: int, refused: int
) -> None:
    """Add counts to a writer's watermark, inside the caller's transaction; fails unless its stream is of record."""
    counts = {"applied": applied, "stale": stale, "deleted": deleted, "expired": expired, "refused": refused}
    connection.execute(_MARK_COUNTED, {f.name: getattr(mark, f.name) for f in fields(mark)} | counts)
