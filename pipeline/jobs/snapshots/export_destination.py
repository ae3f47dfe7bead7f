"""Where exports are written and how they are encrypted, from the settings; how long to wait for one.

Invariant: what cannot be right is refused with the name of its variable, before AWS is asked for anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from pipeline.core.errors import ConfigurationError
from pipeline.core.spans import HOW_TO_WRITE, parse_span
from pipeline.dynamodb.exports.objects import WriteOptions

if TYPE_CHECKING:
    from pipeline.settings import Settings

LONGEST_WAIT = timedelta(hours=6)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_ACCOUNT = re.compile(r"\d{12}", re.ASCII)
_ALGORITHMS: dict[str, Literal["AES256", "KMS"]] = {"AES256": "AES256", "KMS": "KMS", "AWS:KMS": "KMS"}


@dataclass(frozen=True, slots=True)
class ExportDestination:
    """A bucket that exports and scans are written to. What is None is left to the bucket's own defaults."""

    bucket: str
    prefix: str
    bucket_owner: str | None
    sse_algorithm: Literal["AES256", "KMS"] | None
    kms_key: str | None


def export_destination(settings: Settings, doing: str, *, table: str) -> ExportDestination:
    """Return where exports go. Raises ConfigurationError naming the variable that is missing or cannot be right."""
    bucket = settings.export_bucket
    if bucket is None:
        raise ConfigurationError(
            f"{doing}: no bucket to write it to",
            table=table,
            hint="set DYNAURORA_EXPORT_BUCKET to a bucket that DynamoDB (for a scan: this process) may write to",
        )
    if not _BUCKET.fullmatch(bucket):
        name = bucket.removeprefix("s3://").partition("/")[0]
        raise ConfigurationError(
            f"{doing}: DYNAURORA_EXPORT_BUCKET is not a bucket's name: {bucket}",
            table=table,
            hint=f"write only the name, {name or 'my-bucket'}, without s3:// and without a path; a prefix goes into"
            " DYNAURORA_EXPORT_PREFIX",
        )
    owner = settings.export_bucket_owner
    if owner and not _ACCOUNT.fullmatch(owner):
        raise ConfigurationError(
            f"{doing}: DYNAURORA_EXPORT_BUCKET_OWNER is not an account's 12 digits", table=table, hint="correct it"
        )
    return ExportDestination(bucket, settings.export_prefix, owner, *encryption(settings, doing))


def encryption(settings: Settings, doing: str) -> tuple[Literal["AES256", "KMS"] | None, str | None]:
    """Return the algorithm and the KMS key with which to encrypt what is written to S3."""
    asked, key = settings.export_sse, settings.export_kms_key
    algorithm = _ALGORITHMS.get(asked.upper()) if asked else "KMS" if key else None
    if asked and algorithm is None:
        raise ConfigurationError(f"{doing}: DYNAURORA_EXPORT_SSE is {asked}", hint="set it to AES256 or KMS")
    if key and algorithm != "KMS":
        raise ConfigurationError(
            f"{doing}: DYNAURORA_EXPORT_KMS_KEY is set, and DYNAURORA_EXPORT_SSE is {asked}",
            hint="set DYNAURORA_EXPORT_SSE to KMS, or remove it; or remove the key",
        )
    return algorithm, key


def write_options(settings: Settings) -> WriteOptions:
    """Return how this process writes objects itself: scans, and batches that were redriven."""
    algorithm, key = encryption(settings, "writing to S3")
    return WriteOptions(
        sse="aws:kms" if algorithm == "KMS" else algorithm,
        kms_key=key,
        owners={settings.export_bucket: settings.export_bucket_owner}
        if settings.export_bucket and settings.export_bucket_owner
        else {},
    )


def export_wait(settings: Settings, asked: timedelta | None) -> timedelta:
    """Return how long to wait for an export: as asked, or else as DYNAURORA_EXPORT_WAIT says, or else six hours."""
    if asked is not None:
        return asked
    if settings.export_wait is None:
        return LONGEST_WAIT
    span = parse_span(settings.export_wait)
    if span is None:
        raise ConfigurationError(
            f'waiting for an export: DYNAURORA_EXPORT_WAIT, "{settings.export_wait}", is not a duration',
            hint=HOW_TO_WRITE,
        )
    return span
