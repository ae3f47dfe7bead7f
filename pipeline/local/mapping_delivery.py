"""What Lambda's event source mapping does with one batch of stream records until none of it is left. No input or
output.

Invariant: records are delivered in order, and none is skipped unless the function succeeded on it or a limit of the
mapping discarded it. So a failure blocks the shard: with the default settings forever, as on AWS.

Rules, from the Lambda developer guide ("errors", "partial batch response" of DynamoDB event sources):

- A function error repeats the batch; with bisection it is first halved, again and again, which uses no
  retries.
- With ReportBatchItemFailures the lowest number returned is the checkpoint: that record and all after it are
  repeated, even those that had succeeded. Nothing returned is success; an item without a known number fails
  the whole batch.
- MaximumRetryAttempts counts only function errors, never throttles. MaximumRecordAge discards records by
  their own age.

AWS does not state two things, which we read like this: progress by a checkpoint resets the count of retries; and when
retries are used up on a partial response, everything that is left of the batch is discarded, not only its first record.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

Record = Mapping[str, Any]
Condition = Literal["RetryAttemptsExhausted", "RecordAgeExceeded"]
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 2.0


class FunctionError(Exception):
    """The function raised, timed out or could not answer; `kind` is its error type."""

    def __init__(self, kind: str, message: str) -> None:
        """As in the error object that Lambda returns."""
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class ThrottledError(Exception):
    """The function was not run: no concurrency left, or it cannot be reached."""


@dataclass(frozen=True)
class MappingSettings:
    """The settings of an event source mapping, with AWS's defaults. -1 means without limit."""

    batch_size: int = 100
    window_seconds: float = 0.0
    starting_position: Literal["TRIM_HORIZON", "LATEST"] = "TRIM_HORIZON"
    maximum_retry_attempts: int = -1
    maximum_record_age_seconds: int = -1
    bisect_on_error: bool = False
    report_item_failures: bool = False


@dataclass(frozen=True)
class Discard:
    """Discarded records: why, after how many invocations, and whether the last one was a function error."""

    records: Sequence[Record]
    condition: Condition
    invocations: int
    function_error: bool


@dataclass
class Piece:
    """A batch, or what halving left of one."""

    records: Sequence[Record]
    failures: int = 0
    invocations: int = 0
    function_error: bool = False


Invoke = Callable[[Sequence[Record]], object]


class Delivery:
    """Delivers the batches of one shard, one after another."""

    def __init__(
        self,
        settings: MappingSettings,
        invoke: Invoke,
        discard: Callable[[Discard], None],
        *,
        clock: Callable[[], float],
        pause: Callable[[float], bool],
    ) -> None:
        """`clock` gives epoch seconds; `pause` waits that long and says whether to continue (False: stopping)."""
        self._settings = settings
        self._invoke = invoke
        self._discard = discard
        self._clock = clock
        self._pause = pause
        self.checkpoint: str | None = None

    def deliver(self, records: Sequence[Record]) -> bool:
        """Deliver a batch until all of it succeeded or was discarded; False if stopped before that."""
        pieces = deque([Piece(records)])
        wait = FIRST_PAUSE_SECONDS
        while pieces:
            piece = self._without_aged(pieces.popleft())
            if not piece.records:
                continue
            left = self._try(piece)
            if not left:
                wait = FIRST_PAUSE_SECONDS
                continue
            pieces.extendleft(reversed(left))
            if left[0] is piece:
                if not self._pause(wait):
                    return False
                wait = min(wait * 2, LONGEST_PAUSE_SECONDS)
        return True

    def _try(self, piece: Piece) -> list[Piece]:
        """Invoke once; return what must be retried, in order (the same piece: after a pause)."""
        piece.invocations += 1
        try:
            response = self._invoke(piece.records)
        except ThrottledError:
            piece.invocations -= 1
            return [piece]
        except FunctionError:
            return self._after_error(piece)
        first_failed = self._first_failed(response, piece.records)
        if first_failed is None:
            return self._passed(piece.records)
        if first_failed < 0:
            return self._after_error(piece)
        if first_failed > 0:
            self._passed(piece.records[:first_failed])
            return [Piece(piece.records[first_failed:])]
        piece.function_error = False
        return self._after_failure(piece)

    def _after_error(self, piece: Piece) -> list[Piece]:
        piece.function_error = True
        middle = len(piece.records) // 2
        if self._settings.bisect_on_error and middle:
            return [Piece(piece.records[:middle]), Piece(piece.records[middle:])]
        return self._after_failure(piece)

    def _after_failure(self, piece: Piece) -> list[Piece]:
        piece.failures += 1
        limit = self._settings.maximum_retry_attempts
        if limit < 0 or piece.failures <= limit:
            return [piece]
        self._give_up(piece, piece.records, "RetryAttemptsExhausted")
        return []

    def _without_aged(self, piece: Piece) -> Piece:
        """Discard the records at the head that are too old to be sent."""
        limit = self._settings.maximum_record_age_seconds
        if limit < 0:
            return piece
        oldest = self._clock() - limit
        ages = [record["dynamodb"]["ApproximateCreationDateTime"] < oldest for record in piece.records]
        aged = ages.index(False) if False in ages else len(ages)
        if aged:
            self._give_up(piece, piece.records[:aged], "RecordAgeExceeded")
            piece.records = piece.records[aged:]
        return piece

    def _give_up(self, piece: Piece, records: Sequence[Record], condition: Condition) -> None:
        self._discard(Discard(records, condition, piece.invocations, piece.function_error))
        self._passed(records)

    def _passed(self, records: Sequence[Record]) -> list[Piece]:
        self.checkpoint = records[-1]["dynamodb"]["SequenceNumber"]
        return []

    def _first_failed(self, response: object, records: Sequence[Record]) -> int | None:
        """The index of the first record reported as failed; None: all succeeded; -1: all failed."""
        if not self._settings.report_item_failures or not response:
            return None
        identifiers = reported_failures(response)
        if identifiers is None:
            return -1
        positions = {record["dynamodb"]["SequenceNumber"]: index for index, record in enumerate(records)}
        if not positions.keys() >= identifiers:
            return -1
        return min((positions[identifier] for identifier in identifiers), default=None)


def reported_failures(response: object) -> set[str] | None:
    """The identifiers in a partial batch response; None if it is malformed, which fails the whole batch."""
    if not isinstance(response, dict):
        return None
    answer = cast("dict[str, object]", response)
    failures = answer.get("batchItemFailures")
    if not failures:
        return set()
    if not isinstance(failures, list):
        return None
    identifiers: set[str] = set()
    for failure in cast("list[object]", failures):
        named = cast("dict[str, object]", failure).get("itemIdentifier") if isinstance(failure, dict) else None
        if not isinstance(named, str):
            return None
        identifiers.add(named)
    return identifiers
