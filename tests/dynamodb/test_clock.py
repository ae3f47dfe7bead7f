"""The source's clock: what answers show about it, and that unusable answers show nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import ConfigurationError
from pipeline.dynamodb.clock import SourceClock, host_now
from pipeline.dynamodb.errors import translate

NOON = datetime(2026, 5, 14, 12, tzinfo=UTC)


class Clocks:
    """A source's clock, and this host's, which is ahead of it; a call takes time in both directions."""

    def __init__(self, ahead: float, there: float = 0.05, back: float = 0.05) -> None:
        self.passed, self.ahead, self.there, self.back = 0.0, ahead, there, back
        self.header: str | None = ""
        self.clock = SourceClock(self.host, lambda: self.passed)

    def source(self) -> datetime:
        return NOON + timedelta(seconds=self.passed)

    def host(self) -> datetime:
        return self.source() + timedelta(seconds=self.ahead)

    def describe(self, **_: str) -> dict[str, Any]:
        self.passed += self.there
        header = (
            format_datetime(self.source().replace(microsecond=0), usegmt=True) if self.header == "" else self.header
        )
        self.passed += self.back
        return {"ResponseMetadata": {"HTTPHeaders": {} if header is None else {"date": header}}}

    def ask(self) -> datetime:
        return self.clock.ask(self.describe, TableName="t")[1]


@pytest.mark.parametrize("ahead", [-3600.0, -372.0, -2.0, 2.0, 299.5, 86_400.0])
def test_what_this_host_is_ahead_by_is_measured_to_a_second(ahead: float) -> None:
    clocks = Clocks(ahead)
    clocks.ask()
    assert clocks.clock.ahead is not None
    assert abs(clocks.clock.ahead.total_seconds() - ahead) <= 0.6
    assert abs(clocks.clock.now() - clocks.source()) <= timedelta(seconds=0.6)


@given(
    st.floats(-0.4, 0.4),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3), st.floats(0, 100)), min_size=1, max_size=8),
)
def test_a_clock_that_may_be_right_is_not_corrected(ahead: float, calls: list[tuple[float, float, float]]) -> None:
    clocks = Clocks(0.0)
    for clocks.there, clocks.back, pause in calls:
        clocks.passed += pause
        clocks.ask()
        assert clocks.clock.ahead == timedelta(0)
    clocks = Clocks(ahead)
    clocks.ask()
    assert clocks.clock.ahead is not None
    assert abs(clocks.clock.ahead) <= timedelta(seconds=1)


@given(
    st.floats(-1000, 1000),
    st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3), st.floats(0, 100)), min_size=1, max_size=8),
)
def test_a_read_counts_as_of_its_request_by_the_source_s_clock(
    ahead: float, calls: list[tuple[float, float, float]]
) -> None:
    clocks = Clocks(ahead)
    for clocks.there, clocks.back, pause in calls:
        clocks.passed += pause
        before = clocks.source()
        read_at = clocks.ask()
        allowed = timedelta(seconds=1 + clocks.there + clocks.back)
        assert abs(read_at - before) <= allowed


def test_several_answers_bound_it_better_than_one() -> None:
    clocks = Clocks(10.0)
    clocks.there = 20.0  # the time that the SDK spends on retries
    clocks.ask()
    clocks.there = 0.05
    for _ in range(20):
        clocks.passed += 0.77
        clocks.ask()
    assert clocks.clock.ahead is not None
    assert abs(clocks.clock.ahead.total_seconds() - 10.0) <= 0.2


def test_a_clock_that_is_set_is_measured_again() -> None:
    clocks = Clocks(600.0)
    clocks.ask()
    clocks.ahead = 0.0
    assert abs(clocks.ask() - clocks.source()) <= timedelta(seconds=1)
    assert clocks.clock.ahead == timedelta(0)


@pytest.mark.parametrize("header", [None, "", "yesterday", "Sun, 99 Nov 2026 09:00:00 GMT", "1778753000", "\x00"])
def test_without_a_usable_date_the_host_s_time_stands(header: str | None) -> None:
    clocks = Clocks(600.0)
    clocks.header = header or None
    read_at = clocks.ask()
    assert clocks.clock.ahead is None
    assert clocks.clock.asked_lately
    assert read_at == clocks.host() - timedelta(seconds=0.1)
    assert clocks.clock.now() == clocks.host()


def test_an_answer_without_headers_tells_nothing() -> None:
    clock, answers = SourceClock(), list[dict[str, Any]]([{}, {"ResponseMetadata": {}}])
    while answers:
        clock.ask(answers.pop)
    assert clock.ahead is None


@pytest.mark.parametrize(("minutes", "word"), [(7, "420 s ahead of AWS's"), (-7, "420 s behind AWS's")])
def test_a_signature_that_aws_refuses_for_the_clock_says_by_how_much(
    monkeypatch: pytest.MonkeyPatch, minutes: int, word: str
) -> None:
    monkeypatch.setattr("pipeline.dynamodb.errors.host_now", lambda: NOON)
    date = format_datetime(NOON - timedelta(minutes=minutes), usegmt=True)
    answer: Any = {
        "Error": {"Code": "InvalidSignatureException", "Message": "Signature expired"},
        "ResponseMetadata": {"HTTPStatusCode": 400, "HTTPHeaders": {"date": date}},
    }
    error = translate(ClientError(answer, "DescribeTable"), "describing the table t")
    assert isinstance(error, ConfigurationError)
    assert word in str(error)
    assert "chronyc" in str(error)


def test_a_signature_that_aws_refuses_for_another_reason_does_not_blame_the_clock() -> None:
    answer: Any = {
        "Error": {"Code": "InvalidSignatureException", "Message": "mismatch"},
        "ResponseMetadata": {"HTTPStatusCode": 400, "HTTPHeaders": {"date": format_datetime(host_now(), usegmt=True)}},
    }
    assert "chronyc" not in str(translate(ClientError(answer, "DescribeTable"), "describing the table t"))
