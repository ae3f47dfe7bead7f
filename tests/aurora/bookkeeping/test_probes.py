"""What the probe keeps in the bookkeeping."""

from __future__ import annotations

from datetime import UTC, datetime

from pipeline.aurora.bookkeeping import bookkeeping, probes
from pipeline.aurora.sessions.connection import connect

THROUGH = datetime(2026, 5, 14, 10, tzinfo=UTC)


def test_how_far_a_table_is_caught_up_is_unknown_until_a_probe_has_proven_it(database: str) -> None:
    with connect(database, application_name="test") as connection:
        bookkeeping.install(connection)
        bookkeeping.register_table(connection, "employees", "Employees")
        assert probes.read_tick(connection, "employees") is None
        connection.execute(
            "INSERT INTO replication.probes (table_name, stream_label, ticked_at, caught_up_through, read_whole,"
            " waiting, shards, calls, records) VALUES ('employees', '', now(), %s, true, 0, 1, 2, 0)",
            [THROUGH],
        )
        tick = probes.read_tick(connection, "employees")
        assert tick is not None
        assert (tick.caught_up_through, tick.settled_through) == (THROUGH, None)
