"""A full load: the export, and the table that is loaded from it.

Invariant: the only decision here is which export to load. Each asset is one call into the pipeline, and reports what it
did.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import dagster as dg

from dagster_project.console import export_links
from dagster_project.failures import explained
from dagster_project.forms import full_load_form
from dagster_project.graph import aurora_spec, export_spec
from dagster_project.keys import TableKeys
from dagster_project.progress_log import ProgressLog
from dagster_project.resources import ServicesResource
from dagster_project.run_workers import RunWorkers
from dagster_project.schema_check import judge_schema, schema_spec
from pipeline.core.errors import ConfigurationError
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.load.load import LoadReport
from pipeline.jobs.load.load_once import load_once
from pipeline.jobs.schema import schema_report
from pipeline.jobs.snapshots.snapshot import ScanChoice, Snapshot, take_snapshot

_EXPORTS_LOOKED_AT = 100
# Tags of a run that was launched to resume a failed one.
_RESUMES = ("dagster/is_resume_retry", "dagster/is_asset_resume_retry")
# And of a run that Dagster launched by itself to replace one that it took for dead. That one may live, and be loading.
_RETRY = "dagster/retry_number"


def load_assets(mapping: TableMapping) -> dg.AssetsDefinition:
    """Define the export and the table loaded from it.

    They are one step, so that one form serves both, one pool covers both, and a retry of either, however it is
    launched, resumes with the export that the first one had taken. Workers inside the step load the files: far faster
    than one step for each file. If another run already leads a load of the table, this one joins it, and ends as that
    one does.
    """
    keys = TableKeys(mapping.name)
    form = full_load_form(mapping)

    @dg.multi_asset(
        name=keys.full_load_op,
        specs=[export_spec(mapping), aurora_spec(mapping)],
        config_schema=form.to_fields_dict(),
        check_specs=[schema_spec(keys)],
        pool=keys.load_pool,
        can_subset=True,
    )
    def full_load(
        context: dg.AssetExecutionContext, dynaurora: ServicesResource
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        choice = form(**context.op_execution_context.op_config)
        with explained(context):
            schema = schema_report(dynaurora.services, mapping)
        # Reported together with the table's own materialization, if there is one: a later materialization would clear
        # the result.
        judged = [judge_schema(keys, schema)] if context.selected_asset_check_keys else []
        if keys.aurora_table not in context.selected_asset_keys or not schema.ready:
            yield from judged
        with explained(context):
            if context.selected_asset_keys:
                schema.require()

        def take() -> Snapshot:
            return take_snapshot(
                dynaurora.services,
                mapping,
                export_arn=choice.export_arn or None,
                manifest=choice.manifest or None,
                scan=ScanChoice(choice.read_capacity) if choice.scan else None,
                accept_other_table=choice.accept_other_table,
                on_progress=context.log.info,
                new_export=choice.new_export,
                timeout=choice.timeout,
                on_notice=context.log.warning,
            )

        location, takes = export_of_this_run(context, keys), keys.s3_export in context.selected_asset_keys
        if keys.aurora_table not in context.selected_asset_keys:
            if location is None and takes:
                with explained(context):
                    snapshot = take()
                yield _export_result(keys, snapshot)
            return
        with explained(context), RunWorkers(context, keys, choice.run_workers, choice.workers) as run_workers:
            for done in load_once(
                dynaurora.services,
                mapping,
                take,
                location=location or (None if takes else latest_export(context, keys)),
                joins=not choice.names_one,
                say=context.log.info,
                margin=timedelta(seconds=choice.margin_seconds),
                accept_other_table=choice.accept_other_table,
                workers=choice.workers,
                on_progress=ProgressLog(context.log.info),
                on_lead=run_workers.launch,
            ):
                if isinstance(done, Snapshot):
                    yield _export_result(keys, done)
                else:
                    context.log.info("%s: %s", done.table, done.ways)
                    yield dg.MaterializeResult(
                        asset_key=keys.aurora_table, metadata=_load_metadata(done), check_results=judged
                    )

    return full_load


def export_of_this_run(context: dg.AssetExecutionContext, keys: TableKeys) -> str | None:
    """Return the location of the export that this run, or the run that it resumes, has taken; None if there is none
    yet.

    It comes from the event log, so that another process on another host can resume. A run that starts another run's
    work over takes an export of its own.
    """
    tags, ours = context.run.tags, {context.run.run_id}
    if _RETRY in tags or any(tags.get(tag) == "true" for tag in _RESUMES):
        ours |= {tags.get("dagster/parent_run_id", ""), tags.get("dagster/root_run_id", "")}
    return next((location for run_id, location in _exports(context, keys) if run_id in ours), None)


def latest_export(context: dg.AssetExecutionContext, keys: TableKeys) -> str:
    """Return the location of the newest export that was taken. Raises ConfigurationError if there is none."""
    for _, location in _exports(context, keys):
        return location
    raise ConfigurationError(
        "loading: no export has been taken",
        table=keys.name,
        hint=f"launch the job {keys.full_load_job}, which first takes one",
    )


def _exports(context: dg.AssetExecutionContext, keys: TableKeys) -> Iterator[tuple[str, str]]:
    """Return run and location of the exports taken, newest first."""
    for record in context.instance.fetch_materializations(keys.s3_export, limit=_EXPORTS_LOOKED_AT).records:
        materialization = record.asset_materialization
        location = materialization.metadata.get("location") if materialization else None
        if location is not None:
            yield record.run_id, str(location.value)


def _export_result(keys: TableKeys, snapshot: Snapshot) -> dg.MaterializeResult[Any]:
    return dg.MaterializeResult(
        asset_key=keys.s3_export,
        metadata=_export_metadata(snapshot),
        data_version=dg.DataVersion(snapshot.location),
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
    folder = snapshot.location.removeprefix(f"s3://{manifest.bucket}/").rpartition("/")[0]
    return metadata | export_links(snapshot.export_arn, manifest.bucket, folder)


def _load_metadata(report: LoadReport) -> dict[str, dg.MetadataValue]:
    rows = report.rows - report.ignored
    return {
        "dagster/row_count": dg.MetadataValue.int(rows - report.rejected),
        "items": dg.MetadataValue.int(report.items),
        "applied": dg.MetadataValue.int(report.applied),
        "stale": dg.MetadataValue.int(report.stale),
        "rejected": dg.MetadataValue.int(report.rejected),
        "ignored": dg.MetadataValue.int(report.ignored),
        "files": dg.MetadataValue.int(report.files),
        "files_resumed": dg.MetadataValue.int(report.files_resumed),
        "size_bytes": dg.MetadataValue.int(report.size_bytes),
        "seconds": dg.MetadataValue.float(round(report.seconds, 3)),
        "lines_not_parsed": dg.MetadataValue.int(report.ways.unparsed),
        "lines_parsed": dg.MetadataValue.int(report.ways.parsed),
        "lines_the_general_way": dg.MetadataValue.int(report.ways.general),
        "rows_per_second": dg.MetadataValue.float(round(rows / report.seconds, 1) if report.seconds else 0.0),
        "snapshot_time": dg.MetadataValue.timestamp(report.snapshot_time),
        "as_of": dg.MetadataValue.timestamp(report.as_of),
        "location": dg.MetadataValue.text(report.location),
        "already_loaded": dg.MetadataValue.bool(report.already_loaded),
        "strategy": dg.MetadataValue.text("; ".join([report.strategy, *report.merged_because, *report.aside_because])),
        "led_by_another_run": dg.MetadataValue.bool(report.led_elsewhere),
    }
