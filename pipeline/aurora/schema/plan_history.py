"""Plans the histories of targets: what is between the database and the mapping's `history`.

Invariant: no step drops versions. A target that no longer has a history keeps its table of versions and loses its view;
a column that is no longer mapped stays in the table and leaves the view.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping import histories
from pipeline.aurora.schema import belongings, catalog, history_tables, tables
from pipeline.aurora.sessions.clock import database_now
from pipeline.core.model import history
from pipeline.core.model.mapping import STORAGE_SCHEMA
from pipeline.core.types.sql_types import parse_sql_type
from pipeline.core.types.widening import TypeChange, type_change

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.aurora.bookkeeping.histories import Recorded
    from pipeline.aurora.schema.catalog import ExistingRelation
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

# Widening rewrites the table and blocks its writers until that is done: seconds at this size.
LARGEST_REWRITE_BYTES = 2**30
# How far ahead partitions are created: versions that come when nobody has purged for longer wait in the default one.
AHEAD = timedelta(days=28)
AHEAD_PARTITIONS = 3


@dataclass(frozen=True, slots=True)
class HistoryStep:
    """Statements of one transaction; `note` is for a person."""

    what: str
    statements: tuple[str, ...]
    note: str = ""


@dataclass(slots=True)
class HistoryPlan:
    """What is between a target's history and the mapping."""

    steps: list[HistoryStep] = field(default_factory=list[HistoryStep])
    refusals: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """What is not done, and the way out."""

    def step(self, connection: Connection, what: str, *statements: sql.Composable, note: str = "") -> None:
        """Add a step."""
        self.steps.append(HistoryStep(what, tuple(each.as_string(connection) for each in statements), note))


def plan_history(connection: Connection, mapping_name: str, target: Target) -> HistoryPlan:
    """Compare a target's history with the database, as it is once its storage table is there. Reads only."""
    made = HistoryPlan()
    recorded = histories.read(connection, target)
    if target.history is None:
        if recorded and recorded.stopped_at is None:
            _stop(connection, made, target)
        return made
    view = catalog.existing_relation(connection, target.schema, history.view_name(target), "")
    if recorded is None:
        _create(connection, made, mapping_name, target, view)
    else:
        _complete(connection, made, mapping_name, target, recorded, view)
    return made


def starts(now: datetime, days: int) -> list[datetime]:
    """Return the beginnings of the partitions that should be there now: this one's, and those ahead."""
    ahead = max(AHEAD_PARTITIONS, AHEAD // timedelta(days=days))
    first = history.partition_begin(now, days)
    return [first + timedelta(days=days * number) for number in range(-1, ahead + 1)]


def _create(
    connection: Connection, made: HistoryPlan, mapping_name: str, target: Target, view: ExistingRelation | None
) -> None:
    kept = target.history
    assert kept is not None  # noqa: S101 - the caller's condition
    for name in (*history.tables_of(target), history.rest_name(target)):
        if catalog.existing_relation(connection, STORAGE_SCHEMA, name, ""):
            made.refusals.append(
                (
                    f"{STORAGE_SCHEMA}.{name} is in the way of the history of {target.view_name}",
                    "if it is a history that you no longer need, drop it; if not, rename it",
                )
            )
    shown = f"{target.schema}.{history.view_name(target)}"
    if view:
        made.refusals.append(
            (
                f"{view.kind} {shown} is in the way of the history of {target.view_name}",
                "rename it, or move it to another schema",
            )
        )
    if made.refusals:
        return
    now, days = database_now(connection), kept.partition_days
    partitions = [
        history_tables.create_partition(target, start, start + timedelta(days=days)) for start in starts(now, days)
    ]
    made.step(
        connection,
        f"create the history of {target.view_name}: {STORAGE_SCHEMA}.{history.table_name(target)}, view {shown}",
        *history_tables.create(target),
        *partitions,
        histories.recording(
            target,
            mapping_name,
            kept_from=history.partition_begin(now - kept.keep, days),
            digest=history_tables.view_digest(target, mapping_name),
        ),
        history_tables.create_view(target, mapping_name),
        note="deploy every replicator with this mapping: until then versions that they write are not recorded",
    )


def _stop(connection: Connection, made: HistoryPlan, target: Target) -> None:
    shown = f"{target.schema}.{history.view_name(target)}"
    view = catalog.existing_relation(connection, target.schema, history.view_name(target), "")
    if view and view.dependents:
        made.refusals.append(
            (
                f"{target.view_name} no longer has a history, and dropping view {shown} would also drop"
                f" {', '.join(view.dependents)}",
                "drop what depends on it first, or give the target its history back",
            )
        )
        return
    table = history_tables.versions(target).as_string(connection)
    base = history_tables.base(target).as_string(connection)
    made.step(
        connection,
        f"stop the history of {target.view_name}: drop view {shown}",
        *([sql.SQL("DROP VIEW {}").format(history_tables.view(target))] if view else []),
        histories.stopping(target),
        note=f"its versions stay in {STORAGE_SCHEMA}.{history.table_name(target)}. To drop them, once no replicator has"
        f" a mapping with this history: DROP TABLE {table}, {base}; {histories.removing(target).as_string(connection)}",
    )


def _complete(
    connection: Connection,
    made: HistoryPlan,
    mapping_name: str,
    target: Target,
    recorded: Recorded,
    view: ExistingRelation | None,
) -> None:
    stored = catalog.stored_table(connection, STORAGE_SCHEMA, history.table_name(target))
    shown = f"{target.schema}.{history.view_name(target)}"
    if stored is None:
        made.refusals.append(
            (
                f"{STORAGE_SCHEMA}.{history.table_name(target)}, the history of {target.view_name}, is gone",
                f"if you dropped it, run {histories.removing(target).as_string(connection)}; drop"
                f" {history_tables.base(target).as_string(connection)} too, and migrate again",
            )
        )
        return
    added = [name for name in history_tables.all_columns(target) if name not in stored.columns]
    widened = _widened(target, stored.columns)
    if widened and stored_bytes(connection, target) > LARGEST_REWRITE_BYTES:
        made.refusals.append(
            (
                f"widening columns of {STORAGE_SCHEMA}.{history.table_name(target)} rewrites it and blocks writers",
                "map the attribute to a column with another name",
            )
        )
        return
    digest = history_tables.view_digest(target, mapping_name)
    again = recorded.stopped_at is not None
    if added or widened or again or view is None or digest != recorded.view_digest:
        _alter(connection, made, mapping_name, target, (added, widened, again), view)
    if target.history and target.history.keep != recorded.keep:
        made.step(
            connection,
            f"keep {shown} for {target.history.keep.days} days instead of {recorded.keep.days}",
            histories.keeping(target),
        )


def _alter(
    connection: Connection,
    made: HistoryPlan,
    mapping_name: str,
    target: Target,
    change: tuple[list[str], list[str], bool],
    view: ExistingRelation | None,
) -> None:
    added, widened, again = change
    shown = f"{target.schema}.{history.view_name(target)}"
    create = history_tables.create_view(target, mapping_name)
    before: list[sql.Composable] = []
    after: list[sql.Composable] = []
    wanted = (*history.view_columns(target), *history_tables.shown_names(target))
    if view and (widened or view.kind != "view" or wanted[: len(view.columns)] != view.columns):
        if view.kind != "view" or view.dependents:
            made.refusals.append(
                (
                    f"view {shown} must be recreated, which would also drop {', '.join(view.dependents) or view.kind}",
                    "drop what depends on it and create it again after the migration",
                )
            )
            return
        before.append(sql.SQL("DROP VIEW {}").format(history_tables.view(target)))
        after += [
            sql.SQL("{}").format(_literally(text))
            for text in belongings.of_view(connection, view.oid, history_tables.view(target), wanted)
        ]
    clauses = _clauses(target, added, widened)
    altered = [
        sql.SQL("ALTER TABLE {} {}").format(table, clauses)
        for table in (history_tables.versions(target), history_tables.base(target))
        if added or widened
    ]
    digest = history_tables.view_digest(target, mapping_name)
    what = f"resume the history of {target.view_name}" if again else f"complete the history of {target.view_name}"
    named = ", ".join(f'"{name}"' for name in (*added, *widened))
    made.step(
        connection,
        f"{what}: {f'columns {named}, ' if named else ''}view {shown}",
        *before,
        *altered,
        create,
        *after,
        histories.viewing(target, digest, again=again),
        note=_added_note(added),
    )


def _added_note(added: list[str]) -> str:
    if not added:
        return ""
    return "older versions have no value there, or the column's default, until `dynaurora promote` fills them"


def _literally(text: str) -> sql.SQL:
    return sql.SQL(text)  # type: ignore[arg-type]  # statements that `belongings` composed


def _clauses(target: Target, added: Sequence[str], widened: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(
        [
            *(
                sql.SQL("ADD COLUMN {} {}{}").format(
                    sql.Identifier(name), tables.column_type(target, name), tables.stored_default(target, name)
                )
                for name in added
            ),
            *(
                sql.SQL("ALTER COLUMN {} TYPE {}").format(sql.Identifier(name), tables.column_type(target, name))
                for name in widened
            ),
        ]
    )


def _widened(target: Target, stored: Mapping[str, str]) -> list[str]:
    """Return the columns to widen; what is no widening, the storage table's plan has refused."""
    found: list[str] = []
    for column in target.columns:
        if column.name not in stored:
            continue
        try:
            change = type_change(parse_sql_type(stored[column.name]), column.type)
        except ValueError:
            continue
        if change not in {TypeChange.NONE, TypeChange.REFUSED}:
            found.append(column.name)
    return found


def stored_bytes(connection: Connection, target: Target) -> int:
    """Return the size of a history's tables with their indexes."""
    row = connection.execute(
        "SELECT COALESCE((SELECT sum(pg_total_relation_size(relid)) FROM pg_partition_tree(%s::regclass)), 0)"
        " + pg_total_relation_size(%s::regclass)",
        [history_tables.versions(target).as_string(connection), history_tables.base(target).as_string(connection)],
    ).fetchone()
    return int(row[0]) if row else 0
