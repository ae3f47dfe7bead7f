"""Runs one server, and makes sure that the server never outlives the process which asked for it.

Invariant: once this guard's parent is gone, however that happened (`kill -9` included), the guard tells the server to
stop and, after a grace period, kills it together with everything it started.

There are three ways, because each alone has a hole:

- the guard's standard input is a pipe whose other end only the parent holds, so the parent's death reads as
  end of file;
- the guard looks once a second whether its parent is still the same (a forked sibling may hold the pipe
  open);
- on Linux the kernel tells the server (PR_SET_PDEATHSIG) to die with the guard. That signal belongs to
  the *thread* which started the process, so a stack started from a thread pool could not use it directly; the
  guard has only one thread.

Started as a program by path, with only the standard library, so that it costs about 20 ms. Usage: guard.py STOP_SIGNAL
GRACE_SECONDS UID COMMAND... (UID -1: keep the current user)
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent thread ends (Linux; elsewhere the pipe must do)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(command: list[str], uid: int) -> subprocess.Popen[bytes]:
    """Start the server without input. `die_with_parent` comes after the change of user, which undoes it."""
    as_user: dict[str, Any] = {} if uid < 0 else {"user": uid, "group": uid, "extra_groups": []}
    return subprocess.Popen[bytes](
        command,
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent,  # unsafe beside other threads only, and there are none here
        **as_user,
    )


def wait_for_reason(child: subprocess.Popen[bytes], wakeup: int) -> bool:
    """Block until the server ended (False) or is to be stopped (True)."""
    parent = os.getppid()
    while child.poll() is None:
        readable, _, _ = select.select([0, wakeup], [], [], 1.0)
        if 0 in readable and not os.read(0, 1):
            return True
        if wakeup in readable and signal.SIGCHLD not in os.read(wakeup, 64):
            return True
        if os.getppid() != parent:
            return True
    return False


def stop(child: subprocess.Popen[bytes], stop_signal: int, grace_seconds: float) -> None:
    """Tell the server to stop; when the grace period is over, kill its whole process group (the caller's own
    too).
    """
    child.send_signal(stop_signal)
    deadline = time.monotonic() + grace_seconds
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def _only_wake_up(_number: int, _frame: object) -> None:
    """Nothing: the signal's number arrives through the wake-up pipe."""


def main(arguments: list[str]) -> int:
    """Run the server until it ends or must end; the exit status is the server's."""
    stop_signal, grace_seconds, uid = int(arguments[0]), float(arguments[1]), int(arguments[2])
    wakeup, written = os.pipe()
    os.set_blocking(written, False)
    signal.set_wakeup_fd(written, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _only_wake_up)
    child = start(arguments[3:], uid)
    if wait_for_reason(child, wakeup):
        stop(child, stop_signal, grace_seconds)
    status = child.poll()
    # What the server itself started (function workers) shares our process group and must not stay behind.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(os.getpgrp(), signal.SIGTERM)
    if status is None:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    return status if status is not None and status >= 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
