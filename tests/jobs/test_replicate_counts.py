"""The cost of a batch in units that do not depend on the machine: round trips, statements, bytes sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import pytest

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.services import Services
from pipeline.settings import Settings
from tests.jobs.conftest import named, record
from tests.wire import Wire

TWO_TARGETS = """\
name: employees
source: {table: Employees, key: {Id: N}}
targets:
  Employees:
    primary_key: [Id]
    columns:
      Id: {attribute: Id, type: bigint}
      Name: {attribute: empName, type: varchar(20), default: NA}
    unmapped: attributes
  EmployeeLevels:
    primary_key: [Id]
    columns:
      Id: {attribute: Id, type: bigint}
      Level: {attribute: level, type: smallint, on_error: "null"}
    unmapped: ignore
"""
CHILDREN = """\
name: employees
source: {table: Employees, key: {Id: N}}
targets:
  Employees:
    primary_key: [Id]
    columns:
      Id: {attribute: Id, type: bigint}
    unmapped: attributes
  EmployeeTags:
    parent: Employees
    explode: tags
    element: {position: integer}
    columns:
      Tag: {attribute: tag, type: text}
"""

Counting = Callable[..., Wire]


@pytest.fixture
def counting(database: str) -> Generator[Callable[[str], Counting]]:
    """Make a replicator of a mapping, and count the cost of each event once its statements are prepared."""
    opened: list[Connection] = []

    def over(mapping_text: str) -> Counting:
        services = Services(Settings.from_environment({"DATABASE_URL": database}))
        mapping: TableMapping = read_mapping(mapping_text, "test.yaml")
        with closing(services.connect("test migrate")) as connection:
            migrate(connection, [mapping])

        def connect() -> Connection:
            opened.append(services.connect("test"))
            return opened[-1]

        replicator = Replicator([mapping], connect, writer="test")

        def apply(*records: dict[str, Any]) -> Wire:
            if not opened:
                replicator.replicate({"Records": [named(10**6, 1, "first")]}, deadline=time.monotonic() + 60)
            with Wire(opened[-1]) as wire:
                (report,) = replicator.replicate({"Records": list(records)}, deadline=time.monotonic() + 60)
            assert report.records == len(records)
            return wire

        return apply

    yield over
    for connection in opened:
        connection.close()


ONE_TARGET = TWO_TARGETS[: TWO_TARGETS.index("  EmployeeLevels")]


@pytest.mark.parametrize("size", [1, 10, 500])
def test_a_batch_is_one_statement_and_one_round_trip_whatever_its_size(
    counting: Callable[[str], Counting], size: int
) -> None:
    wire = counting(ONE_TARGET)(*(named(n, 10 + n, "Akua") for n in range(size)))
    assert (wire.turns, wire.messages["Execute"], wire.messages["Parse"]) == (1, 1, 0)


def test_what_is_sent_for_a_record_is_its_values_and_its_position(counting: Callable[[str], Counting]) -> None:
    """Not the item, its JSON or its old image."""
    apply = counting(ONE_TARGET)
    fewer, more = (apply(*(named(n, n, "Akua") for n in range(1000, 1000 + size))) for size in (100, 200))
    id_name_json, version, time_and_flags = len("1000,") + len("Akua,") + len('"{}",'), len("1778752900000") + 41, 30
    assert (more.sent_bytes - fewer.sent_bytes) / 100 <= id_name_json + version + time_and_flags + 10


def test_several_targets_take_one_round_trip_and_a_statement_each(counting: Callable[[str], Counting]) -> None:
    wire = counting(TWO_TARGETS)(*(named(n, 10 + n, "Akua") for n in range(50)))
    begin_and_commit = 2
    assert (wire.turns, wire.messages["Execute"], wire.messages["Sync"]) == (1, 2 + begin_and_commit, 1)


def test_rejects_and_settled_values_travel_with_the_batch(counting: Callable[[str], Counting]) -> None:
    apply = counting(TWO_TARGETS)
    wire = apply(
        named(1, 10, "Akua"),
        named(2, 11, "a name that is far too long for it"),
        record(3, 12, level={"N": "7000000"}),
    )
    assert wire.turns == 1


def test_children_take_a_second_round_trip(counting: Callable[[str], Counting]) -> None:
    tags = {"L": [{"M": {"tag": {"S": "a"}}}, {"M": {"tag": {"S": "b"}}}]}
    apply = counting(CHILDREN)
    apply(record(1, 2, tags=tags))
    assert apply(*(record(n, 10 + n, tags=tags) for n in range(50))).turns == 2
