"""Several runs asked to load one table: one export, one load, and each of them reports it.

The runs are separate processes. Those that lead are killed as if their host was lost.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection as SendConnection
from typing import Any, cast

import pytest

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.bookkeeping.load_lead import current_lead
from pipeline.aurora.bookkeeping.loads import LoadRunningError
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import DataError, TerminalError
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.load.load import LoadReport, load
from pipeline.jobs.load.load_once import load_once
from pipeline.jobs.load.load_progress import LoadProgress
from pipeline.jobs.services import Services
from pipeline.jobs.snapshots.snapshot import Snapshot, take_snapshot
from tests.dynamodb.export_fixture import ExportFactory, Layout, WrittenExport
from tests.jobs.conftest import view

ITEMS, FILES = 2_000, 16
WHOLE = {n: (f"name {n}", "NA") for n in range(ITEMS)}
NEVER = 10**9
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload([__name__])


def items() -> list[dict[str, Any]]:
    return [{"Id": {"N": str(number)}, "empName": {"S": f"name {number}"}} for number in range(ITEMS)]


@pytest.fixture
def export(exports: ExportFactory) -> WrittenExport:
    return exports.full(items(), Layout(files=FILES, empty_files=0))


@pytest.fixture(params=["merge", "aside"])
def aside_from(request: pytest.FixtureRequest) -> int:
    return 0 if request.param == "aside" else NEVER


def lead_slowly(
    told: SendConnection, services: Services, mapping: TableMapping, location: str, aside_from: int, pause: float
) -> None:
    """A run, as a process, that leads a load slowly; it reports that it leads, and at the end its report."""
    report = load(
        services,
        mapping,
        location,
        workers=1,
        aside_from=aside_from,
        processes_from=NEVER,
        on_lead=lambda _: told.send("leads"),
        on_progress=lambda _: time.sleep(pause),
    )
    told.send(report)


Lead = Callable[..., tuple[Any, Any]]


@pytest.fixture
def leading(services: Services, employees: TableMapping, export: WrittenExport, aside_from: int) -> Lead:
    """Start such a run, and return once it leads."""

    def start(pause: float = 0.1) -> tuple[Any, Any]:
        ours, theirs = CHILDREN.Pipe(duplex=False)
        process = CHILDREN.Process(
            target=lead_slowly, args=(theirs, services, employees, export.location, aside_from, pause)
        )
        process.start()
        assert ours.poll(60)
        assert ours.recv() == "leads"
        return process, ours

    return start


def never() -> Snapshot:
    raise AssertionError("a second export was taken")


class Second:
    """The second run, and what it said."""

    def __init__(self, services: Services, mapping: TableMapping) -> None:
        self.said: list[str] = []
        self.taken = 0
        self._services, self._mapping = services, mapping

    def run(self, take: Callable[[], Snapshot] = never, *, joins: bool = True, **options: Any) -> LoadReport:  # noqa: ANN401 - load_once's own
        options = {"aside_from": NEVER, "processes_from": NEVER, "workers": 1} | options
        *before, report = load_once(self._services, self._mapping, take, joins=joins, say=self.said.append, **options)
        self.taken = len(before)
        return cast("LoadReport", report)


@pytest.fixture
def second(services: Services, employees: TableMapping) -> Second:
    return Second(services, employees)


def loads_recorded(connection: Connection) -> list[tuple[str, int]]:
    return connection.execute(
        "SELECT status, (SELECT count(*) FROM replication.export_files WHERE export_id = e.id)"
        " FROM replication.exports AS e"
    ).fetchall()


def test_a_run_that_finds_another_one_leading_takes_part_and_does_not_load_again(
    leading: Lead, second: Second, connection: Connection
) -> None:
    process, told = leading()
    report = second.run()
    assert told.poll(60)
    first: LoadReport = told.recv()
    process.join()
    assert (report.led_elsewhere, first.led_elsewhere) == (True, False)
    assert (report.export_id, report.items, report.applied, report.stale) == (first.export_id, ITEMS, ITEMS, 0)
    assert second.taken == 0
    assert any("another run leads" in line for line in second.said)
    assert any("did not load again" in line for line in second.said)
    helped = next(int(line.split()[0]) for line in second.said if "files loaded by this run" in line)
    assert 0 < helped <= FILES
    assert loads_recorded(connection) == [("loaded", FILES)]
    assert view(connection) == WHOLE


def test_when_the_run_that_leads_is_killed_the_other_leads_in_its_place(
    leading: Lead, second: Second, services: Services, employees: TableMapping, export: WrittenExport,
    connection: Connection,
) -> None:  # fmt: skip
    process, _ = leading(0.2)
    killer = threading.Timer(0.8, process.kill)
    killer.start()
    report = second.run(lambda: take_snapshot(services, employees, manifest=export.location), workers=1)
    killer.join()
    process.join()
    assert process.exitcode == -9
    assert not report.led_elsewhere
    assert (report.items, report.applied + report.stale) == (ITEMS, ITEMS)
    assert any("has not finished the load" in line for line in second.said)
    assert loads_recorded(connection) == [("loaded", FILES)]
    assert view(connection) == WHOLE


def test_two_runs_that_wait_for_one_export_load_it_once(
    leading: Lead, second: Second, services: Services, employees: TableMapping, export: WrittenExport,
    connection: Connection,
) -> None:  # fmt: skip
    """The other run begins to lead while this one is still taking its snapshot."""
    started: list[tuple[Any, Any]] = []

    def take() -> Snapshot:
        started.append(leading())
        return take_snapshot(services, employees, manifest=export.location)

    report = second.run(take)
    process, told = started[0]
    first: LoadReport = told.recv()
    process.join()
    assert second.taken == 1
    assert (report.led_elsewhere, report.export_id) == (True, first.export_id)
    assert loads_recorded(connection) == [("loaded", FILES)]
    assert view(connection) == WHOLE


def test_a_load_that_ended_while_this_run_waited_for_its_lock_is_not_done_again(
    second: Second, services: Services, employees: TableMapping, export: WrittenExport, connection: Connection
) -> None:
    """The other was in its last steps, with no lead to be seen, when this one asked for an export."""

    def too_late() -> Snapshot:
        load(services, employees, export.location)
        error = LoadRunningError("loading: another load of this table is running")
        error.by_load = True
        raise error

    report = second.run(too_late)
    assert report.led_elsewhere
    assert loads_recorded(connection) == [("loaded", FILES)]


def test_a_run_that_asks_for_an_export_of_its_own_is_told_that_another_load_runs(
    leading: Lead, second: Second, services: Services, employees: TableMapping, exports: ExportFactory,
    connection: Connection,
) -> None:  # fmt: skip
    process, told = leading()
    other = exports.full(items())
    with pytest.raises(LoadRunningError, match="another load of this table is running"):
        second.run(lambda: take_snapshot(services, employees, manifest=other.location), joins=False)
    told.recv()
    process.join()
    assert loads_recorded(connection) == [("loaded", FILES)]


def test_a_catch_up_at_work_is_no_load_to_take_part_in(
    second: Second, services: Services, connection: Connection
) -> None:
    loads.lock_table(connection, "employees")

    def take() -> Snapshot:
        with services.connect("test") as other:
            loads.lock_table(other, "employees")
        raise AssertionError("the lock was free")

    with pytest.raises(LoadRunningError):
        second.run(take)


def test_a_lead_is_seen_only_while_its_session_lives(leading: Lead, connection: Connection) -> None:
    process, _ = leading(0.5)
    found = current_lead(connection, "employees")
    assert found is not None
    assert current_lead(connection, "another table") is None
    process.kill()
    process.join()
    deadline = time.monotonic() + 30
    while current_lead(connection, "employees") is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_load_that_failed_for_the_run_that_led_it_fails_here_with_the_same_reason(
    second: Second, services: Services, employees: TableMapping, exports: ExportFactory
) -> None:
    damaged = exports.full(items(), Layout(summary={"itemCount": ITEMS + 1}))
    told: list[LoadProgress] = []
    with pytest.raises((TerminalError, DataError)) as first:
        load(services, employees, damaged.location, on_progress=told.append)
    with pytest.raises(type(first.value)) as again:
        second.run(location=damaged.location)
    assert str(again.value) == str(first.value)
