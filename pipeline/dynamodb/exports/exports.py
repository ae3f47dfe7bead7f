"""Exports to S3: request one, wait for it, find its manifest.

Invariant: two requests with the same client token are one request, for 8 hours (DynamoDB API reference), so a run
killed after its request finds its own export again. An export uses no read capacity of the table.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any, Literal

from botocore.exceptions import ClientError

from pipeline.core.errors import ConfigurationError, TerminalError, TransientError
from pipeline.dynamodb.errors import error_code, translate, translating
from pipeline.dynamodb.exports.manifest_checks import filter_members
from pipeline.dynamodb.exports.objects import join_location
from pipeline.dynamodb.tables import enable_recovery_command

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from types_boto3_dynamodb.client import DynamoDBClient

ViewType = Literal["NEW_IMAGE", "NEW_AND_OLD_IMAGES"]
_FAILED_POLLS_IN_A_ROW = 5
_EXPORT_ARN = re.compile(r"(arn:[^:]+:dynamodb:[^:]+:\d+:table/[^/]+)/export/[^/]+")


class ExportConflictError(TerminalError):
    """The client token was used for another request within its 8 hours."""


class ExportNotFoundError(TerminalError):
    """DynamoDB does not know the export, or no longer does after 90 days."""


@dataclass(frozen=True, slots=True)
class ExportWindow:
    """An incremental export's window, of 15 minutes to 24 hours: from inclusive, to exclusive; aware times."""

    from_time: datetime
    to_time: datetime
    view_type: ViewType = "NEW_IMAGE"


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """An export as DynamoDB describes it; counts are there once it is done."""

    arn: str
    status: Literal["IN_PROGRESS", "COMPLETED", "FAILED"]
    manifest_location: str | None
    item_count: int | None
    billed_size_bytes: int | None
    failure: str | None
    """DynamoDB's code and sentence if it failed."""
    filter_specification: dict[str, Any] = field(default_factory=dict[str, Any])
    """The members, by name, which show that the export is not of the whole table; empty if it is."""


def request_export(
    client: DynamoDBClient,
    table_arn: str,
    bucket: str,
    prefix: str | None = None,
    *,
    client_token: str,
    window: ExportWindow | None = None,
    export_time: datetime | None = None,
    bucket_owner: str | None = None,
    sse_algorithm: str | None = None,
    kms_key: str | None = None,
) -> str:
    """Request an export and return its ARN: incremental over `window`, or full as of `export_time` (None: now).

    `bucket_owner` is the account of a bucket that is not ours; `sse_algorithm` is AES256 or KMS. Raises TransientError
    if too many exports run, ExportConflictError if the token was used for another request, TerminalError if the table,
    its recovery window or the bucket does not allow it.
    """
    request: dict[str, Any] = {
        "TableArn": table_arn,
        "S3Bucket": bucket,
        "ClientToken": client_token,
        "ExportFormat": "DYNAMODB_JSON",
    }
    asked = {
        "S3Prefix": prefix,
        "S3BucketOwner": bucket_owner,
        "S3SseAlgorithm": sse_algorithm,
        "S3SseKmsKeyId": kms_key,
    }
    request |= {name: value for name, value in asked.items() if value}
    if window:
        request["ExportType"] = "INCREMENTAL_EXPORT"
        request["IncrementalExportSpecification"] = {
            "ExportFromTime": window.from_time.astimezone(UTC),
            "ExportToTime": window.to_time.astimezone(UTC),
            "ExportViewType": window.view_type,
        }
    elif export_time:
        request["ExportTime"] = export_time.astimezone(UTC)
    doing = f"requesting an export of {table_arn} to s3://{bucket}/{prefix or ''}"
    with translating(doing):
        try:
            answer = client.export_table_to_point_in_time(**request)
        except ClientError as error:
            if error_code(error) == "ExportConflictException":
                conflict = translate(error, doing)
                raise ExportConflictError(conflict.message, hint=conflict.hint) from None
            if error_code(error) != "PointInTimeRecoveryUnavailableException":
                raise
            name = table_arn.partition(":table/")[2]
            raise TerminalError(
                f"{doing}: point-in-time recovery of the table is off",
                hint=f"enable it: {enable_recovery_command(name)}, or load by a scan",
            ) from None
    return answer["ExportDescription"].get("ExportArn", "")


def describe_export(client: DynamoDBClient, export_arn: str) -> ExportStatus:
    """Return an export's status. Raises ExportNotFoundError if DynamoDB does not know it, or no longer does."""
    doing = f"describing the export {export_arn}"
    with translating(doing):
        try:
            export = client.describe_export(ExportArn=export_arn)["ExportDescription"]
        except ClientError as error:
            if error_code(error) != "ExportNotFoundException":
                raise
            unknown = translate(error, doing)
            raise ExportNotFoundError(unknown.message, hint=unknown.hint) from None
    manifest, bucket = export.get("ExportManifest"), export.get("S3Bucket")
    failure = f"{export.get('FailureCode', 'no code')}: {export.get('FailureMessage', 'no reason given')}"
    status = export.get("ExportStatus", "IN_PROGRESS")
    return ExportStatus(
        arn=export_arn,
        status=status,
        manifest_location=join_location(bucket, manifest) if bucket and manifest else None,
        item_count=export.get("ItemCount"),
        billed_size_bytes=export.get("BilledSizeBytes"),
        failure=failure if status == "FAILED" else None,
        filter_specification={name: export[name] for name in export if filter_members({name: export[name]})},
    )


def table_of_export(export_arn: str) -> str:
    """Return the ARN of an export's table. Raises ConfigurationError if it is not an export's ARN."""
    found = _EXPORT_ARN.fullmatch(export_arn)
    if found is None:
        raise ConfigurationError(
            f'"{export_arn}" is not the ARN of an export',
            hint="write it as arn:aws:dynamodb:REGION:ACCOUNT:table/NAME/export/ID;"
            " `aws dynamodb list-exports` lists those of a table",
        )
    return found[1]


def wait_for_export(
    client: DynamoDBClient,
    export_arn: str,
    *,
    poll_seconds: float = 10.0,
    timeout_seconds: float = 6 * 3600.0,
    on_poll: Callable[[ExportStatus], None] | None = None,
    hint: str = "the export continues; wait for it again with its ARN",
) -> str:
    """Wait until the export is done and return the location of its manifest; AWS promises no duration.

    Raises TerminalError with DynamoDB's reason if it failed; TransientError if it takes longer than the timeout (it
    continues: `hint` says how to wait again) or DynamoDB does not answer several times in a row.
    """
    deadline = time.monotonic() + timeout_seconds
    unanswered = 0
    while True:
        try:
            export = describe_export(client, export_arn)
        except TransientError:
            unanswered += 1
            if unanswered == _FAILED_POLLS_IN_A_ROW:
                raise
        else:
            unanswered = 0
            if on_poll:
                on_poll(export)
            if export.status != "IN_PROGRESS":
                return _manifest_of(export)
        left = deadline - time.monotonic()
        if left <= 0:
            raise TransientError(
                f"waiting for the export {export_arn}: it is not done after {timeout_seconds:.0f} s",
                hint=hint,
            )
        time.sleep(min(poll_seconds, left))


def _manifest_of(export: ExportStatus) -> str:
    if export.failure:
        raise TerminalError(
            f"waiting for the export {export.arn}: it failed with {export.failure}",
            hint="fix the cause that it names (often the bucket's policy or its KMS key), then request another export",
        )
    if export.manifest_location is None:
        raise ConfigurationError(
            f"waiting for the export {export.arn}: it is done, but names no manifest",
            hint="the service at this endpoint writes no exports; check AWS_ENDPOINT_URL",
        )
    return export.manifest_location
