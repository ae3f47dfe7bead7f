"""Records that could not be converted, kept whole in `replication.rejects` until a person has worked them off.

Invariant: a reject commits in the transaction of the batch it came from, and once: a redelivered record is the
same reject. Its record is stored as it came; its reason and its digest tell nothing of the values.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from pipeline.aurora.errors import translating

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.aurora.connection import Connection
    from pipeline.core.stream_records import Reject


def add(connection: Connection, table_name: str, rejects: Sequence[Reject], *, source: str) -> int:
    """Keep rejects, inside the caller's transaction; returns how many were not known yet."""
    if not rejects:
        return 0
    records = [json.dumps(reject.record, sort_keys=True, separators=(",", ":")) for reject in rejects]
    digests = [hashlib.sha256(record.encode()).hexdigest() for record in records]
    positions = [reject.position for reject in rejects]
    columns = [
        [reject.target for reject in rejects],
        digests,
        [reject.key_digest for reject in rejects],
        [reject.reason for reject in rejects],
        [None if p is None or p.version is None else str(p.version) for p in positions],
        [None if p is None else p.as_of.isoformat() for p in positions],
        records,
    ]
    with translating("keeping rejected records", table=table_name):
        cursor = connection.execute(
            "INSERT INTO replication.rejects (table_name, source, target, digest, key_digest, reason,"
            " position_version, position_as_of, record)"
            " SELECT %s, %s, u.* FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[],"
            " %s::numeric[], %s::timestamptz[], %s::json[]) AS u"
            " ON CONFLICT (table_name, target, digest) DO NOTHING",
            [table_name, source, *columns],
        )
        return cursor.rowcount
