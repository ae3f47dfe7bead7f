"""What a tick must not claim: cases that generated histories of operations found (`tests.stress.operations`)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pipeline.core.ordering import Position
from pipeline.core.past.conclude import conclude
from pipeline.core.past.loss_remedies import Means, catch_up_range
from pipeline.core.past.losses import Kind, Loss, Proof
from pipeline.core.past.memory import Memory, Rules, ShardSight, Sight
from pipeline.core.past.probing import Applied, ShardProgress, Stored, Waiting

NOW = datetime(2026, 3, 4, 12, 0, 0, tzinfo=UTC)
SETTLE = timedelta(seconds=15)
LABEL = "2026-03-01T08:00:00.000"
RULES = Rules(timedelta(minutes=5))
NOTHING = Stored({})


def tick(memory: Memory, now: datetime, *shards: ShardSight, on: bool = True, proof: Proof | None = None) -> Memory:
    sight = Sight(LABEL, now - SETTLE, shards, NOTHING, stream_enabled=on, proof=proof or Proof())
    return conclude(memory, sight, now, RULES).memory


def shard(
    through: datetime, *, finished: bool = False, trimmed: bool = False, sightings: tuple[Waiting, ...] = ()
) -> ShardSight:
    place = ShardProgress("s1", None, sequence_number="7", read_through=through, finished=finished)
    return ShardSight(place, sightings, at_end=True, trimmed=trimmed)


def before(through: datetime) -> Memory:
    return tick(Memory(), through + SETTLE, shard(through))


def test_a_stream_that_was_turned_off_is_claimed_no_further_than_it_was_seen_on() -> None:
    seen_on = NOW - timedelta(hours=8)
    memory = tick(before(seen_on), NOW, shard(NOW - SETTLE, finished=True), on=False)
    assert memory.caught_up_through == seen_on


def test_of_a_closed_shard_the_newest_record_counts() -> None:
    made = NOW - timedelta(hours=3)
    found = Waiting("public.Orders", ("1",), 5, made, made, "s1")
    memory = tick(
        before(NOW - timedelta(hours=8)), NOW, shard(NOW - SETTLE, finished=True, sightings=(found,)), on=False
    )
    assert memory.shards["s1"].read_through == made


def test_a_closed_shard_holds_the_claim_back_only_until_its_successor_is_listed() -> None:
    memory = tick(before(NOW - timedelta(minutes=1)), NOW, shard(NOW - SETTLE, finished=True))
    child = ShardSight(ShardProgress("s2", "s1", read_through=NOW + timedelta(seconds=15)), at_end=True)
    closed = ShardSight(memory.shards["s1"], at_end=True)
    assert tick(memory, NOW + 2 * SETTLE, closed, child).caught_up_through == NOW + SETTLE


def test_what_a_stream_that_is_off_has_dropped_is_a_gap_too() -> None:
    restored = before(NOW - timedelta(days=2))
    memory = tick(restored, NOW, shard(NOW - SETTLE, finished=True, trimmed=True), on=False)
    assert [(loss.kind, loss.since) for loss in memory.losses] == [(Kind.GAP, NOW - timedelta(days=2))]
    assert memory.caught_up_through == NOW - timedelta(days=2)


def test_a_stream_that_has_been_off_for_days_is_no_gap_of_its_own() -> None:
    memory = tick(before(NOW - timedelta(days=3)), NOW - timedelta(days=3), shard(NOW, finished=True), on=False)
    assert not tick(memory, NOW, on=False).losses


def test_of_another_table_nothing_is_claimed_until_a_reconciliation_has_shown_it() -> None:
    switched = Memory(losses=[Loss(Kind.REPOINTED, NOW, NOW)])
    memory = tick(switched, NOW + timedelta(minutes=1), shard(NOW))
    assert memory.caught_up_through is None
    shown = tick(memory, NOW + timedelta(hours=1), shard(NOW + timedelta(hours=1)), proof=Proof.of((), NOW))
    assert shown.caught_up_through == NOW + timedelta(hours=1)


def test_a_stream_that_had_no_shard_yet_when_it_was_looked_at_may_have_dropped_all_since_it_began() -> None:
    looked = datetime(2026, 3, 1, 8, 0, 1, tzinfo=UTC)
    memory = tick(Memory(), looked)
    assert [(loss.kind, loss.until) for loss in tick(memory, NOW, shard(NOW)).losses] == [
        (Kind.GAP, NOW - timedelta(hours=24))
    ]


def test_a_place_that_is_held_is_not_denied_its_end_because_something_newer_was_applied() -> None:
    def looked(now: datetime) -> Sight:
        place = ShardProgress("s1", None, sequence_number="7", read_through=NOW - timedelta(hours=1))
        held = ShardSight(place, at_end=True, held=True)
        return Sight(LABEL, now - SETTLE, [held], NOTHING, applied_label=LABEL, applied_through=NOW)

    memory = before(NOW - timedelta(hours=1))
    for minute in range(4):
        memory = conclude(
            memory, looked(NOW + timedelta(minutes=minute)), NOW + timedelta(minutes=minute), RULES
        ).memory
    assert memory.settled_through == NOW + timedelta(minutes=3) - SETTLE


def test_a_pause_of_the_probe_is_not_taken_for_a_shard_that_stands_still() -> None:
    """The database was away, and so was the replicator: it retries soon, and is not stuck after two ticks."""
    at = NOW - timedelta(minutes=10)
    late = Waiting("public.Orders", ("1",), 5, at, at, "s1")
    memory = tick(before(at), at + SETTLE, shard(at, sightings=(late,)))
    states: list[str] = []
    for seconds in (0, 30, 50, 70):
        now = NOW + timedelta(seconds=seconds)
        memory = tick(memory, now, shard(now - SETTLE))
        states.append(memory.waiting[0].state.value)
    assert states == ["on_its_way", "on_its_way", "on_its_way", "stuck"]


def test_ticks_at_the_same_moment_are_not_taken_for_a_shard_that_stands_still() -> None:
    late = Waiting("public.Orders", ("1",), 5, NOW, NOW, "s1")
    memory = tick(before(NOW - timedelta(seconds=30)), NOW, shard(NOW, sightings=(late,)))
    for _ in range(3):
        memory = tick(memory, NOW, shard(NOW))
    memory = tick(memory, NOW + timedelta(minutes=2), shard(NOW + timedelta(minutes=2)))
    assert memory.waiting[0].state.value == "on_its_way"


def test_a_key_that_is_written_all_the_time_shows_how_far_its_shard_is_applied() -> None:
    """Whenever a tick looks, its newest change has not arrived yet."""
    memory = before(NOW - timedelta(minutes=1))
    for minute in range(3):
        at = NOW + timedelta(minutes=minute)
        newest = Waiting("public.Orders", ("1",), 100 + 2 * minute, at, at, "s1")
        stored = Stored({newest.row: Position(at - timedelta(minutes=1), 97 + 2 * minute)})
        memory = conclude(memory, Sight(LABEL, at, [shard(at, sightings=(newest,))], stored), at, RULES).memory
    assert memory.shards["s1"].applied == Applied(101, NOW + timedelta(minutes=1))


def test_a_shard_that_is_only_rolled_still_stands_still() -> None:
    """DynamoDB rolls a quiet shard too, after four hours: its empty successor says nothing of the replicator."""
    late = Waiting("public.Orders", ("1",), 5, NOW, NOW, "s1")
    memory = tick(before(NOW - timedelta(seconds=30)), NOW, shard(NOW, sightings=(late,)))
    for seconds in (30, 60, 90):
        now = NOW + timedelta(seconds=seconds)
        memory = tick(memory, now, shard(now))
    assert memory.waiting[0].state.value == "stuck"
    child = ShardSight(ShardProgress("s2", "s1", read_through=NOW), at_end=True)
    memory = tick(memory, NOW + timedelta(seconds=120), shard(NOW, finished=True), child)
    assert memory.waiting[0].state.value == "stuck"


def test_a_catch_up_proves_no_second_that_its_later_margin_begins_in() -> None:
    """Of two changes of a key in that second, a streamed row of the first stays, and the second may be lost."""
    margin = timedelta(minutes=5)
    begun, end = NOW - timedelta(hours=1), NOW + margin
    assert not Proof.of([(begun, end)]).shows(NOW, NOW, margin)
    assert Proof.of([(begun, end + timedelta(seconds=1))]).shows(NOW, NOW, margin)
    loss = Loss(Kind.PASSED, NOW, NOW, keys_kept=True)
    assert Proof.of([catch_up_range(loss, Means("orders", margin))]).closes(loss, margin)
