"""The mappings' indexes: their SQL, which indexes in the database are ours, and the steps from those to the mapping.

Invariant: an index is ours if `replication.indexes` has its name, which is recorded before the index is built. An index
that is not recorded belongs to a person, and is neither dropped nor adopted. On an existing table, indexes are built
and dropped CONCURRENTLY, so that writers continue; a replacement is built before the old index is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.schema import tables
from pipeline.aurora.sessions.connection import trusted
from pipeline.core.model.index import GIN
from pipeline.core.model.mapping import DELETED, STORAGE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.index import Condition, Index, IndexPart
    from pipeline.core.model.mapping import Target


@dataclass(frozen=True, slots=True)
class IndexStep:
    """Statements for the indexes of one table. With `index`: one statement that must run outside a transaction."""

    what: str
    sql: str
    index: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """The difference between a storage table's indexes and the mapping."""

    in_the_way: tuple[str, ...] = ()
    """Relations that have the name of one of our indexes but are not recorded as ours."""
    being_built: tuple[str, ...] = ()
    """Indexes of the table that other sessions are building now; then there are no steps."""
    with_table: tuple[str, ...] = ()
    """Statements for the transaction that creates the table."""
    steps: tuple[IndexStep, ...] = ()
    """Steps for a table that exists."""


_WAITS = "writers go on meanwhile; it waits until transactions that began before it have ended"


def create_index(target: Target, index: Index, *, concurrently: bool = False) -> sql.Composed:
    """Statement that creates an index on the storage table."""
    return sql.SQL("CREATE {unique}INDEX {concurrently}{name} ON {table} USING {method} ({parts}){where}").format(
        unique=sql.SQL("UNIQUE " if index.unique else ""),
        concurrently=sql.SQL("CONCURRENTLY " if concurrently else ""),
        name=sql.Identifier(index.name(target.storage_name)),
        table=tables.storage(target),
        method=sql.SQL(trusted(index.method)),
        parts=sql.SQL(", ").join(_part(part, index.method) for part in index.parts),
        where=_where(index.where),
    )


def _part(part: IndexPart, method: str) -> sql.Composed:
    order = sql.SQL(" DESC" if part.descending else "")
    nulls = sql.SQL("")
    if part.nulls_first != part.descending:
        nulls = sql.SQL(" NULLS FIRST" if part.nulls_first else " NULLS LAST")
    column = sql.Identifier(part.column)
    if not part.path:
        return sql.SQL("{}{}{}").format(column, order, nulls)
    arrows = ["->"] * len(part.path)
    if method != GIN:
        arrows[-1] = "->>"  # text, which has an order
    inside = sql.SQL("").join(
        sql.SQL(" {} {}").format(sql.SQL(trusted(arrow)), sql.Literal(step))
        for arrow, step in zip(arrows, part.path, strict=True)
    )
    return sql.SQL("({}{}){}{}").format(column, inside, order, nulls)


def _where(conditions: Iterable[Condition]) -> sql.Composable:
    # The view's own condition too: a tombstone is NULL in all but its key, and queries through the view imply it.
    parts = [_condition(condition) for condition in conditions]
    if not parts:
        return sql.SQL("")
    alive = sql.SQL("NOT {}").format(sql.Identifier(DELETED))
    return sql.SQL(" WHERE {}").format(sql.SQL(" AND ").join([alive, *parts]))


def _condition(condition: Condition) -> sql.Composed:
    column = sql.Identifier(condition.column)
    if not condition.values:
        return sql.SQL("{} IS {}").format(column, sql.SQL("NULL" if condition.null else "NOT NULL"))
    values = [sql.Literal(value) for value in condition.values]
    if len(values) == 1:
        return sql.SQL("{} = {}").format(column, values[0])
    return sql.SQL("{} IN ({})").format(column, sql.SQL(", ").join(values))


def plan_indexes(connection: Connection, target: Target) -> IndexPlan:
    """Compare the indexes of a target's storage table with the mapping. Reads only."""
    storage = target.storage_name
    wanted = {index.name(storage): index for index in target.indexes}
    with translating("reading the catalog"):
        recorded = _recorded(connection, storage)
        found = connection.execute(_INDEXES, {"schema": STORAGE_SCHEMA, "storage": storage}).fetchall()
        valid = {name: is_valid for name, is_valid, _ in found}
        taken = {name for (name,) in connection.execute(_TAKEN, [STORAGE_SCHEMA, list(wanted)])}
    unrecorded = sorted(wanted.keys() - recorded)
    record = [_record(connection, storage, unrecorded)] if unrecorded else []
    created = [create_index(target, index).as_string(connection) for index in wanted.values()]
    builds = [
        step
        for name, index in wanted.items()
        if not valid.get(name, False)
        for step in _builds(connection, target, index, left_invalid=name in valid)
    ]
    steps = (*record, *builds, *_drops(connection, storage, sorted(recorded - wanted.keys()), valid))
    # A second concurrent build would wait for the first one's lock, and the first one for the second's snapshot.
    being_built = tuple(sorted(name for name, _, by_another in found if by_another and steps))
    return IndexPlan(
        tuple(sorted(taken - (recorded & valid.keys()))),
        being_built,
        (*(step.sql.removesuffix(";") for step in record), *created),
        () if being_built else steps,
    )


def _recorded(connection: Connection, storage_name: str) -> set[str]:
    row = connection.execute("SELECT to_regclass('replication.indexes') IS NOT NULL").fetchone()
    if not row or not row[0]:
        return set()
    rows = connection.execute("SELECT name FROM replication.indexes WHERE storage_name = %s", [storage_name])
    return {name for (name,) in rows}


def _builds(connection: Connection, target: Target, index: Index, *, left_invalid: bool) -> list[IndexStep]:
    name = index.name(target.storage_name)
    build = IndexStep(
        f"build index {name} on {STORAGE_SCHEMA}.{target.storage_name} {index}",
        create_index(target, index, concurrently=True).as_string(connection) + ";",
        name,
        _WAITS,
    )
    if not left_invalid:
        return [build]
    return [_drop(connection, name, f"drop index {name}, whose build did not end"), build]


def _drop(connection: Connection, name: str, what: str) -> IndexStep:
    return IndexStep(what, drop_index(name).as_string(connection) + ";", name)


def drop_index(name: str) -> sql.Composed:
    """Statement that drops an index of a storage table while others use the table."""
    return sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(STORAGE_SCHEMA, name))


def _drops(connection: Connection, storage_name: str, names: list[str], there: Collection[str]) -> list[IndexStep]:
    drops = [
        _drop(connection, name, f"drop index {name}, which is no longer in the mapping")
        for name in names
        if name in there
    ]
    return [*drops, _forget(connection, storage_name, names)] if names else []


def _record(connection: Connection, storage_name: str, names: list[str]) -> IndexStep:
    statement = sql.SQL(
        "INSERT INTO replication.indexes (name, storage_name) SELECT unnest({}::text[]), {}"
        " ON CONFLICT (name) DO UPDATE SET storage_name = excluded.storage_name"
    )
    return IndexStep(
        f"record the indexes of {STORAGE_SCHEMA}.{storage_name} as Dynaurora's",
        statement.format(sql.Literal(names), sql.Literal(storage_name)).as_string(connection) + ";",
    )


def _forget(connection: Connection, storage_name: str, names: list[str]) -> IndexStep:
    statement = sql.SQL("DELETE FROM replication.indexes WHERE storage_name = {} AND name = ANY ({}::text[])")
    return IndexStep(
        f"forget dropped indexes of {STORAGE_SCHEMA}.{storage_name}",
        statement.format(sql.Literal(storage_name), sql.Literal(names)).as_string(connection) + ";",
    )


_TAKEN = "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relname = ANY (%s)"

_INDEXES = """
SELECT ic.relname, i.indisvalid,
       EXISTS (SELECT FROM pg_stat_progress_create_index WHERE index_relid = ic.oid AND pid <> pg_backend_pid())
  FROM pg_index AS i JOIN pg_class AS ic ON ic.oid = i.indexrelid
  JOIN pg_class AS c ON c.oid = i.indrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
 WHERE n.nspname = %(schema)s AND c.relname = %(storage)s
"""
