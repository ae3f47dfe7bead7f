"""Each rule of the event source mapping, on scripted functions and a clock that only the test moves."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pipeline.local.mapping_delivery import (
    Delivery,
    Discard,
    FunctionError,
    MappingSettings,
    Record,
    ThrottledError,
)

NOW = 1_000_000.0


def records(*numbers: int, age: float = 0.0) -> list[dict[str, Any]]:
    return [
        {"dynamodb": {"SequenceNumber": str(number), "ApproximateCreationDateTime": NOW - age}} for number in numbers
    ]


def numbers(batch: Sequence[Record]) -> list[int]:
    return [int(record["dynamodb"]["SequenceNumber"]) for record in batch]


def failed(*identifiers: object) -> dict[str, object]:
    return {"batchItemFailures": [{"itemIdentifier": identifier} for identifier in identifiers]}


class Scene:
    """Delivers to a scripted function; records what it was called with, what was discarded, how long was waited."""

    def __init__(self, function: Callable[[list[int], int], object], pauses: int = 50, **settings: int | bool) -> None:
        self.calls: list[list[int]] = []
        self.discards: list[Discard] = []
        self.pauses: list[float] = []
        self.now = NOW
        self._function = function
        self._pauses_left = pauses
        self.delivery = Delivery(
            replace(MappingSettings(), **settings),
            self._invoke,
            self.discards.append,
            clock=lambda: self.now,
            pause=self._pause,
        )

    def deliver(self, batch: Sequence[Record]) -> bool:
        return self.delivery.deliver(batch)

    def _invoke(self, batch: Sequence[Record]) -> object:
        self.calls.append(numbers(batch))
        return self._function(self.calls[-1], len(self.calls))

    def _pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.now += seconds
        return len(self.pauses) < self._pauses_left


def poison(bad: int) -> Callable[[list[int], int], object]:
    """A function that raises whenever it is given `bad`."""

    def function(batch: list[int], _call: int) -> object:
        if bad in batch:
            raise FunctionError("ValueError", "poison")
        return None

    return function


def test_success_passes_the_batch_once() -> None:
    scene = Scene(lambda _batch, _call: None)
    assert scene.deliver(records(1, 2, 3))
    assert scene.calls == [[1, 2, 3]]
    assert scene.delivery.checkpoint == "3"


def test_with_the_defaults_an_error_blocks_the_shard_forever() -> None:
    scene = Scene(poison(2), pauses=40)
    assert not scene.deliver(records(1, 2, 3))
    assert scene.calls == [[1, 2, 3]] * 40
    assert scene.delivery.checkpoint is None
    assert scene.discards == []
    assert scene.pauses[0] < scene.pauses[3] <= max(scene.pauses) <= 2.0


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_retries_are_counted_and_then_the_whole_batch_is_discarded(limit: int) -> None:
    scene = Scene(poison(2), maximum_retry_attempts=limit)
    assert scene.deliver(records(1, 2, 3))
    assert scene.calls == [[1, 2, 3]] * (limit + 1)
    (discard,) = scene.discards
    assert numbers(discard.records) == [1, 2, 3]
    assert (discard.condition, discard.invocations) == ("RetryAttemptsExhausted", limit + 1)
    assert discard.function_error
    assert scene.delivery.checkpoint == "3"


def test_bisection_isolates_the_poison_without_using_retries() -> None:
    scene = Scene(poison(6), maximum_retry_attempts=1, bisect_on_error=True)
    assert scene.deliver(records(*range(1, 9)))
    assert scene.calls == [
        [1, 2, 3, 4, 5, 6, 7, 8],
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [5, 6],
        [5],
        [6],
        [6],
        [7, 8],
    ]
    assert [numbers(discard.records) for discard in scene.discards] == [[6]]
    assert scene.delivery.checkpoint == "8"


def test_throttles_never_use_up_retries() -> None:
    def throttled_ten_times(_batch: list[int], call: int) -> object:
        if call <= 10:
            raise ThrottledError
        return None

    scene = Scene(throttled_ten_times, maximum_retry_attempts=0, bisect_on_error=True)
    assert scene.deliver(records(1, 2))
    assert scene.calls == [[1, 2]] * 11
    assert scene.discards == []


def test_the_lowest_failure_is_the_checkpoint_and_all_after_it_is_repeated() -> None:
    answers: list[object] = [failed("4", "2"), failed("3"), None]
    scene = Scene(lambda _batch, call: answers[call - 1], report_item_failures=True)
    assert scene.deliver(records(1, 2, 3, 4))
    assert scene.calls == [[1, 2, 3, 4], [2, 3, 4], [3, 4]]
    assert scene.pauses == []


def test_progress_restarts_the_retries_and_their_end_discards_what_is_left() -> None:
    answers: list[object] = [failed("1"), failed("2"), failed("2"), failed("2")]
    scene = Scene(lambda _batch, call: answers[call - 1], report_item_failures=True, maximum_retry_attempts=1)
    assert scene.deliver(records(1, 2, 3))
    assert scene.calls == [[1, 2, 3], [1, 2, 3], [2, 3], [2, 3]]
    (discard,) = scene.discards
    assert numbers(discard.records) == [2, 3]
    assert not discard.function_error


@pytest.mark.parametrize(
    "response", [None, "", {}, {"batchItemFailures": None}, {"batchItemFailures": []}, {"unrelated": 1}]
)
def test_nothing_reported_is_success(response: object) -> None:
    scene = Scene(lambda _batch, _call: response, report_item_failures=True)
    assert scene.deliver(records(1, 2))
    assert scene.calls == [[1, 2]]


@pytest.mark.parametrize(
    "response",
    [
        failed(""),
        failed(None),
        failed("2", ""),
        failed("99"),
        failed(2),
        {"batchItemFailures": [{"itemIdentifer": "2"}]},
        {"batchItemFailures": ["2"]},
        {"batchItemFailures": "2"},
        "done",
    ],
)
def test_a_malformed_report_fails_the_whole_batch(response: object) -> None:
    answers = [response, None]
    scene = Scene(lambda _batch, call: answers[call - 1], report_item_failures=True)
    assert scene.deliver(records(1, 2, 3))
    assert scene.calls == [[1, 2, 3], [1, 2, 3]]


def test_reports_are_ignored_unless_the_mapping_asks_for_them() -> None:
    scene = Scene(lambda _batch, _call: failed("1"))
    assert scene.deliver(records(1, 2))
    assert scene.calls == [[1, 2]]
    assert scene.delivery.checkpoint == "2"


def test_records_past_the_age_limit_are_discarded_unsent() -> None:
    scene = Scene(lambda _batch, _call: None, maximum_record_age_seconds=60)
    assert scene.deliver(records(1, 2, age=61) + records(3, 4))
    assert scene.calls == [[3, 4]]
    (discard,) = scene.discards
    assert numbers(discard.records) == [1, 2]
    assert (discard.condition, discard.invocations) == ("RecordAgeExceeded", 0)
    assert not discard.function_error


def test_a_failing_batch_is_given_up_when_it_grows_too_old() -> None:
    scene = Scene(poison(1), maximum_record_age_seconds=60, pauses=1000)
    assert scene.deliver(records(1, 2, age=55))
    assert len(scene.calls) > 2
    (discard,) = scene.discards
    assert numbers(discard.records) == [1, 2]
    assert discard.condition == "RecordAgeExceeded"
    assert discard.invocations == len(scene.calls)
