"""Compares the database with the mappings: steps that remove the difference, and refusals that a person must handle.

Invariant: no step drops or narrows data. A column that is no longer mapped stays in storage and leaves the view. A
target with a refusal has no steps at all, so it is never changed halfway.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping import bookkeeping, protected_rejects
from pipeline.aurora.bookkeeping.sources import SourceOfRecord, not_of_record
from pipeline.aurora.schema import belongings, catalog, followers, tables
from pipeline.aurora.schema.indexes import plan_indexes
from pipeline.aurora.schema.plan_history import plan_history
from pipeline.aurora.schema.protecting import plan_protection
from pipeline.aurora.schema.readers import plan_readers
from pipeline.core.model import history
from pipeline.core.model.mapping import BOOKKEEPING_COLUMNS, BOOKKEEPING_SCHEMA, DELETED, STORAGE_SCHEMA
from pipeline.core.types.sql_types import SqlType, parse_sql_type
from pipeline.core.types.widening import TypeChange, type_change

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.aurora.schema.catalog import ExistingRelation, StoredTable
    from pipeline.aurora.schema.followers import Caution
    from pipeline.aurora.schema.indexes import IndexPlan
    from pipeline.aurora.schema.plan_history import HistoryPlan
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping, Target

# A rewrite blocks every reader and writer of the table until it is done: seconds at this size.
LARGEST_REWRITE_BYTES = 2**30
LOAD_AGAIN = "until the table is loaded or reconciled again"


@dataclass(frozen=True, slots=True)
class Step:
    """Statements that run in one transaction; `note` is what is left for a person to do. `mapping` is "" for our own
    schema.
    """

    mapping: str
    what: str
    sql: str
    note: str = ""
    alters: str = ""
    """The storage table that it creates or alters."""
    index: str = ""
    """The index that it builds or drops, with one statement that must run outside of a transaction."""
    only_records: bool = False
    """It writes bookkeeping or grants, which lock no table or view, so it waits for nobody."""
    grants: bool = False
    """It is about who may read: rows can be written without it."""
    rejects: bool = False
    """It protects stored rejects, which `migrate` does and no SQL can."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A change that is not made automatically, and the way out."""

    mapping: str
    what: str
    way_out: str
    grants: bool = False
    """It is about who may read: rows can be written all the same."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in the order in which they must run."""

    steps: tuple[Step, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    cautions: tuple[Caution, ...] = ()
    """What followers of this database need, even if there is nothing to migrate."""

    @property
    def empty(self) -> bool:
        """Whether the database matches the mappings."""
        return not (self.steps or self.refusals)


@dataclass(slots=True)
class _TargetPlan:
    """The plan of one target, being built."""

    mapping: str
    target: Target
    steps: list[Step] = field(default_factory=list[Step])
    refusals: list[Refusal] = field(default_factory=list[Refusal])

    @property
    def storage(self) -> str:
        return f"{STORAGE_SCHEMA}.{self.target.storage_name}"

    def step(self, what: str, statements: Sequence[str], note: str = "", *, alters: bool = False) -> None:
        altered = self.target.storage_name if alters else ""
        self.steps.append(Step(self.mapping, what, ";\n".join(statements) + ";", note, altered))

    def index_steps(self, planned: IndexPlan) -> None:
        self.steps += [
            Step(self.mapping, step.what, step.sql, step.note, index=step.index, only_records=not step.index)
            for step in planned.steps
        ]

    def history_steps(self, planned: HistoryPlan) -> None:
        for what, way_out in planned.refusals:
            self.refuse(what, way_out)
        for step in planned.steps:
            text = ";\n".join(step.statements) + ";"
            self.steps.append(Step(self.mapping, step.what, text, step.note, history.table_name(self.target)))

    def refuse(self, what: str, way_out: str) -> None:
        self.refusals.append(Refusal(self.mapping, what, way_out))


@dataclass(frozen=True, slots=True)
class _Registered:
    """The record of a mapping; `storage` are the names of its storage tables."""

    source_table: str
    storage: frozenset[str] = frozenset()
    protection: str = ""


def plan(
    connection: Connection, mappings: Iterable[TableMapping], *, repointing: bool = False, new_key: bool = False
) -> Plan:
    """Compare the database with the mappings, which have the privacy key. Reads only.

    With `repointing`, their sources of record are ignored. `new_key` says that the privacy key was replaced on purpose.
    """
    steps = _bookkeeping_steps(connection)
    refusals: list[Refusal] = []
    registered = _registered(connection)
    mappings = tuple(mappings)
    for mapping in mappings:
        refusal = None if repointing else _source_refusal(mapping, registered)
        if refusal:
            refusals.append(refusal)
            continue
        planned = [_TargetPlan(mapping.name, target) for target in mapping.tables]
        for target_plan in planned:
            if not _is_of_another(connection, target_plan, registered):
                _plan_target(connection, target_plan)
                target_plan.history_steps(plan_history(connection, mapping.name, target_plan.target))
            refusals += target_plan.refusals
        taken = [target_plan for target_plan in planned if not target_plan.refusals]
        protecting = _plan_protection(connection, mapping, registered, new_key=new_key)
        if isinstance(protecting, Refusal):
            refusals.append(protecting)
            continue
        steps += _register(connection, mapping, registered, {one.target.storage_name for one in taken})
        for target_plan in taken:
            steps += [step for step in target_plan.steps if step not in steps]
        if len(taken) == len(planned):
            steps += protecting
        reading = plan_readers(connection, mapping, [target_plan.target for target_plan in taken])
        steps += [Step(mapping.name, step.what, step.sql, only_records=True, grants=True) for step in reading.steps]
        refusals += [Refusal(mapping.name, what, way_out, grants=True) for what, way_out in reading.problems]
    altered = {step.alters for step in steps if step.alters}
    return Plan(tuple(steps), tuple(refusals), followers.cautions(connection, mappings, altered))


def _bookkeeping_steps(connection: Connection) -> list[Step]:
    pending = bookkeeping.pending(connection)
    if not pending:
        return []
    what = f"create or complete schema {BOOKKEEPING_SCHEMA}: {', '.join(pending)}"
    return [Step("", what, bookkeeping.script(pending))]


def _registered(connection: Connection) -> dict[str, _Registered]:
    if not bookkeeping.installed(connection):
        return {}
    rows = connection.execute(  # the column may not be there yet
        "SELECT name, source_table, COALESCE(to_jsonb(t) -> 'storage_tables', '[]'),"
        " COALESCE(to_jsonb(t) ->> 'protection', '') FROM replication.tables AS t"
    ).fetchall()
    return {
        name: _Registered(source_table, frozenset(storage), protection)
        for name, source_table, storage, protection in rows
    }


def _plan_protection(
    connection: Connection, mapping: TableMapping, registered: Mapping[str, _Registered], *, new_key: bool
) -> list[Step] | Refusal:
    known = registered.get(mapping.name)
    protection = known.protection if known else ""
    change = plan_protection(connection, mapping, protection, registered=known is not None, new_key=new_key)
    if change.problem:
        return Refusal(mapping.name, *change.problem)
    steps = [Step(mapping.name, change.what, change.sql, change.note)] if change.sql else []
    if count := protected_rejects.unprotected(connection, mapping) if known else 0:
        text = f"-- only `dynaurora migrate {mapping.name}` does this;"
        steps.append(Step(mapping.name, f"protect {count} stored rejects", text, rejects=True))
    return steps


def _is_of_another(connection: Connection, made: _TargetPlan, registered: Mapping[str, _Registered]) -> bool:
    """Refuse a target whose rows another mapping writes, or may write: each would treat the other's rows as its own."""
    storage = made.target.storage_name
    owners = sorted(name for name, known in registered.items() if storage in known.storage and name != made.mapping)
    if not owners:
        unknown = made.mapping not in registered and catalog.stored_table(connection, STORAGE_SCHEMA, storage)
        if not unknown or not set(BOOKKEEPING_COLUMNS) <= set(unknown.columns):
            return False
    whose = f"mapping {', '.join(owners)}" if owners else "a mapping of another name"
    made.refuse(
        f"{made.storage}, which view {made.target.view_name} shows, belongs to {whose}: {made.mapping} would mix its"
        " rows with those",
        f"give the target another name than {made.target.name}; if the mapping was renamed, give it its old name again"
        f" (registered: {', '.join(sorted(registered)) or 'none'})",
    )
    return True


def _source_refusal(mapping: TableMapping, registered: Mapping[str, _Registered]) -> Refusal | None:
    known = registered.get(mapping.name)
    record = SourceOfRecord(known.source_table if known else mapping.table)
    found = record.differences(mapping.table, None)
    return Refusal(mapping.name, *not_of_record(mapping.name, record, found)) if found else None


def _register(
    connection: Connection, mapping: TableMapping, registered: Mapping[str, _Registered], storage: set[str]
) -> list[Step]:
    """Register a mapping with the names of its storage tables, or record its new ones."""
    known = registered.get(mapping.name)
    values = {"name": sql.Literal(mapping.name), "source": sql.Literal(mapping.table)}
    if known is None:
        what = f"register table {mapping.table} as {mapping.name}"
        statement = sql.SQL(
            "INSERT INTO replication.tables (name, source_table, storage_tables) VALUES ({name}, {source}, {storage});"
        )
    elif storage <= known.storage:
        return []
    else:
        what = f"record that {mapping.name} writes {', '.join(sorted(storage - known.storage))}"
        statement = sql.SQL("UPDATE replication.tables SET storage_tables = {storage} WHERE name = {name};")
    values["storage"] = sql.Literal(sorted(storage | (known.storage if known else frozenset())))
    return [Step(mapping.name, what, statement.format(**values).as_string(connection), only_records=True)]


def _plan_target(connection: Connection, made: _TargetPlan) -> None:
    target = made.target
    if not catalog.schema_exists(connection, target.schema):
        statement = sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(target.schema))
        made.step(f"create schema {target.schema}", [statement.as_string(connection)])
    stored = catalog.stored_table(connection, STORAGE_SCHEMA, target.storage_name)
    view = catalog.existing_relation(connection, target.schema, target.name, target.storage_name)
    if view and (view.kind != "view" or view.reads != frozenset({(STORAGE_SCHEMA, target.storage_name)})):
        return _refuse_foreign(made, view)
    planned_indexes = plan_indexes(connection, target)
    for name in planned_indexes.in_the_way:
        made.refuse(
            f"{STORAGE_SCHEMA}.{name} is in the way of an index of {made.storage} and is not one of Dynaurora's",
            "rename it, or drop it if it is an index like the mapping's",
        )
    for name in planned_indexes.being_built:
        made.refuse(
            f"index {name} of {made.storage} is being built by another session",
            "wait until it is built, then run this again",
        )
    if stored is None:
        # What was proven for the mapping says nothing about a table that did not exist.
        forget = sql.SQL("UPDATE replication.tables SET proven = NULL WHERE name = {}").format(
            sql.Literal(made.mapping)
        )
        statements = [tables.create_storage(target).as_string(connection), forget.as_string(connection)]
        statements += planned_indexes.with_table
        made.step(f"create storage table {made.storage}", statements, alters=True)
        return _plan_view(connection, made, view, [], None)
    if not set(BOOKKEEPING_COLUMNS) <= set(stored.columns):
        return made.refuse(
            f"table {made.storage} is in the way and is not one of Dynaurora's",
            "rename it or move it to another schema",
        )
    if stored.primary_key != target.primary_key:
        return made.refuse(
            f"the primary key of {made.storage} is ({', '.join(stored.primary_key)}) and the mapping wants"
            f" ({', '.join(target.primary_key)}); rows stored under one key cannot be found under another",
            "give the target another name, migrate and load it, then drop the old view and storage table",
        )
    _plan_added_columns(connection, made, stored)
    _plan_view(connection, made, view, _plan_types(connection, made, stored), stored)
    return made.index_steps(planned_indexes)


def _refuse_foreign(made: _TargetPlan, view: ExistingRelation) -> None:
    name = made.target.view_name
    made.refuse(
        f"{view.kind} {name} is in the way and is not one of Dynaurora's",
        f"rename it, move it to another schema, or give the target another name than {made.target.name}",
    )


def _plan_added_columns(connection: Connection, made: _TargetPlan, stored: StoredTable) -> None:
    added = [name for name in made.target.stored_columns if name not in stored.columns]
    if not added:
        return
    clauses = sql.SQL(", ").join(
        sql.SQL("ADD COLUMN {} {}{}").format(
            sql.Identifier(name), tables.column_type(made.target, name), tables.stored_default(made.target, name)
        )
        for name in added
    )
    statement = sql.SQL("ALTER TABLE {} {}").format(tables.storage(made.target), clauses)
    made.step(
        f"add {_columns(added)} to {made.storage}",
        [statement.as_string(connection)],
        f"existing rows have no value there {_filled_by(made, added)}",
        alters=True,
    )


def _filled_by(made: _TargetPlan, added: list[str]) -> str:
    if made.target.unmapped is None or made.target.unmapped in added:
        return LOAD_AGAIN
    return (
        f"until `dynaurora promote {made.mapping}` fills them from the jsonb column, once every replicator knows them"
    )


def _plan_types(connection: Connection, made: _TargetPlan, stored: StoredTable) -> list[str]:
    """Return the columns to widen; refuses any other change of type."""
    widened: list[str] = []
    wanted = {column.name: column.type for column in made.target.columns}
    if made.target.unmapped:
        wanted[made.target.unmapped] = SqlType("jsonb")
    for name, sql_type in wanted.items():
        if name not in stored.columns:
            continue
        change = _type_change(stored.columns[name], sql_type)
        if change is TypeChange.REFUSED:
            made.refuse(
                f'column "{name}" of {made.storage} is {stored.columns[name]} and the mapping wants {sql_type.sql},'
                " which is not a widening: stored values might not fit, or might differ from what a load would store",
                "map the attribute to a column with another name and load the table, then drop the old column",
            )
        elif change is TypeChange.REWRITE and stored.size_bytes > LARGEST_REWRITE_BYTES:
            made.refuse(
                f'widening column "{name}" to {sql_type.sql} rewrites {made.storage}, which has'
                f" {stored.size_bytes / 2**30:.1f} GiB, and blocks readers and writers meanwhile",
                "map the attribute to a column with another name and load the table",
            )
        elif change is not TypeChange.NONE:
            widened.append(name)
    storage, view = made.target.storage_name, made.target.view_name
    if others := catalog.bars_widening(connection, STORAGE_SCHEMA, storage, widened, view):
        made.refuse(
            f"widening {_columns(widened)} of {made.storage} is prevented by {', '.join(others)}",
            f"drop what depends on it and create it again after the migration; let it read {made.target.view_name}",
        )
    return widened


def _type_change(stored: str, wanted: SqlType) -> TypeChange:
    try:
        return type_change(parse_sql_type(stored), wanted)
    except ValueError:  # not a type that a mapping can name
        return TypeChange.REFUSED


def _plan_view(
    connection: Connection,
    made: _TargetPlan,
    view: ExistingRelation | None,
    widened: list[str],
    stored: StoredTable | None,
) -> None:
    target = made.target
    wanted = tables.view_columns(target)
    create = tables.create_view(target, view.options if view else ()).as_string(connection)
    if view is None:
        made.step(f"create view {target.view_name}", [create])
        return
    expected = catalog.expected_definition(connection, wanted, STORAGE_SCHEMA, target.storage_name, DELETED)
    same = view.definition == expected
    if same and not widened:
        return
    note = _view_note(view, wanted, stored)
    if not widened and wanted[: len(view.columns)] == view.columns:
        made.step(f"replace view {target.view_name}: {_view_change(view.columns, wanted)}", [create], note)
        return
    lost = [name for name in view.columns if name not in wanted]
    if fallen := (*view.dependents, *catalog.bound_to_columns(connection, view.oid, lost)):
        made.refuse(
            f"view {target.view_name} must be recreated ({_view_change(view.columns, wanted, widened)}), which would"
            f" also drop {', '.join(fallen)}",
            "drop what depends on it and create it again after the migration; a column added at the end of the mapping"
            " does not need a new view",
        )
        return
    drop = sql.SQL("DROP VIEW {}").format(tables.view(target)).as_string(connection)
    restored = belongings.of_view(connection, view.oid, tables.view(target), wanted)
    made.step(
        f"recreate view {target.view_name}: {_view_change(view.columns, wanted, widened)}",
        [drop, *_widen(connection, target, widened), create, *restored],
        note,
        alters=bool(widened),
    )


def _widen(connection: Connection, target: Target, widened: list[str]) -> list[str]:
    if not widened:
        return []
    clauses = sql.SQL(", ").join(
        sql.SQL("ALTER COLUMN {} TYPE {}").format(sql.Identifier(name), tables.column_type(target, name))
        for name in widened
    )
    return [sql.SQL("ALTER TABLE {} {}").format(tables.storage(target), clauses).as_string(connection)]


def _view_change(before: tuple[str, ...], wanted: tuple[str, ...], widened: Sequence[str] = ()) -> str:
    gained = [name for name in wanted if name not in before]
    lost = [name for name in before if name not in wanted]
    parts = [
        f"{verb} {_columns(names)}"
        for verb, names in (("gains", gained), ("loses", lost), ("has wider", widened))
        if names
    ]
    return ", ".join(parts) or ("its columns are in another order" if before != wanted else "its definition differs")


def _view_note(view: ExistingRelation, wanted: tuple[str, ...], stored: StoredTable | None) -> str:
    notes: list[str] = []
    found = [name for name in wanted if name not in view.columns and stored and name in stored.columns]
    lost = [name for name in view.columns if name not in wanted]
    if found:
        notes.append(
            f"{_columns(found)} was already in storage: rows that changed since are out of date there {LOAD_AGAIN}"
        )
    if lost:
        notes.append(f"{_columns(lost)} stays in storage and is no longer kept up to date")
    return "; ".join(notes)


def _columns(names: Sequence[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in names)
    return f"column {quoted}" if len(names) == 1 else f"columns {quoted}"
