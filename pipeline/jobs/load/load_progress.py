"""The progress of a load: every worker counts, and the caller gets a report at least every half second.

Invariant: calls of the caller's function never overlap, and an error that it raises ends the load.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.exports.ways import Ways

if TYPE_CHECKING:
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.dynamodb.exports.manifest import ExportFile, ExportManifest

TELL_SECONDS = 0.5
COPYING = "copying"


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """The progress of a load over all its files. `size_bytes_done` is this run's; the rate is that of all its runs."""

    files_done: int
    files: int
    rows_done: int
    rows: int
    size_bytes_done: int
    seconds: float
    rows_per_second: float
    seconds_left: float | None
    phase: str = COPYING
    """The current phase, in words: copying, then (for tables built aside) keys and swap."""


class Progress:
    """Counts over all workers of one run of a load."""

    def __init__(
        self,
        manifest: ExportManifest,
        waiting: Sequence[ExportFile],
        on_progress: Callable[[LoadProgress], None] | None,
    ) -> None:
        self.phase = COPYING
        self.files_loaded = 0
        """By this run."""
        self.ways = Ways()
        """How this run decoded its lines."""
        self._tell = on_progress
        self._lock = threading.Lock()
        self._files, self._rows = len(manifest.files), manifest.item_count
        self._files_done = self._files - len(waiting)
        self._resumed = self._rows_done = self._rows - sum(file.item_count for file in waiting)
        self._size_bytes = 0
        self._started = self._told = time.monotonic()

    def add(self, rows: int, size_bytes: int) -> None:
        """Count rows that were read, and their bytes."""
        with self._lock:
            self._rows_done += rows
            self._size_bytes += size_bytes
            if time.monotonic() - self._told > TELL_SECONDS:
                self._report()

    def finish_file(self, ways: Ways) -> None:
        """Count a file as loaded, and how its lines were decoded."""
        with self._lock:
            self.ways += ways
            self.files_loaded += 1
            self._files_done += 1
            self._report()

    def pass_over(self, file: ExportFile) -> None:
        """Count a file as loaded by another run."""
        with self._lock:
            self._files_done += 1
            self._rows_done += file.item_count
            self._report()

    def tell(self, phase: str | None = None) -> None:
        """Report now; `phase` names the phase that begins."""
        with self._lock:
            self.phase = phase or self.phase
            self._report()

    def _report(self) -> None:
        self._told = time.monotonic()
        seconds = self._told - self._started
        rate = (self._rows_done - self._resumed) / seconds if seconds > 0 else 0.0
        if self._tell:
            self._tell(
                LoadProgress(
                    files_done=self._files_done,
                    files=self._files,
                    rows_done=self._rows_done,
                    rows=self._rows,
                    size_bytes_done=self._size_bytes,
                    seconds=seconds,
                    rows_per_second=rate,
                    seconds_left=(self._rows - self._rows_done) / rate if rate else None,
                    phase=self.phase,
                )
            )


def telling(progress: Progress, connection: Connection, work: Callable[[threading.Event], None]) -> None:
    """Do `work`, which uses `connection`, and report progress meanwhile.

    When a report raises, or a person interrupts, the running statement is cancelled and `work`'s event is set.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="load") as pool:
        doing = pool.submit(work, stop)
        try:
            while not wait([doing], timeout=TELL_SECONDS).done:
                progress.tell()
        except BaseException:
            stop.set()
            connection.cancel_safe()
            raise
    doing.result()
