"""When the sensors that query Aurora may look: at every tick, or only when a cron expression says so.

A look opens a connection, and a Serverless v2 cluster that may pause does so only after minutes without one.

Invariant: a look that failed is due again at the next tick, because a look is remembered only afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from croniter import croniter

from pipeline.core.errors import ConfigurationError

VARIABLE = "DYNAURORA_PROBE_CRON"


def not_due(
    environment: Mapping[str, str], memories: Mapping[str, Any], names: Iterable[str], now: float
) -> str | None:
    """Return why not to look at the tables yet, or None if a look is due. Times are UTC. Raises ConfigurationError.

    `memories` holds, by table name, when each was last looked at (`looked_at`). If a look is due for one table, it is
    due for all.
    """
    cron = environment.get(VARIABLE, "").strip()
    if not cron:
        return None
    if not croniter.is_valid(cron):
        raise ConfigurationError(
            f"looking at replication: {VARIABLE} is not a cron expression",
            hint="write minute, hour, day, month and weekday, such as `0 * * * *`, or unset it to look all the time",
        )
    looked_at = min((memories.get(name, {}).get("looked_at", 0.0) for name in names), default=0.0)
    at = datetime.fromtimestamp(now, UTC)
    if croniter(cron, at).get_prev(float) > looked_at:
        return None
    due = croniter(cron, at).get_next(datetime)
    return f"the next look is at {due:%Y-%m-%d %H:%M} UTC, as {VARIABLE} says; until then Aurora may pause"
