"""The load while everything happens at once: writers on the stream, readers, and kill -9 at any moment.

`LOAD_KILLS` sets how many loads are killed for each strategy (5 unless set).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import TerminalError
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.load.load import LoadReport, load
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.services import Services
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, Layout
from tests.jobs.conftest import named, record, view

KILLS = int(os.environ.get("LOAD_KILLS", "5"))
ITEMS = 4_000
STORED = ITEMS * 3 // 2
BEFORE, AFTER = EXPORT_TIME.timestamp() - 3600, EXPORT_TIME.timestamp() + 60


@pytest.fixture(params=["merge", "aside", "aside-again"])
def way(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def aside_from(way: str) -> int:
    return 10**9 if way == "merge" else 0


@pytest.fixture
def stored(way: str) -> int:
    """How many rows the table holds when the load begins; the export lacks the last third of them."""
    return STORED if way == "aside-again" else 0


def store(connection: Connection, rows: int) -> None:
    """Store rows of an earlier snapshot, each hundredth of them a tombstone."""
    connection.execute(
        'INSERT INTO replica."Employees" ("Id", "Name", "Department", _as_of, _deleted) SELECT n,'
        " CASE WHEN n %% 100 > 0 THEN 'before' END, CASE WHEN n %% 100 > 0 THEN 'NA' END, to_timestamp(%s),"
        " n %% 100 = 0 FROM generate_series(0, %s) AS n",
        [BEFORE, rows - 1],
    )


def left(stored: int) -> dict[int, str]:
    """What readers see afterwards of the rows that the export lacks, if nothing else is written."""
    return {number: "before" for number in range(ITEMS, stored) if number % 100}


def item(number: int, name: str) -> dict[str, Any]:
    return {"Id": {"N": str(number)}, "empName": {"S": name}}


@dataclass
class Writer:
    """Changes its own keys through its own replicator, after the snapshot, and knows what each must be."""

    services: Services
    mapping: TableMapping
    number: int
    writers: int
    expected: dict[int, str | None] = field(default_factory=dict[int, "str | None"])
    error: BaseException | None = None
    batches: int = 0

    def run(self, stop: threading.Event) -> None:
        source = random.Random(self.number)
        replicator = Replicator(
            [self.mapping], lambda: self.services.connect("test writer"), writer=f"writer {self.number}"
        )
        keys = range(self.number, ITEMS * 2, self.writers)
        try:
            with closing(replicator):
                while not stop.is_set() or not self.batches:
                    self.batches += 1
                    replicator.replicate({"Records": self._records(source, keys)}, deadline=time.monotonic() + 60)
        except BaseException as error:  # noqa: BLE001 - raised again by the test, in its own thread
            self.error = error

    def _records(self, source: random.Random, keys: range) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        for number in source.sample(keys, 20):
            sequence = (self.batches * 100 + len(records)) * self.writers + self.number
            if source.random() < 0.3:
                self.expected[number] = None
                records.append(record(number, sequence, "REMOVE", at=AFTER))
            else:
                self.expected[number] = f"w{self.number} b{self.batches}"
                records.append(named(number, sequence, self.expected[number] or "", at=AFTER))
        return records


def test_nothing_is_lost_of_what_is_written_while_a_load_runs(
    services: Services,
    employees: TableMapping,
    exports: ExportFactory,
    connection: Connection,
    aside_from: int,
    stored: int,
) -> None:
    """Four writers with prepared statements, through the whole load and its swap; and readers, who see no error."""
    store(connection, stored)
    export = exports.full([item(n, "exported") for n in range(ITEMS)], Layout(files=6))
    writers = [Writer(services, employees, number, 4) for number in range(4)]
    stop, reading = threading.Event(), list[BaseException]()
    threads = [threading.Thread(target=writer.run, args=(stop,)) for writer in writers]
    threads.append(threading.Thread(target=read, args=(services, stop, reading)))
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    try:
        report = load(services, employees, export.location, aside_from=aside_from, processes_from=0)
        done = [writer.batches for writer in writers]
        time.sleep(0.3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [writer.error for writer in writers] == [None] * 4
    assert reading == []
    assert all(writer.batches > before > 1 for writer, before in zip(writers, done, strict=True))
    assert report.strategy == ("aside" if aside_from == 0 else "merge")
    assert report.applied + report.stale + report.rejected == report.items
    assert {number: name for number, (name, _) in view(connection).items()} == expected(writers, stored)


def expected(writers: list[Writer], stored: int) -> dict[int, str]:
    states: dict[int, str | None] = {**dict.fromkeys(range(ITEMS), "exported"), **left(stored)}
    for writer in writers:
        states |= writer.expected
    return {number: name for number, name in states.items() if name is not None}


def read(services: Services, stop: threading.Event, failures: list[BaseException]) -> None:
    try:
        with closing(services.connect("test reader")) as connection:
            while not stop.is_set():
                connection.execute('SELECT count(*), max("Name") FROM public."Employees"', prepare=True)
    except BaseException as error:  # noqa: BLE001 - looked at by the test, in its own thread
        failures.append(error)


# Children of a server that has imported the load start in milliseconds, and share nothing with the test process.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload([__name__])


def load_to_be_killed(
    begun: Event, services: Services, mapping: TableMapping, location: str, aside_from: int, processes_from: int
) -> None:
    begun.set()
    load(services, mapping, location, aside_from=aside_from, processes_from=processes_from)


@dataclass
class Killed:
    """Loads of one export, each in its own process."""

    services: Services
    mapping: TableMapping
    location: str
    aside_from: int

    def start(self, processes_from: int) -> BaseProcess:
        begun = CHILDREN.Event()
        arguments = (begun, self.services, self.mapping, self.location, self.aside_from, processes_from)
        process = CHILDREN.Process(target=load_to_be_killed, args=arguments)
        process.start()
        assert begun.wait(30)
        return process

    def seconds(self, processes_from: int) -> float:
        """How long a load takes if nobody kills it."""
        process = self.start(processes_from)
        started = time.monotonic()
        process.join()
        assert process.exitcode == 0
        return time.monotonic() - started


def empty(connection: Connection) -> None:
    """Undo every load."""
    connection.execute("DELETE FROM replication.exports")
    connection.execute('TRUNCATE replica."Employees"')


@pytest.mark.timeout(600)
def test_loads_killed_at_any_moment_lose_nothing_and_repeat_nothing(
    services: Services,
    employees: TableMapping,
    exports: ExportFactory,
    connection: Connection,
    aside_from: int,
    stored: int,
) -> None:
    """Each load is killed at a random moment and then resumed; workers alternate between threads and processes."""
    items = [item(n, f"name {n}") for n in range(ITEMS)]
    export = exports.full([*items, *items[:7]], Layout(files=8, empty_files=1))
    whole = {n: (f"name {n}", "NA") for n in range(ITEMS)} | {n: (name, "NA") for n, name in left(stored).items()}
    source, resumed = random.Random(), 0
    killed = Killed(services, employees, export.location, aside_from)
    seconds: dict[int, float] = {}
    for turn in range(KILLS):
        processes_from = 0 if turn % 5 == 1 else 10**9  # processes take their time to start
        if processes_from not in seconds:
            empty(connection)
            store(connection, stored)
            seconds[processes_from] = killed.seconds(processes_from)
        empty(connection)
        store(connection, stored)
        process = killed.start(processes_from)
        time.sleep(source.uniform(0, seconds[processes_from] * 1.1))
        process.kill()
        process.join()
        report = resume(services, employees, export.location, aside_from)
        resumed += report.files_resumed > 0
        assert view(connection) == whole
        assert (report.items, report.applied, report.stale, report.rejected) == (ITEMS + 7, ITEMS, 7, 0)
        assert connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'replica' AND tablename LIKE '\\_load%'"
        ).fetchone() == (0,)
    wait_until(lambda: workers_left() == [])
    assert resumed or KILLS < 20, "no load was killed between its first file and its end"


def resume(services: Services, mapping: TableMapping, location: str, aside_from: int) -> LoadReport:
    """Run it again; the server takes a moment to notice that the killed load is gone."""
    for _ in range(100):
        try:
            return load(services, mapping, location, aside_from=aside_from, processes_from=10**9)
        except TerminalError as error:
            if "another load" not in str(error):
                raise
            time.sleep(0.1)
    raise AssertionError("the killed load kept its lock")


def test_workers_end_with_the_load_that_was_killed(
    exports: ExportFactory, services: Services, employees: TableMapping
) -> None:
    export = exports.full([item(n, f"name {n}") for n in range(100_000)], Layout(files=20))
    sessions = "SELECT FROM pg_stat_activity WHERE application_name = 'dynaurora load worker' AND datname = %s"
    with (
        closing(services.connect("test")) as connection,
        closing(services.connect("test")) as other,
        other.transaction(),
    ):
        # No file can be marked, so both workers are seen at work, however fast one is and however late the other.
        other.execute("LOCK TABLE replication.export_files IN SHARE MODE")
        process = Killed(services, employees, export.location, 10**9).start(0)
        wait_until(lambda: len(connection.execute(sessions, [connection.info.dbname]).fetchall()) == 2, seconds=30)
        process.kill()
        process.join()
        wait_until(lambda: workers_left() == [], seconds=5)
        wait_until(lambda: connection.execute(sessions, [connection.info.dbname]).fetchall() == [], seconds=5)


def workers_left() -> list[int]:
    """Worker processes of loads of this project."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"load_worker" in (folder / "cmdline").read_bytes() and (folder / "cwd").readlink() == Path.cwd():
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
