"""What one Lambda execution environment builds at its first invocation and keeps.

Invariant: nothing is read, opened or built when a module is imported; the environment's variables are read
once, here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lambda_replicator.database import DatabaseSecret, DatabaseUrl, ReusedConnection
from lambda_replicator.telemetry import Telemetry
from pipeline.core.errors import ConfigurationError
from pipeline.jobs.replicate import Replicator
from pipeline.mappings import load_mappings

if TYPE_CHECKING:
    from collections.abc import Mapping

# Time kept back at the end of an invocation: to commit, write the log and answer.
RESERVE_SECONDS = 3.0


@dataclass(frozen=True)
class Runtime:
    """The parts an invocation uses."""

    replicator: Replicator
    telemetry: Telemetry


def build(environment: Mapping[str, str], *, timeout_seconds: float) -> Runtime:
    """Everything from the environment's variables; `timeout_seconds` is the function's own.

    Opens no connection. Raises ConfigurationError for a setting or mapping that cannot be used.
    """
    connect = ReusedConnection(
        _credentials(environment),
        # The server gives up before Lambda kills the function, so that the transaction ends and the error
        # is told.
        statement_timeout_seconds=max(timeout_seconds - RESERVE_SECONDS, timeout_seconds / 2),
        prepare=environment.get("DATABASE_THROUGH_PROXY", "false").lower() != "true",
    )
    tables = Path(environment.get("LAMBDA_TASK_ROOT", ".")) / environment.get("DYNAURORA_TABLES", "tables")
    writer = f"lambda:{environment.get('AWS_LAMBDA_FUNCTION_NAME', 'local')}"
    return Runtime(
        replicator=Replicator(load_mappings(tables), connect, writer=writer),
        telemetry=Telemetry(environment),
    )


def _credentials(environment: Mapping[str, str]) -> DatabaseSecret | DatabaseUrl:
    if secret_id := environment.get("DATABASE_SECRET_ID"):
        return DatabaseSecret(secret_id, sslmode=environment.get("PGSSLMODE") or "require")
    if url := environment.get("DATABASE_URL"):
        return DatabaseUrl(url)
    raise ConfigurationError(
        "starting the replicator: neither DATABASE_SECRET_ID nor DATABASE_URL is set",
        hint="set DATABASE_SECRET_ID to the ARN of the database's secret",
    )


_runtime: Runtime | None = None


def current(*, remaining_seconds: float) -> Runtime:
    """The environment's one runtime, built at the first call, while nearly all the timeout remains."""
    global _runtime  # noqa: PLW0603 (state between invocations lives in globals)
    if _runtime is None:
        _runtime = build(os.environ, timeout_seconds=remaining_seconds)
    return _runtime
