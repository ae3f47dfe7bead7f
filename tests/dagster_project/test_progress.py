"""What the sensor reports at a tick, and how often: the pure part, over many ticks of a made-up clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import dagster as dg

from dagster_project.freshness import Freshness
from dagster_project.keys import TableKeys
from dagster_project.progress import Event, Memory, report
from pipeline.aurora.status import TableStatus

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
    **dict.fromkeys(
        field.name
        for field in fields(TableStatus)
        if field.name.startswith(("load_", "reconciliation_"))
        or field.name
        in {"oldest_reject", "compared", "in_flight", "missing", "extra", "different", "repaired", "purged_through"}
    ),  # type: ignore[arg-type]  # nothing loaded, nothing reconciled
)


def day(changing: bool, lag: float) -> Counter[str]:
    """Count the events of a day of ticks, one each 30 s."""
    memory, counts, status = Memory(), Counter[str](), replace(STATUS, lag_seconds=lag)
    for tick in range(24 * 120):
        if changing:
            status = replace(status, records=status.records + 5, applied=status.applied + 5)
        events, memory = report(KEYS, FRESHNESS, status, memory, START + tick * 30)
        counts.update(type(event).__name__ for event in events)
    return counts


def checks(events: list[Event]) -> dict[str, tuple[bool, dg.AssetCheckSeverity]]:
    found = [event for event in events if isinstance(event, dg.AssetCheckEvaluation)]
    return {event.check_name: (event.passed, event.severity) for event in found}


def test_events_a_day_are_as_few_as_stated() -> None:
    assert day(changing=True, lag=1.0) == {"AssetMaterialization": 480, "AssetCheckEvaluation": 960}
    idle = day(changing=False, lag=1.0)
    assert idle == {"AssetMaterialization": 1, "AssetCheckEvaluation": 2, "AssetObservation": 23}
    late = day(changing=True, lag=400.0)
    assert late == {"AssetObservation": 480, "AssetCheckEvaluation": 2}


def test_a_table_that_changes_and_is_caught_up_is_never_longer_unreported_than_it_may_be() -> None:
    memory, status, reported = Memory(), STATUS, [START]
    for tick in range(400):
        status = replace(status, records=status.records + 1)
        events, memory = report(KEYS, FRESHNESS, status, memory, START + tick * 30)
        reported += [START + tick * 30 for event in events if isinstance(event, dg.AssetMaterialization)]
    gaps = [later - earlier for earlier, later in pairwise(reported)]
    assert max(gaps) + 30 < FRESHNESS.warn.total_seconds()


def test_nothing_is_said_before_the_first_change() -> None:
    never = replace(STATUS, applied_at=None, lag_seconds=None, newest_change=None)
    assert report(KEYS, FRESHNESS, never, Memory(), START) == ([], Memory())


def test_a_materialization_comes_with_both_checks_after_it() -> None:
    events, _ = report(KEYS, FRESHNESS, STATUS, Memory(), START)
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


def test_a_check_that_changes_its_outcome_is_reported_at_once_and_only_once() -> None:
    _, memory = report(KEYS, FRESHNESS, STATUS, Memory(), START)
    steps = [(301.0, dg.AssetCheckSeverity.WARN, False), (1801.0, dg.AssetCheckSeverity.ERROR, False)]
    for number, (lag, severity, passed) in enumerate(steps):
        late = replace(STATUS, records=101, lag_seconds=lag)
        events, memory = report(KEYS, FRESHNESS, late, memory, START + 60 * (number + 1))
        assert checks(events) == {"lag": (passed, severity)}
        events, memory = report(KEYS, FRESHNESS, late, memory, START + 60 * (number + 1) + 30)
        assert checks(events) == {}
    waiting = replace(STATUS, records=101, rejects_waiting=2)
    events, memory = report(KEYS, FRESHNESS, waiting, memory, START + 170)
    assert checks(events) == {
        "lag": (True, dg.AssetCheckSeverity.WARN),
        "rejects_waiting": (False, dg.AssetCheckSeverity.WARN),
    }


def test_the_estimated_rows_are_observed_on_the_table_hourly() -> None:
    memory, seen = Memory(), 0
    for tick in range(240):
        events, memory = report(KEYS, FRESHNESS, replace(STATUS, rows_estimate=tick), memory, START + tick * 30)
        seen += sum(isinstance(e, dg.AssetObservation) and e.asset_key == KEYS.aurora_table for e in events)
    assert seen == 2


def test_what_is_remembered_survives_another_release() -> None:
    memory = Memory(records=5, outcomes={"lag": "passed"})
    assert Memory.of({**memory.stored(), "field_of_another_release": 1}) == memory
    assert Memory.of({}) == Memory()
