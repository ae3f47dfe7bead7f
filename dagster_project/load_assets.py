"""The two steps of a full load: the export, and the table that is loaded from it.

Invariant: nothing is decided here. Each asset makes one call into the pipeline and reports what it did.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import dagster as dg

from dagster_project.failures import explained
from dagster_project.forms import LoadChoice, SnapshotChoice
from dagster_project.graph import aurora_spec, export_spec
from dagster_project.keys import TableKeys
from dagster_project.resources import ServicesResource
from pipeline.core.errors import ConfigurationError
from pipeline.core.mapping import TableMapping
from pipeline.jobs.load import LoadProgress, LoadReport, load
from pipeline.jobs.snapshot import Snapshot, take_snapshot

_LOG_EVERY_SECONDS = 2.0


def export_asset(mapping: TableMapping) -> dg.AssetsDefinition:
    """Define the export, requested anew or taken as it is."""
    keys = TableKeys(mapping.name)

    @dg.multi_asset(name=keys.op(keys.s3_export), specs=[export_spec(mapping)])
    def s3_export(
        context: dg.AssetExecutionContext, config: SnapshotChoice, dynaurora: ServicesResource
    ) -> dg.MaterializeResult[Any]:
        with explained(context):
            snapshot = take_snapshot(
                dynaurora.services,
                mapping,
                export_arn=config.export_arn or None,
                manifest=config.manifest or None,
                on_progress=context.log.info,
            )
        return dg.MaterializeResult(metadata=_export_metadata(snapshot), data_version=dg.DataVersion(snapshot.location))

    return s3_export


def aurora_asset(mapping: TableMapping) -> dg.AssetsDefinition:
    """Define the target, loaded from the export. One step with workers inside: far faster than a step a file."""
    keys = TableKeys(mapping.name)

    @dg.multi_asset(name=keys.op(keys.aurora_table), specs=[aurora_spec(mapping)], pool=keys.load_pool)
    def aurora_table(
        context: dg.AssetExecutionContext, config: LoadChoice, dynaurora: ServicesResource
    ) -> dg.MaterializeResult[Any]:
        with explained(context):
            report = load(
                dynaurora.services,
                mapping,
                exported_location(context, keys.s3_export),
                margin=None if config.margin_seconds is None else timedelta(seconds=config.margin_seconds),
                workers=config.workers,
                on_progress=ProgressLog(context.log.info),
            )
        return dg.MaterializeResult(metadata=_load_metadata(mapping, report))

    return aurora_table


def exported_location(context: dg.AssetExecutionContext, key: dg.AssetKey) -> str:
    """Location of the export to load: this run's own (or of the run it retries), else the latest.

    It comes from the event log, so that a load can be retried in another process and on another host.
    """
    found: str | None = None
    for record in context.instance.fetch_materializations(key, limit=100).records:
        materialization = record.asset_materialization
        location = materialization.metadata.get("location") if materialization else None
        if location is None:
            continue
        if record.run_id in {context.run_id, context.run.root_run_id, context.run.parent_run_id}:
            return str(location.value)
        found = found or str(location.value)
    if found is None:
        raise ConfigurationError(
            "loading: no export has been taken",
            table=key.path[0],
            hint=f"launch the job {TableKeys(key.path[0]).full_load_job}, which takes one first",
        )
    return found


class ProgressLog:
    """Writes a load's progress to the run's log: every two seconds, and at the end."""

    def __init__(self, write: Callable[[str], None], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._write, self._monotonic = write, monotonic
        self._written: float | None = None

    def __call__(self, progress: LoadProgress) -> None:
        """Take note of progress. The caller sees to it that calls do not overlap."""
        now, done = self._monotonic(), progress.files_done == progress.files
        if not done and self._written is not None and now - self._written < _LOG_EVERY_SECONDS:
            return
        self._written = now
        left = "" if progress.seconds_left is None or done else f", about {progress.seconds_left:.0f} s left"
        self._write(
            f"{progress.files_done} of {progress.files} files, {progress.rows_done:,} of {progress.rows:,} rows,"
            f" {progress.rows_per_second:,.0f} rows/s{left}"
        )


def _export_metadata(snapshot: Snapshot) -> dict[str, dg.MetadataValue]:
    manifest = snapshot.manifest
    metadata: dict[str, dg.MetadataValue] = {
        "location": dg.MetadataValue.text(snapshot.location),
        "dagster/uri": dg.MetadataValue.text(snapshot.location),
        "snapshot_time": dg.MetadataValue.timestamp(manifest.snapshot_time),
        "dagster/row_count": dg.MetadataValue.int(manifest.item_count),
        "files": dg.MetadataValue.int(len(manifest.files)),
        "size_bytes": dg.MetadataValue.int(manifest.billed_size_bytes),
        "manifest_checksums": dg.MetadataValue.text("verified" if manifest.checksummed else "none written"),
    }
    if snapshot.export_arn:
        metadata["export_arn"] = dg.MetadataValue.text(snapshot.export_arn)
    if manifest.bucket:
        folder = snapshot.location.removeprefix(f"s3://{manifest.bucket}/").rpartition("/")[0]
        metadata["console"] = dg.MetadataValue.url(
            f"https://console.aws.amazon.com/s3/buckets/{manifest.bucket}?prefix={folder}/"
        )
    return metadata


def _load_metadata(mapping: TableMapping, report: LoadReport) -> dict[str, dg.MetadataValue]:
    rows = report.items * len(mapping.targets)
    return {
        "dagster/row_count": dg.MetadataValue.int(rows - report.rejected),
        "items": dg.MetadataValue.int(report.items),
        "applied": dg.MetadataValue.int(report.applied),
        "stale": dg.MetadataValue.int(report.stale),
        "rejected": dg.MetadataValue.int(report.rejected),
        "files": dg.MetadataValue.int(report.files),
        "files_resumed": dg.MetadataValue.int(report.files_resumed),
        "size_bytes": dg.MetadataValue.int(report.size_bytes),
        "seconds": dg.MetadataValue.float(round(report.seconds, 3)),
        "rows_per_second": dg.MetadataValue.float(round(rows / report.seconds, 1) if report.seconds else 0.0),
        "snapshot_time": dg.MetadataValue.timestamp(report.snapshot_time),
        "as_of": dg.MetadataValue.timestamp(report.as_of),
        "location": dg.MetadataValue.text(report.location),
        "already_loaded": dg.MetadataValue.bool(report.already_loaded),
    }
