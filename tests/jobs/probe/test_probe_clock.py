"""The probe on a host whose clock is off, against a source that states the time, or does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from email.utils import format_datetime

import pytest

from pipeline.aurora.bookkeeping.probes import Tick
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.mapping import TableMapping
from pipeline.dynamodb.clock import SourceClock
from pipeline.jobs.probe.probe import probe
from pipeline.jobs.probe.probe_shards import Limits
from pipeline.jobs.replicate import ReplicationReport
from pipeline.jobs.services import Services
from tests.dynamodb.scripted_stream import ScriptedServices, ScriptedShard, ScriptedStream
from tests.jobs.probe_world import World

Apply = Callable[..., ReplicationReport]
SECOND = timedelta(seconds=1)


@pytest.fixture
def world(services: Services, employees: TableMapping, connection: Connection) -> World:
    stream = ScriptedStream()
    stream.shards["a"] = ScriptedShard()
    made = World(ScriptedServices(services.settings, stream), employees, connection, stream)
    stream.date = lambda: format_datetime(made.now(), usegmt=True)
    return made


def tick(world: World, after: float, behind: timedelta) -> Tick:
    """A tick of a host that is behind the source, whose clock is right."""
    world.clock += after
    monotonic = time.monotonic()
    world.services.__dict__["clock"] = SourceClock(lambda: world.now() - behind, lambda: monotonic)
    limits = Limits(15.0, monotonic=lambda: 0.0, sleep=lambda _: None, now=lambda: world.now() - behind)
    return probe(world.services, world.mapping, limits=limits)


@pytest.mark.parametrize("minutes", [-15.0, 10.0])
def test_the_lag_is_true_where_this_host_s_clock_is_off(world: World, apply: Apply, minutes: float) -> None:
    """A change made 8 minutes ago used to count as one of the future: lag 0.0."""
    behind = timedelta(minutes=minutes)
    tick(world, 30, behind)
    late = world.write("a", 1)
    made = world.time(world.clock)
    found = tick(world, 480, behind)
    assert found.lag_seconds == pytest.approx(480, abs=1)
    assert found.caught_up_through == made
    assert found.clock_ahead_seconds == pytest.approx(-behind.total_seconds(), abs=1)
    apply(late)
    found = tick(world, 30, behind)
    assert found.lag_seconds == 0.0
    assert found.caught_up_through is not None
    assert abs(found.caught_up_through - world.settled) <= SECOND


def test_ticks_of_hosts_whose_clocks_disagree_claim_the_same(world: World) -> None:
    claims = [tick(world, 30, timedelta(minutes=minutes)).caught_up_through for minutes in (0, -9, 9, 0)]
    assert None not in claims
    assert [claim for claim in claims if claim] == sorted(claim for claim in claims if claim)
    assert world.through is not None
    assert abs(world.through - world.settled) <= SECOND


@pytest.mark.parametrize("date", [None, "not a date"])
def test_where_the_source_does_not_say_the_time_the_host_s_clock_is_taken(world: World, date: str | None) -> None:
    world.stream.date = lambda: date
    world.write("a", 1)
    found = tick(world, 480, timedelta(0))
    assert (found.lag_seconds, found.clock_ahead_seconds) == (480.0, None)
