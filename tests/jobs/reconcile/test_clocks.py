"""Repairs where this host's clock is off: positions use the source's clock, or nothing is written at all."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import ConfigurationError
from pipeline.dynamodb.clock import SourceClock
from pipeline.jobs.catch_up.catch_up import catch_up
from pipeline.jobs.clocks import NOT_KNOWN
from pipeline.jobs.explain import explain
from pipeline.jobs.reconcile.reconcile import Bounds
from pipeline.jobs.services import Services
from pipeline.jobs.snapshots.scan_snapshot import scan_snapshot
from tests.jobs.conftest import named, view
from tests.jobs.reconcile.conftest import MARGIN, Probe, Source, execute, found, item, replicated

PATIENT = Bounds(patience=timedelta(seconds=20))


def host_ahead(services: Services, monkeypatch: pytest.MonkeyPatch, **ahead: float) -> None:
    """Let this process use a host clock that is ahead of the source's."""
    off = timedelta(**ahead)
    services.__dict__["clock"] = SourceClock(lambda: datetime.now(UTC) + off)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # noqa: ANN401 - as datetime has it
            return datetime.now(tz) + off

    monkeypatch.setattr("pipeline.aurora.sessions.clock.datetime", Clock)


def without_date(_: object) -> None:
    """Answer without a time in the headers."""


def repaired_as_of(connection: Connection, number: int) -> datetime:
    row = connection.execute('SELECT _as_of FROM replica."Employees" WHERE "Id" = %s', [number]).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("seconds", [-280.0, 280.0])
def test_a_repair_stands_where_the_source_s_clock_has_it(
    source: Source, connection: Connection, probe: Probe, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    host_ahead(source.services, monkeypatch, seconds=seconds)
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'by hand' WHERE "Id" = 3""")
    began = datetime.now(UTC)
    report = source.reconcile(repair=True, bounds=PATIENT)
    assert (found(report), report.repaired) == ((0, 0, 1), 1)
    second = timedelta(seconds=1)
    assert began - second <= repaired_as_of(connection, 3) + MARGIN <= datetime.now(UTC) + second
    changed = named(3, 1, "later", at=(datetime.now(UTC) - MARGIN).timestamp() + 3)
    assert replicated(source, changed).stale == 0
    assert view(connection)[3][0] == "later"
    assert probe.through is None


@pytest.mark.parametrize(("seconds", "word"), [(600.0, "ahead of"), (298.6, "ahead of"), (-600.0, "behind")])
def test_a_host_that_is_off_by_the_margin_repairs_nothing(
    source: Source, connection: Connection, probe: Probe, monkeypatch: pytest.MonkeyPatch, seconds: float, word: str
) -> None:
    host_ahead(source.services, monkeypatch, seconds=seconds)
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'by hand' WHERE "Id" = 3""")
    said = rf"this host's clock is \d+ s {word} DynamoDB's, and the margin .* is 300 s.*set this host's clock by NTP"
    with pytest.raises(ConfigurationError, match=said):
        source.reconcile(repair=True, bounds=PATIENT)
    assert view(connection)[3][0] == "by hand"
    report = source.reconcile(bounds=PATIENT)
    assert found(report) == (0, 0, 1), "comparing writes no position"
    assert probe.through is None


def test_where_the_source_does_not_say_the_time_the_database_s_clock_is_held_against_the_host_s(
    source: Source, connection: Connection, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.dynamodb.clock.said_at", without_date)
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'by hand' WHERE "Id" = 3""")
    host_ahead(source.services, monkeypatch, seconds=600)
    with pytest.raises(ConfigurationError, match=r"this host's clock is 600 s ahead of the database's"):
        source.reconcile(repair=True, bounds=PATIENT)
    host_ahead(source.services, monkeypatch, seconds=0)
    said: list[str] = []
    report = source.reconcile(repair=True, bounds=PATIENT, on_progress=said.append)
    assert (report.repaired, said.count(NOT_KNOWN)) == (1, 1)
    assert probe.through is None


def test_one_key_is_explained_by_the_source_s_clock(
    source: Source, probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.put(item(3, "newer"))
    host_ahead(source.services, monkeypatch, minutes=-10)
    explained = explain(source.services, source.mapping, {"Id": {"N": "3"}})
    assert abs(explained.read_at - datetime.now(UTC)) < timedelta(seconds=5)
    assert probe.through is None


def test_a_scan_and_a_catch_up_are_refused_too(
    source: Source, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    services, mapping = source.services, source.mapping
    execute(connection, "UPDATE replication.tables SET source_arn = NULL")  # learnt from an export of a made-up account
    services.dynamodb.update_table(
        TableName=mapping.table,
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    services.dynamodb.update_continuous_backups(
        TableName=mapping.table, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
    )
    host_ahead(services, monkeypatch, minutes=10)
    services.settings = replace(services.settings, export_bucket="exports")
    with pytest.raises(ConfigurationError, match=r"scanning: this host's clock is \d+ s ahead of DynamoDB's"):
        scan_snapshot(services, mapping)
    now = datetime.now(UTC)
    with pytest.raises(ConfigurationError, match=r"catching up .*: this host's clock is \d+ s ahead of DynamoDB's"):
        catch_up(services, mapping, now - timedelta(seconds=1), now)
    assert connection.execute("SELECT count(*) FROM replication.exports WHERE kind <> 'full'").fetchone() == (0,)
