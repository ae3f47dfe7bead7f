"""Re-pointing as a job: the table that the mapping file names becomes the source of record, in place of another.

Invariant: it starts nothing else. The run lists the next steps, in order, as the command line prints them.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
import dagster as dg

from dagster_project.failures import explained
from dagster_project.forms import RepointChoice, job_form
from dagster_project.keys import TableKeys
from dagster_project.resources import ServicesResource
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.repoint import RepointReport, repoint

MAX_SECONDS = 3600


def repoint_job(mapping: TableMapping) -> dg.JobDefinition:
    """Define the job of a table."""
    keys = TableKeys(mapping.name)

    @dg.op(name=keys.repoint_op, config_schema=RepointChoice.to_fields_dict(), pool=keys.load_pool)
    def source(context: dg.OpExecutionContext, dynaurora: ServicesResource) -> None:
        choice = RepointChoice(**context.op_config)

        def tell(effects: tuple[str, ...]) -> None:
            for effect in effects:
                context.log.info("%s", effect)

        with explained(context):
            report = repoint(dynaurora.services, mapping, dry_run=choice.dry_run, on_effects=tell)
        context.log.info("%s", _told(report))
        context.add_output_metadata(_metadata(report))

    @dg.job(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves parameters of its overloads out
        name=keys.repoint_job,
        config=job_form(RepointChoice, keys.repoint_op),
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": MAX_SECONDS, "dynaurora/table": mapping.name},
        description=f"Makes `{mapping.table}`, which the mapping file names, the source of record: for a table that was"
        " restored under another name, or moved. First: change `source: table:` in the file and reload the code"
        " location. From the switch on, changes of the table before are refused. The run lists the next steps: deploy"
        " the replicator on the new stream, load, reconcile with repair. It changes nothing if the table is already the"
        " source of record.",
    )
    def repointing() -> None:
        source()

    return repointing


def _told(report: RepointReport) -> str:
    if not report.effects:
        return f"nothing to do: {report.new_arn} is already the source of record"
    if report.since is None:
        return f"would switch from {report.old_table} to {report.new_table}; nothing was switched"
    return f"{report.new_arn} is the source of record since {report.since:%Y-%m-%d %H:%M:%S} UTC"


_STEPS = dg.TableSchema([dg.TableColumn("step", type="int"), dg.TableColumn("what to do")])


def _metadata(report: RepointReport) -> dict[str, dg.MetadataValue]:
    steps = [dg.TableRecord({"step": n, "what to do": step}) for n, step in enumerate(report.next_steps, 1)]
    return {
        "result": dg.MetadataValue.text(_told(report)),
        "before": dg.MetadataValue.text(report.old_arn or report.old_table),
        "source of record": dg.MetadataValue.text(
            report.old_arn or report.old_table if report.to_do else report.new_arn
        ),
        "next steps": dg.MetadataValue.table(steps, _STEPS),
    }
