"""The workers of a load, side by side: threads for a small load; for a big one processes, and one thread.

Invariant: the first failure stops all of them, and no worker outlives its load: a process ends when the pipe from the
load does, however the load ended. The server then rolls back the file it was loading.

Decoding keeps the processor busy, and Python's threads share one; processes have one each. The processes are started as
new interpreters that import the load and nothing else, never as copies of the caller, which may be large (a Dagster
run) or a script that cannot be imported twice.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any, Protocol, cast

from pipeline.aurora.bookkeeping.loads import FileBusyError
from pipeline.core.errors import TerminalError, TransientError
from pipeline.jobs.load.load_progress import TELL_SECONDS
from pipeline.jobs.load.load_queue import FileQueue
from pipeline.jobs.load.load_worker import failure_from
from pipeline.jobs.memory import collect_young, collection_paused

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from pipeline.aurora.bookkeeping.loads import FileCounts
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.exports.ways import Ways
    from pipeline.dynamodb.exports.manifest import ExportFile
    from pipeline.jobs.export_file import OnLines
    from pipeline.jobs.load.load_progress import Progress
    from pipeline.jobs.services import Services

_END_SECONDS = 5.0
_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer);"
    " from pipeline.jobs.load.load_worker import main; main()"
)


class Watch(Protocol):
    """Watches what other runs do; an error that it raises ends the run."""

    def __call__(self, *, idle: bool) -> Container[str] | None:
        """Return the files that are loaded, whoever loaded them; None when they were looked up a moment ago.

        `idle`: a worker is waiting for the answer.
        """
        ...


class Loader(Protocol):
    """Loads one file after another: those of a full export, or of an incremental one."""

    def load(self, connection: Connection, file: ExportFile, on_lines: OnLines) -> FileCounts | None:
        """Load one file; None when it was loaded already. Raises FileBusyError while another worker loads it."""
        ...


class Work(Protocol):
    """What all workers share; it can be pickled."""

    @property
    def services(self) -> Services:
        """Return the settings and clients that the workers use."""
        ...

    def loader(self) -> Loader:
        """Return a loader of files; each worker needs its own."""
        ...


class _Worker(Protocol):
    def load(self, file: ExportFile, on_lines: OnLines) -> Ways | None:
        """Load one file; returns how its lines were decoded, None when it was loaded already."""
        ...

    def stop(self) -> None:
        """Make `load` fail soon; called from another thread."""
        ...

    def close(self) -> None:
        """End it."""
        ...


def load_files(
    work: Work,
    files: Sequence[ExportFile],
    progress: Progress,
    *,
    workers: int,
    processes: bool,
    watch: Watch | None = None,
    to_the_end: bool = True,
) -> None:
    """Load files side by side. Raises the first failure; the other workers are then rolled back.

    `watch` is called every half second where other runs load files of the same export too. With `to_the_end`, this run
    waits for the files that such a run is loading, and loads them if it leaves them undone; otherwise it leaves them.
    """
    progress.tell()
    if not files:
        return
    count = max(1, min(workers, len(files)))
    crew = _crew(work, count, processes=processes)
    queue = FileQueue(files, to_the_end=to_the_end)
    paused = collection_paused() if processes else nullcontext()
    with paused, ThreadPoolExecutor(max_workers=count, thread_name_prefix="load") as pool:
        driving = [pool.submit(_drive, worker, queue, progress) for worker in crew]
        try:
            while pending := wait(driving, timeout=TELL_SECONDS, return_when=FIRST_EXCEPTION).not_done:
                _raise_first(set(driving) - pending)
                if watch and (loaded := watch(idle=queue.idle)) is not None:
                    for file in queue.settle(loaded):
                        progress.pass_over(file)
                progress.tell()
            _raise_first(driving)
        except BaseException:
            queue.stop()
            for worker in crew:
                worker.stop()
            raise


def _crew(work: Work, count: int, *, processes: bool) -> list[_Worker]:
    """Start the workers. If they are processes, one is a thread instead: it can work while the others still start."""
    if not processes:
        return [_Thread(work) for _ in range(count)]
    started: list[_Worker] = [_Process(work) for _ in range(max(1, count - 1))]
    return started if count == 1 else [*started, _Thread(work)]


def _raise_first(driving: Iterable[Any]) -> None:
    for done in driving:
        done.result()


def _drive(worker: _Worker, queue: FileQueue, progress: Progress) -> None:
    """Give a worker one file after another until there are none."""

    def on_lines(lines: int, size_bytes: int) -> None:
        if queue.stopped:
            raise TerminalError("loading: stopped, because another file failed")
        progress.add(lines, size_bytes)

    try:
        while (file := queue.take()) is not None:
            try:
                ways = worker.load(file, on_lines)
                if ways is None:
                    progress.pass_over(file)
                else:
                    progress.finish_file(ways)
            except FileBusyError:
                queue.put_off(file)
    finally:
        worker.close()


class _Thread:
    """A worker in this process, with a connection of its own."""

    def __init__(self, work: Work) -> None:
        self._work, self._loader = work, work.loader()
        self._connection: Connection | None = None

    def load(self, file: ExportFile, on_lines: OnLines) -> Ways | None:
        if self._connection is None:
            self._connection = self._work.services.connect("dynaurora load worker")
        try:
            counts = self._loader.load(self._connection, file, on_lines)
            return None if counts is None else counts.ways
        finally:
            collect_young()

    def stop(self) -> None:
        """Do nothing: the worker notices at its next block."""

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class _Process:
    """A worker in its own process, reached through its standard input and output."""

    def __init__(self, work: Work) -> None:
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter
            [sys.executable, "-P", "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._send(sys.path)
        self._send(work)

    def load(self, file: ExportFile, on_lines: OnLines) -> Ways | None:
        self._send(file)
        while True:
            kind, *values = self._receive()
            if kind == "lines":
                on_lines(*values)
            elif kind == "failed":
                raise failure_from(*values)
            elif kind == "busy":
                raise FileBusyError
            else:
                return values[0] if kind == "loaded" else None

    def stop(self) -> None:
        self._process.kill()  # between files it has nothing to lose, and within a file the server rolls back

    def close(self) -> None:
        process = self._process
        process.kill()
        process.wait(_END_SECONDS)
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with suppress(BrokenPipeError):  # a worker that has ended left something unread
                    pipe.close()

    def _send(self, value: object) -> None:
        pipe = self._process.stdin
        try:
            if pipe:
                pickle.dump(value, pipe)
                pipe.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _receive(self) -> tuple[Any, ...]:
        pipe = self._process.stdout
        try:
            if pipe:
                return cast("tuple[Any, ...]", pickle.load(pipe))  # noqa: S301  our own process wrote it
        except (EOFError, pickle.UnpicklingError):  # it was killed, perhaps in the middle of an answer
            pass
        raise self._ended()

    def _ended(self) -> TransientError:
        status = self._process.wait(_END_SECONDS)
        return TransientError(
            f"loading: a worker process ended before its file was loaded ({_status(status)})",
            hint="run the load again; it resumes. Signal 9 often means that the system ran out of memory",
        )


def _status(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"
