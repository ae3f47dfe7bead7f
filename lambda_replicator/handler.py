"""The Lambda function's entry point: a batch of stream records in, the answer for the event source mapping out.

Invariant: the batch is stored whole; or the answer names the first record that is not stored; or the invocation fails
and the whole batch is delivered again. No exception leaves here with a cause or text that could quote an attribute
value.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lambda_replicator import runtime
from lambda_replicator.telemetry import UnforeseenError
from pipeline.core.errors import ReplicationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aws_lambda_powertools.utilities.typing import LambdaContext

    from pipeline.jobs.replicate import ReplicationReport

# Time reserved for logging and answering. The replicator reserves its own to finish a transaction.
ANSWER_SECONDS = 0.5


def lambda_handler(event: dict[str, Any] | list[Any], context: LambdaContext) -> dict[str, Any]:
    """Apply one batch of a DynamoDB stream. Idempotent: a batch delivered again changes nothing.

    Answers `{"batchItemFailures": []}`, or names the first record that there was no time for; the event source mapping
    then continues from that record. Raises TransientError or TerminalError if nothing of the batch could be stored; if
    a part could, the answer names the first record that was not.
    """
    remaining_seconds = context.get_remaining_time_in_millis() / 1000
    deadline = time.monotonic() + remaining_seconds - ANSWER_SECONDS
    parts = runtime.current(remaining_seconds=remaining_seconds)
    parts.telemetry.invocation(context.aws_request_id)
    try:
        reports = parts.replicator.replicate(event, deadline=deadline)
    except ReplicationError as error:
        parts.telemetry.failed(error)
        # `from None`: the cause is the driver's error, and its DETAIL quotes the row.
        raise error from None
    except Exception as error:  # noqa: BLE001 (raised again, without the text)
        unforeseen = UnforeseenError(error)
        parts.telemetry.failed(unforeseen)
        raise unforeseen from None
    for report in reports:
        parts.telemetry.applied(report)
        if report.failure is not None:
            parts.telemetry.failed(report.failure, in_part=True)
    return answer(reports)


def answer(reports: Iterable[ReplicationReport]) -> dict[str, Any]:
    """Return the answer. It names at most one record, because Lambda starts again at the lowest, whatever follows."""
    left = [report.first_unprocessed for report in reports if report.first_unprocessed is not None]
    # As numbers, because sequence numbers differ in length within one shard.
    return {"batchItemFailures": [{"itemIdentifier": min(left, key=int)}] if left else []}
