"""A load over several run workers: the runs that a load launches to share its files, and their job.

Invariant: the run that leads the load needs none of them. If one cannot be launched, waits in the queue or dies, the
load only takes longer, and none outlives the load. They take no slot of the table's pool, which the leading run holds.

They are launched like any run, by the instance's queue and run launcher: a process on a laptop, a task on ECS, a pod on
Kubernetes. They carry a tag of ours and not `dagster/parent_run_id`, because Dagster takes runs with that tag for
retries of the leading run: one that succeeds would count as its success, and each would use up a retry.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
from types import TracebackType
from typing import Any, Self, cast

import dagster as dg

from dagster_project.failures import explained
from dagster_project.forms import LoadFilesChoice, job_form
from dagster_project.keys import TableKeys
from dagster_project.progress_log import ProgressLog
from dagster_project.resources import ServicesResource
from pipeline.aurora.bookkeeping.load_lead import Lead
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.load.load_help import help_load

# Without a limit, a run whose host died stays STARTED forever; with it, run monitoring ends the run. A load may take
# longer than a stream's 24 hours, because the stream is applied meanwhile.
LOAD_MAX_SECONDS = 3 * 24 * 3600
LOAD_RUN_TAG = "dynaurora/load_run"
"""On a run that shares a load's files: the run that leads the load."""
# Tags that such a run copies from the leading run: how long it may take, and where the UI lists it.
_SHARED_TAGS = ("dagster/max_runtime", ".dagster/repository")


def load_files_job(mapping: TableMapping) -> dg.JobDefinition:
    """Define the job of the runs that share a load's files."""
    keys = TableKeys(mapping.name)

    @dg.op(name=keys.load_files_op, config_schema=LoadFilesChoice.to_fields_dict())
    def load_files(context: dg.OpExecutionContext, dynaurora: ServicesResource) -> None:
        choice = LoadFilesChoice(**context.op_config)
        with explained(context):
            report = help_load(
                dynaurora.services,
                mapping,
                Lead(choice.export_id, choice.ticket),
                workers=choice.workers,
                on_progress=ProgressLog(context.log.info),
            )
        context.log.info("%s files loaded by this run; %s", report.files, report.outcome)
        context.add_output_metadata(
            {"files": report.files, "seconds": round(report.seconds, 3), "outcome": report.outcome}
        )

    @dg.job(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves parameters of its overloads out
        name=keys.load_files_job,
        config=job_form(LoadFilesChoice, keys.load_files_op),
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": LOAD_MAX_SECONDS, "dynaurora/table": mapping.name},
        description=f"Shares the files of a running `{keys.full_load_job}`, which launches this job if its form sets"
        " `run_workers`. It does nothing once that load has ended. Do not launch it by hand.",
    )
    def loading_files() -> None:
        load_files()

    return loading_files


class RunWorkers:
    """The runs that share the files of the load that `context` leads. Use it as a context manager around the load."""

    def __init__(self, context: dg.AssetExecutionContext, keys: TableKeys, run_workers: int, workers: int) -> None:
        """`run_workers` counts the leading run too; `workers` is for each."""
        self._context, self._keys = context, keys
        self._count, self._workers = run_workers - 1, workers
        self.launched: list[str] = []
        """Ids of the runs."""

    def __enter__(self) -> Self:
        """Launch nothing yet. The load says when."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel those that are still in the queue. The others notice by themselves that the load has ended."""
        instance = self._context.instance
        for run_id in self.launched:
            run = instance.get_run_by_id(run_id)
            if run is not None and run.status == dg.DagsterRunStatus.QUEUED:
                instance.run_coordinator.cancel_run(run_id)

    def launch(self, lead: Lead) -> None:
        """Launch them. If that is not possible, log it; the load continues alone."""
        if self._count == 0:
            return
        if self._context.run.remote_job_origin is None:
            self._context.log.warning("this run was started without Dagster's run launcher: it loads every file itself")
            return
        try:
            for _ in range(self._count):
                self.launched.append(self._submit(lead))
        except Exception as error:  # noqa: BLE001 - whatever a run launcher may raise; the load continues without them
            self._context.log.warning("launching run workers failed (%s); the load continues", type(error).__name__)
        self._context.log.info("launched to share the files: %s", ", ".join(self.launched) or "none")

    def _submit(self, lead: Lead) -> str:
        run, instance, name = self._context.run, self._context.instance, self._keys.load_files_job
        remote, code = run.remote_job_origin, run.job_code_origin
        job = self._context.repository_def.get_job(name)
        shared = {tag: run.tags[tag] for tag in _SHARED_TAGS if tag in run.tags}
        made = instance.create_run_for_job(
            job,
            run_config={"export_id": lead.export_id, "ticket": lead.ticket, "workers": self._workers},
            tags={**job.run_tags, **shared, LOAD_RUN_TAG: run.run_id},
            remote_job_origin=remote and type(remote)(remote.repository_origin, name),
            job_code_origin=code and type(code)(name, code.repository_origin),
        )
        # The queue needs no workspace: the daemon, which takes runs from it, has its own.
        return instance.submit_run(made.run_id, workspace=cast("Any", None)).run_id
