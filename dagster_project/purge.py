"""Purge as a job. It is no asset, because it makes nothing to look at; its report is in the run.

Invariant: the schedule is off until a person turns it on, because what is purged cannot be brought back.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
from contextlib import closing
from datetime import timedelta

import dagster as dg

from dagster_project.failures import explained
from dagster_project.forms import PurgeChoice, job_form
from dagster_project.keys import TableKeys
from dagster_project.resources import ServicesResource
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.purge import purge_table

MAX_SECONDS = 12 * 3600
_DAILY = "30 4 * * *"


def purge_job(mapping: TableMapping) -> dg.JobDefinition:
    """Define the job of a table."""
    keys = TableKeys(mapping.name)

    @dg.op(name=keys.purge_op, config_schema=PurgeChoice.to_fields_dict(), pool=keys.load_pool)
    def purge(context: dg.OpExecutionContext, dynaurora: ServicesResource) -> None:
        choice = PurgeChoice(**context.op_config)
        with explained(context), closing(dynaurora.services.connect("dynaurora purge")) as connection:
            report = purge_table(connection, mapping, retention=timedelta(days=choice.retention_days))
        through = (
            f"{report.through:%Y-%m-%d %H:%M:%S} UTC" if report.through else "nowhere: no snapshot was loaded whole"
        )
        context.log.info("purged through %s, bounded by %s", through, report.bound)
        found = {
            "tombstones": report.tombstones,
            "through": through,
            "bound": report.bound,
            "writers_folded": report.writers_folded,
            "reconciliations": report.reconciliations,
            "exports": report.exports,
            "seconds": round(report.seconds, 3),
        }
        if report.kept:  # a failure's own metadata: that of an output is not shown without the output
            raise dg.Failure(
                f"{sum(report.kept.values()):,} tombstones kept: {'; '.join(report.kept)}",
                metadata=found | {"kept": report.kept, "next step": report.next_step},
                allow_retries=False,
            )
        context.add_output_metadata(found)

    @dg.job(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves parameters of its overloads out
        name=keys.purge_job,
        config=job_form(PurgeChoice, keys.purge_op),
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": MAX_SECONDS, "dynaurora/table": mapping.name},
        description=f"Removes tombstones of `{mapping.table}` that are older than the retention, and leftovers: staging"
        " tables of killed runs, watermarks of writers that are gone, old bookkeeping. From then on, a change as old as"
        " what was purged is refused if its key has no row.",
    )
    def purging() -> None:
        purge()

    return purging


def purge_schedule(mapping: TableMapping, job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Define its schedule: daily, off until it is turned on."""
    return dg.ScheduleDefinition(
        name=f"{job.name}_schedule",
        job=job,
        cron_schedule=_DAILY,
        execution_timezone=mapping.schedule.get("timezone", "UTC"),
        default_status=dg.DefaultScheduleStatus.STOPPED,
        description="Purges daily with a retention of 30 days. It is off: turn it on after a full load.",
    )
