"""Histories in the database: what is written to them, and what their views show."""

from __future__ import annotations

import random
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.aurora.bookkeeping.watermarks import Mark
from pipeline.aurora.rows import history
from pipeline.aurora.rows.batch import BatchResult, BatchWriter
from pipeline.aurora.rows.history_fill import fill
from pipeline.aurora.rows.staging import Staging
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.errors import ConfigurationError
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.change import Change
from pipeline.core.model.history import partition_begin
from pipeline.core.ordering import Position
from pipeline.core.streams.stream_records import DecodedBatch
from pipeline.core.types.key_length import LONGEST_KEY_BYTES
from pipeline.jobs.promote import promote
from pipeline.jobs.purge import purge_table
from pipeline.jobs.services import Services
from pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Generator

TEXT = """
name: shop
source: {table: Orders, key: {PK: S, SK: N}}
targets:
  Orders:
    primary_key: [customer, number]
    history: {keep: 400d}
    columns:
      customer: {attribute: PK, type: text}
      number: {attribute: SK, type: "numeric(10,2)"}
      state: {attribute: state, type: text}
      tags: {attribute: tags, type: "text[]"}
  Lines:
    parent: Orders
    explode: lines
    element: {line: integer}
    columns: {sku: {attribute: sku, type: text}, price: {attribute: price, type: "numeric(6,2)"}}
"""
SHOP = read_mapping(TEXT, "shop.yaml")
(ORDERS,) = SHOP.targets


@pytest.fixture
def connection(database: str) -> Generator[Connection]:
    with closing(connect(database, application_name="test history")) as opened:
        migrate(opened, [SHOP])
        yield opened


def rows(connection: Connection, query: str) -> list[Any]:
    return [row[0] if len(row) == 1 else row for row in connection.execute(query.encode()).fetchall()]


def test_a_key_is_forgotten_in_every_partition_and_in_the_base(connection: Connection) -> None:
    for table in ('replica."Orders_history"', 'replica."_history_base_Orders"'):
        for version, back in ((0, "0 days"), (7, "200 days"), (8, "-200 days")):
            for customer in ("Ada", "Eve"):
                connection.execute(
                    f"INSERT INTO {table} VALUES ('{customer}', 1.5, 'new', '{{}}', '{{}}', '[]', {version},"  # noqa: S608
                    f" now() - interval '{back}', false)".encode()
                )
    assert history.forget(connection, ORDERS, ("Ada", "1.50")) == 6
    assert set(rows(connection, 'SELECT customer FROM public."Orders_history"')) == {"Eve"}


NOON = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)
ARN = "arn:aws:dynamodb:eu-west-1:111122223333:table/Orders/stream/2026-01-01T00:00:00.000"


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def put(state: str, seconds: float, version: int | None = None, *, lines: str = "[]", customer: str = "Ada") -> Change:
    row = (customer, "1.5", state, "{a,b}", "{}", lines)
    return Change((customer, "1.5"), row, Position(at(seconds), version))


def gone(seconds: float, version: int | None = None, customer: str = "Ada") -> Change:
    return Change((customer, "1.5"), None, Position(at(seconds), version))


def write(connection: Connection, *changes: Change) -> BatchResult:
    records: list[Any] = [{} for _ in changes]
    made = [change._replace(origin=number) for number, change in enumerate(changes)]
    mark = Mark("shop", "test", "", None, None, len(changes), 0, 0, stream_arn=ARN)
    return BatchWriter(SHOP).write(connection, DecodedBatch({ORDERS: made}), records, mark)


def shown(connection: Connection, columns: str = "state") -> list[Any]:
    """The view's rows, in time: seconds, whether it is deleted, where it is from, and `columns`."""
    found = rows(
        connection,
        f"SELECT extract(epoch FROM valid_from), extract(epoch FROM valid_to), is_current, deleted, source, {columns}"  # noqa: S608
        ' FROM public."Orders_history" ORDER BY customer, valid_from, valid_to',
    )
    begin = int(NOON.timestamp())
    return [
        (float(first) - begin, None if last is None else float(last) - begin, *more) for first, last, *more in found
    ]


def test_the_stream_records_every_version_of_a_batch(connection: Connection) -> None:
    result = write(connection, put("new", 0, 1), put("paid", 10, 2), put("sent", 10, 3), gone(20, 4))
    assert (result.applied.applied, result.applied.stale, result.applied.deleted) == (1, 3, 1)
    expected = [
        (0, 10, False, False, "stream", "new"),
        (10, 10, False, False, "stream", "paid"),  # within the second that DynamoDB tells
        (10, 20, False, False, "stream", "sent"),
        (20, None, True, True, "stream", None),
    ]
    assert shown(connection) == expected
    assert rows(connection, 'SELECT count(*) FROM "Orders"') == [0]
    write(connection, put("paid", 10, 2), put("new", 0, 1))
    assert shown(connection) == expected


def test_a_version_that_the_live_row_has_passed_finds_its_place(connection: Connection) -> None:
    write(connection, put("sent", 20, 3))
    result = write(connection, put("new", 0, 1))
    assert (result.applied.applied, result.applied.stale) == (0, 1)
    assert shown(connection) == [(0, 20, False, False, "stream", "new"), (20, None, True, False, "stream", "sent")]


def test_a_version_has_its_childrens_rows(connection: Connection) -> None:
    first = '[["1", "b", null], ["0", "a", "2.5"]]'
    write(connection, put("new", 0, 1, lines=first), put("paid", 10, 2, lines='[["0", "c", "3"]]'), gone(20, 3))
    assert shown(connection, '"Lines"') == [
        (
            0,
            10,
            False,
            False,
            "stream",
            [{"line": 0, "sku": "a", "price": 2.5}, {"line": 1, "sku": "b", "price": None}],
        ),
        (10, 20, False, False, "stream", [{"line": 0, "sku": "c", "price": 3.0}]),
        (20, None, True, True, "stream", None),
    ]
    write(connection, put("new", 30, 4, lines=first))
    assert rows(connection, 'SELECT line, sku FROM "Lines" ORDER BY line') == [(0, "a"), (1, "b")]


def test_times_that_run_back_against_sequence_numbers_keep_the_order_of_the_numbers(connection: Connection) -> None:
    write(connection, put("new", 10, 1), put("paid", 5, 2))
    assert shown(connection) == [
        (10, 10, False, False, "stream", "new"), (10, None, True, False, "stream", "paid")]  # fmt: skip
    assert rows(connection, 'SELECT state FROM "Orders"') == ["paid"]


def test_a_snapshot_that_repeats_what_is_known_is_no_change(connection: Connection) -> None:
    write(connection, put("new", 0, 1), put("new", 50))
    write(connection, put("paid", 60, 2), put("paid", 60), put("new", 80))
    assert shown(connection) == [
        (0, 60, False, False, "stream", "new"),
        (60, 80, False, False, "stream", "paid"),
        (80, None, True, False, "snapshot", "new"),
    ]
    assert rows(connection, 'SELECT count(*) FROM replica."Orders_history"') == [5]


def test_a_change_that_came_too_late_is_a_version_and_ends_where_the_proof_ends(connection: Connection) -> None:
    write(connection, put("old", 0, 1), put("kept", 0, 2, customer="Eve"))
    connection.execute("UPDATE replication.tables SET proven = tstzmultirange(tstzrange(%s, %s))", [at(-5), at(100)])
    result = write(connection, put("late", 50, 3), gone(50, 4, customer="Eve"), put("late", 50, 5, customer="Una"))
    assert (result.applied.applied, result.applied.stale) == (0, 3)
    end = 100 - 1e-6
    found = shown(connection)
    assert [(pytest.approx(a), b if b is None else pytest.approx(b), *more) for a, b, *more in found] == [
        (0, 50, False, False, "stream", "old"),
        (50, end, False, False, "stream", "late"),
        (end, None, True, False, "snapshot", "old"),
        (0, 50, False, False, "stream", "kept"),
        (50, end, False, True, "stream", None),
        (end, None, True, False, "snapshot", "kept"),
        (50, end, False, False, "stream", "late"),
        (end, None, True, True, "snapshot", None),
    ]
    assert rows(connection, 'SELECT customer, state FROM "Orders" ORDER BY 1') == [("Ada", "old"), ("Eve", "kept")]
    write(connection, put("next", 100, 6))  # the first change after the proof
    assert rows(connection, "SELECT state FROM \"Orders_history\" WHERE is_current AND customer = 'Ada'") == ["next"]


def test_a_value_that_only_postgresql_refuses_costs_no_other_version(connection: Connection) -> None:
    wrong = put("bad", 10, 2)
    assert wrong.row
    result = write(
        connection, put("new", 0, 1), wrong._replace(row=(*wrong.row[:3], "{", *wrong.row[4:])), put("paid", 5, 3)
    )
    assert result.rejected == 1
    assert [state for *_, state in shown(connection)] == ["new", "paid"]
    assert rows(connection, 'SELECT state FROM "Orders"') == ["paid"]


def test_a_batch_of_another_table_leaves_no_version(connection: Connection) -> None:
    connection.execute("UPDATE replication.tables SET source_table = 'Other'")
    with pytest.raises(ConfigurationError):
        write(connection, put("new", 0, 1))
    assert shown(connection) == []


def merge(connection: Connection, seconds: float, *changes: Change) -> int:
    """Merge a snapshot's rows, or a window's with its deletes."""
    with connection.transaction():
        staging = Staging.temporary(connection, ORDERS, deletes=True)
        staging.copy(connection, [[staging.row(change) for change in changes]])
        return staging.merge(connection, "shop", at(seconds))


LINE = '[["0", "a", "2.5"]]'


def test_a_merge_records_every_row_whether_the_live_table_takes_it_or_not(connection: Connection) -> None:
    write(connection, put("sent", 50, 1))
    changes = [put("paid", 0, lines=LINE), gone(0, customer="Eve"), put("new", 0, customer="Una")]
    for _ in range(2):
        merge(connection, 20, *changes)
    assert rows(connection, 'SELECT customer, state FROM "Orders" ORDER BY 1') == [("Ada", "sent"), ("Una", "new")]
    assert shown(connection, 'customer, state, "Lines"') == [
        (20, 50, False, False, "snapshot", "Ada", "paid", [{"line": 0, "sku": "a", "price": 2.5}]),
        (50, None, True, False, "stream", "Ada", "sent", []),
        (20, None, True, True, "snapshot", "Eve", None, None),
        (20, None, True, False, "snapshot", "Una", "new", []),
    ]


def test_a_key_that_a_snapshot_holds_twice_is_one_version_the_one_that_is_live(connection: Connection) -> None:
    merge(connection, 20, *[put(f"state {number}", 0, customer=f"c{number % 50}") for number in range(500)])
    differ = """SELECT count(*) FROM "Orders_history" h FULL JOIN "Orders" o USING (customer, state)
                 WHERE h.customer IS NULL OR o.customer IS NULL"""
    assert rows(connection, differ) == [0]
    assert rows(connection, 'SELECT count(*) FROM "Orders_history"') == [50]


def test_filling_gives_every_stored_row_the_version_that_its_writer_would_have_recorded(connection: Connection) -> None:
    write(connection, put("new", 0, 1, lines=LINE), gone(10, 2, customer="Eve"))
    merge(connection, -86_400 * 1_000, put("old", 0, customer="Una", lines=LINE))
    everything = 'SELECT * FROM (TABLE replica."Orders_history" UNION ALL TABLE replica."_history_base_Orders") AS h'
    before = sorted(map(repr, rows(connection, everything)))
    assert fill(connection, "shop", ORDERS) == 0
    connection.execute('DELETE FROM replica."Orders_history"; DELETE FROM replica."_history_base_Orders"')
    connection.execute("UPDATE replication.histories SET filled_at = NULL, filled_xid = NULL")
    assert fill(connection, "shop", ORDERS, pages=1) == 3
    assert sorted(map(repr, rows(connection, everything))) == before
    assert rows(connection, 'SELECT count(*) FROM replica."_history_base_Orders"') == [1]
    assert fill(connection, "shop", ORDERS) == 0
    assert not any(gap for *_, gap in shown(connection, "gap"))


def test_rows_that_were_written_without_their_versions_are_a_gap(connection: Connection) -> None:
    assert fill(connection, "shop", ORDERS) == 0
    write(connection, put("new", 0, 1), put("new", 0, 1, customer="Eve"))
    connection.execute("DELETE FROM replica.\"Orders_history\" WHERE customer = 'Eve'")  # an old replicator
    assert fill(connection, "shop", ORDERS) == 1
    assert [gap for *_, gap in shown(connection, "gap")] == [True, True]
    assert fill(connection, "shop", ORDERS) == 0
    assert rows(connection, "SELECT count(*) FROM replication.history_gaps") == [1]


def test_a_purge_drops_what_is_older_than_kept_and_what_is_shown_stays(connection: Connection) -> None:
    days, first = 86_400.0, partition_begin(NOON - timedelta(days=30), 28)
    begin = (first - NOON).total_seconds()
    changes = [put("a", begin - 9 * days, 1), put("b", begin - 5 * days, 2), put("b", begin - 4 * days), put("c", 0, 3)]
    write(connection, *changes, put("old", -900 * days, 1, customer="Eve"), gone(begin - days, 1, customer="Una"))
    before = shown(connection, "customer, state")
    assert purge_table(connection, SHOP).versions == 0
    assert rows(connection, 'SELECT count(*) FROM replica."_history_rest_Orders"') == [0]  # partitions were added
    assert rows(connection, 'SELECT count(*) FROM replica."_history_base_Orders"') == [1]  # Eve's
    assert shown(connection, "customer, state") == before
    report = purge_table(connection, SHOP, now=at(370 * days))
    assert rows(connection, "SELECT kept_from FROM replication.histories") == [first]
    assert [(a - begin, state) for a, *_, state in shown(connection)][:2] == [(-5 * days, "b"), (-begin, "c")]
    assert report.versions == 0  # `a` was before `b`, `b` is valid from its first version, and is still valid
    report = purge_table(connection, SHOP, now=at(460 * days))
    assert report.versions == 2
    assert [(a, state) for a, *_, state in shown(connection, "state") if state in list("abc")] == [(0, "c")]
    write(connection, *changes)  # what comes again is shown no more
    assert [(a, state) for a, *_, state in shown(connection, "state") if state in list("abc")] == [(0, "c")]


def test_a_delete_goes_with_the_last_that_could_come_before_it(connection: Connection) -> None:
    """With the versions before it too, or the last of them would be the current one."""
    write(connection, put("alive", -5, 1), gone(0, 2), gone(0, 2, customer="Eve"))
    purge_table(connection, SHOP, now=at(86_400 * 460))
    assert rows(connection, 'SELECT customer FROM replica."_history_base_Orders" ORDER BY 1') == ["Ada", "Ada", "Eve"]
    connection.execute("DELETE FROM replica.\"Orders\" WHERE customer = 'Ada'")
    connection.execute("UPDATE replication.tables SET purged_through = %s", [at(0)])
    purge_table(connection, SHOP, now=at(86_400 * 460))
    assert rows(connection, 'SELECT customer FROM replica."_history_base_Orders"') == ["Eve"]
    write(connection, put("late", -10, 1))
    assert rows(connection, 'SELECT state FROM "Orders_history" WHERE NOT deleted') == []


def test_versions_ahead_of_every_partition_wait_for_theirs(connection: Connection) -> None:
    write(connection, put("from a wrong clock", 86_400 * 900, 1))
    purge_table(connection, SHOP)
    assert rows(connection, 'SELECT count(*) FROM replica."_history_rest_Orders"') == [1]
    purge_table(connection, SHOP, now=at(86_400 * 890))
    assert rows(connection, 'SELECT count(*) FROM replica."_history_rest_Orders"') == [0]
    assert [state for *_, state in shown(connection)] == ["from a wrong clock"]


@pytest.mark.parametrize(
    ("kind", "since", "until", "healed", "table", "gaps"),
    [
        ("passed", 12, 14, False, "shop", [False, True, False]),
        ("passed", 12, 14, True, "shop", [False, True, False]),  # by a catch-up: what was between is not known
        ("trimmed", 5, 15, True, "shop", [True, True, False]),
        ("gap", 10, 10, False, "shop", [False, True, False]),
        ("gap", 20, 20.5, False, "shop", [False, False, True]),
        ("stuck", 5, 15, False, "shop", [True, True, False]),
        ("stuck", 5, 15, True, "shop", [False, False, False]),
        ("passed", 12, 14, False, "other", [False, False, False]),
        ("passed", 14, 12, False, "shop", [False, False, False]),  # no span, and no error
    ],
)
def test_spans_that_the_stream_lost_are_marked(
    connection: Connection, kind: str, since: float, until: float, healed: bool, table: str, gaps: list[bool]
) -> None:
    write(connection, put("new", 0, 1), put("paid", 10, 2), put("sent", 20, 3))
    connection.execute("INSERT INTO replication.tables (name, source_table) VALUES ('other', 'Other')")
    connection.execute(
        "INSERT INTO replication.losses (table_name, kind, since, until, healed_at)"
        " VALUES (%s, %s, %s, %s, CASE WHEN %s THEN now() END)",
        [table, kind, at(since), at(until), healed],
    )
    assert [gap for *_, gap in shown(connection, "gap")] == gaps


def test_a_promotion_fills_every_version_from_its_own_attributes(connection: Connection, database: str) -> None:
    def with_city(city: str, seconds: float, version: int) -> Change:
        change = put("new", seconds, version)
        assert change.row
        return change._replace(row=(*change.row[:4], f'{{"city": "{city}", "zip": 1}}', change.row[5]))

    write(connection, with_city("Accra", 0, 1), with_city("Kumasi", 10, 2), put("new", 20, 3), gone(30, 4))
    write(connection, with_city("Tema", -86_400 * 900, 1)._replace(key=("Eve", "1.5")))
    connection.execute(
        "UPDATE replica.\"Orders_history\" SET customer = 'Eve' WHERE _as_of < now() - interval '800 days'"
    )
    purge_table(connection, SHOP)  # Eve's is in the base
    grown = read_mapping(
        TEXT.replace("      state:", "      city: {attribute: city, type: text}\n      state:"), "shop.yaml"
    )
    migrate(connection, [grown])
    report = promote(Services(Settings.from_environment({"DATABASE_URL": database})), grown)
    assert report.finished
    assert {one.target for one in report.attributes} >= {"public.Orders_history", "public._history_base_Orders"}
    assert rows(connection, 'SELECT customer, city FROM "Orders_history" ORDER BY customer, valid_from') == [
        ("Ada", "Accra"), ("Ada", "Kumasi"), ("Ada", None), ("Ada", None), ("Eve", "Tema")]  # fmt: skip
    left = 'SELECT DISTINCT attributes::text FROM replica."Orders_history" WHERE NOT _deleted ORDER BY 1'
    assert rows(connection, left) == ['{"zip": 1}', "{}"]


def test_the_longest_key_has_room_for_a_position_beside_it(connection: Connection) -> None:
    chance = random.Random(1)
    longest = (
        "".join(chr(chance.randrange(33, 127)) for _ in range(LONGEST_KEY_BYTES)).replace('"', "'").replace("\\", "/")
    )
    write(connection, put("new", 0, 10**54 - 1, customer=longest), put("new", 0, customer=longest))
    assert rows(connection, 'SELECT count(*) FROM replica."Orders_history"') == [2]
