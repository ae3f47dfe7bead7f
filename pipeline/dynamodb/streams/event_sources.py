"""Lists the event source mappings that deliver a stream to Lambda, and the discarded batches at their destinations.

Invariant: it only reads, and reports a missing permission (None) instead of an empty answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from pipeline.dynamodb.errors import error_code, translate

if TYPE_CHECKING:
    from types_boto3_lambda.client import LambdaClient
    from types_boto3_s3.client import S3Client

_DENIED = {"AccessDenied", "AccessDeniedException"}
_BUCKET_ARN = ":s3:::"
# The folder to which a redrive moves objects.
DONE = "done"
# 1,000 objects a page.
_MOST_PAGES = 10


@dataclass(frozen=True, slots=True)
class EventSourceMapping:
    """One mapping of a stream to a function."""

    mapping_id: str
    state: str
    """Creating, Enabling, Enabled, Disabling, Disabled, Updating, Deleting."""
    function_arn: str
    starting_position: str
    """Where it started when it was created: TRIM_HORIZON, LATEST."""
    modified_at: datetime | None
    """When it was created, last altered, or last changed its state."""
    on_failure: str
    """ARN of the destination for discarded batches; empty: they are lost."""
    filtered: bool = False
    reports_failures: bool = True
    tumbling_seconds: int = 0
    retries: int = -1
    max_age_seconds: int = -1
    bisects: bool = True
    last_result: str = ""
    parallelization: int = 1
    batching_window_seconds: int = 0

    @property
    def function(self) -> str:
        """Name of the function, with its alias or version if it has one: `replicator`, `replicator:live`."""
        return self.function_arn.partition(":function:")[2] or self.function_arn

    @property
    def function_version(self) -> str:
        """The published version that it invokes; empty for the latest code and for an alias."""
        qualifier = self.function.partition(":")[2]
        return qualifier if qualifier.isdigit() else ""

    def feeds(self, function: str) -> bool:
        """Whether it invokes the function of this name or ARN; without an alias or version, any matches."""
        name = function.partition(":function:")[2] or function
        return name in {self.function, self.function.partition(":")[0]} and (
            ":function:" not in function or self.function_arn.startswith(function)
        )

    @property
    def enabled(self) -> bool:
        """Whether it delivers batches, or is about to."""
        return self.state in {"Enabled", "Enabling", "Creating", "Updating"}

    @property
    def on_failure_bucket(self) -> str | None:
        """The bucket for discarded batches; None if they go elsewhere."""
        return self.on_failure.partition(_BUCKET_ARN)[2] or None

    @property
    def on_failure_prefix(self) -> str:
        """The prefix of its objects' keys (Lambda guide, errors of DynamoDB event sources)."""
        return f"aws/lambda/{self.mapping_id}/"


@dataclass(frozen=True, slots=True)
class WaitingObjects:
    """Objects below a prefix. `more`: there are more than counted."""

    count: int
    oldest: datetime | None
    more: bool


def event_source_mappings(client: LambdaClient, stream_arn: str) -> list[EventSourceMapping] | None:
    """Return the mappings of a stream; None if this process may not list them."""
    doing = f"listing the event source mappings of {stream_arn}"
    try:
        pages = client.get_paginator("list_event_source_mappings").paginate(EventSourceArn=stream_arn)
        return [_mapping(found) for page in pages for found in page["EventSourceMappings"]]
    except ClientError as error:
        if error_code(error) in _DENIED:
            return None
        raise translate(error, doing) from None
    except BotoCoreError as error:
        raise translate(error, doing) from None


def _mapping(found: Any) -> EventSourceMapping:  # noqa: ANN401 - the stubs take every member for optional
    modified: datetime | float | None = found.get("LastModified")
    return EventSourceMapping(
        mapping_id=found["UUID"],
        state=found.get("State", ""),
        function_arn=found.get("FunctionArn", ""),
        starting_position=found.get("StartingPosition", ""),
        modified_at=modified if isinstance(modified, datetime) else None,
        on_failure=found.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination", ""),
        # Encrypted criteria that this process may not read arrive as FilterCriteriaError.
        filtered=bool(found.get("FilterCriteria", {}).get("Filters")) or "FilterCriteriaError" in found,
        reports_failures="ReportBatchItemFailures" in found.get("FunctionResponseTypes", ()),
        tumbling_seconds=int(found.get("TumblingWindowInSeconds", 0)),
        retries=int(found.get("MaximumRetryAttempts", -1)),
        max_age_seconds=int(found.get("MaximumRecordAgeInSeconds", -1)),
        bisects=found.get("BisectBatchOnFunctionError", False),
        last_result=found.get("LastProcessingResult", ""),
        parallelization=int(found.get("ParallelizationFactor", 1)),
        batching_window_seconds=int(found.get("MaximumBatchingWindowInSeconds", 0)),
    )


def waiting_objects(client: S3Client, bucket: str, prefix: str) -> WaitingObjects | None:
    """Count the objects below a prefix, among the first 10,000, that are not done; None if they may not be listed."""
    count, oldest, token = 0, None, ""
    for _ in range(_MOST_PAGES):
        more: dict[str, Any] = {"ContinuationToken": token} if token else {}
        try:
            answer = client.list_objects_v2(Bucket=bucket, Prefix=prefix, **more)
        except ClientError as error:
            if error_code(error) in _DENIED:
                return None
            raise translate(error, f"listing s3://{bucket}/{prefix}") from None
        except BotoCoreError as error:
            raise translate(error, f"listing s3://{bucket}/{prefix}") from None
        for found in answer.get("Contents", []):
            if DONE in found.get("Key", "")[len(prefix) :].split("/"):
                continue
            count += 1
            written = found.get("LastModified")
            oldest = written if oldest is None or (written and written < oldest) else oldest
        token = answer.get("NextContinuationToken", "")
        if not token:
            return WaitingObjects(count, oldest, more=False)
    return WaitingObjects(count, oldest, more=True)
