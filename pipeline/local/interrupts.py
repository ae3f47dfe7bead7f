"""Ending by signal the way Python ends by error: whatever is open is closed on the way out."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def unwind_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the stack as Ctrl-C does, even if a shell had SIGINT ignored."""
    for number in _NUMBERS:
        signal.signal(number, _interrupt)


@contextmanager
def interrupts_deferred() -> Generator[None]:
    """Delay interrupts until the block has ended. For a short block that starts threads and waits for them.

    Python's threads and futures do not survive an exception from a signal's handler: one that arrives while a
    condition's lock is being taken leaves it taken, and whoever needs it next waits forever. Only the main thread is
    interrupted, so in any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: handler for number in _NUMBERS if callable(handler := signal.getsignal(number))}
    came: list[signal.Signals] = []
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: came.append(signal.Signals(number)))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            handlers[came[0]](came[0], None)


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    # A second signal must not interrupt the cleanup that the first one began.
    for other in _NUMBERS:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt(signal.Signals(number).name)
