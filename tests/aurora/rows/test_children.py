"""Children are those of their parent's newest state, in every order, with repeats and concurrent writers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.rows.apply import ApplyStatement
from pipeline.aurora.rows.purge import purge_chunk
from pipeline.aurora.rows.staging import Staging
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.model.change import Change, coalesce
from pipeline.core.model.mapping import Target
from pipeline.core.ordering import Position
from pipeline.mappings import load_mappings

EXAMPLE = Path(__file__).parents[3] / "examples" / "shop" / "tables"
START = datetime(2026, 5, 14, tzinfo=UTC)
Lines = tuple[str, ...]
"""The sku of each line of an order."""


def item(key: int, lines: Lines) -> dict[str, Any]:
    return {
        "PK": {"S": f"CUSTOMER#{key}"},
        "SK": {"S": "ORDER#2026-05-01#a"},
        "lines": {"L": [{"M": {"sku": {"S": sku}}} for sku in lines]},
    }


class Replica:
    """A migrated database, and the paths by which states of orders reach it."""

    def __init__(self, database: str) -> None:
        self.database = database
        (self.mapping,) = load_mappings(EXAMPLE)
        (self.orders,) = (target for target in self.mapping.targets if target.children)
        self.decoder = RowDecoder(self.orders)
        self.statement = ApplyStatement(self.orders, self.mapping.name, self.mapping.table)
        with closing(self.connect()) as connection:
            migrate(connection, [self.mapping])

    def connect(self) -> Connection:
        return connect(self.database, application_name="test")

    def change(self, key: int, at: int, lines: Lines | None, *, streamed: bool = True) -> Change:
        """The state of a key as of second `at`; None is a delete."""
        image = item(key, lines or ())
        row = None if lines is None else self.decoder.row(image)
        return Change(self.decoder.key(image), row, Position(START + timedelta(seconds=at), at if streamed else None))

    def apply(self, connection: Connection, *changes: Change) -> None:
        with connection.transaction():
            self.statement.apply(connection, coalesce(changes))

    def merge(self, connection: Connection, at: int, states: dict[int, Lines]) -> None:
        """Merge a snapshot of second `at`."""
        with connection.transaction():
            staging = Staging.temporary(connection, self.orders)
            staging.copy(connection, [[self.decoder.row(item(key, lines)) for key, lines in states.items()]])
            staging.merge(connection, self.mapping.name, START + timedelta(seconds=at))

    def shown(self, connection: Connection) -> dict[int, Lines]:
        """Each live order's lines."""
        rows = connection.execute(
            "SELECT o.customer_id, COALESCE(array_agg(l.sku ORDER BY l.line) FILTER (WHERE l.line IS NOT NULL), '{}')"
            ' FROM shop."Orders" AS o LEFT JOIN shop."OrderLines" AS l USING (customer_id, placed_on, order_id)'
            " GROUP BY 1"
        )
        return {key: tuple(lines) for key, lines in rows}

    def orphans(self, connection: Connection) -> int:
        row = connection.execute(
            'SELECT count(*) FROM shop."OrderLines" AS l WHERE NOT EXISTS (SELECT FROM shop."Orders" AS o'
            " WHERE o.customer_id = l.customer_id AND o.placed_on = l.placed_on AND o.order_id = l.order_id)"
        ).fetchone()
        assert row
        return row[0]


@pytest.fixture
def replica(database: str) -> Replica:
    return Replica(database)


@pytest.fixture
def two(replica: Replica) -> Generator[tuple[Connection, Connection]]:
    with closing(replica.connect()) as one, closing(replica.connect()) as other:
        yield one, other


def wait_until_blocked(connection: Connection, process: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        row = connection.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [process]).fetchone()
        if row and row[0]:
            return
        time.sleep(0.02)
    raise AssertionError("the second writer did not wait for the first")


@pytest.mark.parametrize("stored_before", [False, True])
@pytest.mark.parametrize("first_is_newer", [False, True])
@pytest.mark.parametrize("way", ["stream", "snapshot"])
def test_a_writer_that_waited_replaces_what_the_other_wrote_or_nothing(
    replica: Replica, two: tuple[Connection, Connection], way: str, *, first_is_newer: bool, stored_before: bool
) -> None:
    one, other = two
    if stored_before:
        replica.apply(one, replica.change(1, 1, ("seed", "seed", "seed")))
    older, newer = ("a1", "a2", "a3"), ("b1",)
    first, second = ((30, newer), (20, older)) if first_is_newer else ((20, older), (30, newer))

    def write_second() -> None:
        if way == "stream":
            replica.apply(other, replica.change(1, second[0], second[1]))
        else:
            replica.merge(other, second[0], {1: second[1]})

    writer = threading.Thread(target=write_second)
    with closing(replica.connect()) as watching:
        with one.transaction():
            replica.statement.apply(one, [replica.change(1, first[0], first[1])])
            writer.start()
            wait_until_blocked(watching, other.info.backend_pid)
        writer.join(timeout=30)
        assert not writer.is_alive()
        assert replica.shown(watching) == {1: newer}


def test_a_deletion_takes_the_children_and_an_older_state_does_not_bring_them_back(
    replica: Replica, two: tuple[Connection, Connection]
) -> None:
    one, _ = two
    old = replica.change(1, 5, ("a", "b"))
    replica.apply(one, old)
    replica.apply(one, replica.change(1, 9, None))
    replica.apply(one, old)
    replica.merge(one, 8, {1: ("a",)})
    assert (replica.shown(one), replica.orphans(one)) == ({}, 0)
    assert purge_chunk(one, replica.orders, replica.mapping.name, START + timedelta(seconds=9)) == 1
    replica.apply(one, old)
    assert (replica.shown(one), replica.orphans(one)) == ({}, 0)


def test_a_key_that_a_snapshot_holds_twice_keeps_the_children_of_one_of_them(
    replica: Replica, two: tuple[Connection, Connection]
) -> None:
    one, _ = two
    with one.transaction():
        staging = Staging.temporary(one, replica.orders)
        staging.copy(one, [[replica.decoder.row(item(1, lines)) for lines in (("a", "b"), ("c",), ("a", "b"))]])
        assert staging.merge(one, replica.mapping.name, START) == 1
    assert replica.shown(one)[1] in {("a", "b"), ("c",)}


class History:
    """A generated life of some orders, and everything that brings it to the replica."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(seed)
        self.states: dict[int, Lines | None] = {}
        self.changes: list[tuple[int, int, Lines | None]] = []
        self.snapshots: list[tuple[int, dict[int, Lines]]] = []
        for at in range(1, 41):
            key = chance.randrange(4)
            lines = tuple(f"{at}.{n}" for n in range(chance.randrange(4)))
            self.states[key] = None if chance.random() < 0.25 else lines
            self.changes.append((key, at, self.states[key]))
            if chance.random() < 0.1:
                live = {k: found for k, found in self.states.items() if found is not None}
                self.snapshots.append((at, live))
        delivered: list[Any] = [("batch", chance.choices(self.changes, k=chance.randrange(1, 6))) for _ in range(12)]
        rest = self.changes[:]
        chance.shuffle(rest)
        delivered += [("batch", rest[start : start + 5]) for start in range(0, len(rest), 5)]
        delivered += [("snapshot", snapshot) for snapshot in self.snapshots]
        chance.shuffle(delivered)
        self.delivered = delivered

    @property
    def outcome(self) -> dict[int, Lines]:
        return {key: lines for key, lines in self.states.items() if lines is not None}


def deliver(replica: Replica, parcels: list[Any]) -> None:
    with closing(replica.connect()) as connection:
        for kind, content in parcels:
            if kind == "batch":
                replica.apply(connection, *[replica.change(key, at, lines) for key, at, lines in content])
            else:
                replica.merge(connection, *content)


@pytest.mark.parametrize("seed", range(12))
def test_any_history_by_two_writers_at_once_ends_with_the_sources_lists(replica: Replica, seed: int) -> None:
    history = History(seed)
    with ThreadPoolExecutor(2) as pool, closing(replica.connect()) as connection:
        halves = [history.delivered[::2], history.delivered[1::2]]
        for done in [pool.submit(deliver, replica, half) for half in halves]:
            done.result()
        assert (replica.shown(connection), replica.orphans(connection)) == (history.outcome, 0)
        target: Target = replica.orders
        purge_chunk(connection, target, replica.mapping.name, START + timedelta(seconds=40))
        deliver(replica, history.delivered)
        assert (replica.shown(connection), replica.orphans(connection)) == (history.outcome, 0)
