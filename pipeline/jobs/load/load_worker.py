"""A load's worker process: reads the files to load from its standard input, answers on its standard output.

Invariant: it ends as soon as its standard input does, so it never outlives the load that started it. The server then
rolls back what the worker had not committed.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
import traceback
from contextlib import closing
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, BinaryIO

from pipeline.aurora.bookkeeping.loads import FileBusyError
from pipeline.core import errors
from pipeline.core.errors import ReplicationError, TerminalError
from pipeline.jobs.memory import collect_young

if TYPE_CHECKING:
    from pipeline.dynamodb.exports.manifest import ExportFile
    from pipeline.jobs.load.load_workers import Work

_KINDS: tuple[type[ReplicationError], ...] = (
    errors.NotNowError,
    errors.UnreachableError,
    errors.LoginRefusedError,
    errors.DiskFullError,
    errors.TransientError,
    errors.ConfigurationError,
    errors.DataError,
    errors.TerminalError,
)


def main() -> None:
    """Load files until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a person's interrupt reaches the load, which ends its workers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # so that no print() can get between the answers
    work: Work = pickle.load(sys.stdin.buffer)  # noqa: S301  the load that started us wrote it
    files: SimpleQueue[ExportFile] = SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, files), daemon=True).start()
    # A block is a hundred thousand small objects without cycles: searching them for cycles costs more than it frees.
    gc.disable()
    _work_off(work, files, answers)


def _read(requests: BinaryIO, files: SimpleQueue[ExportFile]) -> None:
    while True:
        try:
            files.put(pickle.load(requests))  # noqa: S301  the load that started us wrote it
        except EOFError:
            os._exit(0)


def _work_off(work: Work, files: SimpleQueue[ExportFile], answers: BinaryIO) -> None:
    def answer(*values: object) -> None:
        pickle.dump(values, answers)
        answers.flush()

    loader = work.loader()
    try:
        with closing(work.services.connect("dynaurora load worker")) as connection:
            while True:
                try:
                    counts = loader.load(connection, files.get(), lambda lines, size: answer("lines", lines, size))
                    answer("loaded", counts.ways) if counts is not None else answer("known")
                except FileBusyError:
                    answer("busy")
                collect_young()
    except ReplicationError as error:
        answer("failed", *failure_parts(error))
    except BrokenPipeError:  # the load is gone
        os._exit(0)
    except Exception as error:  # noqa: BLE001 - reported to the load, without its text, which may quote a value
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        text = f"loading: an unforeseen {type(error).__name__} at {place}"
        answer("failed", *failure_parts(TerminalError(text, hint="this is a defect of Dynaurora; please report it")))


def failure_parts(error: ReplicationError) -> tuple[str, str, str | None, str | None, str | None, str | None]:
    """Return the parts of an error, to send it to another process."""
    kind = next(kind for kind in _KINDS if isinstance(error, kind))
    return kind.__name__, error.message, error.table, error.key_digest, error.sequence_number, error.hint


def failure_from(
    kind: str, message: str, table: str | None, key_digest: str | None, sequence_number: str | None, hint: str | None
) -> ReplicationError:
    """Rebuild an error from its parts; its class is the one that says what to do about it."""
    (made,) = (known for known in _KINDS if known.__name__ == kind)
    return made(message, table=table, key_digest=key_digest, sequence_number=sequence_number, hint=hint)
