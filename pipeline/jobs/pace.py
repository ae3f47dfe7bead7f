"""How hard a long job may work a database: a share of a connection's time, and not while replication is behind.

Invariant: work is done in short pieces, with rests between them.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from pipeline.core.errors import ConfigurationError

CHUNK_SECONDS = 2.0
_LONGEST_REST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of a reconciliation. Raises ConfigurationError for limits under which it could do nothing."""

    chunk_seconds: float = CHUNK_SECONDS
    """How long one statement of the comparison should take; this sets the size of the ranges of keys."""
    max_share: float = 1.0
    """Share of one connection's time; below 1 there is only one connection, and it rests between its statements."""
    max_lag: timedelta = timedelta(minutes=5)
    """While replication is known to be further behind than this, the run pauses."""
    patience: timedelta = timedelta(minutes=15)
    """How long each wait for replication may last: until it is less behind, or has passed the states read again."""
    most_read_again: int = 100_000
    """How many rows are read again from DynamoDB, among those that differ and were changed since the snapshot."""

    def __post_init__(self) -> None:
        if not 0 < self.max_share <= 1:
            raise ConfigurationError(f"a share of {self.max_share} of Aurora is not above 0 and at most 1")
        if self.chunk_seconds <= 0:
            raise ConfigurationError("the time for a chunk must be above 0")
        if min(self.max_lag, self.patience) < timedelta(0) or self.most_read_again < 0:
            raise ConfigurationError("a limit of a reconciliation is negative")


class Pace:
    """Rests after work, so that work is at most a share of the time."""

    def __init__(self, max_share: float = 1.0) -> None:
        self._rest_ratio = 1 / max_share - 1

    @contextmanager
    def working(self) -> Generator[None]:
        """Time a piece of work, and rest after it."""
        started = time.monotonic()
        yield
        if self._rest_ratio:
            time.sleep(min(_LONGEST_REST_SECONDS, (time.monotonic() - started) * self._rest_ratio))
