"""Repoint: make another DynamoDB table the source of record of a mapping, such as one restored under a new name.

Invariant: nothing is switched unless the new table is fit: it exists, has the key that the mapping and the rows have,
and has a stream with new images that is newer than any that rows came from. The switch is one transaction; after its
commit nothing from the old table is written. The rows are those of the new table once it was loaded and reconciled.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import bookkeeping, loads, repointing, sources
from pipeline.aurora.bookkeeping.sources import SourceOfRecord
from pipeline.aurora.rows.purge import LOCK_SECONDS
from pipeline.aurora.schema import lock_holders, tables
from pipeline.aurora.schema.plan import plan
from pipeline.core.errors import ConfigurationError, TransientError, UnreachableError
from pipeline.core.past.lost_history import change_view_type
from pipeline.core.streams.positions import label_time
from pipeline.dynamodb.tables import check_source, describe

if TYPE_CHECKING:
    from pipeline.aurora.bookkeeping.repointing import Known
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping
    from pipeline.dynamodb.tables import SourceTable
    from pipeline.jobs.services import Services

_ATTEMPTS, _LOOKS = 20, 30


@dataclass(frozen=True, slots=True)
class RepointReport:
    """What a switch did, or would do. `since` is None if nothing was switched."""

    table: str
    old_table: str
    old_arn: str | None
    new_table: str
    new_arn: str
    since: datetime | None
    to_do: bool
    """Whether the table of the mapping file is not the source of record yet."""
    effects: tuple[str, ...] = ()
    """What the switch means, in sentences."""
    next_steps: tuple[str, ...] = field(default=())
    """What a person must do then, in this order."""


def repoint(
    services: Services,
    mapping: TableMapping,
    *,
    dry_run: bool = False,
    on_effects: Callable[[tuple[str, ...]], None] | None = None,
) -> RepointReport:
    """Switch to the table that the mapping names; `on_effects` gets what that means before it is done.

    Raises ConfigurationError if the table is not fit, TerminalError while a load or a reconciliation of the mapping
    runs, TransientError if writers hold its tables for too long.
    """
    mapping = services.with_key(mapping)
    new = describe(services.dynamodb, mapping.table)
    with services.connect("dynaurora repoint") as connection:
        before = _recorded(connection, mapping)
        if not before.differences(new.name, new.arn):
            sources.learn(connection, mapping.name, before, new.arn, new.table_id)
            return RepointReport(mapping.name, before.table, before.arn, new.name, new.arn, None, to_do=False)
        pending = _check(connection, mapping, new)
        with loads.table_locked(connection, mapping.name):
            known = repointing.known(connection, mapping.name)
            _check_label(mapping, new, known)
            effects = _effects(before, new, known)
            if on_effects:
                on_effects(effects)
            since = None if dry_run else _switch(connection, mapping, before, new)
    return RepointReport(
        mapping.name,
        before.table,
        before.arn,
        new.name,
        new.arn,
        since,
        to_do=since is None,
        effects=effects,
        next_steps=_next_steps(mapping, before, new, since, migrate=pending),
    )


def _recorded(connection: Connection, mapping: TableMapping) -> SourceOfRecord:
    record = None if bookkeeping.pending(connection) else sources.read(connection, mapping.name)
    if record is None:
        raise ConfigurationError(
            "re-pointing: the mapping is not registered, or the bookkeeping is of an older version",
            table=mapping.name,
            hint=f"run `dynaurora migrate {mapping.name}`",
        )
    return record


def _check(connection: Connection, mapping: TableMapping, new: SourceTable) -> bool:
    """Raise ConfigurationError if the new table is not fit; return whether the database must be migrated."""
    problems = check_source(new, mapping, exported=False)
    planned = plan(connection, [mapping], repointing=True)
    problems += [f"{refusal.what}; {refusal.way_out}" for refusal in planned.refusals if not refusal.grants]
    if problems:
        raise ConfigurationError(f"re-pointing to {new.name}: {'; '.join(problems)}", table=mapping.name)
    return bool(planned.steps)


def _check_label(mapping: TableMapping, new: SourceTable, known: Known) -> None:
    """Raise ConfigurationError if changes of the new stream would count as older than stored ones."""
    if new.stream_label is None or known.newest_label is None:
        return
    if label_time(new.stream_label) > label_time(known.newest_label):
        return
    raise ConfigurationError(
        f"re-pointing to {new.name}: its stream was created at {label_time(new.stream_label):%Y-%m-%d %H:%M:%S} UTC,"
        f" and rows are stored from a stream created at {label_time(known.newest_label):%Y-%m-%d %H:%M:%S} UTC: the"
        " changes of the older stream would count as older",
        table=mapping.name,
        hint=f"give {new.name} a new stream: {change_view_type(new.name, replicated=new.replicated)}",
    )


def _switch(connection: Connection, mapping: TableMapping, before: SourceOfRecord, new: SourceTable) -> datetime:
    now = SourceOfRecord(new.name, new.arn, new.table_id, first_label=new.stream_label)
    repointing.discard_builds(connection, mapping.name)
    storage = [tables.storage(target) for target in mapping.tables]
    held: list[lock_holders.Holder] = []
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return repointing.switch(connection, mapping, before, now)
        except UnreachableError:
            raise
        except TransientError as error:
            if held or attempt == _ATTEMPTS:
                held = lock_holders.holders(connection, storage, only_writers=True)
                raise TransientError(error.message, table=mapping.name, hint=lock_holders.way_out(held)) from None
            time.sleep(random.uniform(0.1, 1.0))  # noqa: S311 - jitter, not a secret
            held = lock_holders.wait_until_free(
                connection, storage, pause=lambda: time.sleep(LOCK_SECONDS), looks=_LOOKS, only_writers=True
            )
    raise AssertionError  # pragma: no cover - the last attempt returns or raises


def _effects(before: SourceOfRecord, new: SourceTable, known: Known) -> tuple[str, ...]:
    return (
        f"the source of record becomes {new.arn} instead of {before.arn or before.table}",
        f"changes of {before.arn or before.table} are refused from then on: a replicator that still reads its stream"
        " fails its batches",
        f"the rows stay as they are until the new table is loaded and reconciled; {known.loads} loads of the old table"
        f" no longer count, and {known.rejects} of its rejects are closed",
    )


def _next_steps(
    mapping: TableMapping, before: SourceOfRecord, new: SourceTable, since: datetime | None, *, migrate: bool
) -> tuple[str, ...]:
    name, old = mapping.name, before.arn or before.table
    from_then = "" if since is None else f", at {since + mapping.margin + timedelta(seconds=1):%H:%M:%S} UTC or later"
    return (
        *([f"dynaurora migrate {name}"] if migrate else []),
        f"delete the event source mapping that reads the stream of {old}",
        f"deploy the replicator with this mapping on the stream {new.stream_arn}",
        f"dynaurora load {name}" + ("" if new.pitr_enabled else " --scan"),
        f"dynaurora reconcile {name} --repair" + ("" if new.pitr_enabled else " --scan") + from_then,
    )
