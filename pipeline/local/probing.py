"""The probe as Dagster's sensor runs it, for a local run without Dagster's daemon."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pipeline.core.errors import ReplicationError
from pipeline.jobs.probe.probe import probe

if TYPE_CHECKING:
    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.services import Services

EVERY_SECONDS = 5.0


class Probing:
    """Ticks a table's probe in a thread. Use as a context manager."""

    def __init__(self, services: Services, mapping: TableMapping) -> None:
        self._services, self._mapping = services, mapping
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="probe", daemon=True)

    def __enter__(self) -> Self:
        """Begin to tick."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and wait for the tick under way."""
        self._stop.set()
        self._thread.join()

    def _tick(self) -> None:
        while not self._stop.wait(EVERY_SECONDS):
            try:
                probe(self._services, self._mapping)
            except ReplicationError:
                continue  # a tick that failed proves nothing; the next one continues from the last one
