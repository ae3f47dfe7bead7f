"""Take a snapshot of a DynamoDB table: request a full export (or resume one) and wait for it; or use one that exists.

Invariant: the result is a finished export of all of the mapping's own table, whose manifests add up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigurationError
from pipeline.dynamodb.exports.exports import ExportStatus, wait_for_export
from pipeline.dynamodb.exports.manifest import ExportManifest
from pipeline.dynamodb.tables import check_source, describe
from pipeline.jobs.snapshots.accept_export import accept_export, check_export_arn, refuse_filtered_export
from pipeline.jobs.snapshots.export_destination import export_wait
from pipeline.jobs.snapshots.export_requests import request_or_resume, resume_hint
from pipeline.jobs.snapshots.scan_snapshot import READ_CAPACITY, SEGMENTS, scan_snapshot

if TYPE_CHECKING:
    from datetime import timedelta

    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.services import Services

_POLL_SECONDS_LOCAL, _POLL_SECONDS = 0.5, 15.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A finished full export and where it is."""

    location: str
    export_arn: str | None
    manifest: ExportManifest


@dataclass(frozen=True, slots=True)
class ScanChoice:
    """How to scan: read capacity units a second over all segments, which are read in parallel."""

    read_capacity: float = READ_CAPACITY
    segments: int = SEGMENTS


def take_snapshot(
    services: Services,
    mapping: TableMapping,
    *,
    export_arn: str | None = None,
    manifest: str | None = None,
    scan: ScanChoice | None = None,
    accept_other_table: bool = False,
    new_export: bool = False,
    timeout: timedelta | None = None,
    on_progress: Callable[[str], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> Snapshot:
    """Return the snapshot to load or to reconcile with; a new export if nothing else is given.

    An export that an earlier run requested is resumed, unless `new_export`. `scan` takes the snapshot by a scan, for
    tables that cannot be exported. `manifest` is the location of a manifest-summary.json (s3:// or file://).
    `accept_other_table` also accepts an export of another table, and reports how it differs. `timeout` is how long to
    wait for an export, as the settings say unless given. `on_progress` gets a line of text now and then, `on_notice`
    (or else `on_progress`) one that should stay visible. Raises TerminalError, ConfigurationError, TransientError.
    """
    if scan and (export_arn or manifest):
        raise ConfigurationError("taking a snapshot: both a scan and an export are given", hint="give one")
    if export_arn and manifest:
        raise ConfigurationError("taking a snapshot: both an export ARN and a manifest are given", hint="give one")
    say = on_progress or _say_nothing
    notify = on_notice or say

    def existing(location: str, arn: str | None = None) -> Snapshot:
        accepted = accept_export(services, mapping, location, accept_other_table=accept_other_table, notify=notify)
        return Snapshot(location, arn or (None if accepted.scanned else accepted.export_arn), accepted)

    if scan:
        location = scan_snapshot(
            services, mapping, read_capacity=scan.read_capacity, segments=scan.segments, on_progress=say
        )
        return existing(location)
    if manifest:
        return existing(manifest)
    if export_arn:
        check_export_arn(mapping, export_arn, accept_other_table=accept_other_table)
        hint = f"it continues in DynamoDB; wait for it again with --export-arn {export_arn}"
    else:
        export_arn = _request(services, mapping, say, fresh=new_export)
        hint = resume_hint(export_arn)
    location = wait(services, export_arn, hint=hint, timeout=timeout, say=say, notify=notify)
    return existing(location, export_arn)


def poll_seconds(services: Services) -> float:
    """Return how long to wait between two looks at an export: a stand-in for AWS needs seconds, AWS minutes."""
    return _POLL_SECONDS_LOCAL if services.settings.endpoint_url else _POLL_SECONDS


class _Changes:
    """Reports an export's status when it changes, not at every look; refuses one that is not whole."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._told = say, ""

    def __call__(self, export: ExportStatus) -> None:
        refuse_filtered_export(export)
        if export.status != self._told:
            self._told = export.status
            self._say(f"export {export.arn} {export.status.lower().replace('_', ' ')}")


def _say_nothing(_: str) -> None:
    """Report progress to nobody."""


def _request(services: Services, mapping: TableMapping, say: Callable[[str], None], *, fresh: bool) -> str:
    source = describe(services.dynamodb, mapping.table, services.clock)
    problems = check_source(source, mapping)
    if problems:
        raise ConfigurationError(f"requesting an export of {mapping.table}: {'; '.join(problems)}", table=mapping.name)
    return request_or_resume(services, mapping, (source.arn, source.table_id), say, fresh=fresh)


def wait(
    services: Services,
    export_arn: str,
    *,
    hint: str,
    timeout: timedelta | None,
    say: Callable[[str], None],
    notify: Callable[[str], None],
) -> str:
    """Wait for an export; return its manifest's location. If the wait ends early, report `hint`, the next step."""
    try:
        return wait_for_export(
            services.dynamodb,
            export_arn,
            poll_seconds=poll_seconds(services),
            timeout_seconds=export_wait(services.settings, timeout).total_seconds(),
            on_poll=_Changes(say),
            hint=hint,
        )
    except KeyboardInterrupt:
        notify(f"interrupted while waiting for the export {export_arn}: {hint}")
        raise
