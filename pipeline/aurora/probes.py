"""What the probe knows of a table's replication, in schema `replication`.

Invariant: `caught_up_through` is never later than what was proven. It is a statement about the past, so it stays
true once it is; each tick may only move it on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.aurora.errors import translating

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.aurora.connection import Connection


def caught_up_through(connection: Connection, table_name: str) -> datetime | None:
    """Return the time before which no change of the source is still on its way; None when that is not known.

    Every change that the source made before it is in Aurora, or was overtaken there by a newer state of its key, or
    waits where a person sees it (`replication.rejects`), or was lost before the probe could read it: nothing will
    still bring it by itself. So a row that differs from what the source held before that time has drifted. The time
    is the source's clock as the reader's clock has it, less the probe's allowance for both.
    """
    with translating("asking how far replication is", table=table_name):
        row = connection.execute(
            "SELECT caught_up_through FROM replication.probes WHERE table_name = %s", [table_name]
        ).fetchone()
    return row[0] if row else None
