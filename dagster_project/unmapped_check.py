"""The check that shows which attributes have no column: since when, in how many rows, and the lines that would add
them.

Invariant: it warns only if somebody has to do something: the mapping has a column for an attribute, and the attribute
still waits in the jsonb column. Attributes that are only kept there are shown, and that is what the mapping wants.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
import dagster as dg

from dagster_project.keys import TableKeys
from pipeline.jobs.unmapped import State, UnmappedAttribute, UnmappedReport

UNMAPPED = "unmapped_attributes"


def unmapped_spec(keys: TableKeys) -> dg.AssetCheckSpec:
    """Describe the check."""
    return dg.AssetCheckSpec(
        UNMAPPED,
        asset=keys.reconciliation,
        description="Every attribute that has a column in the mapping is in its column. It warns if some still wait in"
        f" the jsonb column, written before the mapping had the column: launch `{keys.promote_job}` (or run `dynaurora"
        f" promote {keys.name}`); the next reconciliation updates this check. It also lists the attributes that no"
        " column takes, with the line that would take each. They are kept exactly.",
    )


def judge_unmapped(keys: TableKeys, reports: list[UnmappedReport]) -> dg.AssetCheckResult:
    """Judge what is in the jsonb columns of a table's targets."""
    found = [attribute for report in reports for attribute in report.attributes]
    waiting = [attribute for attribute in found if attribute.state is State.WAITING]
    kept = len(found) - len(waiting)
    metadata: dict[str, dg.MetadataValue] = {"unmapped": dg.MetadataValue.int(kept)}
    if found:
        metadata["attributes"] = dg.MetadataValue.table([_record(attribute) for attribute in found], _SCHEMA)
    return dg.AssetCheckResult(
        passed=not waiting,
        asset_key=keys.reconciliation,
        check_name=UNMAPPED,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(waiting)} attributes wait to be promoted: launch `{keys.promote_job}` or run"
        f" `dynaurora promote {keys.name}`"
        if waiting
        else f"{kept} attributes have no column",
        metadata=metadata,
    )


_SCHEMA = dg.TableSchema(
    [
        dg.TableColumn("view"),
        dg.TableColumn("attribute"),
        dg.TableColumn("state", description="new: no column; in part: a column takes a part; waiting: run promote"),
        dg.TableColumn("rows", type="int"),
        dg.TableColumn("since", description="at least this old"),
        dg.TableColumn("types"),
        dg.TableColumn("line", description="for the columns of the mapping"),
    ]
)


def _record(attribute: UnmappedAttribute) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "view": attribute.target,
            "attribute": attribute.attribute,
            "state": attribute.state.value,
            "rows": attribute.rows,
            "since": f"{attribute.since:%Y-%m-%d %H:%M:%S} UTC",
            "types": ", ".join(f"{kind}: {rows}" for kind, rows in attribute.types.items()),
            "line": attribute.line or "",
        }
    )
