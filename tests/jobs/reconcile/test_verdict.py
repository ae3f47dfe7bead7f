"""The verdict on a difference, case by case: a row that stays wrong after replication has passed it is drift."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest

from pipeline.aurora.bookkeeping.applied_through import AppliedThrough
from pipeline.aurora.compare.candidates import Candidate
from pipeline.aurora.compare.compare import Compared
from pipeline.jobs.reconcile.verdict import SnapshotTime, Verdict, judge

MARGIN = timedelta(minutes=5)
TAKEN = datetime(2026, 5, 14, 12, tzinfo=UTC)
SNAPSHOT = SnapshotTime(TAKEN, MARGIN)
NOW = TAKEN + timedelta(minutes=19)
READ = TAKEN + timedelta(minutes=15)
FIRST_LOOK = Candidate(1, ("7",), 11, None, None, proven=False)
SECOND_LOOK = replace(FIRST_LOOK, mark="90", read_at=READ)
OLD_ROW = Compared("different", ("Name",), "90", None, TAKEN - timedelta(hours=1), deleted=False, source_hash=11)
CHANGED_SINCE = replace(OLD_ROW, as_of=TAKEN)
Basis = Literal["probe", "late batches", "assumption"]


def applied(through: datetime, basis: Basis = "probe", newest: datetime | None = None) -> AppliedThrough:
    return AppliedThrough(through, basis, newest)


def verdict(candidate: Candidate, compared: Compared, known: AppliedThrough, *, before: str = "90") -> Verdict:
    return judge(candidate, compared, before=before, applied=known, snapshot=SNAPSHOT, now=NOW)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (applied(TAKEN + MARGIN), Verdict.DRIFT),
        (applied(TAKEN + MARGIN - timedelta(seconds=1)), Verdict.OPEN),
        (applied(TAKEN, "late batches"), Verdict.OPEN),
        (applied(NOW - MARGIN, "assumption"), Verdict.DRIFT),
    ],
    ids=["passed", "not yet", "late", "assumed"],
)
def test_an_old_row_whose_source_is_as_in_the_snapshot_needs_replication_past_the_snapshot(
    known: AppliedThrough, expected: Verdict
) -> None:
    assert verdict(FIRST_LOOK, OLD_ROW, known) is expected


@pytest.mark.parametrize(
    "compared",
    [CHANGED_SINCE, replace(OLD_ROW, source_hash=12), replace(OLD_ROW, source_hash=None)],
    ids=["row changed since", "source changed since", "source deleted since"],
)
def test_what_changed_since_the_snapshot_needs_a_second_look(compared: Compared) -> None:
    assert verdict(FIRST_LOOK, compared, applied(NOW)) is Verdict.OPEN
    assert verdict(SECOND_LOOK, compared, applied(READ)) is Verdict.DRIFT
    assert verdict(SECOND_LOOK, compared, applied(READ - timedelta(seconds=1))) is Verdict.OPEN


def test_a_row_that_changed_between_the_looks_is_on_its_way() -> None:
    assert verdict(SECOND_LOOK, replace(CHANGED_SINCE, mark="91"), applied(NOW), before="91") is Verdict.OPEN
    assert verdict(FIRST_LOOK, OLD_ROW, applied(NOW), before="89") is Verdict.OPEN
    assert verdict(replace(SECOND_LOOK, proven=True), replace(CHANGED_SINCE, mark="91"), applied(NOW)) is Verdict.OPEN


def test_what_is_equal_is_right_whatever_was_known_before() -> None:
    assert verdict(replace(SECOND_LOOK, proven=True), replace(OLD_ROW, kind=None), applied(TAKEN)) is Verdict.RIGHT


@pytest.mark.parametrize(
    ("newest", "expected"),
    [
        (None, Verdict.DRIFT),
        (TAKEN, Verdict.DRIFT),
        (TAKEN - timedelta(seconds=1), Verdict.OPEN),
        (NOW - timedelta(minutes=21), Verdict.DRIFT),
    ],
    ids=["never applied", "newer applied", "stands still", "idle"],
)
def test_an_assumption_needs_something_newer_to_have_arrived_unless_the_table_is_idle(
    newest: datetime | None, expected: Verdict
) -> None:
    assert verdict(FIRST_LOOK, OLD_ROW, applied(NOW - MARGIN, "assumption", newest)) is expected


def test_an_assumption_decides_on_a_second_look_only_when_something_newer_has_arrived() -> None:
    def known(through: datetime, newest: datetime | None) -> AppliedThrough:
        return applied(through, "assumption", newest)

    later = READ + timedelta(seconds=1)
    assert verdict(SECOND_LOOK, CHANGED_SINCE, known(later, None)) is Verdict.OPEN
    assert verdict(SECOND_LOOK, CHANGED_SINCE, known(later, READ - timedelta(seconds=1))) is Verdict.OPEN
    assert verdict(SECOND_LOOK, CHANGED_SINCE, known(READ - timedelta(seconds=1), later)) is Verdict.OPEN
    assert verdict(SECOND_LOOK, CHANGED_SINCE, known(later, later)) is Verdict.DRIFT


def test_lag_is_claimed_only_where_it_is_known() -> None:
    assert applied(NOW - MARGIN).lag(NOW) == MARGIN
    assert applied(NOW - MARGIN, "assumption").lag(NOW) == timedelta(0)
