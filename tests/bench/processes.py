"""What a tree of processes has used, from /proc: processor time, and the peak memory of any one process."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.05


def tree(pid: int) -> list[int]:
    """Return the process and all its descendants, as they are now."""
    found, waiting = [pid], [pid]
    while waiting:
        for task in _read(f"/proc/{waiting.pop()}/task/*/children"):
            born = [int(number) for number in task.split()]
            found += born
            waiting += born
    return found


def cpu_seconds(pid: int) -> float:
    """Processor time of a tree of processes, with those that have ended and were waited for."""
    total = 0
    for number in tree(pid):
        for text in _read(f"/proc/{number}/stat"):
            fields = text.rsplit(")", 1)[1].split()
            total += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime (proc(5))
    return total / _TICKS


class PeakMemory:
    """Watches a tree of processes for the highest resident memory of any one of them, in MB."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mb: dict[int, float] = {}
        """By process."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def largest_mb(self) -> float:
        """The peak of the process that had most."""
        return max(self.peak_mb.values(), default=0.0)

    def _watch(self) -> None:
        while True:
            for number in tree(self._pid):
                for text in _read(f"/proc/{number}/status"):
                    _, marked, rest = text.partition("VmHWM:")
                    if marked:
                        self.peak_mb[number] = int(rest.split()[0]) / 1024
            if self._stop.wait(SAMPLE_SECONDS):
                return


def _read(pattern: str) -> list[str]:
    """Return the texts of the files that exist; a process may end at any moment, even while its folder is listed."""
    texts: list[str] = []
    with suppress(OSError):
        for path in list(Path("/").glob(pattern[1:])) if "*" in pattern else [Path(pattern)]:
            with suppress(OSError):
                texts.append(path.read_text())
    return texts
