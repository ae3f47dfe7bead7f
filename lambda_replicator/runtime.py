"""The parts that one Lambda execution environment builds at its first invocation and keeps.

Invariant: importing a module reads, opens and builds nothing. The environment's variables are read once, here.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lambda_replicator.database import DatabaseOpener, DatabaseSecret, DatabaseUrl
from lambda_replicator.privacy import WithKey
from lambda_replicator.telemetry import Telemetry
from pipeline.aurora.bookkeeping.watermarks import lambda_writer
from pipeline.core.errors import ConfigurationError
from pipeline.jobs.memory import collect_rarely
from pipeline.jobs.replicate import Replicator
from pipeline.mappings import read_folder
from pipeline.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

# How long before Lambda's timeout the server cancels a statement, so that the error is logged and not cut off.
STATEMENT_RESERVE_SECONDS = 3.0


@dataclass(frozen=True)
class Runtime:
    """The parts an invocation uses."""

    replicator: Replicator
    telemetry: Telemetry


def build(environment: Mapping[str, str], *, timeout_seconds: float) -> Runtime:
    """Build everything from the environment's variables; `timeout_seconds` is the function's own.

    Opens no connection. Raises ConfigurationError for a wrong setting, or if no mapping file can be used. A file that
    cannot be used only stops the batches of its own table.
    """
    settings = Settings.from_environment(environment)
    opener = DatabaseOpener(
        _credentials(settings),
        statement_timeout_seconds=max(timeout_seconds - STATEMENT_RESERVE_SECONDS, timeout_seconds / 2),
        through=settings.pooler,
    )
    # An absolute folder is used as it is; a relative one is in the package, wherever Lambda started Python.
    tables = Path(environment.get("LAMBDA_TASK_ROOT", ".")) / settings.tables_folder
    # Each execution environment has its own row of watermarks, so concurrent ones never wait for each other.
    function, stream = (
        environment.get("AWS_LAMBDA_FUNCTION_NAME", "local"),
        environment.get("AWS_LAMBDA_LOG_STREAM_NAME"),
    )
    writer = lambda_writer(function, stream or uuid.uuid4().hex)
    folder = read_folder(tables)
    return Runtime(
        replicator=Replicator(
            folder.usable(), opener, writer=writer, problems=folder.problems, with_key=WithKey(settings)
        ),
        telemetry=Telemetry(environment),
    )


def _credentials(settings: Settings) -> DatabaseSecret | DatabaseUrl:
    if settings.database_url:
        return DatabaseUrl(settings.database_url, settings.database_defaults)
    if settings.database_secret_id:
        return DatabaseSecret(settings.database_secret_id, settings.database_defaults)
    raise ConfigurationError("starting the replicator: the settings name no database")


_runtime: Runtime | None = None


def current(*, remaining_seconds: float) -> Runtime:
    """Return the environment's runtime, which the first call builds while nearly all the timeout remains."""
    global _runtime  # noqa: PLW0603 (state between invocations lives in globals)
    if _runtime is None:
        _runtime = build(os.environ, timeout_seconds=remaining_seconds)
        # Lambda parses an event before it calls the handler: pausing collection while a batch is applied is too late.
        collect_rarely()
    return _runtime
