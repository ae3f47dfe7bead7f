"""Changes that arrive after their time was proven do not undo what a catch-up or a reconciliation has shown.

An incremental export does not contain an item that came and went within its window. So where the stream lost the item's
delete, a catch-up rightly leaves the item out. Its insert may still be at the on-failure destination, or with a
replicator that was dead until now, and would make a row that nothing removes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.aurora.bookkeeping.losses import note_caught_up
from pipeline.aurora.bookkeeping.proofs import prove_caught_up
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.mapping import TableMapping
from pipeline.core.types.sql_types import SqlType
from pipeline.jobs.catch_up.catch_up import catch_up
from pipeline.jobs.load.load import load
from pipeline.jobs.redrive import redrive
from pipeline.jobs.replay import replay
from pipeline.jobs.replicate import ReplicationReport, Replicator
from pipeline.jobs.services import Services
from pipeline.local.mapping_delivery import Discard
from pipeline.local.mapping_documents import failure_document
from tests.jobs.conftest import STREAM, named, view
from tests.jobs.past_table import PastServices, PastTable, Write, records

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
START = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=20)
Apply = Callable[..., ReplicationReport]


@pytest.fixture
def past(tmp_path: Path) -> PastTable:
    return PastTable(tmp_path / "s3")


@pytest.fixture
def services(services: Services, database: str, past: PastTable) -> Services:
    assert services.settings.database_url == database  # migrated
    return PastServices(database, past)


def names(connection: Connection) -> dict[int, str]:
    return {number: name for number, (name, _) in view(connection).items()}


def redriven(services: Services, mapping: TableMapping, folder: Path, *writes: Write) -> None:
    """Keep a batch as an event source mapping keeps one that it discards, and redrive it."""
    discard = Discard(records(writes), "RetryAttemptsExhausted", 4, function_error=True)
    kept = folder / "aws/lambda/mapping/shardId-0001/2026/05/14/1.x"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(failure_document("shardId-0001", STREAM, discard, datetime.now(UTC)))
    report = redrive(services, [mapping], prefix=folder.as_uri() + "/")
    assert (report.batches, report.left) == (1, [])


@pytest.mark.parametrize("door", ["redrive", "Lambda"])
@pytest.mark.parametrize("stored", ["nothing", "tombstone"])
def test_an_item_that_came_and_went_within_the_range_stays_gone(
    past: PastTable,
    services: Services,
    employees: TableMapping,
    apply: Apply,
    connection: Connection,
    tmp_path: Path,
    stored: str,
    door: str,
) -> None:
    if stored == "tombstone":
        apply(*records([past.put(START, 1, "before"), past.delete(START + MINUTE, 1)]))
    kept = past.put(START + 2 * HOUR, 1, "short-lived")
    past.put(START + 2 * HOUR, 2, "stays")
    past.delete(START + 2 * HOUR + 20 * MINUTE, 1)
    catch_up(services, employees, START + HOUR, START + 4 * HOUR)
    assert names(connection) == past.state() == {2: "stays"}
    if door == "redrive":
        redriven(services, employees, tmp_path / "on-failure", kept)
    else:
        report = apply(kept.record)
        assert (report.applied, report.stale, report.refused) == (0, 1, 0)
    assert names(connection) == past.state()


def test_a_late_delete_is_kept_so_that_what_is_older_still_loses(
    past: PastTable, services: Services, employees: TableMapping, apply: Apply, connection: Connection
) -> None:
    older = past.put(START, 1, "older than the range")
    past.delete(START + MINUTE, 1)
    past.put(START + 2 * HOUR, 1, "short-lived")
    late = past.delete(START + 2 * HOUR + MINUTE, 1)
    catch_up(services, employees, START + HOUR, START + 4 * HOUR)
    assert apply(late.record).deleted == 1
    apply(older.record)
    assert names(connection) == past.state() == {}


def test_a_row_that_was_proven_right_is_not_taken_back_on_the_way_to_what_it_is(
    past: PastTable, services: Services, employees: TableMapping, apply: Apply, connection: Connection
) -> None:
    """A load counts a margin before its time, so the stream may bring some of what it already contains."""
    late = [
        past.put(START, 1, "first"),
        past.delete(START + timedelta(seconds=1), 1),
        past.put(START + MINUTE, 1, "now"),
    ]
    load(services, employees, past.full(START + 2 * MINUTE))
    assert names(connection) == {1: "now"}
    prove_caught_up(connection, "employees", START - HOUR, START + HOUR, 5 * MINUTE)
    for write in late:
        apply(write.record)
        assert names(connection) == {1: "now"}


def test_what_is_close_to_the_ends_of_a_range_is_taken_and_ranges_that_meet_are_one(
    apply: Apply, connection: Connection
) -> None:
    for begun in (START, START + HOUR):
        prove_caught_up(connection, "employees", begun, begun + HOUR, 5 * MINUTE)
        note_caught_up(connection, "employees", begun, begun + HOUR)
    minutes = (4, 5, 60, 114, 115, 116)
    apply(*[named(at, at, "late", at=(START + at * MINUTE).timestamp()) for at in minutes])
    assert sorted(names(connection)) == [4, 115, 116], "the second in which the later margin begins is not proven"


def test_a_reject_of_that_time_is_replayed(apply: Apply, connection: Connection, employees: TableMapping) -> None:
    """The proof counts it as arrived because it is a reject."""
    assert apply(named(1, 1, "n" * 60, at=START.timestamp())).rejected == 1
    prove_caught_up(connection, "employees", START - HOUR, START + HOUR, 5 * MINUTE)
    (target,) = employees.targets
    wider = SqlType("varchar", (60,))
    columns = tuple(replace(column, type=wider) if column.name == "Name" else column for column in target.columns)
    mended = replace(employees, targets=(replace(target, columns=columns),))
    migrate(connection, [mended])
    assert replay(connection, mended).applied == 1
    assert names(connection) == {1: "n" * 60}


def test_of_a_target_that_the_mapping_gained_since_nothing_is_proven(
    services: Services, connection: Connection, employees: TableMapping
) -> None:
    prove_caught_up(connection, "employees", START - HOUR, START + HOUR, 5 * MINUTE)
    (target,) = employees.targets
    twins = replace(employees, targets=(target, replace(target, name="Twins")))
    migrate(connection, [twins])
    with closing(Replicator([twins], lambda: services.connect("test"), writer="test")) as replicator:
        event = {"Records": [named(1, 1, "late", at=START.timestamp())]}
        replicator.replicate(event, deadline=time.monotonic() + 60)
    assert connection.execute('SELECT "Id" FROM public."Twins"').fetchall() == [(1,)]


def test_a_batch_that_is_being_applied_while_a_catch_up_ends_is_waited_for(
    past: PastTable, services: Services, employees: TableMapping, connection: Connection
) -> None:
    """It began before the range was proven, so it may still make a row; reading again must find that row."""
    past.put(START + 2 * HOUR, 1, "short-lived")
    past.delete(START + 2 * HOUR + MINUTE, 1)
    told: list[str] = []
    with services.connect("a batch") as writer:
        writer.execute("BEGIN")
        writer.execute(
            'INSERT INTO replica."Employees" ("Id", "Name", _version, _as_of) VALUES (1, %s, 7, %s)',
            ["short-lived", START + 2 * HOUR],
        )

        def commit(text: str) -> None:
            told.append(text)
            if text.endswith("which is applying a batch"):
                writer.execute("COMMIT")

        report = catch_up(services, employees, START + HOUR, START + 4 * HOUR, on_progress=commit)
    assert any("application a batch" in text for text in told)
    assert report.removed == 1
    assert names(connection) == {}
