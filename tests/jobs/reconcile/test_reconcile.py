"""Reconcile: snapshots against targets on the local stack; DynamoDB itself answers the re-reads."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.compare import compare as compare_module
from pipeline.aurora.compare import reconciliations
from pipeline.aurora.compare.compare import Comparison
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import TerminalError
from pipeline.jobs.reconcile import reconcile as reconcile_module
from pipeline.jobs.reconcile import settle as settle_module
from pipeline.jobs.reconcile.reconcile import reconcile
from tests.jobs.conftest import view
from tests.jobs.reconcile.conftest import IMPATIENT, MARGIN, Source, execute, found, item


def test_equal_tables_have_no_drift(source: Source, connection: Connection) -> None:
    report = source.reconcile()
    assert (report.compared, report.in_flight, report.drift, report.samples) == (10, 0, 0, ())
    row = connection.execute(
        "SELECT status, compared, missing, extra, different FROM replication.reconciliations"
    ).fetchone()
    assert row == ("done", 10, 0, 0, 0)


def test_the_snapshot_is_indexed_when_it_is_staged_and_progress_counts_each_item_once(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexes, said, real = list[Any](), list[str](), Comparison.compare

    def compare(self: Comparison, connection: Connection, lane: Any, through: Any) -> int:  # noqa: ANN401 - handed on
        name = self.staging.name.as_string()
        query = "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %s::regclass"
        indexes.extend(connection.execute(query, [name]).fetchall())
        return real(self, connection, lane, through)

    monkeypatch.setattr(Comparison, "compare", compare)
    monkeypatch.setattr(compare_module, "INDEX_FROM_BYTES", 0)
    monkeypatch.setattr(reconcile_module, "_SAY_SECONDS", -1.0)
    source.reconcile(on_progress=said.append)
    assert [definition.rpartition(" USING ")[2] for (definition,) in indexes] == ['btree ("Id")']
    assert [text.partition(",")[0] for text in said if text.startswith("staged")][-1] == "staged 10 of 10 items"


def test_rows_damaged_by_hand_are_found_named_and_repaired(source: Source, connection: Connection) -> None:
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'wrong', attributes = '{"x": 1}' WHERE "Id" = 3""")
    execute(connection, """DELETE FROM replica."Employees" WHERE "Id" = 4""")
    execute(connection, """INSERT INTO replica."Employees" ("Id", _as_of) VALUES (77, '2020-01-01')""")
    report = source.reconcile()
    assert found(report) == (1, 1, 1)
    assert report.by_column == {"Name": 1, "attributes": 1}
    assert report.repaired == 0
    assert view(connection)[3] == ("wrong", "NA"), "reported, not repaired"
    drift = connection.execute("SELECT kind, columns, repaired FROM replication.drift ORDER BY kind").fetchall()
    assert drift == [("different", ["Name", "attributes"], False), ("extra", [], False), ("missing", [], False)]
    report = source.reconcile(repair=True)
    assert (found(report), report.repaired) == ((1, 1, 1), 3)
    assert view(connection) == {number: (f"name {number}", "NA") for number in range(10)}
    assert source.reconcile().drift == 0


def test_a_row_changed_after_the_snapshot_is_in_flight(source: Source, connection: Connection) -> None:
    source.put(item(3, "newer"))
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'newer', _as_of = now() WHERE "Id" = 3""")
    execute(connection, """UPDATE replica."Employees" SET _deleted = true, _as_of = now() WHERE "Id" = 4""")
    source.items[3] = item(3)
    report = source.reconcile(repair=True)
    assert (report.compared, report.in_flight, report.undecided, report.drift) == (9, 1, 1, 0)
    assert not report.needs_person, "nothing says that replication is behind"
    assert view(connection)[3] == ("newer", "NA")


def test_what_the_source_changed_since_the_snapshot_is_no_drift(source: Source, connection: Connection) -> None:
    location = source.export(6)
    source.delete(5)
    source.put(item(20))
    execute(connection, """DELETE FROM replica."Employees" WHERE "Id" = 5""")
    report = reconcile(source.services, source.mapping, location, margin=MARGIN, bounds=IMPATIENT)
    assert (report.drift, report.in_flight) == (0, 1)


def test_a_deletion_that_the_stream_lost_is_an_extra_row(source: Source, connection: Connection) -> None:
    source.delete(5)
    report = source.reconcile(repair=True)
    assert (found(report), report.repaired) == ((0, 1, 0), 1)
    assert 5 not in view(connection)
    row = connection.execute("""SELECT _deleted, _version FROM replica."Employees" WHERE "Id" = 5""").fetchone()
    assert row == (True, None), "a tombstone, so that an older record cannot bring it back"


def test_a_repair_never_undoes_a_newer_change(
    source: Source, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'wrong' WHERE "Id" = 3""")
    read_items = settle_module.read_again

    def read_then_stream_applies(*arguments: Any) -> list[Any]:  # noqa: ANN401 - passed through
        reads = list(read_items(*arguments))
        execute(connection, """UPDATE replica."Employees" SET "Name" = 'streamed', _as_of = now() WHERE "Id" = 3""")
        return reads

    monkeypatch.setattr(settle_module, "read_again", read_then_stream_applies)
    report = source.reconcile(repair=True)
    assert report.drift == 0
    assert view(connection)[3] == ("streamed", "NA")


def test_an_item_that_a_target_cannot_hold_is_no_drift_and_is_counted(source: Source, connection: Connection) -> None:
    source.put(item(3, "x" * 21))
    report = source.reconcile(repair=True)
    assert (report.drift, report.rejected, report.in_flight) == (0, 1, 0)
    assert view(connection)[3] == ("name 3", "NA")
    assert connection.execute("SELECT rejected FROM replication.reconciliations").fetchall() == [(1,)]


def test_an_item_that_only_postgresql_refuses_stops_no_other(source: Source, connection: Connection) -> None:
    source.put(item(3, "refused"), item(4, "good"))
    execute(connection, """ALTER TABLE replica."Employees" ADD CHECK ("Name" <> 'refused')""")
    report = source.reconcile(repair=True)
    assert (report.rejected, report.repaired) == (1, 1)
    assert view(connection)[4] == ("good", "NA")
    assert view(connection)[3] == ("name 3", "NA")


def test_no_load_runs_meanwhile(source: Source) -> None:
    with closing(source.services.connect("a load")) as loading:
        loads.lock_table(loading, source.mapping.name)
        with pytest.raises(TerminalError, match="the table is being loaded"):
            source.reconcile()


def test_staging_tables_of_a_killed_run_are_dropped(source: Source, connection: Connection) -> None:
    run = reconciliations.begin(
        connection, source.mapping.name, snapshot="s", snapshot_time=source.now, as_of=source.now
    )
    execute(connection, f"CREATE TABLE replica._reconcile_{run.id}_0 (x int)")
    source.reconcile()
    left = connection.execute(
        "SELECT count(*) FROM pg_tables WHERE schemaname = 'replica' AND tablename LIKE '\\_reconcile%'"
    ).fetchone()
    assert left == (0,)


def test_two_reconciliations_of_a_table_exclude_each_other(source: Source) -> None:
    with closing(source.services.connect("other")) as other:
        reconciliations.lock_table(other, source.mapping.name)
        with pytest.raises(TerminalError, match="another reconciliation of this table is running"):
            source.reconcile()
    assert source.reconcile().drift == 0


def test_a_failed_run_says_so_and_leaves_no_staging_table(source: Source, connection: Connection) -> None:
    location = source.export(6)
    data = Path(urlsplit(location).path).parent / "data"
    damaged = max(data.glob("*.json.gz"), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-12])
    with pytest.raises(TerminalError, match="truncated"):
        reconcile(source.services, source.mapping, location, margin=MARGIN, bounds=IMPATIENT)
    assert connection.execute("SELECT status FROM replication.reconciliations").fetchall() == [("failed",)]
    assert (
        connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'replica' AND tablename LIKE '\\_%'"
        ).fetchall()
        == []
    )
