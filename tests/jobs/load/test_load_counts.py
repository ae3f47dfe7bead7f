"""The cost of a load in units that do not depend on the machine: statements, round trips, bytes copied.

They are counted on the wire, from libpq's own trace of the messages sent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.bookkeeping.load_lead import Lead, take_lead
from pipeline.aurora.rows import build_aside
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.mapping import TableMapping
from pipeline.core.ordering import snapshot_position
from pipeline.dynamodb.exports.manifest import ExportFile, read_manifest
from pipeline.jobs.load.load import load
from pipeline.jobs.load.load_file import FileLoader, LoadWork
from pipeline.jobs.services import Services
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, Layout
from tests.wire import Wire


def item(number: int) -> dict[str, Any]:
    return {"Id": {"N": str(number)}, "empName": {"S": f"name {number:05}"}}


def ignore(_lines: int, _size_bytes: int) -> None:
    """Report progress to nobody."""


@pytest.fixture
def big_and_small(
    services: Services, employees: TableMapping, exports: ExportFactory
) -> tuple[LoadWork, ExportFile, ExportFile]:
    """One export that is built aside, with a file of two items and one of 40,000 (several blocks)."""
    small, big = (
        exports.full([item(n) for n in range(count)], Layout(files=1, empty_files=0)) for count in (2, 40_000)
    )
    read = [read_manifest(services.store(e.location), e.location, expected_table=None) for e in (small, big)]
    work = LoadWork(services, employees, "", small.location, snapshot_position(EXPORT_TIME), Lead(0, 0))
    return work, read[0].files[0], read[1].files[0]


def begun(connection: Connection, work: LoadWork, build: bool) -> LoadWork:
    """Record an export, and create its table, so that files can be loaded into it."""
    record = loads.begin(
        connection,
        work.mapping.name,
        loads.Export(
            kind="full",
            location=work.location,
            export_arn=None,
            snapshot_time=EXPORT_TIME,
            as_of=work.position.as_of,
            item_count=1,
            file_count=1,
            size_bytes=1,
        ),
        strategy="aside" if build else "merge",
    )
    builds = build_aside.create(
        connection, record.id, work.mapping.name, work.mapping.targets, work.position.as_of
    ) if build else ()  # fmt: skip
    loads.lock_table(connection, work.mapping.name)
    return replace(work, lead=take_lead(connection, record.id), builds=tuple((each.name,) for each in builds))


@pytest.mark.parametrize(("build", "most"), [(True, 12), (False, 16)], ids=["aside", "merge"])
def test_a_file_costs_the_same_few_round_trips_whatever_its_size(
    connection: Connection, big_and_small: tuple[LoadWork, ExportFile, ExportFile], build: bool, most: int
) -> None:
    work, small, big = big_and_small
    loader = FileLoader(begun(connection, work, build))
    trips: list[int] = []
    for file in (small, big):
        with Wire(connection) as wire:
            loader.load(connection, file, ignore)
        trips.append(wire.round_trips)
        assert wire.messages["CopyDone"] == 1
    assert trips[0] == trips[1] <= most


def test_a_row_is_copied_as_its_texts_and_nothing_else(
    connection: Connection, big_and_small: tuple[LoadWork, ExportFile, ExportFile]
) -> None:
    """Not even its position: that is the column's default while the table is built."""
    work, _, big = big_and_small
    loader = FileLoader(begun(connection, work, build=True))
    with Wire(connection) as wire:
        loader.load(connection, big, ignore)
    digits = sum(len(str(n)) for n in range(40_000))
    assert wire.copied_bytes == digits + 40_000 * len("\tname 00000\tNA\t{}\n")


def test_a_swap_costs_the_same_few_statements_whatever_the_table(
    services: Services, employees: TableMapping, exports: ExportFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the lock and its end: this is counted because writers wait that long."""
    counted: list[int] = []
    swap = build_aside.swap

    def counting(connection: Connection, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - swap's own
        with Wire(connection) as wire:
            swap(connection, *arguments, **options)
        counted.append(wire.round_trips)

    monkeypatch.setattr(build_aside, "swap", counting)
    export = exports.full([item(n) for n in range(5_000)], Layout(files=2))
    load(services, employees, export.location, aside_from=0)
    (round_trips,) = counted
    assert round_trips <= 38
