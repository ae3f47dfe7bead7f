"""The assets of one table: what each node is, in words for the person on duty, and how they depend on each other.

    dynamodb_table → s3_export → aurora_table → reconciliation
                   ↘ replication ↗
                   ↘ catch_up

Invariant: the source table and replication are external: Dagster shows them and starts neither. Replication's
events carry no data version, so that they never make the Aurora table look out of date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from dagster_project.columns import column_lineage, source_schema, target_schema
from dagster_project.console import exports_anywhere, table_by_name
from dagster_project.freshness import Freshness
from dagster_project.keys import TableKeys
from pipeline.core.model import history

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.core.model.mapping import TableMapping

Metadata = dict[str, dg.MetadataValue | str]

_KINDS = {
    "dynamodb_table": {"aws", "dynamodb"},
    "s3_export": {"aws", "s3"},
    "replication": {"aws", "lambda"},
    "aurora_table": {"aurora", "postgres"},
    "reconciliation": {"postgres"},
    "catch_up": {"aws", "s3", "postgres"},
}


def source_spec(mapping: TableMapping) -> dg.AssetSpec:
    """The DynamoDB table."""
    keys = TableKeys(mapping.name)
    return _spec(
        mapping,
        keys.dynamodb_table,
        f"The DynamoDB table `{mapping.table}`, which your application writes. Nothing here writes to it. Its key is"
        f" {_key_text(mapping.key)}. The columns are the attributes that the mapping names.",
        metadata={
            "dagster/table_name": mapping.table,
            "dagster/column_schema": source_schema(mapping),
            **table_by_name(mapping.table),
        },
    )


def export_spec(mapping: TableMapping) -> dg.AssetSpec:
    """The export."""
    keys = TableKeys(mapping.name)
    return _spec(
        mapping,
        keys.s3_export,
        f"A full export of `{mapping.table}` in S3, as of one point in time. Materializing it requests a new export and"
        " waits until it is complete (minutes), or uses one that exists. It uses no read capacity of the table. To"
        f" load, launch the job `{keys.full_load_job}`.",
        deps=[keys.dynamodb_table],
        metadata={"dagster/column_schema": source_schema(mapping), **exports_anywhere()},
    )


def replication_spec(mapping: TableMapping) -> dg.AssetSpec:
    """Replication."""
    keys, freshness = TableKeys(mapping.name), Freshness.of(mapping)
    return _spec(
        mapping,
        keys.replication,
        f"Changes of `{mapping.table}` that the replicator's Lambda function applies from the table's stream. It is"
        " materialized while every change has arrived, even if nothing is written. If there is no materialization,"
        " changes are waiting, or nobody could look: the check `lag` says which.",
        deps=[keys.dynamodb_table],
        freshness_policy=freshness.policy,
    )


def aurora_spec(mapping: TableMapping) -> dg.AssetSpec:
    """The table in Aurora."""
    keys = TableKeys(mapping.name)
    views = [target.view_name for target in mapping.tables]
    return _spec(
        mapping,
        keys.aurora_table,
        f"`{'`, `'.join(views)}` in Aurora PostgreSQL: the rows that exist, for people to query. Materializing it loads"
        " the export above it under the ordering rule, so rows that replication has applied since stay. After that,"
        " replication keeps it up to date. A load that was killed resumes with the files that it had not finished.",
        deps=[keys.s3_export, keys.replication],
        metadata={
            "dagster/table_name": ", ".join(views),
            "dagster/column_schema": target_schema(mapping),
            "dagster/column_lineage": column_lineage(mapping, keys.dynamodb_table),
            **_readers(mapping),
            **_histories(mapping),
        },
    )


def catch_up_spec(mapping: TableMapping) -> dg.AssetSpec:
    """The hours that were caught up."""
    keys = TableKeys(mapping.name)
    return _spec(
        mapping,
        keys.catch_up,
        f"Everything that was written to `{mapping.table}` in an hour, deletes too, applied from an incremental export."
        " A green hour is in Aurora, whatever the stream lost. Empty hours are normal; run this only after an outage:"
        f" launch a backfill over its hours, here or with the job `{keys.catch_up_job}`. Anything older than the"
        " table's point-in-time recovery (35 days at most) needs a full load.",
        deps=[keys.dynamodb_table],
    )


def reconciliation_spec(mapping: TableMapping) -> dg.AssetSpec:
    """The proof."""
    keys = TableKeys(mapping.name)
    return _spec(
        mapping,
        keys.reconciliation,
        f"The last comparison of every row with a snapshot of `{mapping.table}`. Rows that changed around the time of"
        " the snapshot are in flight and not judged. Every other difference is read again from DynamoDB before it is"
        f" called drift. Launch `{keys.reconcile_job}`; with `repair: true` it repairs the drift.",
        deps=[keys.aurora_table],
    )


def _spec(
    mapping: TableMapping,
    key: dg.AssetKey,
    description: str,
    *,
    deps: list[dg.AssetKey] | None = None,
    metadata: Mapping[str, dg.MetadataValue | str] | None = None,
    freshness_policy: dg.FreshnessPolicy | None = None,
) -> dg.AssetSpec:
    return dg.AssetSpec(
        key,
        deps=deps or [],
        description=description,
        group_name=mapping.name,
        kinds=_KINDS[key.path[-1]],
        owners=list(mapping.owners),
        metadata={**(metadata or {}), "mapping": dg.PathMetadataValue(mapping.path)},
        freshness_policy=freshness_policy,
    )


def _readers(mapping: TableMapping) -> dict[str, str]:
    """The roles of `readers`, by view."""
    found = [f"{target.view_name}: {', '.join(target.readers)}" for target in mapping.tables if target.readers]
    return {"readers": "; ".join(found)} if found else {}


def _histories(mapping: TableMapping) -> dict[str, str]:
    """The views of histories, and how far back they answer."""
    found = [
        f"{target.schema}.{history.view_name(target)}: every version for {target.history.keep.days} days"
        for target in mapping.targets
        if target.history
    ]
    return {"history": "; ".join(found)} if found else {}


def _key_text(key: Mapping[str, str]) -> str:
    return " and ".join(f"`{name}` ({tag})" for name, tag in key.items())
