"""A load's progress as lines in its run's log, for a person who watches.

Invariant: at most one line every two seconds while rows are copied, one a minute afterwards, and one whenever something
else begins; always the last one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.jobs.load.load_progress import COPYING

if TYPE_CHECKING:
    from pipeline.jobs.load.load_progress import LoadProgress

_LOG_EVERY_SECONDS = 2.0
_LOG_EVERY_SECONDS_WHEN_COPIED = 60.0


class ProgressLog:
    """Writes a load's progress to the run's log: every two seconds, and at the end."""

    def __init__(self, write: Callable[[str], None], *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._write, self._monotonic = write, monotonic
        self._written: float | None = None
        self._state = ("", False)

    def __call__(self, progress: LoadProgress) -> None:
        """Take note of progress. The caller makes sure that calls do not overlap."""
        now, done = self._monotonic(), progress.files_done == progress.files
        state = (progress.phase, done)
        every = _LOG_EVERY_SECONDS_WHEN_COPIED if done else _LOG_EVERY_SECONDS
        if state == self._state and self._written is not None and now - self._written < every:
            return
        self._written, self._state = now, state
        left = "" if progress.seconds_left is None or done else f", about {progress.seconds_left:.0f} s left"
        phase = "" if progress.phase == COPYING else f": {progress.phase}"
        self._write(
            f"{progress.files_done} of {progress.files} files, {progress.rows_done:,} of {progress.rows:,} rows,"
            f" {progress.rows_per_second:,.0f} rows/s{left}{phase}"
        )
