"""Promote as a job: fill new columns of the mapping from the jsonb column, while replication continues.

Invariant: it succeeds only if nothing is left for a person to do. What it filled stays in any case, and launching it
again resumes there.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
import time
from collections.abc import Callable
from difflib import get_close_matches

import dagster as dg
from pydantic import Field, field_validator

from dagster_project.failures import explained
from dagster_project.forms import job_form
from dagster_project.keys import TableKeys
from dagster_project.resources import ServicesResource
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.promote import PromotedAttribute, PromoteProgress, PromoteReport, promotable, promote
from pipeline.jobs.schema import schema_report

MAX_SECONDS = 24 * 3600
_LOG_EVERY_SECONDS = 2.0


class PromoteChoice(dg.Config):
    """Fill columns from the attributes in the jsonb column."""

    attribute: str = Field(
        default="",
        description="Attribute to promote, as the mapping spells it. Empty: all that wait in a jsonb column and have a"
        " column by now.",
    )


def promote_form(mapping: TableMapping) -> type[PromoteChoice]:
    """Form of a promotion, which knows the mapping's attributes."""
    known = promotable(mapping)

    class Promote(PromoteChoice):
        @field_validator("attribute")
        @classmethod
        def _has_a_column(cls, attribute: str) -> str:
            if attribute and attribute not in known:
                near = get_close_matches(attribute, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the attributes are {', '.join(known) or 'none'}"
                raise ValueError(f"no column can be filled from {attribute}; {hint}")
            return attribute

    return Promote


def promote_job(mapping: TableMapping) -> dg.JobDefinition:
    """Define the job of a table."""
    keys, form = TableKeys(mapping.name), promote_form(mapping)

    @dg.op(name=keys.promote_op, config_schema=form.to_fields_dict(), pool=keys.load_pool)
    def promotion(context: dg.OpExecutionContext, dynaurora: ServicesResource) -> None:
        choice = form(**context.op_config)
        with explained(context):
            schema_report(dynaurora.services, mapping).require()
            report = promote(
                dynaurora.services,
                mapping,
                attribute=choice.attribute or None,
                on_progress=_ProgressLog(context.log.info),
            )
        context.log.info("%s", _told(report))
        context.add_output_metadata(_metadata(report))
        _require_done(keys, report)

    @dg.job(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves parameters of its overloads out
        name=keys.promote_job,
        config=job_form(form, keys.promote_op),
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": MAX_SECONDS, "dynaurora/table": mapping.name},
        description="Fills new columns of the mapping from the attributes kept in the jsonb column, without a load."
        f" First add the column to the mapping, run `dynaurora migrate {mapping.name}`, and deploy the mapping to every"
        f" replicator. Afterwards `{keys.reconcile_job}` turns the check `unmapped_attributes` green. It fails if"
        " values do not fit their column, or if rows keep coming without it, and says which; the others are filled.",
    )
    def promoting() -> None:
        promotion()

    return promoting


def _require_done(keys: TableKeys, report: PromoteReport) -> None:
    """Raise Failure with the next step if a person has to do something."""
    if report.refused:
        what = f"{report.refused:,} values do not fit their column and stay in the jsonb column"
        next_step = (
            "see `refused` for the reasons; change the column's type or its on_error in the mapping, run `dynaurora"
            f" migrate {keys.name}`, deploy it, then launch {keys.promote_job} again"
        )
    elif not report.finished:
        what = "rows keep being written without the column: a replicator runs with an older mapping"
        next_step = (
            f"deploy the mapping to every replicator, launch {keys.promote_job} again, then {keys.reconcile_job} with"
            " `repair: true`"
        )
    else:
        return
    filled = f"{sum(found.filled for found in report.attributes):,} rows were filled"
    raise dg.Failure(
        description=f"{filled}, and {what}",
        metadata={"next step": next_step, "attributes": _table(report)},
        allow_retries=False,
    )


class _ProgressLog:
    """Writes progress to the run's log, every two seconds."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._written = write, time.monotonic()

    def __call__(self, progress: PromoteProgress) -> None:
        now = time.monotonic()
        if now - self._written >= _LOG_EVERY_SECONDS:
            self._written = now
            self._write(
                f"{progress.attribute} of {progress.target}: {progress.rows_done:,} of {progress.rows:,} rows looked at"
            )


def _told(report: PromoteReport) -> str:
    if not report.attributes:
        return "nothing waits in a jsonb column for a column of the mapping"
    filled = sum(found.filled for found in report.attributes)
    names = ", ".join(dict.fromkeys(found.attribute for found in report.attributes))
    return f"{filled:,} rows filled from {names}; none was locked longer than {report.longest_lock_seconds:.2f} s"


def _metadata(report: PromoteReport) -> dict[str, dg.MetadataValue]:
    return {
        "filled": dg.MetadataValue.int(sum(found.filled for found in report.attributes)),
        "refused": dg.MetadataValue.int(report.refused),
        "attributes": _table(report),
        "longest_lock_seconds": dg.MetadataValue.float(round(report.longest_lock_seconds, 3)),
        "seconds": dg.MetadataValue.float(round(report.seconds, 3)),
    }


_SCHEMA = dg.TableSchema(
    [
        dg.TableColumn("view"),
        dg.TableColumn("attribute"),
        dg.TableColumn("columns"),
        dg.TableColumn("filled", type="int", description="rows that were changed"),
        dg.TableColumn("settled", type="int", description="values that on_error made NULL or cut"),
        dg.TableColumn("refused", description="values that stay in the jsonb column, by reason"),
        dg.TableColumn("finished", type="bool", description="the last pass over all keys found nothing to do"),
    ]
)


def _table(report: PromoteReport) -> dg.TableMetadataValue:
    return dg.MetadataValue.table([_record(found) for found in report.attributes], _SCHEMA)


def _record(found: PromotedAttribute) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "view": found.target,
            "attribute": found.attribute,
            "columns": ", ".join(found.columns),
            "filled": found.filled,
            "settled": found.settled,
            "refused": "; ".join(f"{count:,}: {reason}" for reason, count in found.refused.items()),
            "finished": found.finished,
        }
    )
