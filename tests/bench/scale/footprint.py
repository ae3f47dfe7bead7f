"""What one step takes while it runs: memory of every process, and the largest size of the log and of temporary files.

A client's memory is its resident set, as the kernel keeps its peak. A PostgreSQL process's is its private part alone
(RssAnon of proc(5)): the pages of shared_buffers that it has touched are everybody's.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.bench.processes import tree

_SAMPLE_SECONDS = 0.2
_MB = 1 << 20


@dataclass
class Footprint:
    """Watches the processes of a step, and the server's folder, in a thread."""

    client_pid: int
    server_pid: int
    server_folder: Path
    client_mb: dict[int, float] = field(default_factory=dict[int, float])
    """Largest resident set of each of the step's processes."""
    server_mb: dict[str, float] = field(default_factory=dict[str, float])
    """Largest private memory of any server process of each kind."""
    wal_mb: float = 0.0
    temporary_mb: float = 0.0

    def __enter__(self) -> Self:
        """Start."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()

    def figures(self) -> dict[str, Any]:
        """Return what was seen, in MB."""
        return {
            "client_mb": round(max(self.client_mb.values(), default=0.0), 1),
            "client_processes_mb": sorted((round(mb, 1) for mb in self.client_mb.values()), reverse=True),
            "server_mb": round(max(self.server_mb.values(), default=0.0), 1),
            "server_processes_mb": {kind: round(mb, 1) for kind, mb in sorted(self.server_mb.items())},
            "wal_mb": round(self.wal_mb),
            "temporary_files_mb": round(self.temporary_mb),
        }

    def _watch(self) -> None:
        while True:
            for pid in tree(self.client_pid):
                self.client_mb[pid] = max(self.client_mb.get(pid, 0.0), _status_mb(pid, "VmHWM"))
            for pid in tree(self.server_pid):
                kind = _kind(pid)
                self.server_mb[kind] = max(self.server_mb.get(kind, 0.0), _status_mb(pid, "RssAnon"))
            self.wal_mb = max(self.wal_mb, size_mb(self.server_folder / "pg_wal"))
            self.temporary_mb = max(self.temporary_mb, size_mb(self.server_folder / "base" / "pgsql_tmp"))
            if self._stop.wait(_SAMPLE_SECONDS):
                return


def size_mb(folder: Path) -> float:
    """Return the space that a folder's files take; they may go at any moment."""
    return sum(_sizes(folder)) / _MB


def _sizes(folder: Path) -> Iterator[int]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    yield from _sizes(Path(entry.path))
                else:
                    yield entry.stat(follow_symlinks=False).st_blocks * 512


def _status_mb(pid: int, name: str) -> float:
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) / 1024 if found else 0.0
    return 0.0


def _kind(pid: int) -> str:
    """Name a server process by its title: its clients' by "client"."""
    with suppress(OSError):
        title = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode(errors="replace")
        found = re.match(r"postgres: (?:(parallel worker|autovacuum worker)|(\S+(?: \S+)?) ?$)", title)
        return next((name for name in found.groups() if name), "client") if found else "client"
    return "client"
