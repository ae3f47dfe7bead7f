"""What reconciliation finds: every kind of damage, in every type of column, and the evidence for it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pipeline.aurora.sessions.connection import Connection
from tests.jobs.conftest import named, record, view
from tests.jobs.reconcile.conftest import Probe, Source, execute, found, item, replicated


def test_a_row_set_back_before_the_load_is_stale(source: Source, connection: Connection) -> None:
    execute(
        connection,
        """UPDATE replica."Employees" SET "Name" = 'older', _as_of = _as_of - interval '1 day' WHERE "Id" = 3""",
    )
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'other' WHERE "Id" = 4""")
    report = source.reconcile(repair=True)
    assert (report.stale, report.different, report.repaired, report.drift) == (1, 1, 2, 2)
    kinds = connection.execute("SELECT kind, columns FROM replication.drift ORDER BY kind").fetchall()
    assert kinds == [("different", ["Name"]), ("stale", ["Name"])]


@pytest.mark.parametrize("door", ["stream", "export"])
def test_a_row_whose_newer_state_waits_as_a_reject_is_stale(
    source: Source, connection: Connection, door: str, probe: Probe
) -> None:
    too_long = "x" * 30
    if door == "stream":
        replicated(source, named(3, 1, too_long, at=source.now.timestamp() - 1200))
    else:
        source.put(item(3, too_long))
        source.load(30)
    assert connection.execute("SELECT count(*) FROM replication.rejects").fetchone() == (1,)
    source.put(item(3, "mended"))
    report = source.reconcile()
    assert (report.stale, report.different, report.rejected) == (1, 0, 0)
    assert probe.behind == timedelta(0)


def test_a_tombstone_that_should_be_live_is_missing_and_the_other_way_extra(
    source: Source, connection: Connection, probe: Probe
) -> None:
    source.delete(5)
    replicated(source, record(5, 1, "REMOVE", at=source.now.timestamp() - 1800))
    assert source.reconcile().drift == 0
    execute(connection, """UPDATE replica."Employees" SET _deleted = true, "Name" = NULL WHERE "Id" = 3""")
    execute(connection, """UPDATE replica."Employees" SET _deleted = false WHERE "Id" = 5""")
    report = source.reconcile(repair=True)
    assert (found(report), report.repaired) == ((1, 1, 0), 2)
    assert probe.behind == timedelta(0)


def test_keys_are_named_only_where_that_was_allowed(source: Source, connection: Connection) -> None:
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'wrong' WHERE "Id" = 3""")
    assert [sample.key for sample in source.reconcile().samples] == [None]
    assert [sample.key for sample in source.reconcile(show_keys=True).samples] == ['{"Id":{"N":"3"}}']


def test_many_differences_are_all_settled_in_chunks(
    source: Source, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.jobs.reconcile.settle.KEYS_AT_ONCE", 3)
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'wrong'""")
    execute(connection, """DELETE FROM replica."Employees" WHERE "Id" < 2""")
    execute(
        connection,
        """INSERT INTO replica."Employees" ("Id", _as_of) SELECT n, '2020-01-01'
                           FROM generate_series(100, 104) AS n""",
    )
    report = source.reconcile(repair=True)
    assert (found(report), report.repaired) == ((2, 5, 8), 15)
    assert sorted(view(connection)) == list(range(10))
    assert source.reconcile().verdict == "equal"
