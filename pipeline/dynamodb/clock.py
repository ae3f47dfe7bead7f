"""The source's clock, read from its answers, beside this host's clock, which may be wrong.

AWS's answers carry a `Date`: when the answer was made, in whole seconds, rounded down (RFC 9110, 6.6.1). AWS makes it
between the request and the answer's arrival, so each call bounds how far this host's clock can be ahead; several calls
narrow the bounds.

Invariant: a time of the source is this host's time, corrected only by the difference that the answers prove. If answers
carry no usable Date (a stand-in for AWS, a proxy), the host's time is used.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from threading import Lock
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

P = ParamSpec("P")
Answer = TypeVar("Answer")

_GRAIN = timedelta(seconds=1)
# A clock that is off by less than this is not reported: the resolution, and the duration of a call.
NOTABLE = timedelta(seconds=2)
# How wrong the measurement may be, and how far creation times are rounded.
_UNSURE = timedelta(seconds=2)
SET_IT = "set this host's clock by NTP (`chronyc tracking` shows how far it is off, `chronyc makestep` sets it)"

_LATELY_SECONDS = 60.0


def host_now() -> datetime:
    """Return this host's time."""
    return datetime.now(UTC)


class SourceClock:
    """The time at the source. Threads may share it."""

    def __init__(
        self, host: Callable[[], datetime] = host_now, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._host, self._monotonic = host, monotonic
        self._bounds: tuple[timedelta, timedelta] | None = None
        self._asked_at: float | None = None
        self._lock = Lock()

    def ask(self, call: Callable[P, Answer], *args: P.args, **kwargs: P.kwargs) -> tuple[Answer, datetime]:
        """Make an AWS call; return its answer, and the source's time just before the request."""
        began, started = self._host(), self._monotonic()
        answer = call(*args, **kwargs)
        self._learn(_date(answer), began, timedelta(seconds=self._monotonic() - started))
        return answer, self.source_time(began)

    def now(self) -> datetime:
        """Return the source's time, or the host's if the source's is unknown."""
        return self.source_time(self._host())

    def source_time(self, host_time: datetime) -> datetime:
        """Return what the source's clock showed at a recent time of this host."""
        return host_time - (self.ahead or timedelta(0))

    @property
    def ahead(self) -> timedelta | None:
        """How far this host's clock is ahead of the source's; None: unknown; 0: within a second."""
        with self._lock:
            bounds = self._bounds
        if bounds is None:
            return None
        low, high = bounds
        return timedelta(0) if low <= timedelta(0) <= high else (low + high) / 2

    @property
    def asked_lately(self) -> bool:
        """Whether a call was made within the last minute; if its answer had a Date, the source's time is known."""
        return self._asked_at is not None and self._monotonic() - self._asked_at < _LATELY_SECONDS

    def _learn(self, date: datetime | None, began: datetime, took: timedelta) -> None:
        with self._lock:
            self._asked_at = self._monotonic()
            if date is None:
                return
            low, high = began - date - _GRAIN, began + took - date
            if self._bounds is not None:
                narrow = max(low, self._bounds[0]), min(high, self._bounds[1])
                if narrow[0] <= narrow[1]:
                    low, high = narrow
            self._bounds = low, high  # if they do not overlap, a clock was set meanwhile


def how_far(ahead: timedelta) -> str:
    """Return how far this host's clock is off, for a text that continues with the other clock: `372 s ahead of`."""
    seconds = ahead.total_seconds()
    return f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'}"


def in_doubt(ahead: timedelta | None, margin: timedelta) -> bool:
    """Whether a host's clock is off by more than the margin covers, so that the host must not write positions."""
    return ahead is not None and abs(ahead) >= NOTABLE and abs(ahead) + _UNSURE >= margin


def said_at(headers: Mapping[str, str]) -> datetime | None:
    """Return when an answer was made, by its headers (lower case, as the SDK has them); None if not usable."""
    try:
        date = parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError, TypeError):
        return None
    return date if date.tzinfo else None


def _date(answer: Any) -> datetime | None:  # noqa: ANN401 - whatever a call of AWS returns
    return said_at(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}))
