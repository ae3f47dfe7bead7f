"""Probe several tables side by side, as many at once as one process and its database can handle.

Invariant: a table that cannot be probed does not hold up the others, unless the cause is the database they all need.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigurationError, ReplicationError, UnreachableError
from pipeline.jobs.probe.probe import probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.aurora.bookkeeping.probes import Tick
    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.services import Services

# A tick takes over a second, mostly waiting; it uses one connection to Aurora, and up to 32 readers of shards.
TABLES_AT_ONCE = 4


def probe_tables(services: Services, mappings: Sequence[TableMapping]) -> list[Tick | ReplicationError]:
    """Run one tick for each table; returns the findings or the error of each, in order.

    A tick takes up to 15 s, so N tables take up to N/4 times that. Raises UnreachableError, ConfigurationError.
    """

    def look(mapping: TableMapping) -> Tick | ReplicationError:
        try:
            return probe(services, mapping)
        except (UnreachableError, ConfigurationError):
            raise
        except ReplicationError as error:
            return error

    with ThreadPoolExecutor(TABLES_AT_ONCE, thread_name_prefix="probe") as threads:
        try:
            return list(threads.map(look, mappings))
        except ReplicationError:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
