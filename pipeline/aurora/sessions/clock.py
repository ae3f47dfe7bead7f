"""The database's clock decides what is in the future, because a host's own clock may be wrong.

Invariant: nothing is stored with a position in the future. Otherwise every change of the stream would be stale until
that time, and every later load would be refused as older.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.core.errors import UnusableSnapshotError

if TYPE_CHECKING:
    from pipeline.aurora.sessions.connection import Connection

# How far clocks may differ, however large the margin is.
MOST_AHEAD = timedelta(minutes=5)


def database_now(connection: Connection) -> datetime:
    """Return the time on the database's clock."""
    row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    return row[0]


def refuse_future(connection: Connection, table_name: str, snapshot_time: datetime, as_of: datetime) -> None:
    """Raise UnusableSnapshotError if a snapshot is from the future, by the database's clock.

    The margin, by which `as_of` is earlier, allows for clocks that disagree, but at most by `MOST_AHEAD`.
    """
    now = database_now(connection)
    if max(as_of, snapshot_time - MOST_AHEAD) > now:
        raise UnusableSnapshotError(
            f"taking a snapshot: it is of {snapshot_time:%Y-%m-%d %H:%M:%S} UTC, and it is {now:%Y-%m-%d %H:%M:%S} UTC"
            " by the database's clock: the snapshot is from the future",
            table=table_name,
            hint="check exportTime (or exportToTime) in the manifest; if it was altered, request a new export; if"
            " not, check the database's clock",
        )


def host_ahead(connection: Connection) -> timedelta:
    """Return how far this host's clock is ahead of the database's; 0 if the query took that long."""
    asked = datetime.now(UTC)
    there = database_now(connection)
    answered = datetime.now(UTC)
    return timedelta(0) if asked <= there <= answered else asked + (answered - asked) / 2 - there
