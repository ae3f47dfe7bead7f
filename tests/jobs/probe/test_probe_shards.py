"""Reading many shards in one tick, against a scripted stream and clock: which are read, which are skipped."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, cast

import pytest
from botocore.exceptions import EndpointConnectionError

from pipeline.core.errors import UnreachableError
from pipeline.core.past.probing import SETTLE, ShardProgress
from pipeline.dynamodb.streams.shards import StreamReader
from pipeline.jobs.probe.probe_shards import READERS, Limits, PassedBy, ShardReading, ShardsReader
from tests.dynamodb.scripted_stream import ScriptedShard, ScriptedStream

START = 1_778_753_000.0
TICK_SECONDS = 15.0
MINUTES = 60.0


@dataclass
class Ticks:
    """Ticks on a scripted stream. Each call takes `latency`; as many shards at once as there are readers."""

    stream: ScriptedStream
    latency: float = 0.1
    clock: float = START
    places: dict[str, ShardProgress] = field(default_factory=dict[str, ShardProgress])

    def __post_init__(self) -> None:
        self.stream.on_call = self.call

    def call(self, what: str) -> None:
        if not what.startswith("Describe"):
            self.clock += self.latency / READERS

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock, UTC)

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.clock += seconds

    def tick(self, after: float = 30.0, seconds: float = TICK_SECONDS, **limits: Any) -> list[ShardReading]:  # noqa: ANN401 - as Limits has them
        self.clock += after
        reader = StreamReader(cast("Any", self.stream), self.stream.arn)
        made = Limits(self.clock + seconds, monotonic=lambda: self.clock, sleep=self.sleep, now=self.now, **limits)
        listed = reader.shards()
        readings = ShardsReader(reader, made).read(listed, self.places, self.now() - SETTLE)
        assert self.clock <= made.deadline + self.latency
        self.places = {reading.progress.shard_id: reading.progress for reading in readings}
        return readings

    def write(self, shard: str, *, ago: float = 0.0) -> dict[str, Any]:
        return self.stream.write(shard, 1, self.clock - ago)


@pytest.fixture
def ticks() -> Ticks:
    return Ticks(ScriptedStream())


def open_shards(ticks: Ticks, count: int) -> list[str]:
    names = [f"s{number:04d}" for number in range(count)]
    ticks.stream.shards |= {name: ScriptedShard() for name in names}
    return names


def whole(readings: list[ShardReading]) -> bool:
    return all(reading.at_end for reading in readings)


def passed(readings: list[ShardReading]) -> list[PassedBy]:
    return [reading.passed for reading in readings if reading.passed is not None]


def test_sixty_shards_are_read_to_their_ends_after_a_pause_of_twenty_minutes(ticks: Ticks) -> None:
    names = open_shards(ticks, 60)
    assert whole(ticks.tick())
    for name in names:
        ticks.write(name)
    readings = ticks.tick(after=20 * MINUTES)
    assert (whole(readings), passed(readings)) == (True, [])
    assert sum(len(reading.records) for reading in readings) == 60


def test_seven_hundred_idle_shards_are_known_in_every_tick(ticks: Ticks) -> None:
    open_shards(ticks, 700)
    assert whole(ticks.tick()) or whole(ticks.tick())
    for _ in range(7):
        ticks.stream.calls.clear()
        assert whole(ticks.tick())
        assert Counter(ticks.stream.calls) == {"DescribeStream": 7, "GetRecords": 1400}


def test_seven_hundred_shards_are_known_soon_after_a_pause_and_none_is_passed_by(ticks: Ticks) -> None:
    names = open_shards(ticks, 700)
    while not whole(ticks.tick()):
        pass
    for name in names:
        ticks.write(name)
    readings = [ticks.tick(after=20 * MINUTES), ticks.tick()]
    assert whole(readings[1])
    assert not any(map(passed, readings))


def test_what_the_time_did_not_suffice_for_is_resumed_and_never_passed_by(ticks: Ticks) -> None:
    names = open_shards(ticks, 300)
    for name in names:
        ticks.write(name, ago=20 * MINUTES)
    ticks.latency, records, cut_off = 0.4, 0, 0
    while not (ticks.places and all(place.read_through for place in ticks.places.values())):
        readings = ticks.tick(seconds=6.0)
        assert passed(readings) == []
        records += sum(len(reading.records) for reading in readings)
        cut_off += not whole(readings)
        assert cut_off < 10
    assert (records, cut_off > 1) == (300, True)


def test_the_shards_read_longest_ago_come_first(ticks: Ticks) -> None:
    open_shards(ticks, 1000)
    while not whole(ticks.tick()):
        pass
    ticks.latency = 0.4
    first = {reading.progress.shard_id for reading in ticks.tick(seconds=6.0) if reading.at_end}
    second = {reading.progress.shard_id for reading in ticks.tick(seconds=6.0) if reading.at_end}
    assert first
    assert second
    assert not first & second


def test_two_pages_of_a_shard_are_a_second_apart(ticks: Ticks) -> None:
    open_shards(ticks, 40)
    at: dict[str, list[float]] = defaultdict(list)

    def note(shard: str) -> bool:
        at[shard].append(ticks.clock)
        return True

    ticks.stream.may_read = note
    ticks.tick()
    assert {len(times) for times in at.values()} == {4}
    assert all(later - earlier >= 0.8 for times in at.values() for earlier, later in pairwise(times))


def limited(ticks: Ticks, by_lambda: Callable[[int], int]) -> Callable[[str], bool]:
    """A shard allows 5 reads in a second; the Lambda function takes some of them first."""
    taken: dict[tuple[str, int], int] = {}

    def may_read(shard: str) -> bool:
        second = int(ticks.clock)
        taken[shard, second] = taken.get((shard, second), by_lambda(second)) + 1
        return taken[shard, second] <= 5

    return may_read


def test_beside_one_lambda_the_lag_is_known_in_every_tick_where_reads_are_limited(ticks: Ticks) -> None:
    open_shards(ticks, 3)
    ticks.latency = 0.01
    ticks.stream.may_read = limited(ticks, lambda _: 4)
    for _ in range(12):
        ticks.stream.calls.clear()
        assert whole(ticks.tick())
        assert ticks.stream.calls.count("GetRecords") in {6, 12}


def test_a_throttled_read_is_tried_again_within_the_tick(ticks: Ticks) -> None:
    open_shards(ticks, 3)
    ticks.stream.may_read = limited(ticks, lambda second: 5 if second % 3 else 4)
    for _ in range(12):
        assert whole(ticks.tick())


def test_a_shard_that_is_throttled_throughout_is_not_passed_by_and_costs_no_more_requests(ticks: Ticks) -> None:
    (name,) = open_shards(ticks, 1)
    ticks.tick()
    ticks.write(name, ago=20 * MINUTES)
    reads: list[str] = []

    def once(shard: str) -> bool:
        reads.append(shard)
        return len(reads) == 1

    ticks.stream.may_read = once
    readings = ticks.tick()
    assert (whole(readings), passed(readings), len(reads)) == (False, [], 12)
    ticks.stream.may_read = lambda _: True
    assert whole(ticks.tick())


def test_a_shard_that_is_hopelessly_behind_is_passed_by_and_the_stretch_is_returned(ticks: Ticks) -> None:
    (name,) = open_shards(ticks, 1)
    written = [ticks.write(name, ago=5000 - number / 100) for number in range(15_000)]
    (reading,) = ticks.tick()
    last = written[11_999]["dynamodb"]
    since = datetime.fromtimestamp(last["ApproximateCreationDateTime"] // 1, UTC)
    assert (reading.at_end, reading.pages, len(reading.records)) == (True, 12, 12_000)
    assert reading.passed is not None
    assert reading.passed == PassedBy(name, last["SequenceNumber"], since, None, reading.passed.until)
    assert timedelta(0) <= ticks.now() - reading.passed.until < timedelta(seconds=1)
    later = ticks.write(name)
    (reading,) = ticks.tick()
    assert [record.sequence_number for record in reading.records] == [later["dynamodb"]["SequenceNumber"]]


def test_of_a_closed_shard_that_is_passed_by_the_last_number_is_known(ticks: Ticks) -> None:
    (name,) = open_shards(ticks, 1)
    last = [ticks.write(name, ago=5000 - number / 100) for number in range(15_000)][-1]
    ticks.stream.split(name)
    (reading,) = ticks.tick()
    assert reading.passed is not None
    assert (reading.passed.ending, reading.progress.finished) == (last["dynamodb"]["SequenceNumber"], True)


def test_where_the_records_of_a_tick_run_out_only_busy_shards_are_passed_by(ticks: Ticks) -> None:
    names = open_shards(ticks, 20)
    for name in names:
        for number in range(3000 if name < "s0010" else 1):
            ticks.write(name, ago=5000 - number / 100)
    readings = ticks.tick(records=5000)
    assert {one.shard_id for one in passed(readings)} <= set(names[:10])
    assert passed(readings)
    for _ in range(20):
        readings = ticks.tick(records=5000)
    assert whole(readings)


def test_a_shard_that_is_written_to_all_the_time_is_read_up_to_the_present_and_no_further(ticks: Ticks) -> None:
    (name,) = open_shards(ticks, 1)
    ticks.tick()
    ticks.stream.may_read = lambda _: bool(ticks.write(name))
    for second in range(30):
        ticks.write(name, ago=-second)
    (reading,) = ticks.tick()
    assert (reading.at_end, reading.pages) == (True, 1)


def test_a_connection_that_breaks_off_once_is_tried_again(ticks: Ticks, monkeypatch: pytest.MonkeyPatch) -> None:
    open_shards(ticks, 2)
    get, broken = ticks.stream.get_records, Counter[str]()

    def breaking(ShardIterator: str) -> dict[str, Any]:  # noqa: N803 - the SDK's name
        name = ShardIterator.partition(":")[0]
        broken[name] += 1
        if broken[name] == 1:
            raise EndpointConnectionError(endpoint_url="https://streams.dynamodb.eu-central-1.amazonaws.com")
        return get(ShardIterator=ShardIterator)

    monkeypatch.setattr(ticks.stream, "get_records", breaking)
    assert whole(ticks.tick())


def test_a_stream_that_cannot_be_reached_ends_the_tick(ticks: Ticks, monkeypatch: pytest.MonkeyPatch) -> None:
    open_shards(ticks, 100)
    asked: list[str] = []

    def unreachable(ShardIterator: str) -> dict[str, Any]:  # noqa: N803 - the SDK's name
        asked.append(ShardIterator)
        raise EndpointConnectionError(endpoint_url="https://streams.dynamodb.eu-central-1.amazonaws.com")

    monkeypatch.setattr(ticks.stream, "get_records", unreachable)
    with pytest.raises(UnreachableError):
        ticks.tick()
    assert len(asked) < 200
