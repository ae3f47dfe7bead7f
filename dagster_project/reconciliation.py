"""Reconciliation as an asset, with the check that says whether source and target are equal.

Invariant: the check is evaluated with every reconciliation and never apart from it, because it is about that
comparison.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from dagster_project.failures import explained
from dagster_project.forms import reconcile_form
from dagster_project.freshness import Freshness
from dagster_project.graph import reconciliation_spec
from dagster_project.keys import TableKeys
from dagster_project.resources import ServicesResource
from dagster_project.unmapped_check import judge_unmapped, unmapped_spec
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.reconcile.reconcile import Bounds, DriftSample, ReconcileReport, reconcile
from pipeline.jobs.snapshots.snapshot import ScanChoice, take_snapshot
from pipeline.jobs.unmapped import unmapped

PARITY = "parity"
_SHOWN = 20


def reconciliation_asset(mapping: TableMapping) -> dg.AssetsDefinition:
    """Define the comparison of every row with a snapshot."""
    keys = TableKeys(mapping.name)
    form = reconcile_form(mapping)

    @dg.multi_asset(
        name=keys.reconcile_op,
        specs=[reconciliation_spec(mapping)],
        config_schema=form.to_fields_dict(),
        check_specs=[parity_spec(keys), unmapped_spec(keys)],
        pool=keys.load_pool,
    )
    def reconciliation(
        context: dg.AssetExecutionContext, dynaurora: ServicesResource
    ) -> Iterator[dg.MaterializeResult[Any]]:
        choice = form(**context.op_execution_context.op_config)
        with explained(context):
            snapshot = take_snapshot(
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
            report = reconcile(
                dynaurora.services,
                mapping,
                snapshot.location,
                repair=choice.repair,
                margin=timedelta(seconds=choice.margin_seconds),
                accept_other_table=choice.accept_other_table,
                on_progress=context.log.info,
                bounds=Bounds(chunk_seconds=choice.chunk_seconds, max_share=choice.max_share),
            )
            landed = unmapped(dynaurora.services, mapping)
        yield dg.MaterializeResult(
            asset_key=keys.reconciliation,
            metadata=_metadata(report),
            check_results=[parity(report, Freshness.of(mapping), datetime.now(UTC)), judge_unmapped(keys, landed)],
        )

    return reconciliation


def parity_spec(keys: TableKeys) -> dg.AssetCheckSpec:
    """Describe the parity check."""
    return dg.AssetCheckSpec(
        PARITY,
        asset=keys.reconciliation,
        description="Every row that could be decided equals the source. It warns if there was drift and it was repaired"
        " (find out where it came from: rejects, rows changed by hand, a replicator that stood still), if some items"
        " cannot be stored under the mapping (see `dynaurora rejects list`), or if rows are still undecided when the"
        f" snapshot is older than the mapping's `freshness`. It fails if there is drift: launch `{keys.reconcile_job}`"
        " with `repair: true`.",
    )


def parity(report: ReconcileReport, freshness: Freshness, now: datetime) -> dg.AssetCheckResult:
    """Judge a reconciliation: drift that was repaired warns, drift that is still there fails.

    Undecided rows that differ from a snapshot older than the freshness allows also warn.
    """
    left = report.drift - report.repaired
    undecided = report.undecided > 0 and (report.needs_person or now - report.snapshot_time > freshness.warn)
    if left > 0:
        description = f"{left} of {report.drift} differing rows are not repaired"
    elif report.drift:
        description = f"{report.drift} differing rows were found and repaired"
    elif report.why_undecided and undecided:
        description = report.why_undecided
    elif report.rejected:
        description = f"{report.rejected} items cannot be stored under the mapping; all others are equal"
    else:
        description = f"{report.compared:,} rows compared, none differs"
        if report.why_undecided:
            description += f"; {report.why_undecided}"
    return dg.AssetCheckResult(
        passed=report.drift == 0 and report.rejected == 0 and not undecided,
        check_name=PARITY,
        severity=dg.AssetCheckSeverity.ERROR if left > 0 else dg.AssetCheckSeverity.WARN,
        description=description,
        metadata={
            "drift": dg.MetadataValue.int(report.drift),
            "not_repaired": dg.MetadataValue.int(left),
            "compared": dg.MetadataValue.int(report.compared),
            "undecided": dg.MetadataValue.int(report.undecided),
        },
    )


def _metadata(report: ReconcileReport) -> dict[str, dg.MetadataValue]:
    metadata: dict[str, dg.MetadataValue] = {
        "compared": dg.MetadataValue.int(report.compared),
        "in_flight": dg.MetadataValue.int(report.in_flight),
        "drift": dg.MetadataValue.int(report.drift),
        "missing": dg.MetadataValue.int(report.missing),
        "extra": dg.MetadataValue.int(report.extra),
        "different": dg.MetadataValue.int(report.different),
        "stale": dg.MetadataValue.int(report.stale),
        "undecided": dg.MetadataValue.int(report.undecided),
        "repaired": dg.MetadataValue.int(report.repaired),
        "rejected": dg.MetadataValue.int(report.rejected),
        "seconds": dg.MetadataValue.float(round(report.seconds, 3)),
        "rows_per_second": dg.MetadataValue.float(report.items_per_second),
        "resumed": dg.MetadataValue.bool(report.resumed),
        "snapshot": dg.MetadataValue.text(report.snapshot),
        "snapshot_time": dg.MetadataValue.timestamp(report.snapshot_time),
        "as_of": dg.MetadataValue.timestamp(report.as_of),
        "reconciliation_id": dg.MetadataValue.int(report.reconciliation_id),
    }
    if report.no_proof is not None:
        metadata["closes_no_loss"] = dg.MetadataValue.text(report.no_proof)
    if report.behind_seconds is not None:
        metadata["behind_seconds"] = dg.MetadataValue.float(round(report.behind_seconds, 1))
    if report.by_column:
        metadata["differing_columns"] = dg.MetadataValue.json(report.by_column)
    if report.samples:
        metadata["sample"] = dg.MetadataValue.table([_record(s) for s in report.samples[:_SHOWN]], _SAMPLE_SCHEMA)
    return metadata


_SAMPLE_SCHEMA = dg.TableSchema(
    [
        dg.TableColumn("view"),
        dg.TableColumn("key_digest", description="identifies the key without showing it"),
        dg.TableColumn("kind", description="missing in Aurora, extra there, different, or stale (an older state)"),
        dg.TableColumn("columns"),
        dg.TableColumn("repaired", type="bool"),
    ]
)


def _record(sample: DriftSample) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "view": sample.target,
            "key_digest": sample.key_digest,
            "kind": sample.kind,
            "columns": ", ".join(sample.columns),
            "repaired": sample.repaired,
        }
    )
