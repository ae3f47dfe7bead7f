"""How far replication is known to be: for a table, and for single keys while only others are waited for."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.aurora.bookkeeping.applied_through import applied_through, applied_to_keys
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.ordering import Position
from pipeline.mappings import load_mappings

NOW = datetime(2026, 5, 14, 12, tzinfo=UTC)
MARGIN = timedelta(minutes=5)
KEYS = [("1",), ("2",)]


def ago(minutes: float) -> datetime:
    return NOW - timedelta(minutes=minutes)


@pytest.fixture
def connection(database: str) -> Generator[Connection]:
    """Key 1 was changed an hour ago and has not arrived; the stream was read through a minute ago."""
    with closing(connect(database, application_name="test")) as opened:
        migrate(opened, [m for m in load_mappings(Path(__file__).parents[3] / "tables") if m.name == "employees"])
        opened.execute(
            "INSERT INTO replication.probes (table_name, stream_label, ticked_at, settled_through, read_through,"
            " read_whole, waiting, shards, calls, records) VALUES ('employees', 'l', %s, %s, %s, true, 1, 1, 1, 1)",
            [ago(1), ago(60), ago(1)],
        )
        opened.execute(
            "INSERT INTO replication.probe_waiting (table_name, target, key, version, as_of, since, shard_id)"
            " VALUES ('employees', 'public.Employees', '{1}', 7, %s, %s, 'a')",
            [ago(60), ago(60)],
        )
        yield opened


def applied(connection: Connection, minutes: float) -> None:
    """The replicator's newest change was made this many minutes ago."""
    connection.execute(
        "INSERT INTO replication.watermarks (table_name, writer, stream_label, sequence_number, as_of, applied_at)"
        " VALUES ('employees', 'w', 'l', 9, %s, %s)",
        [ago(minutes), ago(minutes)],
    )


def through(connection: Connection) -> list[datetime]:
    known = applied_to_keys(connection, "employees", "public.Employees", KEYS, now=NOW, margin=MARGIN)
    return [known.of(key).through for key in KEYS]


def test_a_key_is_decided_though_another_is_waited_for(connection: Connection) -> None:
    assert through(connection) == [ago(60), ago(1)]


@pytest.mark.parametrize("state", ["stuck", "passed", "trimmed"])
def test_a_key_whose_change_is_stuck_or_lost_is_decided_and_known_to_be_behind(
    connection: Connection, state: str
) -> None:
    connection.execute("UPDATE replication.probe_waiting SET state = %s", [state])
    connection.execute("UPDATE replication.probes SET settled_through = read_through")
    assert through(connection) == [ago(1), ago(1)]
    known = applied_to_keys(connection, "employees", "public.Employees", KEYS, now=NOW, margin=MARGIN)
    assert known.behind == {("1",): Position(ago(60), 7)}


def test_a_probe_that_has_stopped_says_nothing(connection: Connection) -> None:
    assert applied_through(connection, "employees", now=NOW, margin=MARGIN).basis == "probe"
    later = NOW + timedelta(minutes=10)
    known = applied_through(connection, "employees", now=later, margin=MARGIN)
    assert (known.basis, known.through, known.lag(later)) == ("assumption", later - MARGIN, timedelta(0))


def test_lag_is_that_of_the_replicator_not_of_one_key_that_never_arrives(connection: Connection) -> None:
    assert applied_through(connection, "employees", now=NOW, margin=MARGIN).lag(NOW) == timedelta(minutes=60)
    applied(connection, 2)
    assert applied_through(connection, "employees", now=NOW, margin=MARGIN).lag(NOW) == timedelta(minutes=2)
