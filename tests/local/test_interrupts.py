"""Signals are held while threads start, and delivered afterwards."""

import os
import signal
import threading
from collections.abc import Generator

import pytest

from pipeline.local.interrupts import interrupts_deferred, unwind_on_signals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers() -> Generator[None]:
    """Restore the handlers after each test."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_an_interrupt_comes_when_the_block_has_ended_and_names_its_signal(number: signal.Signals) -> None:
    ended: list[bool] = []

    def be_interrupted_twice() -> None:
        with interrupts_deferred():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            ended.append(True)

    unwind_on_signals()
    with pytest.raises(KeyboardInterrupt, match=number.name):
        be_interrupted_twice()
    assert ended == [True]


def test_an_interrupt_comes_after_an_error_too_and_does_not_hide_it() -> None:
    def fail_interrupted() -> None:
        with interrupts_deferred():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError

    with pytest.raises(KeyboardInterrupt) as raised:
        fail_interrupted()
    assert isinstance(raised.value.__context__, ValueError)


def test_without_one_the_handlers_are_as_they_were() -> None:
    unwind_on_signals()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = [signal.getsignal(number) for number in NUMBERS]
    with interrupts_deferred():
        same = [signal.getsignal(number) == handler for number, handler in zip(NUMBERS, before, strict=True)]
        assert same == [False, False, True]
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_in_another_thread_it_leaves_the_handlers_alone() -> None:
    seen: list[object] = []

    def look() -> None:
        with interrupts_deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGINT)]
