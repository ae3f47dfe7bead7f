"""What the replicator tells CloudWatch: one log line and one metrics line for each table and batch.

Invariant: nothing here ever sees a record. Lines carry counts, the table's name, sequence numbers, lag,
and the kind and place of an error; an error nobody foresaw loses its text, because that text may quote an
attribute value.
"""

from __future__ import annotations

import traceback
from pathlib import PurePath
from typing import TYPE_CHECKING

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from pipeline.core.errors import ReplicationError, TerminalError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.jobs.replicate import ReplicationReport

SERVICE = "dynaurora"
NAMESPACE = "Dynaurora"


class UnforeseenError(TerminalError):
    """A defect: something raised what no edge translates. Says what and where, never its text."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(
            f"applying a batch: {type(error).__name__} at {place(error)}",
            hint="the batch was rolled back and will be delivered again; this is a defect, report it",
        )


class Telemetry:
    """Powertools Logger and Metrics with the project's names as defaults; POWERTOOLS_* variables win."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        service = environment.get("POWERTOOLS_SERVICE_NAME") or SERVICE
        self._namespace = environment.get("POWERTOOLS_METRICS_NAMESPACE") or NAMESPACE
        self._logger = Logger(service=service)
        # The service's name would be a second dimension, and an alarm on "table" alone would find nothing.
        self._metrics_service = ""

    def invocation(self, request_id: str) -> None:
        """Tie the lines that follow to one invocation."""
        self._logger.append_keys(function_request_id=request_id)

    def applied(self, report: ReplicationReport) -> None:
        """One batch, or the part of it that there was time for, is committed."""
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
        self._count(report)

    def failed(self, error: ReplicationError, *, in_part: bool = False) -> None:
        """Records were rolled back; the event source mapping will deliver them again. `in_part`: not the first ones."""
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
        metrics = EphemeralMetrics(namespace=self._namespace, service=self._metrics_service)
        metrics.add_dimension(name="table", value=report.table)
        for name, value in (
            ("Applied", report.applied),
            ("Stale", report.stale),
            ("Deleted", report.deleted),
            ("Expired", report.expired),
            ("Rejected", report.rejected),
            ("Ignored", report.ignored),
        ):
            metrics.add_metric(name=name, unit=MetricUnit.Count, value=value)
        if report.lag_seconds is not None:
            metrics.add_metric(name="LagSeconds", unit=MetricUnit.Seconds, value=report.lag_seconds)
        metrics.flush_metrics()


def place(error: BaseException) -> str:
    """The innermost lines of our own and of libraries that led to an error: file, line and function, no
    values.
    """
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{PurePath(f.filename).name}:{f.lineno} in {f.name}" for f in reversed(frames)) or "unknown"
