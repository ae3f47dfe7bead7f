"""The files that one run of a load still has to load, for its workers, while other runs load files of the same export.

Invariant: at most one worker of this run has a file at a time. A file that another run is loading is offered again
until it is known to be loaded, so that this run loads what another one leaves undone when it dies.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from pipeline.dynamodb.exports.manifest import ExportFile


class FileQueue:
    """Files to load, in their order; `to_the_end` waits for those that other runs are loading."""

    def __init__(self, files: Iterable[ExportFile], *, to_the_end: bool = True) -> None:
        self._offered = deque(files)
        self._busy: list[ExportFile] = []
        self._to_the_end = to_the_end
        self._stopped = False
        self._idle = 0
        self._changed = threading.Condition()

    @property
    def stopped(self) -> bool:
        """Whether the run should end now."""
        return self._stopped

    @property
    def idle(self) -> bool:
        """Whether a worker is waiting for files that other runs are loading."""
        return self._idle > 0

    def take(self) -> ExportFile | None:
        """Take the next file, waiting for one if necessary; None when there are no more."""
        with self._changed:
            while not self._offered and self._busy and self._to_the_end and not self._stopped:
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            return self._offered.popleft() if self._offered and not self._stopped else None

    def put_off(self, file: ExportFile) -> None:
        """Put a file back that another run is loading."""
        with self._changed:
            self._busy.append(file)

    def settle(self, loaded: Container[str]) -> list[ExportFile]:
        """Remove and return the files that others have loaded, and offer the ones put off once more."""
        with self._changed:
            waiting = [*self._offered, *self._busy]
            self._offered = deque(file for file in waiting if file.key not in loaded)
            self._busy = []
            self._changed.notify_all()
            return [file for file in waiting if file.key in loaded]

    def stop(self) -> None:
        """End the queue: `take` returns no more files."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
