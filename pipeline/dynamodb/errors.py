"""Translates AWS errors once: transient (try again), unreachable, or terminal (a person must act).

Invariant: no translated error quotes text that may contain an attribute value. It names the operation and AWS's error
code. AWS's own sentence is quoted only for codes whose sentence is about permissions, windows and buckets. The SDK's
error is not chained, because its text quotes parameters.
"""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from botocore import exceptions as sdk

from pipeline.core.errors import ConfigurationError, ReplicationError, TerminalError, TransientError, UnreachableError
from pipeline.dynamodb.clock import SET_IT, host_now, how_far, said_at

if TYPE_CHECKING:
    from collections.abc import Generator

_TRANSIENT_CODES = {
    "ExpiredIteratorException",
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "LimitExceededException",
    "PriorRequestNotComplete",
    "ProvisionedThroughputExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestTimeout",
    "RequestTimeoutException",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "TransactionInProgressException",
}

_SENTENCE_IS_SAFE = {
    "AccessDenied",
    "AccessDeniedException",
    "ExportConflictException",
    "InvalidExportTimeException",
    "LimitExceededException",
    "NoSuchBucket",
    "PermanentRedirect",
}

_CREDENTIALS = "check the AWS credentials of this process (AWS_PROFILE, the role it runs under) and its clock"
_NO_BUCKET = "check the bucket's name, and that this process may see it"
_HINTS = {
    "AccessDenied": "grant this process s3:GetObject on the object and s3:ListBucket on its bucket (without the latter"
    " S3 answers so for an object that does not exist)",
    "AccessDeniedException": "grant the role of this process the named action",
    "ExpiredToken": _CREDENTIALS,
    "ExpiredTokenException": _CREDENTIALS,
    "InvalidAccessKeyId": _CREDENTIALS,
    "InvalidSignatureException": _CREDENTIALS,
    "RequestTimeTooSkewed": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "UnrecognizedClientException": _CREDENTIALS,
    "ExportConflictException": "an export with this client token was requested with other settings; use another token",
    "ExportNotFoundException": "check the export's ARN; DynamoDB forgets an export after 90 days, while its files stay:"
    " load it by the location of its manifest-summary.json",
    "InvalidExportTimeException": "choose a time inside the table's recovery window, of at most 35 days and ending"
    " about 5 minutes ago; an incremental window is 15 minutes to 24 hours long",
    "NoSuchBucket": _NO_BUCKET,
    "PermanentRedirect": "the bucket is in another Region; set AWS_REGION to that of the bucket",
    "ResourceNotFoundException": "check the table's name, the account and AWS_REGION",
    "TableNotFoundException": "check the table's name, the account and AWS_REGION",
    "TrimmedDataAccessException": "the stream keeps 24 hours; catch up over the gap from an incremental export",
}
_KEY = (
    "the table or the bucket is encrypted with a customer managed key: check that the key is enabled, and grant this"
    " process's role kms:Decrypt on it (kms:GenerateDataKey too, to write), in the role's policy and in the key's"
)
# AWS refuses a request whose signature is more than a few minutes off (Signature Version 4).
_SIGNED_TOO_FAR_OFF = timedelta(minutes=4)
_TRY_AGAIN = "try again; it usually passes"


def error_code(error: sdk.ClientError) -> str:
    """Return AWS's code for the error, such as `ResourceNotFoundException`."""
    return error.response.get("Error", {}).get("Code", "unknown")


def translate(error: sdk.BotoCoreError | sdk.ClientError, doing: str, *, table: str | None = None) -> ReplicationError:
    """Return our error for an SDK error that happened while `doing` ("describing the table Employees")."""
    if isinstance(error, sdk.ClientError):
        return _from_answer(error, doing, table)
    if isinstance(error, (sdk.NoRegionError, sdk.NoCredentialsError, sdk.PartialCredentialsError, sdk.ProfileNotFound)):
        return ConfigurationError(
            f"{doing}: the AWS SDK has no {'Region' if isinstance(error, sdk.NoRegionError) else 'usable credentials'}",
            table=table,
            hint="set AWS_REGION" if isinstance(error, sdk.NoRegionError) else _CREDENTIALS,
        )
    if isinstance(error, (sdk.ResponseStreamingError, sdk.IncompleteReadError)):
        return TransientError(f"{doing}: the connection broke off in the answer", table=table, hint=_TRY_AGAIN)
    if isinstance(error, (sdk.HTTPClientError, sdk.EndpointConnectionError)):
        return UnreachableError(
            f"{doing}: AWS could not be reached ({type(error).__name__})",
            table=table,
            hint="check the network, AWS_REGION and AWS_ENDPOINT_URL, then run it again",
        )
    return TerminalError(f"{doing}: the AWS SDK refused the call ({type(error).__name__})", table=table)


def _from_answer(error: sdk.ClientError, doing: str, table: str | None) -> ReplicationError:
    code = error_code(error)
    said = error.response.get("Error", {}).get("Message", "") if code in _SENTENCE_IS_SAFE else ""
    what = f"{doing}: {error.operation_name} answered {code}{': ' if said else ''}{said.rstrip('.')}"
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _TRANSIENT_CODES or status >= 500:
        return TransientError(what, table=table, hint=_TRY_AGAIN)
    if _HINTS.get(code) == _CREDENTIALS and (clock := _wrong_clock(error)):
        return ConfigurationError(what, table=table, hint=clock)
    key = "kms" in code.lower() or "kms:" in said.lower() or code == "InaccessibleEncryptionCredentialsException"
    return TerminalError(what, table=table, hint=_KEY if key else _HINTS.get(code))


def _wrong_clock(error: sdk.ClientError) -> str | None:
    """Return the hint that this host's clock made AWS refuse a signed request; None if the clock is right."""
    date = said_at(error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}))
    if date is None or abs(ahead := host_now() - date) < _SIGNED_TOO_FAR_OFF:
        return None
    return f"this host's clock is {how_far(ahead)} AWS's: {SET_IT}, and run it again"


@contextmanager
def translating(doing: str, *, table: str | None = None) -> Generator[None]:
    """Translate what the block raises; the SDK's error, which may quote parameters, is not chained."""
    try:
        yield
    except (sdk.BotoCoreError, sdk.ClientError) as error:
        raise translate(error, doing, table=table) from None
