"""The check that the database is as the mapping says: a load begins with it, and starts nothing when it fails.

Invariant: it is evaluated with every load and on its own, judged the same way.
"""

from __future__ import annotations

import dagster as dg

from dagster_project.keys import TableKeys
from pipeline.jobs.schema import SchemaReport

SCHEMA = "schema_matches_mapping"


def schema_spec(keys: TableKeys) -> dg.AssetCheckSpec:
    """Describe the check."""
    return dg.AssetCheckSpec(
        SCHEMA,
        asset=keys.aurora_table,
        description="Tables, columns and view are in the database as the mapping has them. An error: they are not, and"
        f" loads are refused before they start. Run `dynaurora migrate {keys.name}`; what it does not do by itself,"
        " such as narrowing a column, it names with the way out.",
    )


def judge_schema(keys: TableKeys, report: SchemaReport) -> dg.AssetCheckResult:
    """Judge what differs."""
    return dg.AssetCheckResult(
        passed=report.matches,
        asset_key=keys.aurora_table,
        check_name=SCHEMA,
        severity=dg.AssetCheckSeverity.ERROR,
        description="the database is as the mapping says" if report.matches else f"{report.what}: {report.next_step}",
        metadata={"differences": dg.MetadataValue.int(len(report.steps) + len(report.refusals))},
    )
