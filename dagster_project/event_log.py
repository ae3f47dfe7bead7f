"""Dagster's event log: a daily job that removes old events of the sensors, and keeps the newest.

Dagster keeps events forever. Its own retention settings (`retention` of dagster.yaml) cover only ticks of sensors and
schedules; `dagster asset wipe` removes the newest events too; `dagster run delete` covers events of runs. So this job
removes events from the tables of Dagster's storage, as its own `delete_events_for_run` does. It names the tables and
columns itself, because Dagster exports none. With a version that lacks them the job fails, and removes nothing.

Invariant: an event is removed only if it belongs to no run, is about an asset or check of this code location, is older
than asked, and a newer one of the same asset and kind, or of the same check, stays. So freshness, the state of checks,
and alerts do not change; plots become shorter.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, runtime_checkable

import dagster as dg
import sqlalchemy as db

from dagster_project.forms import EventsChoice, job_form
from dagster_project.keys import TableKeys
from pipeline.core.errors import ConfigurationError
from pipeline.core.model.mapping import TableMapping

PURGE_EVENTS = "purge_events"
_OP = "purge_events__old"
_DAILY = "50 4 * * *"
_MAX_SECONDS = 3600
CHUNK_EVENTS = 1_000
_KINDS = [
    dg.DagsterEventType.ASSET_MATERIALIZATION.value,
    dg.DagsterEventType.ASSET_OBSERVATION.value,
]
_OF_NO_RUN = ""


def _table(name: str, *columns: str) -> db.TableClause:
    return db.table(name, *(db.Column[Any](column) for column in columns))


EVENTS_TABLE = _table(
    "event_logs", "id", "run_id", "asset_key", "dagster_event_type", "timestamp", "partition", "event"
)
CHECKS_TABLE = _table(
    "asset_check_executions",
    *("id", "run_id", "asset_key", "check_name", "partition"),
    *("evaluation_event_timestamp", "evaluation_event_storage_id"),
)
TAGS_TABLE = _table("asset_event_tags", "event_id")
_EVENTS, _CHECKS, _TAGS = EVENTS_TABLE.c, CHECKS_TABLE.c, TAGS_TABLE.c


@runtime_checkable
class SqlEvents(Protocol):
    """What this job uses of Dagster's storages that keep events in tables."""

    def index_connection(self) -> AbstractContextManager[Any]: ...
    def run_connection(self, run_id: str | None = None) -> AbstractContextManager[Any]: ...


@dataclass(slots=True)
class Purged:
    """Events removed. A laptop's SQLite stores each twice, which counts once."""

    of_assets: int = 0
    of_checks: int = 0


def purge_events(storage: object, keys: Sequence[dg.AssetKey], before: datetime) -> Purged:
    """Remove events of these assets and their checks that are older than `before`; each chunk is a transaction.

    Raises ConfigurationError if the instance does not keep its events in tables.
    """
    if not isinstance(storage, SqlEvents):
        raise ConfigurationError(
            f"purging Dagster's event log: {type(storage).__name__} keeps no tables of events",
            hint="turn this schedule off, and set a retention in the storage that keeps the events",
        )
    at = before.astimezone(UTC).replace(tzinfo=None)  # as Dagster writes times
    names = [key.to_string() for key in keys]
    purged = Purged()
    while count := _purge_checks(storage, names, at):
        purged.of_checks += count
    while count := _purge_assets(storage.index_connection(), names, at):
        purged.of_assets += count
    if getattr(storage, "is_run_sharded", False):  # SQLite: what belongs to no run has a file too, with other numbers
        while _purge_copies(storage, keys, at):
            pass
    return purged


def _purge_checks(storage: SqlEvents, names: Sequence[str], before: datetime) -> int:
    """Remove old results, except each check's newest, from the table of checks and from the log."""
    newest = (
        db.select(db.func.max(_CHECKS.id))
        .where(_CHECKS.asset_key.in_(names), _CHECKS.run_id == _OF_NO_RUN)
        .group_by(_CHECKS.asset_key, _CHECKS.check_name, _CHECKS.partition)
    )
    old = (
        db.select(_CHECKS.id, _CHECKS.evaluation_event_storage_id)
        .where(
            _CHECKS.asset_key.in_(names),
            _CHECKS.run_id == _OF_NO_RUN,
            _CHECKS.evaluation_event_timestamp < before,
            _CHECKS.id.not_in(newest),
        )
        .limit(CHUNK_EVENTS)
    )
    with storage.index_connection() as connection:
        found = connection.execute(old).fetchall()
        _delete(connection, CHECKS_TABLE, _CHECKS.id, (row[0] for row in found))
        _delete(connection, EVENTS_TABLE, _EVENTS.id, (row[1] for row in found))
    return len(found)


def _purge_assets(opened: AbstractContextManager[Any], names: Sequence[str], before: datetime) -> int:
    """Remove old materializations and observations, except each asset's newest of both kinds, with their tags."""
    ours = (_EVENTS.run_id == _OF_NO_RUN, _EVENTS.asset_key.in_(names), _EVENTS.dagster_event_type.in_(_KINDS))
    newest = (
        db.select(db.func.max(_EVENTS.id))
        .where(*ours)
        .group_by(_EVENTS.asset_key, _EVENTS.dagster_event_type, _EVENTS.partition)
    )
    old = db.select(_EVENTS.id).where(*ours, _EVENTS.timestamp < before, _EVENTS.id.not_in(newest)).limit(CHUNK_EVENTS)
    with opened as connection:
        found = [row[0] for row in connection.execute(old)]
        _delete(connection, TAGS_TABLE, _TAGS.event_id, found)
        _delete(connection, EVENTS_TABLE, _EVENTS.id, found)
    return len(found)


def _purge_copies(storage: SqlEvents, keys: Sequence[dg.AssetKey], before: datetime) -> int:
    """Remove old events from the file of events that belong to no run. The index has the newest, so it answers which
    stay.

    In that file a check's result names its asset only in its text.
    """
    paths = [f'"path": {key.to_string()}' for key in keys]
    old = (
        db.select(_EVENTS.id)
        .where(
            _EVENTS.dagster_event_type.in_([*_KINDS, dg.DagsterEventType.ASSET_CHECK_EVALUATION.value]),
            _EVENTS.timestamp < before,
            db.or_(*(_EVENTS.event.contains(path, autoescape=True) for path in paths)),
        )
        .limit(CHUNK_EVENTS)
    )
    with storage.run_connection(_OF_NO_RUN) as connection:
        found = [row[0] for row in connection.execute(old)]
        _delete(connection, EVENTS_TABLE, _EVENTS.id, found)
    return len(found)


def _delete(connection: Any, table: db.TableClause, column: Any, ids: Iterable[int | None]) -> None:  # noqa: ANN401 - SQLAlchemy's
    if chosen := [number for number in ids if number is not None]:
        connection.execute(table.delete().where(column.in_(chosen)))


def purge_events_job(mappings: Sequence[TableMapping]) -> dg.JobDefinition:
    """Define the job over the assets of every mapping."""
    keys = [key for mapping in mappings for key in _watched(TableKeys(mapping.name))]

    @dg.op(name=_OP, config_schema=EventsChoice.to_fields_dict())
    def old(context: dg.OpExecutionContext) -> None:
        choice, started = EventsChoice(**context.op_config), time.monotonic()
        before = datetime.now(UTC) - timedelta(days=choice.keep_days)
        purged = purge_events(context.instance.event_log_storage, keys, before)
        context.add_output_metadata(
            {
                "events_of_assets": purged.of_assets,
                "results_of_checks": purged.of_checks,
                "older_than": f"{before:%Y-%m-%d %H:%M:%S} UTC",
                "seconds": round(time.monotonic() - started, 3),
            }
        )

    @dg.job(  # pyright: ignore[reportUnknownMemberType]  # dagster leaves parameters of its overloads out
        name=PURGE_EVENTS,
        config=job_form(EventsChoice, _OP),
        executor_def=dg.in_process_executor,
        tags={"dagster/max_runtime": _MAX_SECONDS},
        description="Removes what the sensors reported more than `keep_days` ago from Dagster's event log. The newest"
        " event of each asset and check stays, and so does everything that belongs to a run. Plots show that many"
        " days.",
    )
    def purging() -> None:
        old()

    return purging


def purge_events_schedule(job: dg.JobDefinition) -> dg.ScheduleDefinition:
    """Define its schedule: daily, and on from the start, because events would pile up otherwise."""
    return dg.ScheduleDefinition(
        name=f"{PURGE_EVENTS}_schedule",
        job=job,
        cron_schedule=_DAILY,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Keeps 14 days of sensor reports.",
    )


def _watched(keys: TableKeys) -> list[dg.AssetKey]:
    """The assets that the sensors report on, table by table."""
    return [keys.replication, keys.aurora_table, keys.dynamodb_table]
