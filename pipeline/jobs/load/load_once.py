"""One load at a time: a run that finds another one leading a load takes part in it and ends with it.

This happens when a run was launched twice, and when Dagster took a living run for dead and launched it again. The
second run must neither pay for a second export nor load again after the first has ended.

Invariant: a table is loaded from one export, once, however many runs were asked to load it at that time, and each of
them reports that load. When the run that leads dies, one of the others takes the lead and loads the same export. A run
that was asked for a certain export loads that one, or fails because another load is running.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.bookkeeping.load_lead import current_lead
from pipeline.aurora.bookkeeping.loads import LoadRunningError
from pipeline.aurora.errors import translating
from pipeline.core.errors import TerminalError
from pipeline.jobs.load.load import LoadReport, load
from pipeline.jobs.load.load_help import help_load
from pipeline.jobs.load.load_watch import LOOK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from datetime import datetime, timedelta

    from pipeline.aurora.bookkeeping.load_lead import Lead, LedLoad
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.load.load_progress import LoadProgress
    from pipeline.jobs.services import Services
    from pipeline.jobs.snapshots.snapshot import Snapshot

# Another run may hold the load lock before it leads a load, or for its last steps: how long this run waits for it.
_PATIENCE_SECONDS = 120.0
_LOOK_AGAIN_SECONDS = 1.0


def load_once(
    services: Services,
    mapping: TableMapping,
    take: Callable[[], Snapshot],
    *,
    joins: bool,
    say: Callable[[str], None],
    location: str | None = None,
    workers: int = 2,
    on_progress: Callable[[LoadProgress], None] | None = None,
    **options: Any,  # noqa: ANN401 - those of `load`
) -> Iterator[Snapshot | LoadReport]:
    """Yield the snapshot as soon as this run has obtained one from `take`; at the end yield the load's report.

    With `location`, that export is loaded and `take` is not called. With `joins`, this run joins any load of the table
    that another run leads; otherwise only one of the same export. `say` is called when another run leads. Raises what
    `take` and `load` raise, and LoadRunningError while a load of another export runs.
    """
    margin: timedelta = options.get("margin") or mapping.margin
    once = _Once(services, mapping, joins, margin, say, workers, on_progress)
    while True:
        report = once.joined(location)
        try:
            if report is None and location is None:
                snapshot = take()
                location = snapshot.location
                yield snapshot
                continue  # a load may have begun while this run waited for the export
            if report is None and location is not None:
                report = load(services, mapping, location, workers=workers, on_progress=on_progress, **options)
        except LoadRunningError as error:
            once.wait(error, location)
            continue
        if report is not None:
            yield report
        return


@dataclass
class _Once:
    """One run that was asked to load, while another one may be leading."""

    services: Services
    mapping: TableMapping
    joins: bool
    margin: timedelta
    say: Callable[[str], None]
    workers: int
    on_progress: Callable[[LoadProgress], None] | None
    begun: datetime | None = None
    """By the database's clock."""
    waited: bool = False
    """Another run has held the load lock since this one began."""
    patient_until: float | None = None

    def joined(self, location: str | None) -> LoadReport | None:
        """Take part in the load that another run leads, until it ends; None when no run leads one, or that run died."""
        started, name = time.monotonic(), self.mapping.name
        with self._connected() as connection:
            self.begun = self.begun or _now(connection)
            while (found := current_lead(connection, name)) and self._is_wanted(found[1], location):
                self.waited, self.patient_until = True, None
                if self._follow(connection, *found):
                    return self._report(connection, found[0].export_id, started)
            if self.waited and self.joins and location is None:
                ended = loads.loaded_since(connection, name, self.begun)
                return self._report(connection, ended, started) if ended is not None else None
        return None

    def wait(self, error: LoadRunningError, location: str | None) -> None:
        """Wait a little for the holder of the load lock; raise the error if that is not a load this run may join."""
        with self._connected() as connection:
            found = current_lead(connection, self.mapping.name)
        if not error.by_load or (found and not self._is_wanted(found[1], location)):
            raise error
        self.waited = True
        if self.patient_until is None:
            self.patient_until = time.monotonic() + _PATIENCE_SECONDS
        if time.monotonic() > self.patient_until:
            raise error
        time.sleep(_LOOK_AGAIN_SECONDS)

    def _connected(self) -> AbstractContextManager[Connection]:
        """Open a connection for this block only: an export may take hours, and a connection may not last that long."""
        return closing(self.services.connect("dynaurora load watch"))

    def _is_wanted(self, led: LedLoad, location: str | None) -> bool:
        same = self.joins if location is None else led.location == location
        return same and led.as_of == led.snapshot_time - self.margin

    def _follow(self, connection: Connection, lead: Lead, led: LedLoad) -> bool:
        """Load files that nobody has, and wait until the lead ends; returns whether the export is loaded then."""
        self.say(f"another run leads the load of {led.location}: this run takes part in it and starts none of its own")
        helped = help_load(self.services, self.mapping, lead, workers=self.workers, on_progress=self.on_progress)
        self.say(f"{helped.files} files loaded by this run; waiting for the run that leads to end the load")
        while current_lead(connection, self.mapping.name) == (lead, led):
            time.sleep(LOOK_SECONDS)
        status = loads.status_of(connection, lead.export_id)
        if status != "loaded":
            self.say(f"the run that led has not finished the load ({status or 'forgotten'})")
        return status == "loaded"

    def _report(self, connection: Connection, export_id: int, started: float) -> LoadReport:
        """Return the report of the load that another run led."""
        report = loaded_report(connection, self.mapping.name, export_id, time.monotonic() - started)
        self.say(f"loaded by the other run: {report.items} items of {report.files} files; this run did not load again")
        return report


def loaded_report(connection: Connection, table_name: str, export_id: int, seconds: float) -> LoadReport:
    """Return the report of a load that another run has ended."""
    with translating("reading what was loaded", table=table_name):
        row = connection.execute(
            "SELECT location, export_arn, snapshot_time, as_of, strategy FROM replication.exports WHERE id = %s",
            [export_id],
        ).fetchone()
    if row is None:
        raise TerminalError("reading what was loaded: its record was deleted meanwhile", table=table_name)
    location, export_arn, snapshot_time, as_of, strategy = row
    files, counts = loads.totals(connection, export_id)
    return LoadReport(
        table=table_name,
        export_id=export_id,
        location=location,
        export_arn=export_arn,
        snapshot_time=snapshot_time,
        as_of=as_of,
        files=files,
        items=counts.items,
        applied=counts.applied,
        stale=counts.stale,
        rejected=counts.rejected,
        size_bytes=counts.size_bytes,
        seconds=seconds,
        files_resumed=0,
        already_loaded=False,
        strategy=strategy,
        ignored=counts.ignored,
        led_elsewhere=True,
    )


def _now(connection: Connection) -> datetime:
    with translating("asking for the time"):
        row = connection.execute("SELECT clock_timestamp()").fetchone()
    if row is None:  # pragma: no cover - a SELECT without FROM gives one row
        raise TerminalError("asking for the time: no row came back")
    return row[0]
