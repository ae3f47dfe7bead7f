"""Accept an export that exists: whole, of the mapped table, and as DynamoDB itself describes it.

Invariant: an export is refused before anything is written. If DynamoDB cannot be asked, that is reported, never
ignored; what is known without asking is compared all the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import loads, sources
from pipeline.core.errors import ConfigurationError, ReplicationError, TerminalError, TransientError
from pipeline.dynamodb.exports.exports import ExportStatus, describe_export, table_of_export
from pipeline.dynamodb.exports.manifest import read_manifest
from pipeline.dynamodb.exports.manifest_checks import listed, refuse_filtered
from pipeline.dynamodb.tables import identify

if TYPE_CHECKING:
    from pipeline.core.model.mapping import TableMapping
    from pipeline.dynamodb.exports.manifest import ExportManifest
    from pipeline.jobs.services import Services

Notify = Callable[[str], None]
"""Gets a line that should stay visible: what was requested, what could not be checked."""

_PLACES = ((1, "partition"), (3, "Region"), (4, "account"), (5, "table"))
_FLAG = "--accept-other-table (in Dagster: accept_other_table)"


@dataclass(frozen=True, slots=True)
class _Identity:
    """A table as far as it is known: its ARN or its name, and its id, which distinguishes it from another with that
    ARN.
    """

    arn_or_name: str
    table_id: str | None = None


def accept_export(
    services: Services,
    mapping: TableMapping,
    location: str,
    *,
    accept_other_table: bool = False,
    notify: Notify,
) -> ExportManifest:
    """Read the manifest at `location`, and return it if the export may be loaded or compared with.

    Raises TerminalError for an export that is filtered or projected, that differs from DynamoDB's description, or that
    belongs to another table, unless `accept_other_table`.
    """
    manifest = read_manifest(services.store(location), location, expected_table=None)
    if manifest.unknown_members:
        notify(
            f"the manifest {location} has members that this Dynaurora does not know: {listed(manifest.unknown_members)}"
        )
    asked = _ask_for_identity(services, mapping, notify)
    _check_table(services, mapping, manifest, asked, notify, accept_other_table=accept_other_table)
    if asked is not None and not manifest.scanned:
        _check_against_description(services, manifest, notify)
    return manifest


def check_export_arn(mapping: TableMapping, export_arn: str, *, accept_other_table: bool) -> None:
    """Raise ConfigurationError, before any wait, if it is not an export's ARN, or that of another table."""
    table_arn = table_of_export(export_arn)
    differences = _differences(table_arn, None, _Identity(mapping.table))
    if differences and not accept_other_table:
        raise ConfigurationError(
            f"taking the export {export_arn}: it is not of the mapped table {mapping.table}: {'; '.join(differences)}",
            table=mapping.name,
            hint=f"give an export of {mapping.table}; if you mean this one, add {_FLAG}",
        )


def refuse_filtered_export(export: ExportStatus) -> None:
    """Raise TerminalError if DynamoDB says that the export was filtered or projected."""
    refuse_filtered(export.filter_specification, f"taking the export {export.arn}")


def _ask_for_identity(services: Services, mapping: TableMapping, notify: Notify) -> _Identity | None:
    try:
        return _Identity(*identify(services.dynamodb, mapping.table))
    except ReplicationError as error:
        notify(
            f"could not ask DynamoDB which table {mapping.table} is ({error.message}); the export is only compared with"
            " the mapping and with earlier exports"
        )
        return None


def _check_table(
    services: Services,
    mapping: TableMapping,
    manifest: ExportManifest,
    asked: _Identity | None,
    notify: Notify,
    *,
    accept_other_table: bool,
) -> None:
    """Raise TerminalError naming what differs between the mapped table and the manifest's."""
    mapped = _Identity(mapping.table)
    differences = _differences(manifest.table_arn, manifest.table_id, asked or mapped)
    if asked is None and not differences:
        earlier = _tables_before(services, mapping)
        if earlier and manifest.table_arn not in earlier:
            differences = _differences(manifest.table_arn, None, _Identity(earlier[0]))
    if not differences:
        return
    what = f"the export {manifest.location} is not of the mapped table {mapping.table}: {'; '.join(differences)}"
    if accept_other_table:
        notify(f"accepted as asked: {what}")
        return
    raise TerminalError(
        f"taking an export: {what}",
        table=mapping.name,
        hint="give an export of the mapped table, or leave it out and a new one is requested; if you mean this one (a"
        f" table that was restored, copied or recreated, or another Region's replica), add {_FLAG}",
    )


def _differences(table_arn: str, table_id: str | None, known: _Identity) -> list[str]:
    """Return how a manifest's table differs from the known one."""
    theirs = table_arn.split(":", 5)
    ours = known.arn_or_name.split(":", 5) if known.arn_or_name.startswith("arn:") else []
    if not ours:
        name = theirs[-1].removeprefix("table/")
        return [] if name == known.arn_or_name else [f"table {name}, not {known.arn_or_name}"]
    found = [
        f"{name} {theirs[place].removeprefix('table/')}, not {ours[place].removeprefix('table/')}"
        for place, name in _PLACES
        if len(theirs) > place and theirs[place] != ours[place]
    ]
    if not found and table_id and known.table_id not in {None, table_id}:
        found.append(
            f"table id {table_id}, not {known.table_id}: the table was deleted and recreated since, or restored"
        )
    return found


def _tables_before(services: Services, mapping: TableMapping) -> list[str]:
    """ARN of the source of record; while it is not known, those whose exports were loaded before, the newest first."""
    with closing(services.connect("dynaurora export")) as connection:
        record = sources.read(connection, mapping.name)
        if record is not None and record.arn:
            return [record.arn]
        return [table_of_export(arn) for arn in loads.loaded_export_arns(connection, mapping.name)]


def _check_against_description(services: Services, manifest: ExportManifest, notify: Notify) -> None:
    try:
        export = describe_export(services.dynamodb, manifest.export_arn)
    except (TerminalError, TransientError) as error:
        notify(
            f"could not ask DynamoDB about the export ({error.message}); that it is whole is known from its manifest"
            " alone"
        )
        return
    refuse_filtered_export(export)
    if export.item_count is not None and export.item_count != manifest.item_count:
        raise TerminalError(
            f"reading the manifest {manifest.location}: it states {manifest.item_count} items, and DynamoDB says that"
            f" the export has {export.item_count}",
            hint="the manifest was altered; copy the export again from where DynamoDB wrote it, or request another",
        )
