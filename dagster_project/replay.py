"""Replay of rejects as a job: records that could not be converted are tried again under today's mapping.

Invariant: it succeeds only if every record that it looked at is resolved. A record that still cannot be converted
stays, with today's reason. Reports name the reason, never the value.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
from contextlib import closing

import dagster as dg
from pydantic import Field

from dagster_project.failures import explained
from dagster_project.forms import job_form
from dagster_project.keys import TableKeys
from dagster_project.resources import ServicesResource
from pipeline.aurora.bookkeeping.rejects import RejectGroup, groups
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.replay import ReplayReport, replay
from pipeline.jobs.schema import schema_report

MAX_SECONDS = 12 * 3600
_LOG_EVERY_RECORDS = 1_000
_SHOWN = 20


class ReplayChoice(dg.Config):
    """Retry records that could not be converted."""

    limit: int = Field(
        default=0,
        ge=0,
        description="How many records to look at, the oldest first, to try a corrected mapping on a few. 0: all that"
        " wait.",
    )


def replay_job(mapping: TableMapping) -> dg.JobDefinition:
    """Define the job of a table."""
    keys = TableKeys(mapping.name)

    @dg.op(name=keys.replay_op, config_schema=ReplayChoice.to_fields_dict(), pool=keys.load_pool)
    def rejects(context: dg.OpExecutionContext, dynaurora: ServicesResource) -> None:
        choice = ReplayChoice(**context.op_config)

        def tell(seen: int) -> None:
            if seen % _LOG_EVERY_RECORDS == 0:
                context.log.info("%s records looked at", f"{seen:,}")

        with explained(context):
            schema_report(dynaurora.services, mapping).require()
            with closing(dynaurora.services.connect("dynaurora rejects replay")) as connection:
                protected = dynaurora.services.with_key(mapping)
                report = replay(connection, protected, limit=choice.limit or None, on_progress=tell)
                left = [group for group in groups(connection, [mapping.name]) if group.waiting]
        context.log.info("%s", _told(report))
        context.add_output_metadata(_metadata(report, left))
        if report.failed:
            raise dg.Failure(
                description=f"{_told(report)}; {left[0].reason if left else 'see the log'}",
                metadata={"next step": _next_step(keys), "left": _left(left)},
                allow_retries=False,
            )

    @dg.job(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves parameters of its overloads out
        name=keys.replay_job,
        config=job_form(ReplayChoice, keys.replay_op),
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": MAX_SECONDS, "dynaurora/table": mapping.name},
        description="Retries the records that could not be converted, under today's mapping. Each is applied at the"
        " position in time that it had, so anything newer stays. First correct the mapping for the reasons that"
        f" `dynaurora rejects list {mapping.name}` shows, run `dynaurora migrate {mapping.name}`, and deploy it to the"
        " replicator. If some still cannot be converted, the job fails and says why; the others are done.",
    )
    def replaying() -> None:
        rejects()

    return replaying


def _told(report: ReplayReport) -> str:
    done = (
        f"{report.replayed:,} rejects replayed: {report.applied:,} applied, {report.stale:,} stale because a newer"
        " state was stored"
    )
    still = f"; {report.failed:,} still cannot be converted" if report.failed else ""
    return f"{done}{still}; {report.waiting:,} wait" if report.waiting else f"{done}; none waits"


def _next_step(keys: TableKeys) -> str:
    return (
        f"`dynaurora rejects list {keys.name}` names one for each reason; correct the mapping, run `dynaurora migrate"
        f" {keys.name}`, deploy it, then launch {keys.replay_job} again"
    )


def _metadata(report: ReplayReport, left: list[RejectGroup]) -> dict[str, dg.MetadataValue]:
    return {
        "replayed": dg.MetadataValue.int(report.replayed),
        "applied": dg.MetadataValue.int(report.applied),
        "stale": dg.MetadataValue.int(report.stale),
        "failed": dg.MetadataValue.int(report.failed),
        "waiting": dg.MetadataValue.int(report.waiting),
        "left": _left(left),
        "seconds": dg.MetadataValue.float(round(report.seconds, 3)),
    }


_SCHEMA = dg.TableSchema(
    [
        dg.TableColumn("view"),
        dg.TableColumn("reason"),
        dg.TableColumn("waiting", type="int"),
        dg.TableColumn("example", type="int", description="for `dynaurora rejects show`"),
    ]
)


def _left(left: list[RejectGroup]) -> dg.TableMetadataValue:
    rows = [
        dg.TableRecord({"view": group.target, "reason": group.reason, "waiting": group.waiting, "example": group.id})
        for group in left[:_SHOWN]
    ]
    return dg.MetadataValue.table(rows, _SCHEMA)
