"""Records that could not be converted, kept whole in `replication.rejects` until a person has resolved them.

Invariant: a reject commits in the transaction of its batch, and only once: a redelivered record is the same reject,
replayed or not. Only a later snapshot with the same line reopens it, because then a newer state of the item could not
be converted. The record is stored as it arrived; reason and digest reveal nothing about the values.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.rows import class_row

from pipeline.aurora.bookkeeping.protection import in_force
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.apply import nullable_array_literal
from pipeline.core.ordering import Position

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime
    from decimal import Decimal

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.attributes import Item
    from pipeline.core.model.reject import Reject


@dataclass(frozen=True, slots=True)
class RejectGroup:
    """Rejects of one table and target with one reason. `id` is that of the oldest, as an example."""

    table: str
    target: str
    reason: str
    waiting: int
    replayed: int
    oldest: datetime
    newest: datetime
    sources: list[str]
    """The kinds of source that they came from: `stream`, `export` …"""
    id: int


@dataclass(frozen=True, slots=True)
class StoredReject:
    """One stored reject."""

    id: int
    table: str
    target: str
    reason: str
    source: str
    key_digest: str | None
    position_version: Decimal | None
    position_as_of: datetime | None
    rejected_at: datetime
    replayed_at: datetime | None
    record: dict[str, Any]
    protection: str | None = None
    """What is replaced in the record, as `pipeline.core.model.protection` records it."""

    @property
    def position(self) -> Position | None:
        """The record's position in time; None if it could not be read from the record."""
        if self.position_as_of is None:
            return None
        return Position(self.position_as_of, None if self.position_version is None else int(self.position_version))


# Equal records have equal text; its digest shows whether a reject is already known.
as_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
# A parameter can have 1 GB, and a file may contain nothing but rejects.
STATEMENT_CHARACTERS = 8 << 20

# A record that occurs twice in one call is stored once, because a statement cannot affect a row twice (21000).
_ADD = (
    sql.SQL("""
INSERT INTO replication.rejects AS kept (table_name, source, target, digest, key_digest, reason,
    position_version, position_as_of, record, protection)
SELECT DISTINCT ON (u.target, u.digest) %(table)s::text, %(source)s::text, u.*, NULLIF(t.protection, '')
  FROM unnest(%(c0)s::text[], %(c1)s::text[], %(c2)s::text[], %(c3)s::text[], %(c4)s::numeric[],
              %(c5)s::timestamptz[], %(c6)s::json[])
    AS u (target, digest, key_digest, reason, position_version, position_as_of, record),
       (SELECT %(protection)s::text AS protection) AS t
 WHERE {in_force}
 ORDER BY u.target, u.digest, u.position_as_of DESC
    ON CONFLICT (table_name, target, digest) DO UPDATE
   SET source = excluded.source, reason = excluded.reason, position_version = excluded.position_version,
       protection = excluded.protection,
       position_as_of = excluded.position_as_of, rejected_at = excluded.rejected_at, replayed_at = NULL
 WHERE excluded.position_as_of > kept.position_as_of
""")
    .format(in_force=in_force(sql.SQL("%(table)s::text"), sql.SQL("%(protection)s::text")))
    .as_bytes()
)


def add(
    connection: Connection, table_name: str, rejects: Sequence[Reject], *, source: str, protection: str = ""
) -> int:
    """Store rejects, inside the caller's transaction; return how many were new, or new at this position.

    `protection` is what is replaced in their records. Fails, with the caller's transaction, if something else is in
    force.
    """
    added = 0
    with translating("storing rejected records", table=table_name):
        for some, records in _statements(rejects):
            columns = map(nullable_array_literal, _columns(some, records))
            parameters = {"table": table_name, "source": source, "protection": protection}
            parameters |= {f"c{number}": column for number, column in enumerate(columns)}
            added += connection.execute(_ADD, parameters).rowcount
    return added


def _statements(rejects: Iterable[Reject]) -> Iterator[tuple[list[Reject], list[str]]]:
    """Return rejects with their records as JSON, as many at a time as fit into one statement."""
    some, records, size = list["Reject"](), list[str](), 0
    for reject in rejects:
        record = reject.record
        text = as_json(json.loads(record) if isinstance(record, bytes) else record)
        if some and size + len(text) > STATEMENT_CHARACTERS:
            yield some, records
            some, records, size = [], [], 0
        some.append(reject)
        records.append(text)
        size += len(text)
    if some:
        yield some, records


def _columns(rejects: Sequence[Reject], records: Sequence[str]) -> Iterator[Sequence[str | None]]:
    positions = [reject.position for reject in rejects]
    yield [reject.target for reject in rejects]
    yield [hashlib.sha256(record.encode()).hexdigest() for record in records]
    yield [reject.key_digest for reject in rejects]
    yield [reject.reason for reject in rejects]
    yield [None if p is None or p.version is None else str(p.version) for p in positions]
    yield [None if p is None else p.as_of.isoformat() for p in positions]
    yield records


def groups(connection: Connection, table_names: Sequence[str] | None = None) -> list[RejectGroup]:
    """Return the rejects by table, target and reason, most waiting first; None: of all tables."""
    with translating("listing rejects"), connection.cursor(row_factory=class_row(RejectGroup)) as cursor:
        return cursor.execute(
            'SELECT table_name AS "table", target, reason, count(*) FILTER (WHERE replayed_at IS NULL) AS waiting,'
            " count(replayed_at) AS replayed, min(rejected_at) AS oldest, max(rejected_at) AS newest,"
            " array_agg(DISTINCT split_part(source, ' ', 1)) AS sources,"
            " (array_agg(id ORDER BY replayed_at IS NOT NULL, rejected_at, id))[1] AS id"
            " FROM replication.rejects WHERE %s::text[] IS NULL OR table_name = ANY (%s)"
            " GROUP BY table_name, target, reason ORDER BY waiting DESC, table_name, target, reason",
            [None if table_names is None else list(table_names)] * 2,
        ).fetchall()


_STORED = (
    'SELECT id, table_name AS "table", target, reason, source, key_digest, position_version, position_as_of,'
    " rejected_at, replayed_at, record, protection FROM replication.rejects"
)


def read(connection: Connection, reject_id: int) -> StoredReject | None:
    """Return one reject, or None if there is none with this number."""
    with translating("reading a reject"), connection.cursor(row_factory=class_row(StoredReject)) as cursor:
        return cursor.execute(f"{_STORED} WHERE id = %s", [reject_id]).fetchone()


def waiting(connection: Connection, table_name: str, *, after: int = 0, limit: int = 100) -> list[StoredReject]:
    """Return the next rejects of a table that were not replayed, by number."""
    with translating("reading rejects", table=table_name), connection.cursor(row_factory=class_row(StoredReject)) as c:
        return c.execute(
            f"{_STORED} WHERE table_name = %s AND replayed_at IS NULL AND id > %s ORDER BY id LIMIT %s",
            [table_name, after, limit],
        ).fetchall()


def after(connection: Connection, table_name: str, number: int, limit: int) -> list[StoredReject]:
    """Return the next rejects of a table, replayed ones included, by number."""
    with translating("reading rejects", table=table_name), connection.cursor(row_factory=class_row(StoredReject)) as c:
        return c.execute(
            f"{_STORED} WHERE table_name = %s AND id > %s ORDER BY id LIMIT %s", [table_name, number, limit]
        ).fetchall()


def count_waiting(connection: Connection, table_name: str) -> int:
    """Return how many rejects of a table are waiting."""
    with translating("counting rejects", table=table_name):
        row = connection.execute(
            "SELECT count(*) FROM replication.rejects WHERE table_name = %s AND replayed_at IS NULL", [table_name]
        ).fetchone()
    return row[0] if row else 0


def mark_replayed(connection: Connection, replayed: Sequence[StoredReject]) -> None:
    """Mark rejects as replayed, inside the transaction that applied them.

    A reject that a later snapshot reopened meanwhile stays open, because its current content was not applied.
    """
    with translating("marking rejects as replayed"):
        connection.execute(
            "UPDATE replication.rejects AS r SET replayed_at = clock_timestamp()"
            " FROM unnest(%s::bigint[], %s::timestamptz[]) AS u (id, as_of)"
            " WHERE r.id = u.id AND r.replayed_at IS NULL AND r.position_as_of IS NOT DISTINCT FROM u.as_of",
            [[reject.id for reject in replayed], [reject.position_as_of for reject in replayed]],
        )


def set_reasons(connection: Connection, reasons: Sequence[tuple[StoredReject, str]]) -> None:
    """Store today's reason for rejects that failed again."""
    changed = [(reject.id, reason) for reject, reason in reasons if reject.reason != reason]
    with translating("updating the reasons of rejects"):
        connection.execute(
            "UPDATE replication.rejects AS r SET reason = u.reason"
            " FROM unnest(%s::bigint[], %s::text[]) AS u (id, reason) WHERE r.id = u.id AND r.replayed_at IS NULL",
            [[number for number, _ in changed], [reason for _, reason in changed]],
        )


@dataclass(frozen=True, slots=True)
class ItemReject:
    """A waiting reject of one item."""

    id: int
    target: str
    reason: str
    source: str
    position: Position
    rejected_at: datetime


def waiting_of_items(
    connection: Connection, table_name: str, keys: Sequence[tuple[str, Item]]
) -> dict[int, list[ItemReject]]:
    """Return, by index in `keys`, the waiting rejects of an item whose position is known, newest first.

    `keys` are (digest as for stream records, key attributes). Rejects of exports have no digest; the query finds them
    by their key attributes, which are stored as DynamoDB wrote them.
    """
    found: dict[int, list[ItemReject]] = {}
    if not keys:
        return found
    names = sorted(keys[0][1])
    parts = [[json.dumps(item[name], separators=(",", ":")) for _, item in keys] for name in names]
    columns = sql.SQL(", ").join(sql.Identifier(f"part {i}") for i in range(len(names)))
    same = sql.SQL(" AND ").join(
        sql.SQL("(COALESCE(r.record->'Item', r.record->'Keys')->{})::text = k.{}").format(
            sql.Literal(name), sql.Identifier(f"part {i}")
        )
        for i, name in enumerate(names)
    )
    query = sql.SQL(
        "SELECT k.place, r.id, r.target, r.reason, r.source, r.position_version, r.position_as_of, r.rejected_at"
        " FROM unnest(%s::text[], {arrays}) WITH ORDINALITY AS k (digest, {columns}, place)"
        " JOIN replication.rejects AS r ON r.table_name = %s AND r.replayed_at IS NULL"
        " AND r.position_as_of IS NOT NULL AND (r.key_digest = k.digest OR r.key_digest IS NULL"
        # PostgreSQL reads nothing of a record that has the escape of U+0000 anywhere.
        " AND CASE WHEN strpos(r.record::text, '\\u0000') > 0 THEN false ELSE {same} END)"
        " ORDER BY k.place, r.position_as_of DESC, r.position_version DESC NULLS LAST"
    ).format(arrays=sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(names)), columns=columns, same=same)
    with translating("looking for rejects of items", table=table_name):
        rows = connection.execute(query, [[digest for digest, _ in keys], *parts, table_name])
        for place, number, target, reason, source, version, as_of, at in rows:
            position = Position(as_of, None if version is None else int(version))
            found.setdefault(place - 1, []).append(ItemReject(number, target, reason, source, position, at))
    return found
