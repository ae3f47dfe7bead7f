"""How far the clocks differ. No position that differing clocks make doubtful is written.

Positions use the source's clock (`pipeline.dynamodb.clock`). A host whose clock is off by as much as a margin is
refused all the same: the margin covers clocks that disagree, and must leave room for a second by which creation times
are rounded and a second by which the measurement may be wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.aurora.sessions.clock import host_ahead
from pipeline.core.errors import ConfigurationError
from pipeline.dynamodb.clock import SET_IT, how_far, in_doubt
from pipeline.dynamodb.tables import identify

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.services import Services

NOT_KNOWN = (
    "the source's clock is not known: its answers carry no usable Date header (a stand-in for AWS, or a proxy); times"
    " are taken from this host's clock"
)


def source_now(services: Services, mapping: TableMapping) -> datetime:
    """Return the time at the source, asking it about the table if it was not asked lately."""
    if not services.clock.asked_lately:
        identify(services.dynamodb, mapping.table, services.clock)
    return services.clock.now()


def refuse_wrong_clock(
    services: Services,
    mapping: TableMapping,
    margin: timedelta,
    doing: str,
    connection: Connection,
    say: Callable[[str], None] | None = None,
) -> None:
    """Raise ConfigurationError if this host's clock is off by the margin, so that positions would be doubtful.

    Asks the source about the table if it was not asked lately. If the source does not tell the time, which `say`
    reports, the host's clock is compared with the database's.
    """
    source_now(services, mapping)
    ahead, whose = services.clock.ahead, "DynamoDB's"
    if ahead is None:
        if say:
            say(NOT_KNOWN)
        ahead, whose = host_ahead(connection), "the database's"
    if not in_doubt(ahead, margin):
        return
    raise ConfigurationError(
        f"{doing}: this host's clock is {how_far(ahead)} {whose}, and the margin that covers clocks that disagree is"
        f" {margin.total_seconds():.0f} s: what would be written now could count as later than changes that come after"
        " it",
        table=mapping.name,
        hint=f"{SET_IT}, and run it again",
    )
