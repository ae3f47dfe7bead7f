"""Request an export, or resume the one that an earlier run requested: exports cost money.

Invariant: the request is in the bookkeeping, with its client token, before DynamoDB is asked. Whenever this is killed,
the next run asks with the same token (the same export, for 8 hours), or finds the export's ARN. No request is made
while a load of the table runs, because it could not be loaded.

A full export is resumed until it is 24 hours old: for that long the stream has every change since. A window's export is
resumed at any age, because its content does not change. Neither is resumed once its files are deleted.
"""

from __future__ import annotations

import uuid
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import export_requests, loads, sources
from pipeline.core.errors import TerminalError
from pipeline.dynamodb.exports.exports import (
    ExportConflictError,
    ExportNotFoundError,
    ExportWindow,
    describe_export,
    request_export,
)
from pipeline.dynamodb.exports.manifest import read_manifest
from pipeline.dynamodb.exports.objects import MissingObjectError, split_location
from pipeline.jobs.snapshots.export_destination import ExportDestination, export_destination

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.aurora.bookkeeping.export_requests import ExportRequest, Outcome
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.exports.windows import Window
    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.services import Services

# DynamoDB API reference: a token is valid for 8 hours. One hour less, because clocks may disagree.
_TOKEN_LIVES = timedelta(hours=7)
_FULL_EXPORT_LIVES = timedelta(hours=24)
_ATTEMPTS = 3


def resume_hint(export_arn: str) -> str:
    """Return the next step if the wait for an export ends early."""
    return f"it continues in DynamoDB; run this again: it resumes export {export_arn} and requests no other"


def request_or_resume(
    services: Services,
    mapping: TableMapping,
    table: tuple[str, str | None],
    say: Callable[[str], None],
    window: Window | None = None,
    *,
    fresh: bool = False,
) -> str:
    """Return the ARN of an export of the `table` (ARN and id): full, or incremental over `window`.

    `fresh`: a new one, whatever is under way. Raises TerminalError while a load of the table runs, ConfigurationError
    if it is not the source of record, and as `request_export` does.
    """
    destination = export_destination(services.settings, "requesting an export", table=mapping.name)
    arn, table_id = table
    with closing(services.connect(loads.REQUESTING)) as connection, loads.table_locked(connection, mapping.name):
        sources.require(connection, mapping.name, mapping.table, doing="exporting", arn=arn, table_id=table_id)
        return _Requesting(services, mapping, table, destination, window, connection, say, fresh).carry_out()


@dataclass(frozen=True, slots=True)
class _Requesting:
    services: Services
    mapping: TableMapping
    table: tuple[str, str | None]
    destination: ExportDestination
    window: Window | None
    connection: Connection
    say: Callable[[str], None]
    fresh: bool

    @property
    def _what(self) -> str:
        """Everything that a client token belongs to."""
        to = self.destination
        parts = (*self.table, to.bucket, to.prefix, to.bucket_owner, to.sse_algorithm, to.kms_key)
        return " ".join(part or "-" for part in parts)

    def carry_out(self) -> str:
        """Return the export's ARN."""
        for _ in range(_ATTEMPTS):
            found = export_requests.find(self.connection, self.mapping.name, self.window)
            if found is not None and self._may_be_resumed(found):
                if found.export_arn:
                    requested_at = f"{found.requested_at:%Y-%m-%d %H:%M:%S} UTC"
                    self.say(f"export {found.export_arn} is under way, requested at {requested_at}")
                    return found.export_arn
            else:
                found = export_requests.record(
                    self.connection,
                    self.mapping.name,
                    self.window,
                    request=self._what,
                    client_token=str(uuid.uuid4()),
                )
            try:
                return self._request(found)
            except ExportConflictError:
                continue  # the token was used for something else: make a request of its own
        raise TerminalError(
            f"requesting an export of {self.table[0]}: every client token was used for another request",
            table=self.mapping.name,
            hint="run this again; if it stays like this, what answers is not DynamoDB",
        )

    def _request(self, request: ExportRequest) -> str:
        """Ask DynamoDB. A request that it refuses is ended; one whose outcome is not known stays open."""
        to = self.destination
        try:
            arn = request_export(
                self.services.dynamodb,
                self.table[0],
                to.bucket,
                to.prefix,
                client_token=request.client_token,
                window=ExportWindow(self.window.start, self.window.end) if self.window else None,
                bucket_owner=to.bucket_owner,
                sse_algorithm=to.sse_algorithm,
                kms_key=to.kms_key,
            )
        except TerminalError:
            export_requests.end(self.connection, request.id, "refused")
            raise
        export_requests.note_arn(self.connection, request.id, arn)
        self.say(f"requested export {arn}")
        return arn

    def _may_be_resumed(self, found: ExportRequest) -> bool:
        """Whether an open request still leads to a wanted export; otherwise it is ended, and the reason reported."""
        why = self._why_not(found)
        if why is None:
            return True
        outcome, reason = why
        export_requests.end(self.connection, found.id, outcome)
        named = f"export {found.export_arn}" if found.export_arn else "a request whose export is not known"
        self.say(f"not resuming {named}: {reason}")
        return False

    def _why_not(self, found: ExportRequest) -> tuple[Outcome, str] | None:
        """Return how an open request ended and why, or None: it has not."""
        if self.fresh:
            return "superseded", "a new export is asked for"
        if found.request != self._what:
            return "superseded", "the table, the bucket or its encryption has changed"
        if found.export_arn is None:
            return ("superseded", "its client token has expired") if found.age > _TOKEN_LIVES else None
        no_use = self._why_of_no_use(found, found.export_arn) if self.window is None else None
        return no_use or self._why_failed(found.export_arn)

    def _why_of_no_use(self, found: ExportRequest, export_arn: str) -> tuple[Outcome, str] | None:
        """Return why a full export would not be loaded, or is not worth it."""
        if found.age > _FULL_EXPORT_LIVES:
            return "superseded", "it is older than the stream's 24 hours"
        if export_arn in loads.loaded_export_arns(self.connection, self.mapping.name):
            return "used", "it is already loaded"
        newest = loads.newest_loaded(self.connection, self.mapping.name)
        if newest is not None and newest >= found.requested_at:
            return "superseded", "a newer snapshot is already loaded"
        return None

    def _why_failed(self, export_arn: str) -> tuple[Outcome, str] | None:
        try:
            export = describe_export(self.services.dynamodb, export_arn)
        except ExportNotFoundError:
            return "failed", "DynamoDB no longer knows it"
        if export.failure:
            return "failed", f"it failed with {export.failure}"
        if export.manifest_location and export.status == "COMPLETED" and self._is_gone(export.manifest_location):
            return "failed", "its files are no longer in the bucket"
        return None

    def _is_gone(self, location: str) -> bool:
        """Whether an export's files were deleted, as a bucket's lifecycle rule does: the manifests, or the first."""
        store = self.services.store(location)
        try:
            store.open(*split_location(location)).close()
            manifest = read_manifest(store, location, expected_table=None)
            for file in manifest.files[:1]:
                store.open(manifest.bucket, file.key).close()
        except MissingObjectError:
            return True
        return False
