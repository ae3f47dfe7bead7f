"""Reconciling rows whose newer change is stuck or lost: they are decided, called stale, and repaired."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pipeline.aurora.bookkeeping.watermarks import REDRIVE_WRITER
from pipeline.aurora.sessions.connection import Connection
from tests.jobs.conftest import named, view
from tests.jobs.reconcile.conftest import Probe, Source, item, replicated


@pytest.mark.parametrize(("state", "decided"), [("on_its_way", False), ("stuck", True), ("passed", True)])
def test_a_row_explained_by_a_change_that_is_stuck_or_lost_is_stale_and_repaired(
    source: Source, connection: Connection, state: str, decided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.jobs.reconcile.reconcile._Run._look_at_stream", lambda *_: None)  # pyright: ignore[reportUnknownLambdaType,reportUnknownArgumentType]
    source.put(item(3, "newer"))
    source.delete(5)
    through = source.now - timedelta(seconds=200 if state == "on_its_way" else 0)
    connection.execute(
        "INSERT INTO replication.probes (table_name, stream_label, ticked_at, settled_through, read_through,"
        " read_whole, waiting, shards, calls, records) VALUES ('employees', 'l', now(), %s, %s, true, 2, 1, 1, 1)",
        [through, source.now],
    )
    for number in (3, 5):
        connection.execute(
            "INSERT INTO replication.probe_waiting (table_name, target, key, version, as_of, since, shard_id, state)"
            " VALUES ('employees', 'public.Employees', %s, %s, %s, %s, 'a', %s)",
            [[str(number)], number, through, through, state],
        )
    report = source.reconcile(repair=True)
    if not decided:
        assert (report.drift, report.undecided) == (0, 2)
        return
    assert (report.stale, report.extra, report.repaired, report.undecided) == (1, 1, 2, 0)
    shown = view(connection)
    assert (shown[3][0], 5 in shown) == ("newer", False)


@pytest.mark.usefixtures("probe")
def test_a_change_older_than_a_reconciliation_that_left_nothing_makes_no_row(
    source: Source, connection: Connection, probe: Probe
) -> None:
    """Its item was deleted before the snapshot, and the delete never arrived."""
    late = named(77, 1, "deleted since", at=(source.now - timedelta(minutes=30)).timestamp())
    source.put(item(3, "newer"))
    assert source.reconcile().drift == 1
    replicated(source, late)
    assert 77 in view(connection), "a reconciliation that left a difference proves nothing"
    assert source.reconcile(5.9, repair=True).repaired == 2
    assert 77 not in view(connection)
    replicated(source, named(78, 2, "deleted since", at=(source.now - timedelta(minutes=30)).timestamp()))
    assert 78 not in view(connection)
    assert probe.behind == timedelta(0)


@pytest.mark.usefixtures("probe")
def test_a_reconciliation_with_the_snapshot_of_another_table_proves_nothing(
    source: Source, connection: Connection
) -> None:
    """A copy may be older than its export says: the replica would equal it, and lack the changes in flight."""
    report = source.reconcile(accept_other_table=True)
    assert (report.drift, report.no_proof) == (0, "the snapshot is of another table")
    replicated(source, named(77, 1, "on its way", at=(source.now - timedelta(minutes=30)).timestamp()))
    assert 77 in view(connection)
    assert connection.execute("SELECT proven FROM replication.tables").fetchone() == (None,)


@pytest.mark.usefixtures("probe")
def test_a_reconciliation_during_which_a_batch_was_redriven_proves_nothing(
    source: Source, connection: Connection
) -> None:
    """The item was deleted before the snapshot, and the row comes when its key was already compared."""
    late = named(77, 1, "deleted since", at=(source.now - timedelta(minutes=30)).timestamp())

    def redrive(text: str) -> None:
        if text.startswith("comparing"):
            replicated(source, late, writer=REDRIVE_WRITER)

    report = source.reconcile(on_progress=redrive)
    assert report.no_proof == "a batch was redriven, or a reject replayed, while it ran"
    assert connection.execute("SELECT proven FROM replication.tables").fetchone() == (None,)
    if 77 in view(connection):
        assert source.reconcile(repair=True).repaired == 1
    assert source.reconcile(5.9).no_proof is None


@pytest.mark.usefixtures("probe")
def test_a_reconciliation_during_which_a_reject_was_replayed_proves_nothing(
    source: Source, connection: Connection
) -> None:
    replicated(source, named(77, 1, "x" * 30, at=(source.now - timedelta(minutes=30)).timestamp()))

    def replay(text: str) -> None:
        if text.startswith("comparing"):
            assert connection.execute("UPDATE replication.rejects SET replayed_at = clock_timestamp()").rowcount == 1

    assert source.reconcile(on_progress=replay).no_proof == "a batch was redriven, or a reject replayed, while it ran"
    assert source.reconcile(5.9).no_proof is None
