"""Replicate: events of the stream against a real database, with everything that they may contain."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.errors import ConfigurationError, TerminalError, TransientError
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs import replicate
from pipeline.jobs.replicate import ReplicationReport, Replicator
from pipeline.jobs.services import Services
from pipeline.local.postgres import PostgresServer
from tests.jobs.conftest import CREATED, named, record, view

Apply = Callable[..., ReplicationReport]


def rejects(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        "SELECT reason, record->'dynamodb'->>'SequenceNumber' FROM replication.rejects"
    ).fetchall()


def watermark(connection: Connection) -> tuple[Any, ...]:
    row = connection.execute(
        "SELECT batches, records, applied, stale, deleted, expired, rejected FROM replication.watermarks"
    ).fetchone()
    assert row
    return row


def test_insert_modify_remove_do_as_the_seed_does(apply: Apply, connection: Connection) -> None:
    apply(record(2001, 1, empName={"S": "Akua"}, empDepartment={"S": "AnyDept"}))
    assert view(connection) == {2001: ("Akua", "AnyDept")}
    apply(record(2001, 2, "MODIFY", empName={"S": "Akua"}, empDepartment={"S": "ExDept"}))
    assert view(connection) == {2001: ("Akua", "ExDept")}
    apply(record(2001, 3, "REMOVE"))
    assert view(connection) == {}


def test_a_missing_attribute_becomes_its_default_and_null_becomes_null(apply: Apply, connection: Connection) -> None:
    apply(record(1, 1), record(2, 2, empName={"NULL": True}), record(3, 3, empName={"S": ""}))
    assert view(connection) == {1: ("NA", "NA"), 2: (None, "NA"), 3: ("", "NA")}


def test_attributes_without_a_column_are_kept_exactly(apply: Apply, connection: Connection) -> None:
    digits = "12345678901234567890123456789012345678"
    apply(
        record(
            1,
            1,
            empName={"S": "a"},
            big={"N": digits},
            tags={"SS": ["b", "a"]},
            deep={"M": {"l": {"L": [{"N": "0.10"}]}}},
        )
    )
    row = connection.execute('SELECT attributes::text FROM replica."Employees"').fetchone()
    assert row == (f'{{"big": {digits}, "deep": {{"l": [0.10]}}, "tags": ["a", "b"]}}',)


def test_redelivery_and_any_order_change_nothing(apply: Apply, connection: Connection) -> None:
    history = [
        named(1, 1, "first", "INSERT"),
        named(1, 2, "second"),
        named(2, 3, "x", "INSERT"),
        record(2, 4, "REMOVE"),
    ]
    apply(*history)
    expected = view(connection)
    for records in (history, history[::-1], history[:1], history[2:3]):
        report = apply(*records)
        assert (report.applied, report.stale) == (0, len(records))
    assert view(connection) == expected == {1: ("second", "NA")}


def test_counts_of_a_batch(apply: Apply, connection: Connection) -> None:
    expiry = record(3, 5, "REMOVE") | {"userIdentity": {"type": "Service", "principalId": "dynamodb.amazonaws.com"}}
    report = apply(named(1, 1, "a"), named(1, 2, "b"), named(2, 3, "c"), record(2, 4, "REMOVE"), expiry)
    assert (report.records, report.applied, report.stale, report.deleted, report.expired) == (5, 3, 2, 2, 1)
    assert watermark(connection) == (1, 5, 3, 2, 2, 1, 0)
    assert report.last_sequence_number == str(10**20 + 5)


def test_the_lag_is_the_age_of_the_newest_record(services: Services, employees: TableMapping) -> None:
    replicator = Replicator([employees], lambda: services.connect("test"), writer="w", now=lambda: CREATED + 7.5)
    (report,) = replicator.replicate({"Records": [named(1, 1, "a")]}, deadline=time.monotonic() + 60)
    replicator.close()
    assert report.lag_seconds == 7.5


def test_a_record_that_cannot_be_converted_is_kept_whole_and_the_rest_applied(
    apply: Apply, connection: Connection
) -> None:
    bad = named(2, 2, "x" * 21)
    report = apply(named(1, 1, "a"), bad, named(3, 3, "c"))
    assert (report.applied, report.rejected) == (2, 1)
    assert sorted(view(connection)) == [1, 3]
    (kept,) = connection.execute("SELECT record, reason, target, key_digest FROM replication.rejects").fetchall()
    assert kept[0] == bad
    assert kept[1] == 'column "Name": is longer than 20 characters'
    assert kept[2] == "public.Employees"
    apply(bad)
    assert len(rejects(connection)) == 1, "a redelivered record is the same reject"
    assert watermark(connection)[6] == 2
    apply(named(2, 4, "short"))
    assert view(connection)[2] == ("short", "NA"), "later changes of the key still apply"


def test_a_value_with_u_0000_is_rejected_and_its_record_kept(apply: Apply, connection: Connection) -> None:
    apply(named(1, 1, "a\x00b"), named(2, 2, "fine"))
    assert sorted(view(connection)) == [2]
    (row,) = connection.execute("SELECT record::text FROM replication.rejects").fetchall()
    assert "a\\u0000b" in row[0]


def test_what_only_postgresql_refuses_is_isolated(apply: Apply, connection: Connection) -> None:
    connection.execute("""ALTER TABLE replica."Employees" ADD CHECK ("Name" <> 'refused')""")
    batch = [named(i, i, "refused" if i in {7, 40} else f"name {i}", "INSERT") for i in range(100)]
    report = apply(*batch)
    assert (report.applied, report.rejected, report.stale) == (98, 2, 0)
    assert sorted(view(connection)) == [i for i in range(100) if i not in {7, 40}]
    reasons = rejects(connection)
    assert sorted(sequence for _, sequence in reasons) == [str(10**20 + 7), str(10**20 + 40)]
    assert all("CheckViolation" in reason and "refused" not in reason for reason, _ in reasons)
    assert watermark(connection) == (1, 100, 98, 0, 0, 0, 2)


def test_a_refused_change_does_not_take_the_older_ones_of_its_key_along(apply: Apply, connection: Connection) -> None:
    apply(named(1, 1, "a", "INSERT"), named(2, 2, "b", "INSERT"))
    connection.execute("""ALTER TABLE replica."Employees" ADD CHECK ("Name" <> 'refused')""")
    report = apply(
        record(1, 3, "REMOVE"),
        named(1, 4, "refused", "INSERT"),
        named(2, 5, "c"),
        named(2, 6, "refused"),
        named(2, 7, "refused"),
    )
    assert (report.applied, report.deleted, report.rejected, report.stale) == (2, 1, 3, 0)
    assert view(connection) == {2: ("c", "NA")}


def test_a_record_without_its_keys_is_kept(apply: Apply, connection: Connection) -> None:
    report = apply(
        {"eventSourceARN": record(1, 1)["eventSourceARN"], "eventName": "INSERT", "dynamodb": {}}, named(1, 2, "a")
    )
    assert (report.applied, report.rejected) == (1, 1)
    assert rejects(connection)[0][0] == "reading a stream record: it lacks its Keys"


def test_a_stream_without_new_images_is_refused(apply: Apply, connection: Connection) -> None:
    keys_only = named(1, 1, "a")
    del keys_only["dynamodb"]["NewImage"]
    keys_only["dynamodb"]["StreamViewType"] = "KEYS_ONLY"
    with pytest.raises(
        ConfigurationError, match=r"no new image \(view type KEYS_ONLY\).*enable the stream with view type NEW_IMAGE"
    ):
        apply(keys_only)
    assert view(connection) == {}


def test_an_unknown_table_is_named(apply: Apply) -> None:
    other = named(1, 1, "a") | {
        "eventSourceARN": "arn:aws:dynamodb:eu-central-1:1:table/Orders/stream/2026-05-14T10:00:00.000"
    }
    with pytest.raises(ConfigurationError, match="no mapping for the DynamoDB table Orders"):
        apply(other)


def test_tables_that_were_never_migrated_are_named(database: str, employees: TableMapping) -> None:
    replicator = Replicator([employees], lambda: connect(database, application_name="t"), writer="w")
    with pytest.raises(TerminalError, match=r"UndefinedTable \(42P01\).*run `dynaurora migrate`"):
        replicator.replicate({"Records": [named(1, 1, "secret value")]}, deadline=time.monotonic() + 60)
    replicator.close()


def test_batches_of_ten_thousand(apply: Apply, connection: Connection) -> None:
    report = apply(*[named(i, i, f"name {i}", "INSERT") for i in range(10_000)])
    assert (report.records, report.applied) == (10_000, 10_000)
    assert len(view(connection)) == 10_000


def test_when_time_runs_short_the_first_record_not_processed_is_named(
    services: Services, employees: TableMapping
) -> None:
    clock = iter([0.0, 8.5])  # asked before the second and before the third chunk
    replicator = Replicator(
        [employees], lambda: services.connect("test"), writer="w", monotonic=lambda: next(clock, 99.0)
    )
    records = [named(i, i, "a", "INSERT") for i in range(3 * replicate.CHUNK_RECORDS)]
    (report,) = replicator.replicate({"Records": records}, deadline=10.0)
    replicator.close()
    assert report.records == 2 * replicate.CHUNK_RECORDS
    assert report.first_unprocessed == str(10**20 + report.records)


def test_a_chunk_that_fails_leaves_the_ones_before_it_and_is_named(
    services: Services, employees: TableMapping, connection: Connection
) -> None:
    first = [named(i, i, "a", "INSERT") for i in range(replicate.CHUNK_RECORDS)]
    second = [named(i, 10**6 + i, "b") for i in range(10)]
    replicator = Replicator([employees], lambda: services.connect("test"), writer="w")
    connection.execute("CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$")
    connection.execute('CREATE TRIGGER fail BEFORE UPDATE ON replica."Employees" FOR EACH ROW EXECUTE FUNCTION fail()')
    (report,) = replicator.replicate({"Records": first + second}, deadline=time.monotonic() + 60)
    assert (report.records, report.applied) == (len(first), len(first))
    assert report.first_unprocessed == str(10**20 + 10**6)
    assert isinstance(report.failure, TerminalError)
    with pytest.raises(TerminalError):
        replicator.replicate({"Records": second}, deadline=time.monotonic() + 60)
    replicator.close()


def test_a_stream_whose_label_is_no_time_stops_the_batch(apply: Apply, connection: Connection) -> None:
    odd = named(1, 1, "a") | {"eventSourceARN": "arn:aws:dynamodb:eu-central-1:1:table/Employees/stream/latest"}
    with pytest.raises(TerminalError, match="its last part is not the stream's creation time"):
        apply(odd)
    assert rejects(connection) == []


def test_a_lost_connection_is_made_again(apply: Apply, connection: Connection) -> None:
    apply(named(1, 1, "a"))
    connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test replicator'"
    )
    apply(named(1, 2, "b"))
    assert view(connection) == {1: ("b", "NA")}


def test_a_lock_timeout_is_tried_again_within_the_time_left(
    services: Services, employees: TableMapping, connection: Connection
) -> None:
    def connect_impatient() -> Connection:
        opened = services.connect("test")
        opened.execute("SET lock_timeout = '50ms'")
        return opened

    replicator = Replicator([employees], connect_impatient, writer="w")
    blocker = services.connect("blocker")
    blocker.execute("BEGIN")
    blocker.execute('LOCK TABLE replica."Employees"')
    release = threading.Timer(1.0, lambda: blocker.execute("ROLLBACK"))
    release.start()
    (report,) = replicator.replicate({"Records": [named(1, 1, "a")]}, deadline=time.monotonic() + 30)
    release.join()
    blocker.close()
    replicator.close()
    assert report.applied == 1
    assert view(connection) == {1: ("a", "NA")}


def test_a_transient_fault_that_lasts_is_raised(employees: TableMapping) -> None:
    def refuse() -> Connection:
        return connect("postgresql://nobody@127.0.0.1:1/none", application_name="t", connect_timeout_seconds=1)

    replicator = Replicator([employees], refuse, writer="w")
    started = time.monotonic()
    with pytest.raises(TransientError, match="connection refused"):
        replicator.replicate({"Records": [named(1, 1, "a")]}, deadline=started + 3)
    assert time.monotonic() - started < 10


def test_a_server_that_dies_in_the_middle_loses_nothing(tmp_path: Any, employees: TableMapping) -> None:  # noqa: ANN401 - pytest's path
    from pipeline.aurora.schema.migrate import migrate  # noqa: PLC0415 - this test alone runs a server of its own

    with PostgresServer(tmp_path / "postgres", durable=True) as server:
        with connect(server.url, application_name="t") as opened:
            migrate(opened, [employees])
        replicator = Replicator([employees], lambda: connect(server.url, application_name="t"), writer="w")
        replicator.replicate({"Records": [named(1, 1, "a")]}, deadline=time.monotonic() + 30)
        server.kill()
        with pytest.raises(TransientError):
            replicator.replicate({"Records": [named(1, 2, "b")]}, deadline=time.monotonic() + 2.5)
        server.restart()
        replicator.replicate({"Records": [named(1, 2, "b")]}, deadline=time.monotonic() + 30)
        replicator.close()
        with psycopg.connect(server.url) as opened:
            assert opened.execute('SELECT "Name" FROM public."Employees"').fetchall() == [("b",)]


def test_no_error_carries_a_value(apply: Apply, connection: Connection) -> None:
    connection.execute('DROP VIEW public."Employees"')
    connection.execute('ALTER TABLE replica."Employees" RENAME COLUMN "Department" TO gone')
    with pytest.raises(TerminalError) as caught:
        apply(named(1, 1, "sensitive"))
    assert "sensitive" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_batch_that_breaks_off_between_its_statements_leaves_nothing(apply: Apply, connection: Connection) -> None:
    nested: dict[str, Any] = {"S": "deep"}
    for _ in range(5_000):  # keeping it as a reject takes JSON that Python does not write
        nested = {"L": [nested]}
    with pytest.raises(RecursionError):
        apply(named(2001, 1, "Akua"), record(2002, 2, empName=nested))
    assert view(connection) == {}
    assert connection.execute("SELECT FROM replication.watermarks").fetchall() == []
    apply(named(2001, 1, "Akua"))
    assert len(view(connection)) == 1
