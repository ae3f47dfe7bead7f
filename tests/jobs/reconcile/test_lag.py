"""Reconciling while replication is behind, or unknown: nothing that may be in flight is called drift."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import TransientError
from pipeline.dynamodb.streams.event_sources import EventSourceMapping
from pipeline.dynamodb.tables import describe
from pipeline.jobs.reconcile import settle as settle_module
from pipeline.jobs.reconcile.reconcile import Bounds
from tests.jobs.conftest import named, record, view
from tests.jobs.reconcile.conftest import Probe, Source, execute, found, item, replicated

PATIENT = Bounds(patience=timedelta(seconds=20))


def test_what_replication_has_not_reached_is_behind_and_no_drift(
    source: Source, connection: Connection, probe: Probe
) -> None:
    source.put(item(3, "newer"))
    source.delete(5)
    probe.through = source.now - timedelta(minutes=30)
    report = source.reconcile(bounds=Bounds(patience=timedelta(0), max_lag=timedelta(hours=1)))
    assert (report.drift, report.undecided, report.verdict, report.needs_person) == (0, 2, "undecided", True)
    assert report.compared == 8
    assert report.behind_seconds == pytest.approx(1800, abs=120)
    assert "replication is 30 minutes behind" in (report.why_undecided or "")
    row = connection.execute("SELECT undecided, different FROM replication.reconciliations").fetchone()
    assert row == (2, 0)


def test_drift_is_found_once_replication_has_passed_it(source: Source, probe: Probe) -> None:
    source.put(item(3, "newer"))
    source.delete(5)
    source.put(item(20))
    report = source.reconcile(bounds=PATIENT)
    assert found(report) == (1, 1, 1)
    assert (report.undecided, probe.through) == (0, None)


def test_it_waits_until_replication_arrives(
    source: Source, connection: Connection, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.put(item(3, "newer"))
    probe.through = source.now - timedelta(hours=1)
    slept: list[float] = []

    def arrive(seconds: float) -> None:
        slept.append(seconds)
        execute(connection, """UPDATE replica."Employees" SET "Name" = 'newer', _as_of = now() WHERE "Id" = 3""")
        probe.through = None

    monkeypatch.setattr("pipeline.jobs.reconcile.reconcile.time.sleep", arrive)
    report = source.reconcile(bounds=Bounds(max_lag=timedelta(hours=2)))
    assert (report.drift, report.undecided, report.in_flight) == (0, 0, 1)
    assert slept


def test_a_row_changed_by_hand_is_found_though_its_position_is_newer_than_the_snapshot(
    source: Source, connection: Connection, probe: Probe
) -> None:
    source.put(item(3, "streamed"), item(4, "streamed"))
    at = source.now.timestamp() - 120
    replicated(source, named(3, 1, "streamed", at=at), named(4, 2, "streamed", at=at))
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'by hand' WHERE "Id" = 4""")
    report = source.reconcile(bounds=PATIENT)
    assert (found(report), report.by_column, report.undecided) == ((0, 0, 1), {"Name": 1}, 0)
    assert probe.behind == timedelta(0)


def test_a_hot_row_that_changes_at_every_look_is_never_drift(
    source: Source, connection: Connection, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_items, reads = settle_module.read_again, list[int]()

    def read_then_change(*arguments: object) -> object:
        reads.append(1)
        answers = list(read_items(*arguments))  # type: ignore[arg-type]  # passed through
        connection.execute(
            """UPDATE replica."Employees" SET "Name" = 'hot ' || %s, _as_of = now() WHERE "Id" = 3""", [len(reads)]
        )
        return answers

    execute(connection, """UPDATE replica."Employees" SET "Name" = 'hot', _as_of = now() WHERE "Id" = 3""")
    monkeypatch.setattr(settle_module, "read_again", read_then_change)
    report = source.reconcile(repair=True, bounds=Bounds(patience=timedelta(seconds=2)))
    assert (report.drift, report.undecided) == (0, 1)
    assert len(reads) > 2
    assert view(connection)[3][0].startswith("hot "), "nothing was repaired"
    assert probe.behind == timedelta(0)


def test_a_row_too_new_for_a_repair_is_repaired_once_it_is_old_enough(
    source: Source, connection: Connection, probe: Probe
) -> None:
    source.margin = timedelta(seconds=1)
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'by hand', _as_of = now() WHERE "Id" = 3""")
    report = source.reconcile(repair=True, bounds=PATIENT)
    assert (found(report), report.repaired) == ((0, 0, 1), 1)
    assert view(connection)[3][0] == "name 3"
    execute(
        connection,
        """UPDATE replica."Employees" SET "Name" = 'x', _as_of = now() + interval '1 day' WHERE "Id" = 3""",
    )
    report = source.reconcile(repair=True, bounds=PATIENT)
    assert (found(report), report.repaired, report.needs_person) == ((0, 0, 1), 0, True)
    assert view(connection)[3][0] == "x", "a repair never undoes a newer state"
    assert probe.behind == timedelta(0)


def test_a_pause_ends_with_a_message_and_the_run_goes_on_later(
    source: Source, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.jobs.reconcile.reconcile._LAG_LOOK_SECONDS", 0.05)
    probe.behind = timedelta(minutes=10)
    location, said = source.export(6), list[str]()
    with pytest.raises(TransientError, match=r"replication is 60\d s behind") as refused:
        source.reconcile_with(location, on_progress=said.append)
    assert "run it again with the same snapshot to resume" in str(refused.value)
    assert any(text.startswith("pausing: replication is 60") for text in said)
    probe.behind = timedelta(0)
    report = source.reconcile_with(location, on_progress=said.append)
    assert (report.resumed, report.drift, report.compared) == (True, 0, 10)


def test_late_batches_are_evidence_where_no_probe_runs(source: Source) -> None:
    source.put(item(3, "newer"))
    replicated(source, record(900, 1, at=source.now.timestamp() - 3600))
    source.items[900] = {"Id": {"N": "900"}}
    source.services.dynamodb.put_item(TableName=source.mapping.table, Item={"Id": {"N": "900"}})
    report = source.reconcile()
    assert (report.drift, report.undecided, report.needs_person) == (0, 1, True)
    assert report.behind_seconds == pytest.approx(3600, abs=120)


def test_a_replicator_that_stands_still_makes_no_drift_where_no_probe_runs(source: Source) -> None:
    source.put(item(900, "the last one applied"))
    replicated(source, named(900, 1, "the last one applied", at=source.now.timestamp() - 480))
    source.put(item(3, "not applied"))
    source.delete(5)
    report = source.reconcile()
    assert (report.drift, report.undecided, report.needs_person) == (0, 2, True)
    source.put(item(901, "it goes on"))
    replicated(source, named(901, 2, "it goes on", at=source.now.timestamp()))
    report = source.reconcile()
    assert (found(report), report.undecided) == ((0, 1, 1), 0)


def test_an_empty_table_is_not_waited_for(
    source: Source, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(_: float) -> None:
        raise AssertionError("nothing can differ, and it waits")

    for number in range(10):
        source.delete(number)
    execute(connection, 'DELETE FROM replica."Employees"')
    monkeypatch.setattr("pipeline.jobs.reconcile.reconcile.time.sleep", sleep)
    report = source.reconcile(minutes_ago=0)
    assert (report.compared, report.drift, report.undecided) == (0, 0, 0)


def test_a_wait_says_what_for_at_once_and_while_it_lasts(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.jobs.reconcile.reconcile._SAY_SECONDS", 0.5)
    said: list[str] = []
    source.now = datetime.now(UTC)
    margin = timedelta(seconds=5)
    report = source.reconcile(minutes_ago=0, margin=margin, on_progress=said.append)
    assert report.compared == 10
    assert datetime.now(UTC) >= report.snapshot_time + margin
    waits = [text for text in said if "until the snapshot is older than the margin" in text]
    assert len(waits) >= 2
    assert "as no probe says how far replication is (`dynaurora status employees --probe` is one)" in waits[0]


def test_the_wait_for_replication_says_why_it_may_never_deliver(
    source: Source, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe.through = source.now - timedelta(hours=1)
    filtered = EventSourceMapping("esm-1", "Enabled", "arn:aws:lambda:e:1:function:r", "", None, "", filtered=True)
    table = describe(source.services.dynamodb, source.mapping.table)
    monkeypatch.setattr("pipeline.jobs.probe.lost_history.stream_readers", lambda *_: (table, [filtered]))  # pyright: ignore[reportUnknownLambdaType,reportUnknownArgumentType]
    with pytest.raises(
        TransientError, match="esm-1 has FilterCriteria, and the changes that they exclude never arrive"
    ):
        source.reconcile(bounds=Bounds(patience=timedelta(0), max_lag=timedelta(minutes=1)))
