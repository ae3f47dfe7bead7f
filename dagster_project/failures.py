"""From the pipeline's errors to Dagster's: retry, or fail and say what a person must do.

Invariant: only a transient error is retried, and every failure of a run names its next step.
"""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from pipeline.core.errors import ReplicationError, TransientError

if TYPE_CHECKING:
    from collections.abc import Generator

RETRIES = 3
FIRST_WAIT_SECONDS = 5.0


@contextmanager
def explained(context: dg.AssetExecutionContext | dg.OpExecutionContext) -> Generator[None]:
    """Turn what the block raises into a retry or a failure. Other exceptions are defects, and pass unchanged.

    A step that is retried resumes: loads skip the files that are marked; reconciliations resume with the same snapshot
    if one was given, and take a new one otherwise.
    """
    try:
        yield
    except TransientError as error:
        tried = context.retry_number
        if tried < RETRIES:
            context.log.warning("%s; retrying, at most %s more times", error, RETRIES - tried)
            raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=FIRST_WAIT_SECONDS * 2**tried) from error
        raise _failure(error) from error
    except ReplicationError as error:
        raise _failure(error) from error


def trouble(error: Exception) -> str:
    """Return one line for a check, a log or an alert. For an error that is not ours, only its class and place.

    Its text may quote attribute values, or the database's host and user.
    """
    if isinstance(error, ReplicationError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def _failure(error: ReplicationError) -> dg.Failure:
    metadata: dict[str, dg.MetadataValue] = {"what happened": dg.MetadataValue.text(error.message)}
    if error.hint:
        metadata["next step"] = dg.MetadataValue.text(error.hint)
    if error.table:
        metadata["table"] = dg.MetadataValue.text(error.table)
    return dg.Failure(description=str(error), metadata=metadata, allow_retries=False)
