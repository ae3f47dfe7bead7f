"""The probe's conclusions after operations: restores, new tables and streams, dead replicators, pauses of days."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest

from pipeline.aurora.rows import purge
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.mapping import TableMapping
from pipeline.core.past.losses import Kind, Loss
from pipeline.core.past.memory import Rules
from pipeline.jobs.replicate import ReplicationReport
from pipeline.jobs.services import Services
from tests.dynamodb.scripted_stream import ScriptedServices, ScriptedShard, ScriptedStream
from tests.jobs.probe_world import World

Apply = Callable[..., ReplicationReport]
DAY = 86_400.0


@pytest.fixture
def world(services: Services, employees: TableMapping, connection: Connection) -> World:
    """Twenty rows are applied, and the probe has seen them."""
    stream = ScriptedStream()
    stream.shards = {"a": ScriptedShard(), "b": ScriptedShard()}
    connection.execute(
        "INSERT INTO replication.source_states (table_name, seen_at, parallelization) VALUES ('employees', now(), 1)"
    )
    return World(ScriptedServices(services.settings, stream), employees, connection, stream)


@pytest.fixture
def begun(world: World, apply: Apply) -> World:
    """A table that is fully applied, and a backup of its database."""
    for number in range(20):
        apply(world.write("ab"[number % 2], number))
    world.tick()
    world.back_up()
    return world


def span(world: World, kind: Kind) -> Loss:
    (loss,) = (loss for loss in world.losses if loss.kind is kind)
    return loss


def includes(loss: Loss, world: World, *clocks: float) -> bool:
    return all(loss.since <= world.time(clock) <= loss.until for clock in clocks)


def test_a_backup_three_days_old_of_a_table_that_is_quiet_is_a_loss(begun: World, apply: Apply) -> None:
    claimed, made = begun.through, list[float]()
    for number in range(50):
        begun.clock += 1800
        apply(begun.write("a", number))
        made.append(begun.clock)
        begun.tick()
    assert begun.through == begun.settled
    begun.clock += 3 * DAY - 50 * 1800
    for shard in begun.stream.shards.values():
        shard.trimmed = len(shard.records)
    begun.restore()
    tick = begun.tick()
    assert tick.waiting == 0
    assert begun.kinds == [Kind.GAP]
    assert includes(begun.losses[0], begun, *made)
    assert claimed is not None
    assert begun.through == begun.losses[0].since <= claimed
    begun.tick()
    assert begun.through == begun.losses[0].since, "it stays until something covers it"
    begun.catch_up()
    begun.tick()
    assert (begun.kinds, begun.through) == ([], begun.settled)


def test_a_quiet_shard_whose_place_was_trimmed_a_minute_after_it_was_read_lost_nothing(begun: World) -> None:
    begun.clock += DAY - 60
    begun.tick()
    for shard in begun.stream.shards.values():
        shard.trimmed = len(shard.records)
    begun.stream.expired += 1
    begun.tick(after=3600)
    assert (begun.kinds, begun.through) == ([], begun.settled)


def test_a_backup_minutes_old_is_a_dated_loss_in_the_tick_that_sees_anything_applied_since(
    begun: World, apply: Apply
) -> None:
    lost = [begun.clock + second for second in (10, 20, 30)]
    for number, clock in enumerate(lost):
        begun.clock = clock
        apply(begun.write("a", number))
    begun.clock += 60
    begun.restore()
    apply(begun.write("a", 100))
    tick = begun.tick()
    assert (tick.lost, tick.waiting, tick.lag_seconds) == (3, 0, 0.0)
    assert begun.kinds == [Kind.PASSED]
    assert includes(begun.losses[0], begun, *lost)
    assert begun.through == begun.losses[0].since
    assert begun.decided == begun.settled, "lost changes hold no decision up"
    begun.catch_up()
    begun.tick()
    assert (begun.kinds, begun.through) == ([], begun.settled)


def test_of_two_shards_only_the_one_whose_replicator_was_seen_past_it_is_lost(begun: World, apply: Apply) -> None:
    apply(begun.write("a", 1))
    apply(begun.write("b", 2))
    begun.clock += 60
    begun.restore()
    apply(begun.write("a", 3))
    tick = begun.tick()
    assert (tick.lost, tick.waiting) == (1, 1), "b may still be brought"
    assert begun.decided is not None
    assert begun.decided < begun.settled
    begun.tick(after=40)
    tick = begun.tick(after=40)
    assert (tick.lost, tick.waiting, tick.stuck) == (1, 1, 1), "nothing moves in b"
    assert begun.decided == begun.settled
    assert begun.kinds == [Kind.PASSED]
    begun.tick(after=300)
    assert sorted(begun.kinds) == [Kind.PASSED, Kind.STUCK]
    apply(begun.write("b", 4))
    tick = begun.tick()
    assert (tick.lost, tick.stuck, begun.kinds) == (2, 0, [Kind.PASSED])


def test_a_restored_database_of_a_table_that_is_quiet_since_is_told_with_the_command(
    begun: World, apply: Apply
) -> None:
    apply(begun.write("a", 1))
    begun.clock += 60
    begun.restore()
    tick = [begun.tick() for _ in range(3)][-1]
    assert (tick.stuck, tick.lag_seconds) == (1, 150.0)
    assert begun.decided == begun.settled, "a repair is right, whatever the stream brings later"
    begun.tick(after=200)
    assert begun.kinds == [Kind.STUCK]
    begun.catch_up()
    assert begun.tick().lag_seconds == 0.0
    assert (begun.kinds, begun.through) == ([], begun.settled)


def test_a_backup_can_be_restored_more_than_once_and_a_backup_may_hold_a_loss(begun: World, apply: Apply) -> None:
    apply(begun.write("a", 1))
    begun.restore()
    apply(begun.write("a", 2))
    begun.tick()
    begun.back_up("second")
    begun.catch_up()
    begun.tick()
    assert begun.kinds == []
    begun.restore("second")
    begun.tick()
    assert begun.kinds == [Kind.PASSED], "the restore removed the catch-up with the rest"
    begun.restore()
    apply(begun.write("a", 3))
    assert begun.tick().lost == 2


def test_what_is_lost_closes_by_itself_when_it_is_redriven(begun: World, apply: Apply) -> None:
    given_up = begun.write("a", 1)
    apply(begun.write("a", 2))
    begun.tick()
    assert begun.kinds == [Kind.PASSED]
    begun.tick()
    apply(given_up)
    begun.tick()
    assert (begun.kinds, begun.through) == ([], begun.settled)


def test_a_reject_shows_that_the_replicator_was_there(begun: World, apply: Apply) -> None:
    begun.write("a", 1)
    assert apply(begun.write("a", 2, empName={"S": "x" * 21})).rejected == 1
    tick = begun.tick()
    assert (tick.lost, begun.kinds) == (1, [Kind.PASSED])


def test_a_shard_that_was_split_is_passed_once_its_successor_is_applied(begun: World, apply: Apply) -> None:
    begun.write("a", 1)
    begun.stream.split("a", "c", "d")
    tick = begun.tick()
    assert (tick.waiting, tick.lost) == (1, 0)
    apply(begun.write("d", 2))
    tick = begun.tick()
    assert (tick.waiting, tick.lost, begun.kinds) == (0, 1, [Kind.PASSED])


@pytest.mark.parametrize("factor", [2, None], ids=["2", "not known"])
def test_where_batches_of_a_shard_may_overtake_each_other_it_takes_a_margin(
    begun: World, apply: Apply, factor: int | None
) -> None:
    """A factor that nobody could read may be above 1, and a false alarm is worse than a later one."""
    begun.connection.execute("UPDATE replication.source_states SET parallelization = %s", [factor])
    late = begun.write("a", 1)
    apply(begun.write("a", 2))
    assert begun.tick().lost == 0
    begun.clock += begun.mapping.margin.total_seconds() + 1
    apply(begun.write("a", 3))
    assert begun.tick().lost == 1
    apply(late)
    assert begun.tick().lost == 0


def test_a_batching_window_is_not_taken_for_a_standstill(begun: World) -> None:
    begun.connection.execute("UPDATE replication.source_states SET batching_window_seconds = 300")
    begun.write("a", 1)
    for _ in range(10):
        assert begun.tick().stuck == 0
    assert [begun.tick().stuck for _ in range(3)] == [0, 0, 1]


def test_a_dead_replicator_under_writes_is_never_called_lost_or_stuck(
    begun: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.jobs.probe.probe.MOST_WAITING", 5)
    claimed, tick = begun.time(begun.clock), begun.tick(after=0)
    for number in range(40):
        begun.write("a", 100 + number)
        tick = begun.tick(after=60)
        assert (tick.lost, tick.stuck, begun.through) == (0, 0, claimed)
        assert begun.decided == claimed
    assert (tick.waiting, tick.lag_seconds) == (5, 40 * 60.0)
    assert begun.kinds == []


def test_so_much_waiting_that_it_is_not_read_on_is_found_lost_by_a_look_at_the_end(
    begun: World, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.jobs.probe.probe.MOST_WAITING", 5)
    made: list[float] = []
    for number in range(5):
        begun.write("a", number)
    begun.tick()
    for number in range(5, 12):
        begun.write("a", number)
        made.append(begun.clock)
    begun.tick()
    apply(begun.write("a", 50))
    tick = begun.tick()
    assert (tick.lost, tick.waiting) == (5, 0)
    tick = begun.tick()
    assert (tick.lost, tick.waiting) == (12, 0), "the rest was read, and each change looked up"
    assert includes(begun.losses[0], begun, *made)
    assert begun.decided == begun.settled


def test_so_much_waiting_in_a_shard_where_nothing_moves_holds_no_decision_up(
    begun: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.jobs.probe.probe.MOST_WAITING", 5)
    for number in range(5):
        begun.write("a", number)
    begun.tick()
    begun.write("a", 6)
    claimed = begun.through
    for _ in range(4):
        begun.tick()
    assert (begun.through, begun.decided) == (claimed, begun.settled)


def test_more_lost_than_is_kept_is_a_span_that_only_something_over_all_of_it_closes(
    begun: World, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.jobs.probe.probe.Rules", partial(Rules, most_lost=5))
    lost = [begun.write("a", number, ago=60 - number) for number in range(8)]
    apply(begun.write("a", 50))
    tick = begun.tick()
    assert (tick.lost, begun.kinds) == (0, [Kind.PASSED])
    assert includes(begun.losses[0], begun, begun.clock - 90, begun.clock - 83)
    apply(*lost)
    begun.tick()
    assert begun.kinds == [Kind.PASSED]
    assert begun.through == begun.losses[0].since
    begun.catch_up()
    begun.tick()
    assert begun.kinds == []


def test_what_waits_longer_than_the_stream_keeps_it_is_lost(begun: World, apply: Apply) -> None:
    dead = begun.write("a", 1)
    made = begun.clock
    for _ in range(23):
        assert begun.tick(after=3600).lost == 0
    begun.stream.shards["a"].trimmed = len(begun.stream.shards["a"].records)
    tick = begun.tick(after=3600)
    assert (tick.lost, tick.waiting, begun.kinds) == (1, 0, [Kind.TRIMMED])
    assert includes(begun.losses[0], begun, made)
    apply(dead)
    begun.tick()
    assert begun.kinds == []


def test_a_probe_that_was_away_says_that_it_cannot_know(begun: World, apply: Apply) -> None:
    apply(begun.write("a", 1))
    for shard in begun.stream.shards.values():
        shard.trimmed = len(shard.records)
    begun.tick(after=30 * 3600)
    assert begun.kinds == [Kind.GAP]
    begun.reconcile(begun.losses[0].until)
    begun.tick()
    assert (begun.kinds, begun.through) == ([], begun.settled)


def test_a_probe_that_was_away_for_hours_reads_what_came_since(begun: World, apply: Apply) -> None:
    for number in range(30):
        begun.clock += 1000
        apply(begun.write("ab"[number % 2], number))
    begun.tick()
    assert (begun.kinds, begun.through) == ([], begun.settled)


def test_the_first_tick_ever_rests_on_what_was_loaded(world: World) -> None:
    world.clock += 10 * DAY
    load = """INSERT INTO replication.exports (table_name, kind, location, snapshot_time, as_of, item_count, file_count,
              size_bytes, status) VALUES ('employees', 'full', %s, %s, %s, 0, 0, 0, 'loaded')"""
    taken = world.now() - timedelta(days=3)
    as_of = taken - world.mapping.margin
    world.connection.execute(load, ["s3://b/f", taken, as_of])
    world.tick()
    # A state from less than the margin before the snapshot's time may have come by the stream and replaced its row.
    assert (world.kinds, world.losses[0].since, world.through) == ([Kind.GAP], as_of, as_of)
    assert world.losses[0].until == world.now() - timedelta(days=1)


def recreate(world: World, *, table_id: str | None = None) -> float:
    """Give the table another stream, or the name another table; returns the time."""
    made = world.now()
    world.stream.label = made.isoformat(timespec="milliseconds").removesuffix("+00:00")
    world.stream.shards = {"z": ScriptedShard()}
    if table_id:
        world.stream.more = {"TableId": table_id}
    return world.clock


def test_a_recreated_stream_is_found_by_the_tick_and_dated_from_the_oldest_change_that_waits(begun: World) -> None:
    begun.write("a", 1, ago=20)
    waiting = begun.clock - 20
    begun.tick()
    begun.clock += 600
    between = begun.clock
    made = recreate(begun)
    tick = begun.tick()
    assert (tick.waiting, tick.lag_seconds, begun.kinds) == (0, 0.0, [Kind.STREAM_REMADE])
    assert includes(begun.losses[0], begun, waiting, between)
    held = begun.decided
    begun.tick(after=200)
    assert begun.decided == held, "the stream before may still carry something newer than what is read now"
    begun.tick(after=200)
    assert begun.decided == begun.settled
    assert begun.through == begun.losses[0].since
    begun.catch_up()
    begun.tick()
    assert (begun.kinds, begun.through) == ([], begun.settled)
    assert made < begun.clock


def test_a_table_created_under_the_name_of_one_deleted_is_told_as_that_and_keeps_no_row_undecided(
    begun: World, apply: Apply
) -> None:
    begun.stream.more = {"TableId": "one"}
    begun.tick()
    begun.write("a", 1)
    begun.tick()
    begun.clock += 60
    recreate(begun, table_id="two")
    apply(begun.write("z", 5))
    tick = begun.tick()
    assert (tick.waiting, begun.kinds) == (0, [Kind.TABLE_RECREATED])
    assert begun.through is None, "what the new table held before its stream began is not in Aurora"
    begun.tick(after=400)
    assert begun.decided == begun.settled
    begun.catch_up()
    begun.tick()
    assert begun.kinds == [Kind.TABLE_RECREATED], "a catch-up leaves the rows of the table before"
    begun.reconcile(begun.losses[0].until)
    begun.tick()
    assert (begun.kinds, begun.through) == ([], begun.settled)


@pytest.mark.parametrize("remedy", ["catch-up", "load and reconciliation"])
@pytest.mark.parametrize("stored", ["nothing", "tombstone"])
def test_what_an_earlier_stream_still_carries_makes_no_row_once_its_time_is_proven(
    begun: World, apply: Apply, stored: str, remedy: str
) -> None:
    if stored == "tombstone":
        apply(begun.write("a", 1000))
        apply(begun.write("a", 1000, "REMOVE"))
    late = begun.write("a", 1000)
    begun.clock += 60
    recreate(begun)
    begun.tick()
    begun.tick(after=400)
    if remedy == "catch-up":
        begun.catch_up()
    else:
        begun.reconcile(begun.losses[0].until)
    apply(late)
    assert 1000 not in begun.rows(), "no stream has its removal, and the remedy did not mention it"
    begun.tick()
    assert (begun.kinds, begun.through) == ([], begun.settled)


def test_in_a_database_restored_to_before_the_proof_the_change_is_taken_again(begun: World, apply: Apply) -> None:
    late = begun.write("a", 1000)
    begun.tick()
    begun.reconcile(begun.now())
    apply(late)
    assert 1000 not in begun.rows()
    begun.restore()
    apply(late)
    assert 1000 in begun.rows()


def test_a_stream_seen_before_its_first_shard_and_read_days_later_has_a_gap(begun: World) -> None:
    begun.clock += 60
    recreate(begun)
    begun.stream.shards = {}
    begun.tick()
    begun.catch_up()
    begun.stream.shards = {"z": ScriptedShard()}
    begun.tick(after=3 * DAY)
    assert begun.kinds == [Kind.GAP]


def test_a_change_applied_out_of_turn_is_movement(begun: World, apply: Apply) -> None:
    begun.connection.execute("UPDATE replication.source_states SET parallelization = 2")
    first, second = begun.write("a", 1), begun.write("a", 2)
    apply(begun.write("a", 3))
    begun.write("a", 4)
    begun.tick()
    begun.tick(after=40)
    apply(second)
    assert begun.tick(after=40).stuck == 0
    apply(first)
    assert begun.tick(after=40).stuck == 0
    assert [begun.tick(after=40).stuck for _ in range(2)] == [0, 1]


def test_more_waiting_than_is_read_on_is_stuck_though_the_replicator_applied_one_more(
    begun: World, apply: Apply, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.jobs.probe.probe.MOST_WAITING", 5)
    for number in range(5):
        begun.write("a", number)
    begun.tick()
    begun.clock += 10
    apply(begun.write("a", 7))
    for _ in range(5):
        begun.tick()
    assert begun.decided == begun.settled


def test_a_stream_recreated_days_ago_has_dropped_changes_of_its_own(begun: World) -> None:
    begun.clock += DAY
    recreate(begun)
    begun.clock += 3 * DAY
    begun.tick()
    assert begun.kinds == [Kind.STREAM_REMADE]
    assert begun.losses[0].until == begun.now() - timedelta(days=1)


def test_with_the_stream_off_what_was_written_before_is_decided(begun: World) -> None:
    for name in "ab":
        begun.stream.split(name)
    begun.stream.enabled = False
    claimed = begun.through
    for _ in range(5):
        begun.tick()
    assert begun.decided == begun.settled
    assert begun.through == claimed
    begun.stream.shards.clear()
    begun.tick(after=2 * DAY)
    assert begun.decided == begun.settled, "no shard is listed any more"


def test_a_purge_ends_the_waiting_of_what_it_passed(begun: World, apply: Apply) -> None:
    begun.write("a", 1000, "REMOVE", ago=100)
    apply(begun.write("a", 2))
    assert begun.tick().lost == 1
    purge.purge_chunk(
        begun.connection, begun.mapping.targets[0], begun.mapping.name, begun.now() - timedelta(seconds=60)
    )
    assert begun.tick().lost == 0
    assert begun.kinds == []


def test_a_clean_reconciliation_answers_for_a_change_that_left_no_trace(begun: World, apply: Apply) -> None:
    begun.write("a", 1)
    apply(begun.write("a", 2))
    begun.tick()
    begun.reconcile(begun.now() - timedelta(seconds=31))
    begun.tick()
    assert begun.kinds == [Kind.PASSED], "its snapshot was as of an earlier time"
    begun.reconcile(begun.now())
    begun.tick()
    assert (begun.kinds, begun.through) == ([], begun.settled)


def test_sixty_shards_after_a_pause_of_minutes_are_all_read_and_claims_are_made(world: World, apply: Apply) -> None:
    world.stream.shards = {f"s{number}": ScriptedShard() for number in range(60)}
    world.tick()
    for number in range(60):
        apply(world.write(f"s{number}", number))
    tick = world.tick(after=1200)
    assert (tick.records, tick.read_whole, world.kinds) == (60, True, [])
    assert (world.through, world.decided) == (world.settled, world.settled)
