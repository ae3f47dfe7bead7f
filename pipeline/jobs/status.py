"""Status: how far the tables are, what waits for a person, when each was last loaded and last compared.

Invariant: it changes nothing, so anyone who may read the bookkeeping may ask for it at any time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping.status import TableStatus, read_status
from pipeline.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.services import Services

_TIMEOUT_SECONDS = 20.0


def status(services: Services, mappings: Iterable[TableMapping]) -> list[TableStatus | None]:
    """Return the status of each mapping's table, in order; None for a table that was never migrated.

    Raises TransientError, TerminalError.
    """
    wanted = list(mappings)
    with services.connect("dynaurora status", statement_timeout_seconds=_TIMEOUT_SECONDS) as connection:
        found = read_status(connection, wanted)
    return [found.get(mapping.name) for mapping in wanted]


def not_migrated(mapping: TableMapping) -> ConfigurationError:
    """Return the error for a table that was never migrated."""
    return ConfigurationError(
        "reading the status: the table is not in the database yet",
        table=mapping.name,
        hint=f"run `dynaurora migrate {mapping.name}`",
    )
