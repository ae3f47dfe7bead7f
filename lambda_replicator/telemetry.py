"""The replicator's output to CloudWatch: one log line and one metrics line for each table and batch.

Invariant: no record ever reaches this module. Lines contain counts, the table's name, sequence numbers, lag, and the
kind and place of an error. An unforeseen error loses its text, because that text may quote an attribute value.
"""

from __future__ import annotations

import json
import time
import traceback
from pathlib import PurePath
from typing import TYPE_CHECKING

from aws_lambda_powertools import Logger
from aws_lambda_powertools.shared.functions import strtobool

from pipeline.core.errors import ReplicationError, TerminalError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.jobs.replicate import ReplicationReport

SERVICE = "dynaurora"
NAMESPACE = "Dynaurora"
_to_json = json.JSONEncoder(default=str, separators=(",", ":"), ensure_ascii=False).encode
_COUNTED = ("Applied", "Stale", "Deleted", "Expired", "Rejected", "Ignored")
_COUNTS = [{"Name": name, "Unit": "Count"} for name in _COUNTED]
_LAG = {"Name": "LagSeconds", "Unit": "Seconds"}


class UnforeseenError(TerminalError):
    """A defect: an exception that no edge translates. It names the class and the place, never the text."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(
            f"applying a batch: {type(error).__name__} at {place(error)}",
            hint="the batch was rolled back and will be delivered again; this is a defect, report it",
        )


class Telemetry:
    """Powertools Logger, and metrics in CloudWatch's embedded format, with this project's names as defaults.

    Powertools' variables for both override them.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        service = environment.get("POWERTOOLS_SERVICE_NAME") or SERVICE
        self._namespace = environment.get("POWERTOOLS_METRICS_NAMESPACE") or NAMESPACE
        # Without these, Powertools makes an encoder for each line and tries to read each message as JSON.
        self._logger = Logger(service=service, json_serializer=_to_json, json_deserializer=str)
        self._counts_metrics = not strtobool(environment.get("POWERTOOLS_METRICS_DISABLED", "false"))

    def invocation(self, request_id: str) -> None:
        """Give the following lines this invocation's id."""
        self._logger.append_keys(function_request_id=request_id)

    def applied(self, report: ReplicationReport) -> None:
        """Log and count a committed batch, or the part of it that there was time for."""
        self._logger.info(
            "batch applied",
            extra={
                "table": report.table,
                "records": report.records,
                "applied": report.applied,
                "stale": report.stale,
                "deleted": report.deleted,
                "expired": report.expired,
                "rejected": report.rejected,
                "ignored": report.ignored,
                "lag_seconds": report.lag_seconds,
                "last_sequence_number": report.last_sequence_number,
                "first_unprocessed": report.first_unprocessed,
            },
        )
        if self._counts_metrics:
            self._count(report)

    def failed(self, error: ReplicationError, *, in_part: bool = False) -> None:
        """Log a rollback; Lambda will deliver the records again. `in_part`: earlier records of the batch are stored."""
        self._logger.error(
            "rest of the batch failed, nothing of it is stored" if in_part else "batch failed, nothing of it is stored",
            extra={
                "error_kind": type(error).__name__,
                "error_text": str(error),
                "table": error.table,
                "key_digest": error.key_digest,
                "sequence_number": error.sequence_number,
            },
        )

    def _count(self, report: ReplicationReport) -> None:
        """Print one line in CloudWatch's embedded metric format (user guide, Embedded Metric Format Specification).

        Powertools would write the same line in ten times the time, a tenth of all that a batch of 100 costs.
        """
        values = (report.applied, report.stale, report.deleted, report.expired, report.rejected, report.ignored)
        line: dict[str, object] = {name: [value] for name, value in zip(_COUNTED, values, strict=True)}
        metrics = _COUNTS
        if report.lag_seconds is not None:
            line["LagSeconds"], metrics = [report.lag_seconds], [*_COUNTS, _LAG]
        # No other dimension: an alarm on "table" alone would then match nothing.
        directive = {"Namespace": self._namespace, "Dimensions": [["table"]], "Metrics": metrics}
        about = {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [directive]}
        print(_to_json({"_aws": about, "table": report.table, **line}))  # noqa: T201 - as Lambda reads it


def place(error: BaseException) -> str:
    """Return where an error was raised: file, line and function of the innermost frames, ours and libraries', without
    values.
    """
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{PurePath(f.filename).name}:{f.lineno} in {f.name}" for f in reversed(frames)) or "unknown"
