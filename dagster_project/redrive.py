"""Redrive as a job over all tables, and the sensor that launches it when there are new discarded batches.

Invariant: the sensor's cursor is its only memory. It launches once for what is new. What a redrive had to leave is
tried again only now and then, so that a damaged object does not start runs without end.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
import hashlib
import json
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import dagster as dg

from dagster_project.failures import explained
from dagster_project.forms import RedriveChoice, job_form
from dagster_project.resources import ServicesResource
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.redrive import RedriveReport, redrive, waiting

REDRIVE = "redrive"
GIVEN_UP = "given_up_batches"
_OP = "redrive__batches"
INTERVAL_SECONDS = 60
# What was left is tried again this often: 4 times a day.
AGAIN_SECONDS = 6 * 3600.0
_MOST_KEYS = 2_000
_MAX_SECONDS = 6 * 3600


def redrive_job(mappings: Sequence[TableMapping]) -> dg.JobDefinition:
    """Define the job over every mapping."""

    @dg.op(name=_OP, config_schema=RedriveChoice.to_fields_dict(), pool=REDRIVE)
    def batches(context: dg.OpExecutionContext, dynaurora: ServicesResource) -> None:
        choice = RedriveChoice(**context.op_config)
        with explained(context):
            report = redrive(
                dynaurora.services,
                mappings,
                prefix=choice.prefix or None,
                queue_url=choice.queue or None,
                only=choice.object or None,
                accept_partial=choice.accept_partial,
            )
        context.add_output_metadata(_metadata(report))
        if report.left:
            raise dg.Failure(
                description=f"{report.batches} batches were redriven, and {len(report.left)} were left in place:"
                f" {report.left[0].location}: {report.left[0].reason}",
                metadata={"left": _left(report), "next step": report.left[0].next_step or "see the table `left`"},
                allow_retries=False,
            )

    @dg.job(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves parameters of its overloads out
        name=REDRIVE,
        config=job_form(RedriveChoice, _OP),
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": _MAX_SECONDS},
        description="Applies the batches that Lambda discarded, for all tables, and moves them to `done/`. However late"
        " they are, they change nothing that is newer. If some had to be left, the job fails and names them; the others"
        " are done.",
    )
    def redriving() -> None:
        batches()

    return redriving


def redrive_sensor() -> dg.SensorDefinition:
    """Define the sensor on the prefix that DYNAURORA_ON_FAILURE names."""

    @dg.sensor(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves a parameter of PathLike out
        name=GIVEN_UP,
        job_name=REDRIVE,  # by name: Dagster recreates a sensor that has a job, with a parameter that is in beta
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks below DYNAURORA_ON_FAILURE for discarded batches, and launches `redrive` when there are new"
        " ones. A tick lists at most 2,000 objects and reads none.",
    )
    def given_up_batches(
        context: dg.SensorEvaluationContext, dynaurora: ServicesResource
    ) -> dg.SensorResult | dg.SkipReason:
        place = dynaurora.services.settings.on_failure
        if place is None:
            return dg.SkipReason("DYNAURORA_ON_FAILURE is not set, so it is not known where discarded batches go")
        memory: dict[str, Any] = json.loads(context.cursor or "{}")
        known: set[str] = set(memory.get("seen", ()))
        seen = {_short(key) for key in islice(waiting(dynaurora.services, place), _MOST_KEYS)}
        now = time.time()
        due = seen - known or (seen and now - memory.get("launched_at", 0.0) >= AGAIN_SECONDS)
        launched_at = now if due else memory.get("launched_at", 0.0)
        return dg.SensorResult(
            run_requests=[dg.RunRequest(run_key=f"{launched_at:.0f}")] if due else [],
            skip_reason=None if due else dg.SkipReason(f"{len(seen)} batches wait, none of them new"),
            cursor=json.dumps({"seen": sorted(seen), "launched_at": launched_at}),
        )

    return given_up_batches


def _short(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _metadata(report: RedriveReport) -> dict[str, Any]:
    return {
        "batches": report.batches,
        "records": report.records,
        "applied": report.applied,
        "stale": report.stale,
        "deleted": report.deleted,
        "rejected": report.rejected,
        "read_again": report.read_again,
        "of_other_tables": report.of_other_tables,
        "left": _left(report),
        "seconds": round(report.seconds, 3),
    }


_LEFT = dg.TableSchema([dg.TableColumn("location"), dg.TableColumn("reason"), dg.TableColumn("next step")])


def _left(report: RedriveReport) -> dg.TableMetadataValue:
    rows = [
        dg.TableRecord({"location": left.location, "reason": left.reason, "next step": left.next_step or ""})
        for left in report.left[:100]
    ]
    return dg.MetadataValue.table(rows, _LEFT)
