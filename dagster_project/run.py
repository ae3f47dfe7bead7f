"""Run one job here and now, with an event log in the instance of DAGSTER_HOME: `python -m dagster_project.run JOB`.

For front ends without a daemon. The run shows in the UI like any other. Standard output is JSON, one object a line:
`{"line": …}` for what the run logs, and at the end the outcome, or `{"refused": …}` if there was no run.

Invariant: the outcome line is written if and only if the run came to an end, good or bad.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_project.definitions import LOCATION, build, tables_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Under this tag the UI finds the runs of a job in a code location.
_REPOSITORY = {".dagster/repository": f"__repository__@{LOCATION}"}


def run_job(instance: dg.DagsterInstance, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job to its end and return its outcome, fit for JSON. Raises if the configuration is wrong."""
    job = build(tables_folder()).resolve_job_def(name).with_logger_defs({"console": _lines})
    result = job.execute_in_process(run_config=dict(config), instance=instance, raise_on_error=False, tags=_REPOSITORY)
    return {
        "run_id": result.run_id,
        "success": result.success,
        "assets": {
            event.materialization.asset_key.to_user_string(): _values(event.materialization.metadata)
            for event in (e.step_materialization_data for e in result.get_asset_materialization_events())
        },
        "checks": {
            f"{check.asset_key.to_user_string()}:{check.check_name}": {
                "passed": check.passed,
                "severity": check.severity.value,
                "description": check.description,
            }
            for check in result.get_asset_check_evaluations()
        },
        "failures": [_reason(event) for event in result.all_events if event.is_step_failure],
    }


def _values(metadata: Mapping[str, dg.MetadataValue]) -> dict[str, Any]:
    plain = (int, float, str, bool)
    return {name: value.value for name, value in metadata.items() if isinstance(value.value, plain)}


def _reason(event: dg.DagsterEvent) -> str:
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return data.user_failure_data.description
    return data.error.message.strip() if data.error else event.message or "the step failed"


@dg.logger
def _lines(_: dg.InitLoggerContext) -> logging.Logger:
    """Write what a run logs as JSON lines; Dagster's own events go only to the instance."""
    logger = logging.Logger("lines", logging.INFO)  # noqa: LOG001  one for this run, unknown to the others
    logger.addHandler(_JsonLines())
    return logger


class _JsonLines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        meta: dict[str, Any] = getattr(record, "dagster_meta", {})
        if meta.get("dagster_event") is None:
            _print({"line": str(meta.get("orig_message", record.getMessage()))})


def _print(value: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """Run the job named first with the configuration given second, as JSON. Returns 1 if it failed, 2 if the
    configuration was refused.
    """
    name = arguments[0]
    config: dict[str, Any] = json.loads(arguments[1]) if len(arguments) > 1 else {}
    try:
        with dg.DagsterInstance.get() as instance:
            outcome = run_job(instance, name, config)
    except dg.DagsterInvalidConfigError as error:
        _print({"refused": str(error)})
        return 2
    _print(outcome)
    return 0 if outcome["success"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
