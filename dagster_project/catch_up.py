"""Catch-up as an asset with hourly partitions: an hour is green once an incremental export of it was applied.

Invariant: a run applies the hours of its partitions as one range. So a backfill of a day is one run, with as few
exports as the loads and catch-ups before it allow.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
from croniter import croniter

from dagster_project.failures import explained
from dagster_project.forms import CatchUpChoice, catch_up_form
from dagster_project.graph import catch_up_spec
from dagster_project.keys import AssetJob, TableKeys
from dagster_project.resources import ServicesResource
from pipeline.core.exports.windows import RECOVERY
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.catch_up.catch_up import CatchUpReport, WindowReport, catch_up

_MOST_HOURS_A_RUN = 24
MAX_SECONDS = 24 * 3600


def hours(now: datetime | None = None) -> dg.HourlyPartitionsDefinition:
    """Return the hours that can still be caught up, in UTC and whole days. Older hours have no partition."""
    first = (now or datetime.now(UTC)) - RECOVERY
    return dg.HourlyPartitionsDefinition(first.replace(hour=0, minute=0, second=0, microsecond=0), timezone="UTC")


def catch_up_asset(mapping: TableMapping) -> dg.AssetsDefinition:
    """Define the hours of a table."""
    keys = TableKeys(mapping.name)
    form = catch_up_form(mapping)

    @dg.multi_asset(
        name=keys.catch_up_op,
        specs=[catch_up_spec(mapping)],
        config_schema=form.to_fields_dict(),
        partitions_def=hours(),
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=_MOST_HOURS_A_RUN),
        pool=keys.load_pool,
    )
    def caught_up(context: dg.AssetExecutionContext, dynaurora: ServicesResource) -> dg.MaterializeResult[Any]:
        choice: CatchUpChoice = form(**context.op_execution_context.op_config)
        span = context.partition_time_window
        with explained(context):
            report = catch_up(
                dynaurora.services,
                mapping,
                span.start,
                span.end,
                margin=timedelta(seconds=choice.margin_seconds),
                workers=choice.workers,
                timeout=choice.timeout,
                on_progress=context.log.info,
            )
        return dg.MaterializeResult(asset_key=keys.catch_up, metadata=_metadata(report))

    return caught_up


def catch_up_job(mapping: TableMapping) -> AssetJob:
    """Define the job that catches up hours of the past."""
    keys = TableKeys(mapping.name)
    return dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves a parameter of PathLike out
        keys.catch_up_job,
        selection=dg.AssetSelection.assets(keys.catch_up),
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": MAX_SECONDS, "dynaurora/table": mapping.name},
        description=f"Applies what was written to `{mapping.table}` in the chosen hours from incremental exports,"
        " including deletes. Use it after the stream lost records. Launch it as a backfill over a range of hours; one"
        f" run takes up to {_MOST_HOURS_A_RUN} of them. It is safe to run again at any time.",
    )


def catch_up_schedule(mapping: TableMapping, job: AssetJob) -> dg.ScheduleDefinition | None:
    """Define the schedule, if the mapping has one. It launches the hours that have ended since its last run."""
    cron = mapping.schedule.get("catch_up")
    if cron is None:
        return None
    zone = mapping.schedule.get("timezone", "UTC")

    @dg.schedule(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves a parameter of PathLike out
        name=f"{job.name}_schedule",
        job=job,
        cron_schedule=cron,
        execution_timezone=zone,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Catches up as the mapping's `schedule` says ({mapping.path}): in one run, the hours that have"
        " ended since the last one, at most the newest 24. It costs an export a run (billed as 10 MB at least).",
    )
    def due(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        at = context.scheduled_execution_time
        last = _due_before(cron, zone, at)
        names = hours(at).get_partition_keys(current_time=at)
        ended = [name for name in names if hour_of(name) + timedelta(hours=1) > last]
        if not ended:
            return dg.SkipReason("no hour has ended since the last run")
        ended = ended[-_MOST_HOURS_A_RUN:]
        tags = {"dagster/asset_partition_range_start": ended[0], "dagster/asset_partition_range_end": ended[-1]}
        return dg.RunRequest(tags=tags, run_key=ended[-1]) if len(ended) > 1 else dg.RunRequest(partition_key=ended[0])

    return due


def hour_of(name: str) -> datetime:
    """Return the beginning of a partition's hour."""
    return datetime.strptime(name, "%Y-%m-%d-%H:%M").replace(tzinfo=UTC)


def _due_before(cron: str, zone: str, at: datetime) -> datetime:
    return croniter(cron, at.astimezone(ZoneInfo(zone))).get_prev(datetime)


def _metadata(report: CatchUpReport) -> dict[str, dg.MetadataValue]:
    return {
        "items": dg.MetadataValue.int(report.items),
        "applied": dg.MetadataValue.int(report.applied),
        "stale": dg.MetadataValue.int(report.stale),
        "rejected": dg.MetadataValue.int(report.rejected),
        "ignored": dg.MetadataValue.int(report.ignored),
        "read_again": dg.MetadataValue.int(report.read_again),
        "removed": dg.MetadataValue.int(report.removed),
        "seconds": dg.MetadataValue.float(round(report.seconds, 3)),
        "healed_through": dg.MetadataValue.timestamp(report.healed_through),
        "windows": dg.MetadataValue.table([_record(window) for window in report.windows], _WINDOWS),
    }


_WINDOWS = dg.TableSchema(
    [
        dg.TableColumn("from"),
        dg.TableColumn("to"),
        dg.TableColumn("seam", type="bool", description="lies across the cut between two windows"),
        dg.TableColumn("items", type="int"),
        dg.TableColumn("applied", type="int"),
        dg.TableColumn("already_applied", type="bool"),
        dg.TableColumn("location"),
    ]
)


def _record(window: WindowReport) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "from": f"{window.start:%Y-%m-%d %H:%M:%S}",
            "to": f"{window.end:%Y-%m-%d %H:%M:%S}",
            "seam": window.is_seam,
            "items": window.items,
            "applied": window.applied,
            "already_applied": window.already_applied,
            "location": window.location,
        }
    )
