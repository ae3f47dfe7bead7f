"""Status against real bookkeeping."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.aurora.bookkeeping.load_lead import take_lead
from pipeline.aurora.bookkeeping.status import TableStatus
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.jobs.services import Services
from pipeline.jobs.status import not_migrated, status
from pipeline.mappings import load_mappings
from pipeline.settings import Settings

TABLES = Path(__file__).parents[2] / "tables"
MAPPINGS = [mapping for mapping in load_mappings(TABLES) if mapping.name == "employees"]


@pytest.fixture
def services(database: str) -> Services:
    return Services(Settings(tables_folder=TABLES, database_url=database))


def migrated(database: str) -> Connection:
    connection = connect(database, application_name="test migrate")
    migrate(connection, MAPPINGS)
    return connection


def one_status(services: Services) -> TableStatus:
    (found,) = status(services, MAPPINGS)
    assert found is not None
    return found


def test_an_empty_table_has_no_watermark(database: str, services: Services) -> None:
    migrated(database).close()
    found = one_status(services)
    assert (found.name, found.records, found.writers, found.rejects_waiting) == ("employees", 0, 0, 0)
    assert found.newest_change is found.applied_at is found.lag_seconds is None
    assert found.load_status is found.reconciliation_status is found.rows_estimate is None


def test_counts_are_summed_over_writers_and_the_newest_batch_gives_the_lag(database: str, services: Services) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    late, later = now + timedelta(seconds=3), now + timedelta(seconds=9)
    with migrated(database) as connection:
        connection.execute(
            "INSERT INTO replication.watermarks (table_name, writer, as_of, applied_at, batches, records, applied,"
            " stale, deleted, expired, rejected) VALUES ('employees', 'a', %s, %s, 1, 10, 7, 2, 1, 1, 1),"
            " ('employees', 'b', %s, %s, 2, 20, 18, 2, 0, 0, 0)",
            [now, late, now - timedelta(hours=1), later],
        )
        connection.execute(
            "INSERT INTO replication.rejects (table_name, target, digest, reason, source, record, replayed_at) VALUES"
            " ('employees', 'public.Employees', 'one', 'r', 's', '{}', NULL),"
            " ('employees', 'public.Employees', 'two', 'r', 's', '{}', now())"
        )
        connection.execute(
            'INSERT INTO replica."Employees" ("Id", attributes, _as_of)'
            " SELECT n, '{}', now() FROM generate_series(1, 50) AS n"
        )
        connection.execute('ANALYZE replica."Employees"')
    found = one_status(services)
    assert (found.writers, found.batches, found.records, found.applied, found.stale) == (2, 3, 30, 25, 4)
    assert (found.deleted, found.expired, found.rejected, found.rejects_waiting) == (1, 1, 1, 1)
    assert found.newest_change == now
    assert found.applied_at == now + timedelta(seconds=9)
    assert found.lag_seconds == pytest.approx(3609)
    assert found.rows_estimate == 50


def test_the_load_and_the_reconciliation_begun_last(database: str, services: Services) -> None:
    with migrated(database) as connection:
        connection.execute(
            "INSERT INTO replication.exports (table_name, kind, location, snapshot_time, as_of, item_count, file_count,"
            " size_bytes, status) VALUES ('employees', 'full', 'file:///a', now(), now(), 30, 3, 100, 'loaded'),"
            " ('employees', 'full', 'file:///b', now(), now(), 30, 3, 100, 'loading')"
        )
        connection.execute(
            "INSERT INTO replication.export_files"
            " (export_id, file_key, item_count, size_bytes, applied, stale, rejected)"
            " SELECT id, 'x', 10, 5, 10, 0, 0 FROM replication.exports WHERE location = 'file:///b'"
        )
        connection.execute(
            "INSERT INTO replication.reconciliations (table_name, snapshot, snapshot_time, as_of, status, compared,"
            " in_flight, missing, extra, different, repaired, finished_at) VALUES"
            " ('employees', 's', now(), now(), 'done', 30, 0, 1, 2, 3, 4, now()),"
            " ('employees', 's', now(), now(), 'comparing', NULL, NULL, NULL, NULL, NULL, NULL, NULL)"
        )
    found = one_status(services)
    assert (found.load_status, found.load_files_done, found.load_files, found.load_items) == ("loading", 1, 3, 30)
    assert (found.reconciliation_status, found.compared) == ("comparing", None)


def test_a_table_that_was_never_migrated_has_none_and_the_error_says_how(services: Services) -> None:
    assert status(services, MAPPINGS) == [None]
    assert "run `dynaurora migrate employees`" in str(not_migrated(MAPPINGS[0]))


def test_a_load_that_broke_off_is_reported_and_one_that_a_run_leads_is_not(database: str, services: Services) -> None:
    """It used to say "loading" forever, and to exit 0."""
    with migrated(database) as connection:
        row = connection.execute(
            "INSERT INTO replication.exports (table_name, kind, location, snapshot_time, as_of, item_count, file_count,"
            " size_bytes, status, started_at) VALUES ('employees', 'scan', 'file:///a', now(), now(), 30, 3, 100,"
            " 'loading', now() - interval '5 minutes') RETURNING id"
        ).fetchone()
        assert row is not None
        assert one_status(services).load_broken_off
        take_lead(connection, row[0])
        led = one_status(services)
        assert (led.load_broken_off, led.attention) == (False, ())
    while not one_status(services).load_broken_off:
        time.sleep(0.05)  # the server takes a moment to notice that the session is gone
    assert one_status(services).attention == (
        "the last load broke off; run `dynaurora load employees --scan`, which resumes it",
    )
