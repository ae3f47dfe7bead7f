"""Take a snapshot of a DynamoDB table: request a full export and wait for it, or take one that exists.

Invariant: what comes out is a finished full export of the mapping's own table whose manifests add up.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigurationError
from pipeline.dynamodb.exports import ExportStatus, request_export, wait_for_export
from pipeline.dynamodb.manifest import ExportManifest, read_manifest
from pipeline.dynamodb.tables import check_source, describe

if TYPE_CHECKING:
    from pipeline.core.mapping import TableMapping
    from pipeline.jobs.services import Services

_POLL_SECONDS_LOCAL, _POLL_SECONDS = 0.5, 15.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A finished full export and where it lies."""

    location: str
    export_arn: str | None
    manifest: ExportManifest


def take_snapshot(
    services: Services,
    mapping: TableMapping,
    *,
    export_arn: str | None = None,
    manifest: str | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Snapshot:
    """Return the snapshot to load or to reconcile with; a new export when neither `export_arn` nor `manifest` is given.

    `manifest` is the location of a manifest-summary.json (s3:// or file://). `on_progress` gets a line of text now
    and then. Raises TerminalError, ConfigurationError, TransientError.
    """
    if export_arn and manifest:
        raise ConfigurationError("taking a snapshot: both an export ARN and a manifest are given", hint="give one")
    say = on_progress or _say_nothing
    if manifest:
        return _existing(services, mapping, manifest, None)
    if export_arn is None:
        export_arn = _request(services, mapping, say)
    location = wait_for_export(
        services.dynamodb,
        export_arn,
        poll_seconds=poll_seconds(services),
        on_poll=_Changes(say),
    )
    return _existing(services, mapping, location, export_arn)


def poll_seconds(services: Services) -> float:
    """Return how long to wait between two looks at an export: a stand-in for AWS takes seconds, AWS minutes."""
    return _POLL_SECONDS_LOCAL if services.settings.endpoint_url else _POLL_SECONDS


class _Changes:
    """Tells an export's status when it changes, not at every look."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._told = say, ""

    def __call__(self, export: ExportStatus) -> None:
        if export.status != self._told:
            self._told = export.status
            self._say(f"export {export.status.lower().replace('_', ' ')}")


def _say_nothing(_: str) -> None:
    """Progress that nobody asked for."""


def _request(services: Services, mapping: TableMapping, say: Callable[[str], None]) -> str:
    bucket = services.settings.export_bucket
    if bucket is None:
        raise ConfigurationError(
            "requesting an export: no bucket to write it to",
            table=mapping.name,
            hint="set DYNAURORA_EXPORT_BUCKET to a bucket that DynamoDB may write to, or give an export that exists",
        )
    source = describe(services.dynamodb, mapping.table)
    problems = check_source(source, mapping)
    if problems:
        raise ConfigurationError(f"requesting an export of {mapping.table}: {'; '.join(problems)}", table=mapping.name)
    arn = request_export(
        services.dynamodb, source.arn, bucket, services.settings.export_prefix, client_token=str(uuid.uuid4())
    )
    say(f"requested export {arn.rpartition('/')[2]}")
    return arn


def _existing(services: Services, mapping: TableMapping, location: str, export_arn: str | None) -> Snapshot:
    manifest = read_manifest(services.store(location), location, expected_table=mapping.table)
    return Snapshot(location, export_arn or manifest.export_arn, manifest)
