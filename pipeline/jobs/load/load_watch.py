"""How the runs of one load learn about each other: whether the load is still running, and which files others loaded.

Invariant: a run that takes part in a load stops loading within a second after that load ends, however it ended.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.bookkeeping.load_lead import LoadEndedError, led_load

if TYPE_CHECKING:
    from pipeline.aurora.bookkeeping.load_lead import Lead, LedLoad
    from pipeline.aurora.sessions.connection import Connection

# How often to look up which files others have loaded, unless a worker is waiting for them.
LOOK_SECONDS = 2.0


class MarksWatch:
    """Looks up from time to time which files are loaded, whoever loaded them."""

    def __init__(self, connection: Connection, export_id: int) -> None:
        self._connection, self._export_id = connection, export_id
        self._looked = time.monotonic()

    def __call__(self, *, idle: bool) -> frozenset[str] | None:
        """Return the loaded files; None when it is too soon to look."""
        if not idle and time.monotonic() - self._looked < LOOK_SECONDS:
            return None
        self._looked = time.monotonic()
        return loads.loaded_files(self._connection, self._export_id)


class LeadWatch:
    """The same for a run that takes part in another's load: it ends with that load."""

    def __init__(self, connection: Connection, table_name: str, lead: Lead, found: LedLoad) -> None:
        self._connection, self._table_name, self._lead, self._found = connection, table_name, lead, found
        self._marks = MarksWatch(connection, lead.export_id)

    def __call__(self, *, idle: bool) -> frozenset[str] | None:
        """Return the files that are loaded. Raises LoadEndedError."""
        if led_load(self._connection, self._table_name, self._lead) != self._found:
            raise LoadEndedError("loading: the load has ended or started over", table=self._table_name)
        return self._marks(idle=idle)
