"""What the runs of one load know of each other while they load files: whether it goes on, and what the others did.

Invariant: a run that takes part in a load loads nothing more within a second of that load's end, however it ended.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.bookkeeping.load_lead import LoadEndedError, led_load

if TYPE_CHECKING:
    from pipeline.aurora.bookkeeping.load_lead import Lead, LedLoad
    from pipeline.aurora.sessions.connection import Connection

# How often files are looked up that others have loaded, unless a worker waits for them.
LOOK_SECONDS = 2.0


class MarksWatch:
    """Looks up now and then which files are loaded, whoever loaded them."""

    def __init__(self, connection: Connection, export_id: int) -> None:
        self._connection, self._export_id = connection, export_id
        self._looked = time.monotonic()

    def __call__(self, *, idle: bool) -> frozenset[str] | None:
        """Return them; None when it is too soon."""
        if not idle and time.monotonic() - self._looked < LOOK_SECONDS:
            return None
        self._looked = time.monotonic()
        return loads.loaded_files(self._connection, self._export_id)


class LeadWatch:
    """The same for a run that takes part in another's load: it ends with that one."""

    def __init__(self, connection: Connection, table_name: str, lead: Lead, found: LedLoad) -> None:
        self._connection, self._table_name, self._lead, self._found = connection, table_name, lead, found
        self._marks = MarksWatch(connection, lead.export_id)

    def __call__(self, *, idle: bool) -> frozenset[str] | None:
        """Return the files that are loaded. Raises LoadEndedError."""
        if led_load(self._connection, self._table_name, self._lead) != self._found:
            raise LoadEndedError("loading: the load has ended, or was begun again", table=self._table_name)
        return self._marks(idle=idle)
