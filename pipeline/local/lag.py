"""The lag from a write in DynamoDB to the moment when a reader of the view sees it, measured from outside.

Invariant: nothing of the product takes part: a plain SELECT on the view looks for the sampled value every 25 ms. A
sampled value that is overwritten before it is seen is dropped and counted, not guessed.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import psycopg

_EVERY_SECONDS = 0.025
_GIVE_UP_SECONDS = 60.0


@dataclass
class LagMeter:
    """Watches `public."Employees"` for a writer's sampled writes in a thread of its own."""

    database_url: str
    samples: deque[tuple[int, str, float]]
    seconds: list[float] = field(default_factory=list[float])
    overwritten: int = 0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lag", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def percentiles(self) -> dict[str, float]:
        """p50, p99 and the largest of the lags seen, in seconds; empty if there was none."""
        if not self.seconds:
            return {}
        ordered = sorted(self.seconds)
        return {
            "p50": round(statistics.median(ordered), 3),
            "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 3),
            "max": round(ordered[-1], 3),
            "samples": len(ordered),
        }

    def _run(self) -> None:
        waiting: dict[int, tuple[str, float]] = {}
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            while not self._stop.wait(_EVERY_SECONDS):
                while self.samples:
                    identifier, name, at = self.samples.popleft()
                    self.overwritten += identifier in waiting
                    waiting[identifier] = (name, at)
                if waiting:
                    self._look(connection, waiting)

    def _look(self, connection: psycopg.Connection, waiting: dict[int, tuple[str, float]]) -> None:
        rows = connection.execute(
            'SELECT "Id", "Name" FROM public."Employees" WHERE "Id" = ANY (%s)', [list(waiting)]
        ).fetchall()
        now = time.monotonic()
        for identifier, name in rows:
            expected, at = waiting[identifier]
            if name == expected:
                self.seconds.append(now - at)
                del waiting[identifier]
        for identifier in [i for i, (_, at) in waiting.items() if now - at > _GIVE_UP_SECONDS]:
            del waiting[identifier]
            self.overwritten += 1
