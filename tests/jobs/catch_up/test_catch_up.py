"""Catch up: incremental exports restore what the stream lost, deletes included, and nothing newer is undone.

The past in these tests is invented (`tests.jobs.past_table`): the test chooses the time of every write, in the stream's
records and in the exports alike, and the exports have the documented form. Aurora is real. `test_catch_up_stack.py`
shows that the local stack's export service accepts the requests.

`CATCH_UP_HISTORIES` sets how many generated histories are restored (5 unless set).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import ConfigurationError, TerminalError
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.catch_up.catch_up import CatchUpReport, apply_export, catch_up
from pipeline.jobs.load.load import load
from pipeline.jobs.services import Services
from tests.jobs.conftest import view
from tests.jobs.past_table import PastServices, PastTable, records

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
HISTORIES = int(os.environ.get("CATCH_UP_HISTORIES", "5"))
NOW = datetime.now(UTC).replace(microsecond=0)
START = NOW - timedelta(hours=20)
Apply = Callable[..., Any]


@pytest.fixture
def past(tmp_path: Path) -> PastTable:
    return PastTable(tmp_path / "s3")


@pytest.fixture
def services(services: Services, database: str, past: PastTable) -> Services:
    assert services.settings.database_url == database  # migrated
    return PastServices(database, past)


@pytest.fixture
def run(services: Services, employees: TableMapping) -> Callable[..., CatchUpReport]:
    def catching_up(start: datetime, end: datetime, **options: Any) -> CatchUpReport:  # noqa: ANN401 - catch_up's own
        return catch_up(services, employees, start, end, **options)

    return catching_up


Run = Callable[[datetime, datetime], CatchUpReport]


def names(connection: Connection) -> dict[int, str]:
    return {number: name for number, (name, _) in view(connection).items()}


@pytest.mark.parametrize("micros_form", ["text", "attribute", "number"])
def test_three_hours_withheld_from_the_lambda_are_healed(
    past: PastTable,
    services: Services,
    employees: TableMapping,
    run: Run,
    apply: Apply,
    connection: Connection,
    micros_form: str,
) -> None:
    """Writes of every kind continue while nothing is delivered; after the gap, delivery resumes."""
    past.micros_form = micros_form
    for number in range(120):
        past.put(START, number, f"before {number}")
    load(services, employees, past.full(START + MINUTE))
    apply(*records([past.put(START + HOUR, number, f"streamed {number}") for number in range(30)]))
    source = random.Random(3)
    for minute in range(180):
        at, number = START + 2 * HOUR + minute * MINUTE, source.randrange(200)
        if source.random() < 0.4:
            past.delete(at, number)
        else:
            past.put(at, number, f"lost {minute}")
    after = [past.put(START + 5 * HOUR + 10 * MINUTE, number, "after") for number in range(5)]
    apply(*records(after))
    assert names(connection) != past.state()
    report = run(START + 2 * HOUR, START + 6 * HOUR)
    assert names(connection) == past.state()
    assert report.applied > 50
    assert report.healed_through == START + 6 * HOUR - employees.margin
    caught_up = connection.execute("SELECT since, until FROM replication.caught_up").fetchall()
    assert caught_up == [(START + 2 * HOUR, START + 6 * HOUR)]
    assert report.items == report.applied + report.stale + report.rejected + report.ignored


def test_three_hours_of_deletes_alone_are_healed(
    past: PastTable, services: Services, employees: TableMapping, run: Run, apply: Apply, connection: Connection
) -> None:
    """Some of the deleted items were loaded, some streamed before the gap, some streamed in the gap's own hour."""
    for number in range(60):
        past.put(START, number, f"loaded {number}")
    load(services, employees, past.full(START + MINUTE))
    kept = [past.put(START + HOUR, number, "streamed") for number in range(40, 80)]
    kept += [past.put(START + 2 * HOUR + 20 * MINUTE, number, "streamed in the hour") for number in range(100, 110)]
    apply(*records(kept))
    for minute, number in enumerate([*range(20, 75), *range(100, 105)]):
        past.delete(START + 2 * HOUR + (30 + 2 * minute) * MINUTE, number)
    assert len(names(connection)) - len(past.state()) == 60
    report = run(START + 2 * HOUR, START + 6 * HOUR)
    assert names(connection) == past.state()
    assert report.removed == 5  # inserted and deleted in one window: only reading them again shows it
    assert report.read_again == 5
    (tombstones,) = connection.execute('SELECT count(*) FROM replica."Employees" WHERE _deleted').fetchone() or (0,)
    assert tombstones == 60


def test_again_changes_nothing_and_asks_for_nothing(past: PastTable, run: Run, connection: Connection) -> None:
    past.put(START, 1, "one")
    past.put(START + 30 * MINUTE, 2, "two")
    first = run(START, START + HOUR)
    asked = list(past.requested)
    rows = connection.execute('SELECT *, xmin FROM replica."Employees" ORDER BY 1').fetchall()
    again = run(START, START + HOUR)
    assert connection.execute('SELECT *, xmin FROM replica."Employees" ORDER BY 1').fetchall() == rows
    assert past.requested == asked
    assert all(window.already_applied for window in again.windows)
    assert (again.items, again.applied) == (first.items, first.applied)


def test_two_views_whose_names_begin_with_the_same_55_bytes(
    past: PastTable, services: Services, employees: TableMapping, connection: Connection
) -> None:
    twins = tuple(replace(employees.targets[0], name=f"{'v' * 55}{end}") for end in "12")
    mapping = replace(employees, targets=twins)
    migrate(connection, [mapping])
    past.put(START, 1, "one")
    assert catch_up(services, mapping, START, START + HOUR).applied == 2


def test_a_long_range_is_cut_and_every_cut_is_overlapped_by_twice_the_margin(
    past: PastTable, run: Run, employees: TableMapping
) -> None:
    report = run(NOW - timedelta(hours=60), NOW)
    windows = [w for w in report.windows if not w.is_seam]
    seams = [w for w in report.windows if w.is_seam]
    assert [(w.start, w.end) for w in windows] == [
        (NOW - timedelta(hours=60 - 20 * n), NOW - timedelta(hours=40 - 20 * n)) for n in range(3)
    ]
    assert len(seams) == 3
    for across, cut in zip(seams, [w.start for w in windows], strict=True):
        assert across.start <= cut - 2 * employees.margin
        assert across.end >= cut + 2 * employees.margin
    assert len(past.requested) == 6


def test_what_is_beyond_the_recovery_window_is_refused_and_named(past: PastTable, run: Run) -> None:
    past.earliest = NOW - timedelta(hours=10)
    with pytest.raises(TerminalError) as refused:
        run(NOW - timedelta(hours=12, minutes=30), NOW - timedelta(hours=8))
    told = str(refused.value)
    assert "the first 2 h 30 min of the range, is beyond the table's point-in-time recovery" in told
    assert f"catch up from {NOW - timedelta(hours=10) + timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}" in told
    assert "dynaurora load employees" in told
    assert past.requested == []
    inside = run(past.earliest, NOW - timedelta(hours=8))
    assert [w.is_seam for w in inside.windows] == [False]


def test_an_impossible_range_is_refused(run: Run) -> None:
    with pytest.raises(ConfigurationError, match="shorter than 15 min"):
        run(START, START + 14 * MINUTE)
    with pytest.raises(ConfigurationError, match="in the future"):
        run(NOW - HOUR, NOW + HOUR)


def test_a_range_that_ends_in_a_moment_is_waited_for(
    past: PastTable, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The range of a loss that was just found ends like this."""
    monkeypatch.setattr("pipeline.jobs.catch_up.window_exports._LOOK_AGAIN_SECONDS", 0.2)
    end = datetime.now(UTC) + timedelta(seconds=2)
    run(end - HOUR, end)
    assert datetime.now(UTC) >= end.replace(microsecond=0)
    assert past.requested


def test_a_change_lost_in_the_last_minutes_before_a_cut(
    past: PastTable, run: Run, apply: Apply, connection: Connection
) -> None:
    """The window that ends at the cut has the change, and counts as of a time before what the stream brought."""
    cut = START + 2 * HOUR
    apply(*records([past.put(cut - 3 * MINUTE, n, "streamed") for n in (1, 2, 3)]))
    past.put(cut - 2 * MINUTE, 1, "lost")
    past.delete(cut - 2 * MINUTE, 2)
    run(START, cut)
    assert names(connection)[1] == "streamed"
    run(cut, cut + HOUR)
    assert names(connection) == past.state() == {1: "lost", 3: "streamed"}


def test_an_item_inserted_just_before_a_cut_and_deleted_behind_it(
    past: PastTable, run: Run, connection: Connection
) -> None:
    """All of it was lost. A window that began earlier would leave the item out, and the row would stay forever."""
    cut = START + 2 * HOUR
    past.put(cut - 4 * MINUTE, 1, "short-lived")
    past.put(START, 2, "older")
    past.delete(cut - 8 * MINUTE, 2)
    past.put(cut + 3 * MINUTE, 2, "again")
    past.put(cut + 2 * MINUTE, 3, "in the seam's later half")
    past.delete(cut + 30 * MINUTE, 1)
    past.delete(cut + 30 * MINUTE, 2)
    past.delete(cut + 30 * MINUTE, 3)
    run(START, cut)
    assert names(connection) == {1: "short-lived"}
    run(cut, cut + HOUR)
    assert names(connection) == {}


def test_an_earlier_range_after_a_later_snapshot_brings_nothing_back(
    past: PastTable, services: Services, employees: TableMapping, run: Run, apply: Apply, connection: Connection
) -> None:
    """All these changes were lost: no tombstone keeps the item out, only what is known of the snapshot."""
    apply(*records([past.put(START - HOUR, 5, "extra")]))
    past.put(START + 10 * MINUTE, 1, "short-lived")
    past.put(START + 10 * MINUTE, 2, "stays")
    past.delete(START + 20 * MINUTE, 5)
    past.delete(START + 2 * HOUR, 1)
    load(services, employees, past.full(START + 3 * HOUR))
    assert names(connection) == {2: "stays", 5: "extra"}
    report = run(START, START + HOUR)
    assert names(connection) == past.state() == {2: "stays"}
    assert (report.windows[0].applied, report.windows[0].stale) == (1, 2)


def test_a_part_of_a_range_again_brings_nothing_back(past: PastTable, run: Run, connection: Connection) -> None:
    """The item came and went within the whole range, which leaves it out; the first hour alone contains it."""
    past.put(START + 10 * MINUTE, 1, "short-lived")
    past.put(START + 10 * MINUTE, 2, "stays")
    past.delete(START + 2 * HOUR, 1)
    run(START, START + 4 * HOUR)
    assert names(connection) == {2: "stays"}
    run(START, START + HOUR)
    assert names(connection) == {2: "stays"}
    run(START - HOUR, START + HOUR)
    assert names(connection) == {2: "stays"}


def test_a_load_within_the_range_is_a_cut(
    past: PastTable, services: Services, employees: TableMapping, run: Run, connection: Connection
) -> None:
    """Items that the load brought and that were deleted since: one window over all of it would leave them out."""
    past.put(START + 10 * MINUTE, 1, "loaded")
    past.put(START + 10 * MINUTE, 2, "loaded")
    load(services, employees, past.full(START + HOUR + timedelta(milliseconds=300)))
    past.delete(START + 2 * HOUR, 1)
    report = run(START, START + 4 * HOUR)
    assert names(connection) == past.state() == {2: "loaded"}
    assert [(w.start, w.end) for w in report.windows if not w.is_seam] == [
        (START, START + HOUR + timedelta(seconds=1)),
        (START + HOUR + timedelta(seconds=1), START + 4 * HOUR),
    ]


def test_writes_of_the_very_second_of_a_load(
    past: PastTable, services: Services, employees: TableMapping, run: Run, connection: Connection
) -> None:
    """Windows begin at whole seconds; a load's time need not."""
    second = START + HOUR
    past.put(second - MINUTE, 1, "loaded")  # within the seam too
    past.put(second + timedelta(milliseconds=100), 2, "loaded")
    load(services, employees, past.full(second + timedelta(milliseconds=300)))
    past.delete(second + timedelta(milliseconds=600), 1)
    past.delete(START + 2 * HOUR, 2)
    assert names(connection) == {1: "loaded", 2: "loaded"}
    run(START, START + 4 * HOUR)
    assert names(connection) == {}


def test_a_load_just_before_the_end_ends_the_range(
    past: PastTable, services: Services, employees: TableMapping, run: Run, connection: Connection
) -> None:
    past.put(START + 10 * MINUTE, 1, "loaded")
    load(services, employees, past.full(START + HOUR))
    past.delete(START + HOUR + MINUTE, 1)
    report = run(START, START + HOUR + 10 * MINUTE)
    assert (report.end, report.healed_through) == (START + HOUR, START + HOUR - employees.margin)
    run(START, START + 2 * HOUR)
    assert names(connection) == {}


def test_a_load_just_behind_the_beginning(
    past: PastTable, services: Services, employees: TableMapping, run: Run, connection: Connection
) -> None:
    """Items inserted a few minutes before it, loaded, and deleted since, some of them in another window."""
    cut = START + 10 * MINUTE
    for number in range(1, 6):
        past.put(START + MINUTE, number, "loaded")
    load(services, employees, past.full(cut))
    past.delete(cut + MINUTE, 1)
    past.put(cut + 2 * MINUTE, 6, "short-lived")
    past.delete(START + 20 * MINUTE, 2)
    past.delete(START + 2 * HOUR, 3)
    past.put(START + 3 * HOUR, 3, "again")
    past.delete(START + 18 * HOUR, 4)
    past.delete(START + 18 * HOUR, 6)
    report = run(START, NOW)
    assert names(connection) == past.state() == {3: "again", 5: "loaded"}
    assert report.end == NOW
    again = run(START, NOW)
    assert all(window.already_applied for window in again.windows)
    assert [w.start for w in again.windows] == [w.start for w in report.windows]


def test_loads_that_follow_each_other_within_minutes(
    past: PastTable, services: Services, employees: TableMapping, run: Run, connection: Connection
) -> None:
    """The later ones do not remove what the first one brought."""
    past.put(START + 55 * MINUTE, 9, "stays")
    for number in range(3):
        load_at = START + HOUR + 5 * number * MINUTE
        past.put(load_at - MINUTE, number, "loaded")
        load(services, employees, past.full(load_at))
        past.delete(load_at + MINUTE, number)
    assert len(names(connection)) == 4
    report = run(START, START + 4 * HOUR)
    assert names(connection) == past.state() == {9: "stays"}
    assert report.end == START + 4 * HOUR
    assert report.removed == 0


def test_a_load_that_is_close_to_both_ends_of_the_range(
    past: PastTable, services: Services, employees: TableMapping, run: Run, connection: Connection
) -> None:
    """No window can begin at it: the error says so, and nothing is done."""
    past.put(START + MINUTE, 1, "loaded")
    load(services, employees, past.full(START + 10 * MINUTE))
    past.delete(START + 11 * MINUTE, 1)
    with pytest.raises(ConfigurationError) as refused:
        run(START, START + 20 * MINUTE)
    hint = str(refused.value)
    assert f"begin at {START - 5 * MINUTE:%Y-%m-%dT%H:%M:%SZ} or before" in hint
    assert f"end at {START + 25 * MINUTE:%Y-%m-%dT%H:%M:%SZ} or after" in hint
    assert past.requested == []
    earlier = run(START - 5 * MINUTE, START + 20 * MINUTE)
    assert earlier.end == START + 10 * MINUTE
    assert run(START, START + HOUR).end == START + HOUR
    assert names(connection) == {}


def test_a_wide_range_after_a_narrow_one(past: PastTable, run: Run, connection: Connection) -> None:
    """The narrow one brought the item; the wide one alone would leave it out. No export is requested twice."""
    past.put(START + 10 * MINUTE, 1, "short-lived")
    run(START, START + HOUR)
    past.delete(START + 2 * HOUR, 1)
    asked = len(past.requested)
    run(START, START + 4 * HOUR)
    assert names(connection) == {}
    assert len(past.requested) == asked + 2


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_whatever_was_lost_the_range_is_healed(
    past: PastTable,
    services: Services,
    employees: TableMapping,
    run: Run,
    apply: Apply,
    connection: Connection,
    seed: int,
) -> None:
    """Histories of days, crowded around the cuts; records lost, late and repeated; ranges in parts and in any order."""
    source = random.Random(seed)
    begin = NOW - timedelta(hours=72)
    cuts = [begin + timedelta(hours=24 * n) for n in range(4)]
    moments = sorted(
        source.choice(cuts[:-1]) + source.uniform(-12, 12) * MINUTE
        if source.random() < 0.6
        else begin + source.uniform(0, 71) * HOUR
        for _ in range(500)
    )
    delivered: list[Any] = []
    late: list[Any] = []
    for moment in moments:
        at, number = moment.replace(microsecond=0), source.randrange(60)
        if source.random() < 0.45 and number in past.state():
            write = past.delete(at, number)
        else:
            write = past.put(at, number, f"{len(past.writes)}")
        (delivered if source.random() < 0.5 else late).append(write)
    for start in range(0, len(delivered), 40):
        apply(*records(delivered[start : start + 40]))
    ranges = [(begin - HOUR, begin + 10 * HOUR), (begin + 10 * HOUR, cuts[2]), (cuts[2], NOW)]
    if source.random() < 0.3:
        ranges = [(begin - HOUR, NOW)]
    first, last = source.choice(ranges)
    if source.random() < 0.6:  # one or several loads, shortly after each other; half of them just after a range's start
        loaded = first + source.uniform(0, 20) * MINUTE
        if source.random() < 0.5:
            loaded = first + source.random() * (last - first - 2 * HOUR)
        for _ in range(source.choice([1, 1, 2, 4])):
            load(services, employees, past.full(loaded))
            loaded += source.uniform(0.1, 25) * MINUTE
    source.shuffle(ranges)
    for start, end in [*ranges, *([source.choice(ranges)] if source.random() < 0.3 else [])]:
        run(start, end)
        some = source.sample(late, len(late) // 10)  # redriven: days late, out of order
        apply(*records(some))
    for start, end in ranges:  # again: the seams of ranges that came in another order, and what was redriven since
        run(start, end)
    assert names(connection) == past.state()


def test_an_export_that_exists(
    past: PastTable, services: Services, employees: TableMapping, connection: Connection
) -> None:
    past.put(START - HOUR, 2, "before")
    past.put(START, 1, "one")
    past.delete(START + MINUTE, 2)
    written = past.incremental(START, START + HOUR, "NEW_AND_OLD_IMAGES")
    report = apply_export(services, employees, location=written.location)
    assert names(connection) == {1: "one"}
    assert [(w.start, w.end, w.is_seam) for w in report.windows] == [(START, START + HOUR, False)]
    row = connection.execute("SELECT kind, from_time, snapshot_time, as_of, status FROM replication.exports").fetchone()
    assert row == ("incremental", START, START + HOUR, START + HOUR - employees.margin, "loaded")
    with pytest.raises(ConfigurationError, match=r"it is a full export .*; load it"):
        apply_export(services, employees, location=past.full(START))
    with pytest.raises(ConfigurationError, match="it is an incremental export"):
        load(services, employees, written.location)


def test_an_export_that_exists_and_has_a_load_within(
    past: PastTable, services: Services, employees: TableMapping, run: Run, connection: Connection
) -> None:
    """Alone it cannot show what was loaded and deleted since, and does not claim to."""
    cut = START + HOUR
    past.put(START + MINUTE, 1, "loaded")
    load(services, employees, past.full(cut))
    past.delete(cut + MINUTE, 1)
    report = apply_export(services, employees, location=past.incremental(START, START + 2 * HOUR).location)
    assert (report.end, report.healed_through) == (cut, cut - employees.margin)
    run(START, START + 2 * HOUR)
    assert names(connection) == {}


def test_a_line_that_cannot_be_stored_is_a_reject_and_the_rest_goes_on(
    past: PastTable, run: Run, connection: Connection
) -> None:
    past.put(START, 1, "x" * 21)
    past.put(START, 2, "fits")
    past.put(START, 2**70, "too big for the key")
    report = run(START, START + HOUR)
    assert names(connection) == {2: "fits"}
    assert report.windows[0].rejected == 2
    kept = connection.execute("SELECT record->'Keys', source FROM replication.rejects ORDER BY id").fetchall()
    assert {"Id": {"N": "1"}} in [keys for keys, _ in kept]


def test_a_damaged_file_stops_with_its_name_and_leaves_nothing(
    past: PastTable, services: Services, employees: TableMapping, connection: Connection
) -> None:
    for number in range(10):
        past.put(START, number, "new")
    written = past.incremental(START, START + HOUR)
    damaged = past.folder / "test-bucket" / written.data_keys[0]
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with pytest.raises(TerminalError, match=damaged.name):
        apply_export(services, employees, location=written.location, workers=1)
    assert connection.execute("SELECT status FROM replication.exports").fetchall() == [("failed",)]
    assert len(names(connection)) in {0, 5}  # the other file may have come first


def test_an_export_that_failed_is_requested_again(past: PastTable, run: Run, connection: Connection) -> None:
    past.put(START, 1, "one")
    original = past.describe_export

    def failing(**asked: Any) -> dict[str, Any]:  # noqa: ANN401 - the SDK's own
        past.fail_exports()
        past.describe_export = original  # type: ignore[method-assign]
        return original(**asked)

    past.describe_export = failing  # type: ignore[method-assign]
    with pytest.raises(TerminalError, match="it failed with S3AccessDenied"):
        run(START, START + HOUR)
    assert len(past.requested) == 2  # one window, and its seam
    run(START, START + HOUR)
    assert names(connection) == {1: "one"}
    assert len(past.requested) == 4


def test_another_load_keeps_it_out(past: PastTable, services: Services, employees: TableMapping, run: Run) -> None:
    past.put(START, 1, "one")
    with closing(services.connect("test")) as holder:
        loads.lock_table(holder, employees.name)
        with pytest.raises(TerminalError, match="another load of this table is running"):
            run(START, START + HOUR)
    assert run(START, START + HOUR).applied >= 1
