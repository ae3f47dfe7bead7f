"""The database's clock, which says what has not come yet: a host's own may be wrong.

Invariant: nothing that counts as of a time to come is stored. From then on every change of the stream would be stale
until that time, and every later load would be refused as older.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.core.errors import UnusableSnapshotError

if TYPE_CHECKING:
    from pipeline.aurora.sessions.connection import Connection

# What clocks may disagree by, however large a margin was asked for.
MOST_AHEAD = timedelta(minutes=5)


def database_now(connection: Connection) -> datetime:
    """Return what the database's clock shows."""
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    return row[0]


def refuse_future(connection: Connection, table_name: str, snapshot_time: datetime, as_of: datetime) -> None:
    """Raise UnusableSnapshotError when a snapshot is of a time that has not come, by the database's clock.

    The margin, by which `as_of` is earlier, covers clocks that disagree; of a large one no more than `MOST_AHEAD`.
    """
    now = database_now(connection)
    if max(as_of, snapshot_time - MOST_AHEAD) > now:
        raise UnusableSnapshotError(
            f"taking a snapshot: it is of {snapshot_time:%Y-%m-%d %H:%M:%S} UTC, and it is"
            f" {now:%Y-%m-%d %H:%M:%S} UTC by the database's clock: the snapshot is of the future",
            table=table_name,
            hint="look at exportTime (or exportToTime) of the manifest; request a new export if it was altered, and"
            " check the database's clock if it was not",
        )


def host_ahead(connection: Connection) -> timedelta:
    """Return how far this host's clock is ahead of the database's; nothing where the question took that long."""
    asked = datetime.now(UTC)
    there = database_now(connection)
    answered = datetime.now(UTC)
    return timedelta(0) if asked <= there <= answered else asked + (answered - asked) / 2 - there
