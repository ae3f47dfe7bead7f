"""Everything that Dagster knows about one table, from its mapping.

Invariant: a table's definitions depend on its mapping alone, so tables are merged without regard to each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from dagster_project.catch_up import catch_up_asset, catch_up_job, catch_up_schedule
from dagster_project.forms import full_load_form, job_form, reconcile_form
from dagster_project.graph import replication_spec, source_spec
from dagster_project.history_checks import history_checks
from dagster_project.keys import AssetJob, TableKeys
from dagster_project.load_assets import load_assets
from dagster_project.promotion import promote_job
from dagster_project.purge import purge_job, purge_schedule
from dagster_project.reconciliation import reconciliation_asset
from dagster_project.replay import replay_job
from dagster_project.replication_checks import replication_checks
from dagster_project.repointing import repoint_job
from dagster_project.run_workers import LOAD_MAX_SECONDS, load_files_job

if TYPE_CHECKING:
    from pipeline.core.model.mapping import TableMapping

RECONCILE_MAX_SECONDS = 24 * 3600


def table_definitions(mapping: TableMapping) -> dg.Definitions:
    """Return the assets, checks, jobs and schedules of one table. Raises DagsterInvalidDefinitionError."""
    full_load, reconcile, catch_up = _full_load(mapping), _reconcile(mapping), catch_up_job(mapping)
    purge = purge_job(mapping)
    schedules = [
        _reconcile_schedule(mapping, reconcile),
        catch_up_schedule(mapping, catch_up),
        purge_schedule(mapping, purge),
    ]
    return dg.Definitions(
        assets=[
            source_spec(mapping),
            load_assets(mapping),
            replication_spec(mapping),
            reconciliation_asset(mapping),
            catch_up_asset(mapping),
        ],
        asset_checks=[replication_checks(mapping), history_checks(mapping)],
        jobs=[
            full_load,
            load_files_job(mapping),
            reconcile,
            catch_up,
            purge,
            promote_job(mapping),
            replay_job(mapping),
            repoint_job(mapping),
        ],
        schedules=[schedule for schedule in schedules if schedule is not None],
    )


def _full_load(mapping: TableMapping) -> AssetJob:
    keys = TableKeys(mapping.name)
    return dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves a parameter of PathLike out
        keys.full_load_job,
        selection=dg.AssetSelection.assets(keys.s3_export, keys.aurora_table),
        config=job_form(full_load_form(mapping), keys.full_load_op),
        # One step. A process of its own would only cost its start.
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": LOAD_MAX_SECONDS, "dynaurora/table": mapping.name},
        description=f"Exports `{mapping.table}` and loads the export, while replication continues. Run it first, and"
        " again if the stream lost records. It is safe to run again at any time: rows that are newer stay.",
    )


def _reconcile(mapping: TableMapping) -> AssetJob:
    keys = TableKeys(mapping.name)
    return dg.define_asset_job(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves a parameter of PathLike out
        keys.reconcile_job,
        selection=dg.AssetSelection.assets(keys.reconciliation),
        config=job_form(reconcile_form(mapping), keys.reconcile_op),
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": RECONCILE_MAX_SECONDS, "dynaurora/table": mapping.name},
        description=f"Compares every row with a snapshot of `{mapping.table}`, reports what differs, and repairs it on"
        " request.",
    )


def _reconcile_schedule(mapping: TableMapping, reconcile: AssetJob) -> dg.ScheduleDefinition | None:
    """Return the reconciliation schedule, if the mapping has one. It is on, because it only reports."""
    cron = mapping.schedule.get("reconcile")
    if cron is None:
        return None
    return dg.ScheduleDefinition(
        name=f"{reconcile.name}_schedule",
        job=reconcile,
        cron_schedule=cron,
        execution_timezone=mapping.schedule.get("timezone", "UTC"),
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Reconciles as the mapping's `schedule` says ({mapping.path}). It is a schedule, not an automation"
        " on change, because a table that does not change must be proven equal too.",
    )
