"""A budget of read capacity units a second, shared by the threads of a scan.

Invariant: over any period, consumption stays within rate × time plus one second's worth, plus what pages in progress
cost beyond their estimates. A page's cost is only known afterwards: the reservation uses the cost per item of earlier
pages, and is corrected later. A page that cost more leaves a debt, for which the next pages wait.
"""

from __future__ import annotations

import time
from threading import Event, Lock

_PAGE_SECONDS = 0.5
_LOOK_AGAIN_SECONDS = 0.1  # another thread may have returned units of a cheaper page


class ReadBudget:
    """A token bucket with at most one second's worth."""

    def __init__(self, units_per_second: float) -> None:
        if units_per_second <= 0:
            raise ValueError("a read budget must be above 0 units a second")
        self._rate = units_per_second
        self._balance = units_per_second
        self._at = time.monotonic()
        self._units_per_item = 100.0  # an item of 400 KB, the largest possible, until the first page shows
        self._lock = Lock()

    def reserve(self, stop: Event) -> tuple[float, int]:
        """Wait until there is budget, or until `stop`; return the units reserved and how many items to ask for.

        A page is limited to about half a second's worth, so that a small budget is not spent in bursts of a megabyte.
        """
        page = self._rate * _PAGE_SECONDS
        while True:
            with self._lock:
                now = time.monotonic()
                self._balance = min(self._rate, self._balance + (now - self._at) * self._rate)
                self._at = now
                if self._balance >= page or stop.is_set():
                    limit = max(1, int(page / self._units_per_item))
                    units = limit * self._units_per_item
                    self._balance -= units
                    return units, limit
                seconds = (page - self._balance) / self._rate
            stop.wait(min(max(seconds, 0.001), _LOOK_AGAIN_SECONDS))

    def correct(self, reserved: float, consumed: float, items: int) -> None:
        """Correct a reservation by what the page really cost, and how many items it read."""
        with self._lock:
            self._balance += reserved - consumed
            if items:
                self._units_per_item = max(consumed / items, 0.001)
