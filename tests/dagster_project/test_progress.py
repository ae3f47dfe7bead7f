"""What the sensor reports at a tick, and how often: the pure part, over many ticks of a scripted clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import dagster as dg
import pytest
from dagster._core.definitions.freshness import TimeWindowFreshnessPolicy

from dagster_project.freshness import Freshness
from dagster_project.keys import TableKeys
from dagster_project.progress import Event, Memory, report
from dagster_project.reconciliation import parity
from dagster_project.replication_checks import Look
from pipeline.aurora.bookkeeping.probes import Tick
from pipeline.aurora.bookkeeping.status import TableStatus
from pipeline.jobs.reconcile.reconcile_report import ReconcileReport

KEYS = TableKeys("employees")
FRESHNESS = Freshness(timedelta(minutes=5), timedelta(minutes=30))
START = 1_800_000_000.0
STATUS = TableStatus(
    name="employees",
    rows_estimate=None,
    newest_change=datetime(2026, 5, 1, tzinfo=UTC),
    applied_at=datetime(2026, 5, 1, tzinfo=UTC),
    lag_seconds=0.5,
    writers=1,
    batches=10,
    records=100,
    applied=90,
    stale=10,
    deleted=0,
    expired=0,
    rejected=0,
    rejects_waiting=0,
    behind=None,
    **dict.fromkeys(
        field.name
        for field in fields(TableStatus)
        if field.name.startswith(("load_", "reconciliation_"))
        or field.name
        in {"oldest_reject", "compared", "in_flight", "missing", "extra", "different", "repaired", "purged_through"}
    ),  # type: ignore[arg-type]  # nothing loaded, nothing reconciled
)


def seen(lag: float | None, *, rejects: int = 0, rows: int | None = None, problem: str = "", lost: int = 0) -> Look:
    """A look at a table whose oldest change that has not arrived is this old; None: unknown."""
    now = datetime.fromtimestamp(START, UTC)
    tick = Tick(
        stream_label="",
        ticked_at=now,
        caught_up_through=now,
        settled_through=now,
        read_through=now,
        settles_from=None,
        table_id=None,
        newest_read=None,
        read_whole=lag is not None,
        waiting=3 if lag else 0,
        oldest_waiting=now - timedelta(seconds=lag) if lag else None,
        stuck=0,
        lost=lost,
        shards=1,
        calls=4,
        records=0,
    )
    found = replace(STATUS, rejects_waiting=rejects, rows_estimate=rows)
    return Look(found, None if problem else tick, problem)


def day(lag: float | None) -> Counter[str]:
    """Count the events of a day of ticks, one each 30 s."""
    memory, counts = Memory(), Counter[str]()
    for tick in range(24 * 120):
        events, memory = report(KEYS, FRESHNESS, seen(lag), memory, START + tick * 30)
        counts.update(type(event).__name__ for event in events)
    return counts


def checks(events: list[Event]) -> dict[str, tuple[bool, dg.AssetCheckSeverity]]:
    found = [event for event in events if isinstance(event, dg.AssetCheckEvaluation)]
    return {event.check_name: (event.passed, event.severity) for event in found}


def test_events_a_day_are_as_few_as_stated() -> None:
    assert day(lag=0.0) == day(lag=1.0) == {"AssetMaterialization": 96, "AssetCheckEvaluation": 192}
    assert day(lag=400.0) == {"AssetObservation": 96, "AssetCheckEvaluation": 2}
    assert day(lag=None) == {"AssetObservation": 24, "AssetCheckEvaluation": 2}


def test_a_table_that_is_caught_up_is_never_longer_unreported_than_it_may_be() -> None:
    memory, reported = Memory(), [START]
    for tick in range(400):
        events, memory = report(KEYS, FRESHNESS, seen(0.0), memory, START + tick * 30)
        reported += [START + tick * 30 for event in events if isinstance(event, dg.AssetMaterialization)]
    gaps = [later - earlier for earlier, later in pairwise(reported)]
    policy = FRESHNESS.policy
    assert isinstance(policy, TimeWindowFreshnessPolicy)
    assert policy.warn_window is not None
    assert max(gaps) + 30 < policy.warn_window.to_timedelta().total_seconds()


def test_a_materialization_comes_with_both_checks_after_it() -> None:
    events, _ = report(KEYS, FRESHNESS, seen(0.5), Memory(), START)
    assert [type(event) for event in events] == [
        dg.AssetMaterialization,
        dg.AssetCheckEvaluation,
        dg.AssetCheckEvaluation,
    ]
    assert checks(events) == {
        "lag": (True, dg.AssetCheckSeverity.WARN),
        "rejects_waiting": (True, dg.AssetCheckSeverity.WARN),
    }
    first = events[0]
    assert isinstance(first, dg.AssetMaterialization)
    assert "dagster/data_version" not in (first.tags or {})
    assert first.metadata["applied_since_last_report"].value == 90
    assert first.metadata["lag_seconds"].value == 0.5


def test_a_check_that_changes_its_outcome_is_reported_at_once_and_only_once() -> None:
    _, memory = report(KEYS, FRESHNESS, seen(0.0), Memory(), START)
    steps = [(301.0, dg.AssetCheckSeverity.WARN, False), (1801.0, dg.AssetCheckSeverity.ERROR, False)]
    for number, (lag, severity, passed) in enumerate(steps):
        events, memory = report(KEYS, FRESHNESS, seen(lag), memory, START + 60 * (number + 1))
        assert checks(events) == {"lag": (passed, severity)}
        events, memory = report(KEYS, FRESHNESS, seen(lag), memory, START + 60 * (number + 1) + 30)
        assert checks(events) == {}
    events, memory = report(KEYS, FRESHNESS, seen(0.0, rejects=2), memory, START + 170)
    assert checks(events) == {
        "lag": (True, dg.AssetCheckSeverity.WARN),
        "rejects_waiting": (False, dg.AssetCheckSeverity.WARN),
    }


def test_one_look_that_could_not_tell_is_no_news_and_many_are() -> None:
    _, memory = report(KEYS, FRESHNESS, seen(0.0), Memory(), START)
    events, memory = report(KEYS, FRESHNESS, seen(None), memory, START + 290)
    assert events == []
    events, memory = report(KEYS, FRESHNESS, seen(None, problem="no stream"), memory, START + 310)
    assert checks(events) == {"lag": (False, dg.AssetCheckSeverity.WARN)}
    (told,) = [event for event in events if isinstance(event, dg.AssetCheckEvaluation)]
    assert told.description == "the lag is not known: no stream"


def test_the_estimated_rows_are_observed_on_the_table_hourly() -> None:
    memory, found = Memory(), 0
    for tick in range(240):
        events, memory = report(KEYS, FRESHNESS, seen(0.0, rows=tick), memory, START + tick * 30)
        found += sum(isinstance(e, dg.AssetObservation) and e.asset_key == KEYS.aurora_table for e in events)
    assert found == 2


def test_what_is_remembered_survives_another_release() -> None:
    memory = Memory(applied=5, outcomes={"lag": "passed"})
    assert Memory.of({**memory.stored(), "field_of_another_release": 1}) == memory
    assert Memory.of({}) == Memory()


def test_changes_that_are_lost_fail_the_check_though_there_is_no_lag() -> None:
    events, _ = report(KEYS, FRESHNESS, seen(0.0, lost=7), Memory(), START)
    assert checks(events)["lag"] == (False, dg.AssetCheckSeverity.ERROR)
    told = [event.description for event in events if isinstance(event, dg.AssetCheckEvaluation)]
    assert any("7 keys have changes that are lost" in (text or "") for text in told)


@pytest.mark.parametrize(("age", "passed"), [(200, True), (301, False)])
def test_parity_is_not_green_while_rows_are_undecided_for_longer_than_the_freshness_allows(
    age: int, passed: bool
) -> None:
    now = datetime.fromtimestamp(START, UTC)
    taken = now - timedelta(seconds=age)
    found = ReconcileReport("t", 1, "s", taken, taken, 9, 0, 0, 0, 0, 0, 0, {}, (), 1.0, undecided=1)
    assert parity(found, FRESHNESS, now).passed is passed
