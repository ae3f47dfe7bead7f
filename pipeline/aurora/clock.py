"""The database's clock, which says what has not come yet: a host's own may be wrong.

Invariant: nothing that counts as of a time to come is stored. From then on every change of the stream would be stale
until that time, and every later load would be refused as older.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.core.errors import UnusableSnapshotError

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.aurora.connection import Connection

# What clocks may disagree by, however large a margin was asked for.
MOST_AHEAD = timedelta(minutes=5)


def refuse_future(connection: Connection, table_name: str, snapshot_time: datetime, as_of: datetime) -> None:
    """Raise UnusableSnapshotError when a snapshot is of a time that has not come, by the database's clock.

    The margin, by which `as_of` is earlier, covers clocks that disagree; of a large one no more than `MOST_AHEAD`.
    """
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    if row and max(as_of, snapshot_time - MOST_AHEAD) > row[0]:
        raise UnusableSnapshotError(
            f"taking a snapshot: it is of {snapshot_time:%Y-%m-%d %H:%M:%S} UTC, and it is"
            f" {row[0]:%Y-%m-%d %H:%M:%S} UTC by the database's clock: the snapshot is of the future",
            table=table_name,
            hint="look at exportTime (or exportToTime) of the manifest; request a new export if it was altered, and"
            " check the database's clock if it was not",
        )
