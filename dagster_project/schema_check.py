"""The check that the database is as the mapping says. A load begins with it, and starts nothing if it fails.

Invariant: it is evaluated with every load and on its own, and judged in the same way.
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
        description="The database has the tables, columns and view that the mapping describes. If it fails, loads are"
        " refused before they start, unless only a grant to a reader is missing: run"
        f" `dynaurora migrate {keys.name}`. If something needs a person, such as"
        " narrowing a column, that command says what to do.",
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
