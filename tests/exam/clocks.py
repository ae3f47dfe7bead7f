"""The clocks of the exam of operations: one for all servers, one for the host that commands run on.

libfaketime, preloaded, adds the number of seconds in a file to the operating system's time. So a day passes for
PostgreSQL, local DynamoDB and Dynaurora at once, the stream itself drops what is now 24 hours old, and no code is
changed for it. Monotonic clocks, and with them sleeps and timeouts, stay as they are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ENVIRONMENT_DIR = Path(".venv-exam")
_WHERE = (
    (ENVIRONMENT_DIR, "lib/python3*/site-packages/libfaketime/vendor/libfaketime/src/libfaketime.so.1"),
    (Path("/usr/lib"), "*/faketime/libfaketime.so.1"),
)
_SHARED = Path("/dev/shm")
_DAY = 86_400.0


class ClockError(RuntimeError):
    """On this machine a process cannot be given its own clock."""


class Clocks:
    """The world's clock and the host's. Both begin as the operating system's."""

    def __init__(self, folder: Path) -> None:
        """`folder`: readable by every server's user."""
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self._world, self._host = folder / "world", folder / "host"
        self._passed, self._host_ahead = 0.0, 0.0
        self._littered = set(_shared())
        self._library = _usable_library(folder)
        self._write()

    @property
    def servers(self) -> dict[str, str]:
        """Variables of a process that uses the world's clock."""
        return self._variables(self._world)

    @property
    def host(self) -> dict[str, str]:
        """Variables of a process on the host that commands run on."""
        return self._variables(self._host)

    def pass_on(self, seconds: float) -> None:
        """Let time pass for everyone at once."""
        if self._host.read_text() == self._world.read_text():
            self._host_ahead = 0.0  # somebody has set the clock
        self._passed += seconds
        self._write()

    def set_host(self, ahead_seconds: float) -> None:
        """Set the host's clock, ahead of the world's or (negative) behind it."""
        self._host_ahead = ahead_seconds
        self._write()

    def stand_in_for_chrony(self, folder: Path) -> Path:
        """Create a folder with a `chronyc` in it, whose `makestep` sets the host's clock to the world's."""
        folder.mkdir(parents=True, exist_ok=True)
        command = folder / "chronyc"
        command.write_text(f'#!/bin/sh\ntest "$1" = makestep && cp "{self._world}" "{self._host}" && echo "200 OK"\n')
        command.chmod(0o755)
        return folder

    def close(self) -> None:
        """Remove what libfaketime leaves behind after killed processes."""
        for path in set(_shared()) - self._littered:
            if not Path("/proc", path.name.rpartition("_")[2]).exists():
                path.unlink(missing_ok=True)

    def _write(self) -> None:
        for path, seconds in ((self._world, self._passed), (self._host, self._passed + self._host_ahead)):
            aside = path.with_suffix(".new")
            aside.write_text(f"{seconds:+.3f}")
            aside.chmod(0o644)
            aside.rename(path)

    def _variables(self, path: Path) -> dict[str, str]:
        return _preloaded(self._library, path)


def _preloaded(library: Path, path: Path) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


def _usable_library(folder: Path) -> Path:
    """Copy the library to a place where every user may read it, and check that it works."""
    found = [path for base, pattern in _WHERE for path in base.glob(pattern)]
    for number, path in enumerate(found):
        library, tried = folder / f"libfaketime-{number}.so.1", folder / "tried"
        shutil.copy(path, library)
        library.chmod(0o755)
        tried.write_text(f"+{_DAY}")
        asked = subprocess.run(
            [sys.executable, "-c", "import time; print(time.time())"],
            env=os.environ | _preloaded(library, tried),
            capture_output=True,
            text=True,
            check=False,
        )
        real = subprocess.run(
            [sys.executable, "-c", "import time; print(time.time())"], capture_output=True, text=True, check=True
        )
        if asked.returncode == 0 and float(asked.stdout) - float(real.stdout) > _DAY / 2:
            return library
    raise ClockError(
        "this exam lets days pass with libfaketime, which was not found, or does not work here"
        " (it takes Linux; on another processor than x86-64: `apt-get install libfaketime`)"
    )


def _shared() -> list[Path]:
    return [*_SHARED.glob("faketime_shm_*"), *_SHARED.glob("sem.faketime_sem_*")]
