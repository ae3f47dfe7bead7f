"""The probe against a scripted stream of several shards and a real database: what it reports, claims and costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pipeline.aurora.bookkeeping import probes
from pipeline.aurora.rows import purge
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import TerminalError
from pipeline.core.model.mapping import TableMapping
from pipeline.core.past.losses import Kind
from pipeline.jobs.replicate import ReplicationReport
from pipeline.jobs.services import Services
from tests.dynamodb.scripted_stream import ScriptedServices, ScriptedShard, ScriptedStream
from tests.jobs.probe_world import World

Apply = Callable[..., ReplicationReport]


@pytest.fixture
def world(services: Services, employees: TableMapping, connection: Connection) -> World:
    stream = ScriptedStream(page_records=10)
    stream.shards["a"] = ScriptedShard()
    return World(ScriptedServices(services.settings, stream), employees, connection, stream)


def test_an_idle_table_has_no_lag_and_is_caught_up_to_now(world: World) -> None:
    for _ in range(3):
        tick = world.tick(after=3600)
        assert (tick.lag_seconds, tick.read_whole, tick.waiting) == (0.0, True, 0)
        assert world.through == world.settled


def test_a_healthy_table_has_no_lag(world: World, apply: Apply) -> None:
    world.tick()
    for number in range(25):
        apply(world.write("a", number))
    tick = world.tick()
    assert (tick.lag_seconds, tick.records) == (0.0, 25)
    assert world.through == world.settled


def test_a_dead_lambda_makes_the_lag_grow_with_the_clock(world: World, apply: Apply) -> None:
    apply(world.write("a", 1))
    world.tick()
    lost = world.write("a", 2)
    made = world.clock
    assert world.tick(after=60).lag_seconds == 60
    assert world.through == datetime.fromtimestamp(made, UTC)
    world.write("a", 3)
    assert world.tick(after=540).lag_seconds == 600
    assert world.through == datetime.fromtimestamp(made, UTC)
    apply(lost)
    assert world.tick(after=30).lag_seconds == 570
    world.connection.execute("DELETE FROM replication.probe_waiting")
    assert world.tick().lag_seconds == 0.0


def test_one_stuck_shard_of_many_is_named_while_the_others_go_on(world: World, apply: Apply) -> None:
    for number in range(250):
        world.stream.shards[f"s{number}"] = ScriptedShard()
    world.tick()
    stuck = world.write("s7", 7)
    for minute in range(5):
        apply(world.write("a", 100 + minute))
        tick = world.tick(after=60)
        assert (tick.lag_seconds, tick.waiting) == (60.0 * (minute + 1), 1)
    row = world.connection.execute("SELECT shard_id, target, key FROM replication.probe_waiting").fetchall()
    assert row == [("s7", "public.Employees", ["7"])]
    apply(stuck)
    assert world.tick().lag_seconds == 0.0
    assert world.through == world.settled


def test_changes_made_before_the_first_tick_are_read_too(world: World, apply: Apply) -> None:
    early = world.write("a", 1)
    world.stream.split("a", "b", "c")
    later = world.write("b", 2)
    assert world.tick(after=120).lag_seconds == 120
    apply(early)
    apply(later)
    assert world.tick().lag_seconds == 0.0
    assert world.through == world.settled


def test_a_shard_that_ended_holds_the_claim_until_its_successors_are_listed(world: World, apply: Apply) -> None:
    world.tick()
    claimed = world.settled
    world.stream.split("a")
    assert world.tick().read_whole
    assert world.through == claimed, "nobody knows when it ended"
    world.tick()
    assert world.through == claimed, "its successor must have been written to since"
    world.stream.shards["b"] = ScriptedShard(parent="a")
    late = world.write("b", 1)
    assert world.tick().waiting == 1
    apply(late)
    world.tick()
    assert world.through == world.settled


def test_a_stream_made_a_moment_ago_has_no_gap(world: World) -> None:
    world.stream.label = world.now().isoformat(timespec="milliseconds").removesuffix("+00:00")
    for _ in range(3):
        world.tick(after=5)
    assert world.kinds == []


def test_a_disabled_stream_says_nothing_of_what_is_written_since(world: World) -> None:
    world.tick()
    world.stream.split("a")
    world.stream.enabled = False
    claimed = world.through
    for _ in range(2):
        assert world.tick().lag_seconds is None
        assert world.through == claimed


def test_an_empty_page_is_not_the_end(world: World) -> None:
    world.stream.shards["a"].empty_pages = 3
    world.write("a", 1)
    assert world.tick().waiting == 1


def test_what_the_lambda_has_applied_and_the_probe_has_not_read_denies_the_end(world: World, apply: Apply) -> None:
    world.tick()
    claimed = world.through
    world.stream.shards["a"].empty_pages = 5
    apply(world.write("a", 1))
    for _ in range(2):
        tick = world.tick()
        assert (tick.read_whole, tick.lag_seconds) == (False, None)
        assert world.through == claimed
    world.connection.execute("UPDATE replication.watermarks SET as_of = NULL")
    world.stream.shards["a"].throttled = True
    world.tick()
    assert world.through == claimed, "a page wrongly taken for the end is not remembered as the end"
    world.stream.shards["a"].throttled = False
    assert world.tick().read_whole
    assert world.through == world.settled


def test_removals_rejects_and_tombstones_have_arrived(world: World, apply: Apply) -> None:
    changes = [
        world.write("a", 1, "REMOVE"),
        world.write("a", 2, empName={"S": "x" * 21}),
        world.write("a", 3),
        world.write("a", 3, "REMOVE"),
    ]
    assert world.tick(after=5).waiting == 3
    report = apply(*changes)
    assert report.rejected == 1
    tick = world.tick(after=5)
    assert (tick.waiting, tick.lag_seconds) == (0, 0.0)


def test_a_reject_answers_for_its_own_record_alone(world: World, apply: Apply) -> None:
    apply(world.write("a", 1, empName={"S": "x" * 21}))
    later = world.write("a", 1, empName={"S": "fits"})
    assert world.tick().waiting == 1
    apply(later)
    assert world.tick().waiting == 0


def test_what_a_purge_has_closed_waits_no_longer(world: World) -> None:
    world.write("a", 1, "REMOVE", ago=100)
    world.write("a", 2, "REMOVE", ago=10)
    assert world.tick().waiting == 2
    purge.purge_chunk(
        world.connection, world.mapping.targets[0], world.mapping.name, world.now() - timedelta(seconds=60)
    )
    tick = world.tick(after=0)
    assert (tick.waiting, tick.lag_seconds) == (1, 40.0)


def test_a_snapshot_newer_than_the_change_has_brought_it(world: World) -> None:
    world.write("a", 1, ago=20)
    world.write("a", 1)
    assert world.tick(after=5).lag_seconds == 25
    insert = """INSERT INTO replica."Employees" ("Id", _as_of) VALUES (1, %s)
                ON CONFLICT ("Id") DO UPDATE SET _as_of = excluded._as_of"""
    world.connection.execute(insert, [world.now() - timedelta(seconds=15)])
    assert world.tick(after=0).waiting == 1, "the newer of the two changes is not in it"
    world.connection.execute(insert, [world.now()])
    assert world.tick(after=0).waiting == 0


def test_the_oldest_change_of_a_key_that_has_not_arrived_is_the_lag(world: World, apply: Apply) -> None:
    first = world.write("a", 1, ago=50)
    world.write("a", 1, ago=5)
    assert world.tick(after=0).lag_seconds == 50
    apply(first)
    world.stream.shards["a"].records.clear()
    assert world.tick(after=0).lag_seconds == 50, (
        "only its newest version is kept, so this may be too much, never too little"
    )


def test_a_hot_key_is_judged_change_by_change(world: World, apply: Apply) -> None:
    changes = [world.write("a", 1, ago=20 - second) for second in range(20)]
    apply(*changes[:-1])
    assert world.tick(after=0).lag_seconds == 1.0


def test_the_place_is_kept_and_an_expired_iterator_is_made_again_behind_the_last_record(
    world: World, apply: Apply
) -> None:
    apply(world.write("a", 1))
    world.tick()
    world.stream.expired += 1
    apply(world.write("a", 2))
    world.stream.calls.clear()
    tick = world.tick()
    assert (tick.records, tick.read_whole) == (1, True)
    assert "GetShardIterator AFTER_SEQUENCE_NUMBER" in world.stream.calls
    world.stream.calls.clear()
    assert world.tick(after=3600).read_whole
    assert world.stream.calls.count("GetShardIterator AFTER_SEQUENCE_NUMBER") == 1


def test_after_a_pause_beyond_retention_it_begins_at_the_oldest_record(world: World, apply: Apply) -> None:
    for number in range(5):
        apply(world.write("a", number))
    world.tick()
    for number in range(5, 7):
        world.write("a", number)
    world.clock += 100_000
    for number in range(7, 9):
        world.write("a", number)
    world.stream.shards["a"].trimmed = 7
    tick = world.tick()
    assert (tick.records, tick.waiting) == (2, 2)
    assert "GetShardIterator TRIM_HORIZON" in world.stream.calls


def one_batch_at_a_time(world: World) -> None:
    """The event source mapping was seen, with a parallelization factor of 1."""
    world.connection.execute(
        "INSERT INTO replication.source_states (table_name, seen_at, parallelization) VALUES ('employees', now(), 1)"
    )


def test_a_shard_too_busy_to_read_is_passed_by_and_that_is_said_until_something_covers_it(
    world: World, apply: Apply
) -> None:
    one_batch_at_a_time(world)
    world.tick()
    world.limits, world.clock = {"pages": 3}, world.clock + 6000
    for number in range(500):
        world.write("a", number, ago=5000 - number / 100)
    oldest = world.time(world.clock - 5000)
    assert world.tick().read_whole
    assert (world.kinds, world.losses[0].until) == ([Kind.UNREAD], world.now())
    assert world.tick().waiting == 30
    unread = world.losses[0].since
    assert world.decided == oldest, "the skipped changes may still be on their way"
    apply(*[world.stream.write("a", number, world.clock) for number in range(30)])
    world.limits = {}
    world.tick()
    assert world.decided == world.settled, "the replicator has passed them"
    assert world.through == unread, "whether they were applied was not looked up"
    world.catch_up()
    world.tick()
    assert (world.kinds, world.through) == ([], world.settled)


def test_a_backlog_that_can_be_read_in_time_is_read(world: World, apply: Apply) -> None:
    world.limits = {"pages": 3}
    world.tick()
    for number in range(100):
        apply(world.write("a", number, ago=600 - 6 * number))
    claimed = world.through
    ticks = [world.tick(after=1) for _ in range(4)]
    assert [tick.read_whole for tick in ticks] == [False, False, False, True]
    assert ticks[0].lag_seconds is None
    assert world.kinds == []
    assert claimed != world.through == world.settled


def test_a_shard_that_is_written_to_all_the_time_counts_through_what_was_read(world: World, apply: Apply) -> None:
    world.limits = {"pages": 2}
    apply(*[world.write("a", number, ago=60 - number) for number in range(40)])
    assert (world.tick(after=0).read_whole, world.through) == (False, None)
    world.clock += 1
    apply(*[world.write("a", number) for number in range(100, 160)])
    tick = world.tick(after=0)
    assert (tick.read_whole, tick.records) == (False, 20), "no record was made after the time to be claimed yet"
    tick = world.tick(after=0)
    assert (tick.read_whole, tick.records, tick.waiting) == (True, 10, 0), "it is read up to the present, no further"
    assert world.through == world.settled


def test_throttling_leaves_a_shard_for_the_next_tick_and_holds_the_claim(world: World) -> None:
    world.stream.shards["b"] = ScriptedShard()
    world.tick()
    claimed = world.through
    world.stream.shards["b"].throttled = True
    tick = world.tick()
    assert (tick.read_whole, tick.lag_seconds) == (False, None)
    assert world.through == claimed
    world.stream.shards["b"].throttled = False
    assert world.tick().read_whole
    assert world.through == world.settled


def test_a_tick_costs_as_many_calls_and_statements_as_stated(
    world: World, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_batch_at_a_time(world)
    world.stream.shards = {f"s{number}": ScriptedShard() for number in range(250)}
    world.tick()
    world.stream.calls.clear()
    tick = world.tick()
    assert Counter(world.stream.calls) == {"DescribeTable": 1, "DescribeStream": 3, "GetRecords": 500}
    assert tick.calls == 504
    statements: list[str] = []
    execute = psycopg.Cursor.execute  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]

    def counted(cursor: psycopg.Cursor[Any], query: Any, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - psycopg's own
        statements.append(str(query))
        return execute(cursor, query, *arguments, **named)

    monkeypatch.setattr(psycopg.Cursor, "execute", counted)
    world.tick()
    idle = len(statements)
    assert idle == 9, "set up the session, read the state as of one moment (1 + 4), keep what was found (3)"
    apply(world.write("s1", 1))
    statements.clear()
    world.tick()
    assert len(statements) == idle + 1
    late = world.write("s2", 2)
    statements.clear()
    world.tick()
    assert len(statements) == idle + 3, "1 for the target, 1 for rejects, 1 that keeps what waits"
    statements.clear()
    world.tick()
    assert len(statements) == idle + 2, "what waits is looked up, and has not changed"
    apply(world.write("s2", 3))
    statements.clear()
    world.tick()
    assert len(statements) == idle + 4, "1 for the loss"
    assert world.kinds == [Kind.PASSED]
    apply(late)
    statements.clear()
    world.tick()
    assert len(statements) == idle + 3, "1 for the target, 1 that forgets what waited, 1 that closes the loss"
    assert world.kinds == []
    world.stream.calls.clear()
    world.write("s3", 4)
    world.tick()
    assert Counter(world.stream.calls)["GetRecords"] == 501, "a page more where something was read"


def test_two_ticks_at_once_keep_what_one_of_them_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.tick()
    world.write("a", 1)
    state = probes.read_state(world.connection, world.mapping.name)
    first = world.tick()
    assert first.waiting == 1

    def stale(_connection: Connection, _table_name: str) -> probes.ProbeState:
        return state

    monkeypatch.setattr(probes, "read_state", stale)
    world.stream.shards["a"].records.clear()
    assert world.tick() == first
    assert world.connection.execute("SELECT count(*) FROM replication.probe_waiting").fetchone() == (1,)


def test_the_probe_stops_reading_when_too_much_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.jobs.probe.probe.MOST_WAITING", 5)
    for number in range(6):
        world.write("a", number)
    assert world.tick().waiting == 6
    world.write("a", 9)
    tick = world.tick()
    assert (tick.waiting, tick.records, tick.lag_seconds) == (6, 0, 60.0)


def test_a_table_without_a_stream_is_told_how_to_get_one(world: World) -> None:
    world.stream.label = ""
    with pytest.raises(TerminalError, match="it has none; enable it: `aws dynamodb update-table"):
        world.tick()
