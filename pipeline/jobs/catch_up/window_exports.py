"""Incremental exports of windows: which windows can be exported, requesting an export, waiting for it.

Invariant: a window's request is recorded before it is made, so that a killed catch-up finds its own exports again
(`pipeline.jobs.snapshots.export_requests`).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigurationError, TerminalError, TransientError
from pipeline.core.exports.windows import SHORTEST, round_up, shortest_range, whole_seconds
from pipeline.dynamodb.tables import check_recovery, describe
from pipeline.jobs.snapshots.export_requests import request_or_resume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pipeline.core.exports.windows import Window
    from pipeline.core.model.mapping import TableMapping
    from pipeline.dynamodb.tables import SourceTable
    from pipeline.jobs.services import Services

_LOOK_AGAIN_SECONDS = 15.0
# The end of the recovery window is typically 5 minutes behind now (botocore: LatestRestorableDateTime).
_LONGEST_WAIT = timedelta(minutes=30)
# A range may end this far ahead of now; the catch-up waits. A loss that was just found ends a margin from now.
_MOST_AHEAD = timedelta(minutes=20)
# Local AWS, whose tables were created a minute ago, has no shortest window.
_SHORTEST_LOCAL = timedelta(seconds=1)


def shortest_window(services: Services) -> timedelta:
    """Return the shortest window that can be exported."""
    return _SHORTEST_LOCAL if services.settings.endpoint_url else SHORTEST


def check_range(
    services: Services, mapping: TableMapping, asked: Window, margin: timedelta, say: Callable[[str], None]
) -> SourceTable:
    """Return the table once the whole range can be exported; wait if its end is a few minutes too recent.

    Raises ConfigurationError for an impossible range, TerminalError saying which part is beyond the recovery window.
    """
    doing = f"catching up {asked}"
    least = shortest_range(margin, shortest_window(services))
    if asked.end - asked.start < least:
        raise ConfigurationError(
            f"{doing}: the range is shorter than {_span(least)}, the shortest that can be caught up",
            table=mapping.name,
            hint="begin earlier: changes already applied are not applied again",
        )
    if asked.end > services.clock.now() + _MOST_AHEAD:
        raise ConfigurationError(f"{doing}: the range ends in the future", table=mapping.name, hint="end it at now")
    source = describe(services.dynamodb, mapping.table, services.clock)
    problem = check_recovery(source)
    if problem:
        raise TerminalError(f"{doing}: {problem}", table=mapping.name)
    if source.earliest_restorable and asked.start < source.earliest_restorable:
        raise _beyond(mapping, asked, source.earliest_restorable)
    return _wait_until_restorable(services, mapping, asked, source, say)


def too_close(mapping: TableMapping, asked: Window, cuts: Iterable[datetime], least: timedelta) -> ConfigurationError:
    """Return the error for a range in which the exports applied before leave room for no window."""
    inside = sorted(cut for cut in cuts if asked.start < cut < asked.end)
    first, last = whole_seconds(inside[0]), round_up(inside[-1])
    return ConfigurationError(
        f"catching up {asked}: an export or a scan already applied, of {first:%Y-%m-%d %H:%M:%S} UTC, is less than"
        f" {_span(least)} from both ends, and no export that short can show which items were deleted since",
        table=mapping.name,
        hint=f"begin at {first - least:%Y-%m-%dT%H:%M:%SZ} or before, or end at {last + least:%Y-%m-%dT%H:%M:%SZ} or"
        " after: changes already applied are not applied again",
    )


def _beyond(mapping: TableMapping, asked: Window, earliest: datetime) -> TerminalError:
    from_then = (earliest + timedelta(seconds=1)).astimezone(UTC)
    beyond = min(earliest, asked.end) - asked.start
    first = f"catch up from {from_then:%Y-%m-%dT%H:%M:%SZ}, and " if asked.end > earliest else ""
    return TerminalError(
        f"catching up {asked}: what was written before {earliest.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, the first"
        f" {_span(beyond)} of the range, is beyond the table's point-in-time recovery (35 days at most)",
        table=mapping.name,
        hint=f"{first}restore that part with a full load: `dynaurora load {mapping.name}`; if deletes were lost"
        f" there, run `dynaurora reconcile {mapping.name} --repair`",
    )


def _wait_until_restorable(
    services: Services, mapping: TableMapping, asked: Window, source: SourceTable, say: Callable[[str], None]
) -> SourceTable:
    deadline = time.monotonic() + _LONGEST_WAIT.total_seconds()
    while (source.latest_restorable or services.clock.now()) < asked.end:
        if time.monotonic() > deadline:
            raise TransientError(
                f"catching up {asked}: point-in-time recovery has not reached its end",
                table=mapping.name,
                hint="try again later, or end the range earlier",
            )
        say("waiting until point-in-time recovery has reached the range's end")
        time.sleep(_LOOK_AGAIN_SECONDS)
        source = describe(services.dynamodb, mapping.table, services.clock)
    return source


def request_window(
    services: Services, mapping: TableMapping, source: SourceTable, window: Window, say: Callable[[str], None]
) -> str:
    """Request the window's export, or find the one that an earlier run requested; returns its ARN."""
    return request_or_resume(services, mapping, (source.arn, source.table_id), say, window)


def _span(length: timedelta) -> str:
    hours, minutes = length // timedelta(hours=1), length % timedelta(hours=1) // timedelta(minutes=1)
    if not hours and not minutes:
        return f"{length.total_seconds():.0f} s"
    return " ".join(text for text in (f"{hours} h" if hours else "", f"{minutes} min" if minutes else "") if text)
