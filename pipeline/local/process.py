"""A local server as a child process: started under a guard, logging to a file. If it fails, the error says why.

Invariant: a `ServerProcess` that its owner does not stop is stopped by the guard when its owner dies.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.local.errors import LocalStackError

LOOPBACK = "127.0.0.1"
GUARD = Path(__file__).with_name("guard.py")


def free_port() -> int:
    """A port that nobody uses, below those that the system hands out for outgoing connections (32768 and up on Linux).

    Another process may still take it first.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 32768)
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port


def require_free_port(port: int, service: str) -> None:
    """Raise one clear line if `port` is taken on loopback."""
    with socket.socket() as probe:
        # Like the servers themselves: connections that a stopped server left in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise LocalStackError(
                f"starting {service}: port {port} on {LOOPBACK} is taken; "
                "stop what listens there or choose another port"
            ) from error


def log_tail(log_path: Path, lines: int = 15) -> str:
    """The last lines of a server's log, indented for a message."""
    if not log_path.exists():
        return "  (no log was written)"
    text = log_path.read_text(errors="replace").splitlines()[-lines:]
    return "\n".join(f"  {line}" for line in text) or "  (the log is empty)"


class ServerProcess:
    """One guarded server. Not reusable: start a new one to start again."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_path: Path,
        env: Mapping[str, str],
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_seconds: float = 5.0,
        uid: int | None = None,
    ) -> None:
        """Start `command` now, in a session of its own: a Ctrl-C in the terminal is for us to handle."""
        self.name = name
        self.log_path = log_path
        self._grace_seconds = grace_seconds
        guard = [sys.executable, "-I", "-S", str(GUARD)]
        with log_path.open("ab") as log:
            self._guard = subprocess.Popen(
                [
                    *guard,
                    str(int(stop_signal)),
                    str(grace_seconds),
                    str(-1 if uid is None else uid),
                    *command,
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=dict(env),
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether the server still runs."""
        return self._guard.poll() is None

    def wait_ready(self, ready: Callable[[], bool], timeout_seconds: float) -> None:
        """Return when `ready()` is true; otherwise stop the server and raise with the end of its log."""
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            ended = not self.alive
            if ended or time.monotonic() > deadline:
                self.stop()
                reason = "it ended" if ended else f"not ready after {timeout_seconds:.0f} s"
                raise LocalStackError(
                    f"starting {self.name}: {reason}; end of {self.log_path}:\n{log_tail(self.log_path)}"
                )
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server and return when it is gone. Safe to call again."""
        if self._guard.stdin is not None and not self._guard.stdin.closed:
            self._guard.stdin.close()
        try:
            self._guard.wait(self._grace_seconds + 5.0)
        except subprocess.TimeoutExpired:
            os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.wait()
