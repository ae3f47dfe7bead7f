"""Protects rejects that were stored before the mapping protected what it does now.

Invariant: afterwards no reject of the mapping holds a value that it protects, replayed or not. A record that cannot be
read keeps nothing.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping.rejects import after, as_json
from pipeline.aurora.errors import translating
from pipeline.core.decode.protect import Protector
from pipeline.core.errors import TerminalError
from pipeline.core.model.protection import Entry, entries_of, written
from pipeline.core.streams.rejected_records import protected_again

if TYPE_CHECKING:
    from pipeline.aurora.bookkeeping.rejects import StoredReject
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping

_CHUNK = 100


def unprotected(connection: Connection, mapping: TableMapping) -> int:
    """Return how many rejects are not protected as the mapping asks for."""
    if not mapping.protects:
        return 0
    with translating("looking for rejects that are not protected", table=mapping.name):
        known = connection.execute(
            "SELECT FROM pg_attribute WHERE attrelid = 'replication.rejects'::regclass AND attname = 'protection'"
        ).fetchone()
        protection = sql.SQL("protection" if known is not None else "NULL")
        query = sql.SQL(
            "SELECT target, COALESCE({}, ''), count(*) FROM replication.rejects WHERE table_name = %s GROUP BY 1, 2"
        ).format(protection)
        rows = connection.execute(query, [mapping.name]).fetchall()
    return sum(count for target, protection, count in rows if _wanted(mapping, target) - entries_of(protection, target))


def protect(connection: Connection, mapping: TableMapping) -> int:
    """Protect them, in transactions of some rejects each; return how many. It may be killed and run again."""
    seen, protected = 0, 0
    protectors: dict[frozenset[Entry], Protector] = {}
    while chunk := after(connection, mapping.name, seen, _CHUNK):
        seen = chunk[-1].id
        with translating("protecting rejects", table=mapping.name), connection.transaction():
            for reject in chunk:
                already = entries_of(reject.protection or "", reject.target)
                if not _wanted(mapping, reject.target) - already:
                    continue
                if already not in protectors:
                    protectors[already] = Protector(mapping, already)
                _store(connection, reject, _record(reject, protectors[already]),
                       written({reject.target: already | _wanted(mapping, reject.target)}))  # fmt: skip
                protected += 1
    return protected


def _wanted(mapping: TableMapping, target: str) -> frozenset[Entry]:
    return entries_of(mapping.protection, target)


def _record(reject: StoredReject, protector: Protector) -> str:
    try:
        return as_json(protected_again(reject.record, protector))
    except TerminalError:
        return json.dumps({})


def _store(connection: Connection, reject: StoredReject, record: str, protection: str) -> None:
    """Store a record in place of another; of two that are equal now, the newer one stays."""
    values = {
        "id": reject.id,
        "table": reject.table,
        "target": reject.target,
        "digest": hashlib.sha256(record.encode()).hexdigest(),
        "record": record,
        "protection": protection,
        "as_of": reject.position_as_of,
    }
    connection.execute(
        "DELETE FROM replication.rejects WHERE table_name = %(table)s AND target = %(target)s AND digest = %(digest)s"
        " AND id <> %(id)s AND COALESCE(position_as_of <= %(as_of)s, true)",
        values,
    )
    updated = connection.execute(
        "UPDATE replication.rejects AS r SET record = %(record)s, digest = %(digest)s, protection = %(protection)s"
        " WHERE id = %(id)s AND NOT EXISTS (SELECT FROM replication.rejects WHERE table_name = %(table)s"
        " AND target = %(target)s AND digest = %(digest)s AND id <> %(id)s)",
        values,
    )
    if not updated.rowcount:
        connection.execute("DELETE FROM replication.rejects WHERE id = %(id)s", values)
