"""Checks of replication: is it behind, and does anything wait for a person.

Invariant: they are judged from the bookkeeping alone, the same way by the progress sensor and when launched by hand.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
from collections.abc import Iterator

import dagster as dg

from dagster_project.freshness import Freshness
from dagster_project.keys import TableKeys
from dagster_project.resources import ServicesResource
from pipeline.aurora.status import TableStatus
from pipeline.core.mapping import TableMapping
from pipeline.jobs.status import status

LAG, REJECTS = "lag", "rejects_waiting"


def replication_checks(mapping: TableMapping) -> dg.AssetChecksDefinition:
    """Define both checks as one step that reads the status once."""
    keys = TableKeys(mapping.name)

    @dg.multi_asset_check(name=f"{mapping.name}__replication_checks", specs=check_specs(mapping))
    def checks(dynaurora: ServicesResource) -> Iterator[dg.AssetCheckResult]:
        (found,) = status(dynaurora.services, [mapping])
        yield from judge(keys, Freshness.of(mapping), found)

    return checks


def check_specs(mapping: TableMapping) -> list[dg.AssetCheckSpec]:
    """Describe the checks."""
    keys, freshness = TableKeys(mapping.name), Freshness.of(mapping)
    return [
        dg.AssetCheckSpec(
            LAG,
            asset=keys.replication,
            description=f"The newest change was applied within {_span(freshness.warn.total_seconds())} of being made"
            f" (an error beyond {_span(freshness.fail.total_seconds())}). When late: look at the replicator's errors,"
            " throttles and iterator age in CloudWatch, and at the load of the database. Of a replicator that stands"
            " still the freshness of this asset tells.",
        ),
        dg.AssetCheckSpec(
            REJECTS,
            asset=keys.replication,
            description="No record waits that could not be converted. When some do: `dynaurora rejects list"
            f" {mapping.name}` shows the reasons; mend the mapping, then replay them.",
        ),
    ]


def judge(keys: TableKeys, freshness: Freshness, found: TableStatus) -> list[dg.AssetCheckResult]:
    """Judge a table's status; lag first, then rejects."""
    return [_lag(keys, freshness, found), _rejects(keys, found)]


def _lag(keys: TableKeys, freshness: Freshness, found: TableStatus) -> dg.AssetCheckResult:
    lag, warn, fail = found.lag_seconds, freshness.warn.total_seconds(), freshness.fail.total_seconds()
    metadata: dict[str, dg.MetadataValue] = {}
    if lag is None:
        description = "no change has been applied yet; deploy the replicator, or write to the table"
    else:
        description = f"the newest change was applied {_span(lag)} after it was made"
        metadata["lag_seconds"] = dg.MetadataValue.float(round(lag, 3))
    return dg.AssetCheckResult(
        passed=lag is not None and lag <= warn,
        asset_key=keys.replication,
        check_name=LAG,
        severity=dg.AssetCheckSeverity.ERROR if lag is not None and lag > fail else dg.AssetCheckSeverity.WARN,
        description=description,
        metadata=metadata,
    )


def _rejects(keys: TableKeys, found: TableStatus) -> dg.AssetCheckResult:
    waiting = found.rejects_waiting
    return dg.AssetCheckResult(
        passed=waiting == 0,
        asset_key=keys.replication,
        check_name=REJECTS,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{waiting} rejects wait to be replayed" if waiting else "no reject waits",
        metadata={"rejects_waiting": dg.MetadataValue.int(waiting)},
    )


def _span(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"
