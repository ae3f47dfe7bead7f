"""Take a snapshot of a DynamoDB table: request a full export and wait for it, or take one that exists.

Invariant: what comes out is a finished full export of the mapping's own table whose manifests add up.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigurationError, ReplicationError, TerminalError
from pipeline.dynamodb.exports import ExportStatus, request_export, wait_for_export
from pipeline.dynamodb.manifest import ExportManifest, read_manifest
from pipeline.dynamodb.tables import check_source, describe
from pipeline.jobs.scan_snapshot import READ_CAPACITY, SEGMENTS, scan_snapshot

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


@dataclass(frozen=True, slots=True)
class ScanChoice:
    """How to scan: read capacity units a second over all segments, which are read side by side."""

    read_capacity: float = READ_CAPACITY
    segments: int = SEGMENTS


def take_snapshot(
    services: Services,
    mapping: TableMapping,
    *,
    export_arn: str | None = None,
    manifest: str | None = None,
    scan: ScanChoice | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Snapshot:
    """Return the snapshot to load or to reconcile with; a new export when nothing else is given.

    `scan` takes it by a scan, for tables that cannot be exported.
    `manifest` is the location of a manifest-summary.json (s3:// or file://). `on_progress` gets a line of text now
    and then. Raises TerminalError, ConfigurationError, TransientError.
    """
    if scan and (export_arn or manifest):
        raise ConfigurationError("taking a snapshot: a scan is asked for, and an export given", hint="give one")
    if export_arn and manifest:
        raise ConfigurationError("taking a snapshot: both an export ARN and a manifest are given", hint="give one")
    say = on_progress or _say_nothing
    if scan:
        location = scan_snapshot(
            services, mapping, read_capacity=scan.read_capacity, segments=scan.segments, on_progress=say
        )
        return _existing(services, mapping, location, None)
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
    _refuse_other_table(services, mapping, manifest)
    arn = None if manifest.scanned else manifest.export_arn
    return Snapshot(location, export_arn or arn, manifest)


def _refuse_other_table(services: Services, mapping: TableMapping, manifest: ExportManifest) -> None:
    """Raise TerminalError when the table was deleted and made again under its name since the export.

    Not asked of a copy in a folder, nor where DynamoDB cannot be: an export may be loaded out of its table's reach.
    """
    if manifest.location.startswith("file:"):
        return
    try:
        source = describe(services.dynamodb, mapping.table)
    except ReplicationError:
        return
    if source.arn == manifest.table_arn and manifest.table_id and source.table_id not in {None, manifest.table_id}:
        raise TerminalError(
            f"reading the manifest {manifest.location}: it is of a table {mapping.table} that was deleted; the one"
            f" of that name today is another (table id {source.table_id}, and the export's is {manifest.table_id})",
            table=mapping.name,
            hint=f"load the table of today: `dynaurora load {mapping.name}`; for the deleted one's items restore its"
            " export to a table of another name, with a mapping of its own",
        )
