"""The tables and the view of a history as SQL.

A version is a row of the table of versions; its key is the row's primary key and the version's position, with version 0
for a snapshot. The table is partitioned by time, and a default partition takes what has no partition yet. Versions that
are older than what is kept are dropped with their partition, except the one of each row that was still valid then: it
moves to the base, an ordinary table of the same columns.

Invariant: the view is a function of the set of versions. It orders a row's versions as the ordering rule does, so that
the last is the stored row, and its intervals cover the time from the first version on without overlap.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.schema.tables import column_type, identifiers
from pipeline.core.model import history
from pipeline.core.model.mapping import AS_OF, BOOKKEEPING_COLUMNS, DELETED, STORAGE_SCHEMA, VERSION

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.core.model.mapping import Target


def versions(target: Target) -> sql.Identifier:
    """Qualified name of the table of versions."""
    return sql.Identifier(STORAGE_SCHEMA, history.table_name(target))


def base(target: Target) -> sql.Identifier:
    """Qualified name of the base."""
    return sql.Identifier(STORAGE_SCHEMA, history.base_name(target))


def rest(target: Target) -> sql.Identifier:
    """Qualified name of the default partition."""
    return sql.Identifier(STORAGE_SCHEMA, history.rest_name(target))


def view(target: Target) -> sql.Identifier:
    """Qualified name of the view."""
    return sql.Identifier(target.schema, history.view_name(target))


def children_columns(target: Target) -> tuple[str, ...]:
    """Names of the columns that keep the rows of the child targets."""
    return tuple(history.children_column(child) for child in target.children)


def all_columns(target: Target) -> tuple[str, ...]:
    """Names of every column of a version."""
    return (*target.stored_columns, *children_columns(target), *BOOKKEEPING_COLUMNS)


def create(target: Target) -> list[sql.Composed]:
    """Compose the statements that create the tables."""
    columns = [
        sql.SQL("{} {}{}").format(
            sql.Identifier(name),
            column_type(target, name),
            sql.SQL(" NOT NULL" if name in target.primary_key or name in BOOKKEEPING_COLUMNS else ""),
        )
        for name in all_columns(target)
    ]
    definitions = sql.SQL(", ").join(columns)
    key = identifiers((*target.primary_key, AS_OF, VERSION))
    return [
        sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({})) PARTITION BY RANGE ({})").format(
            versions(target), definitions, key, sql.Identifier(AS_OF)
        ),
        sql.SQL("CREATE TABLE {} PARTITION OF {} DEFAULT").format(rest(target), versions(target)),
        sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(base(target), definitions, key),
    ]


def create_partition(target: Target, start: datetime, end: datetime) -> sql.Composed:
    """Compose the statement that creates an empty partition."""
    return sql.SQL("CREATE TABLE {} PARTITION OF {} FOR VALUES FROM ({}) TO ({})").format(
        partition(target, start), versions(target), sql.Literal(start), sql.Literal(end)
    )


def partition(target: Target, start: datetime) -> sql.Identifier:
    """Qualified name of the partition that begins at `start`."""
    return sql.Identifier(STORAGE_SCHEMA, history.partition_name(target, start))


def create_view(target: Target, mapping_name: str) -> sql.Composed:
    """Compose the statement that creates the view, or replaces one with the same columns or fewer.

    A row of the view is a run of versions that are alike in all that it shows; `gap` says that others may be missing in
    its time. A loss stays a gap when it is healed: the rows are right then, and what was between is not known. What was
    stuck and came after all is no loss. Creation times of one row may run back against the sequence numbers, so a
    streamed version is valid from the latest time of those up to it.
    """
    taken = {*all_columns(target), *history.VIEW_COLUMNS}
    begin, end, changed = (_free(name, taken) for name in ("valid_from_", "valid_to_", "changed_"))
    return sql.SQL(
        "CREATE OR REPLACE VIEW {view} ({names}) AS"
        " SELECT {begin}, {end}, {end} IS NULL, {deleted}, CASE WHEN {version} = 0 THEN 'snapshot' ELSE 'stream' END,"
        " COALESCE(tstzrange({begin}, {end}) && (SELECT range_agg(tstzrange(l.since, l.until, '[]')) FROM"
        " (SELECT since, until FROM replication.losses WHERE table_name = {mapping}"
        " AND (kind <> 'stuck' OR healed_at IS NULL) UNION ALL"
        " SELECT since, until FROM replication.history_gaps WHERE history_name = {history}) AS l"
        " WHERE l.since <= l.until), false), {shown}"
        " FROM (SELECT *, lead({begin}) OVER ({order}) AS {end}"
        " FROM (SELECT *, ROW({deleted}, {shown}) IS DISTINCT FROM lag(ROW({deleted}, {shown})) OVER ({order})"
        " AS {changed}"
        " FROM (SELECT *, CASE WHEN {version} = 0 THEN {as_of} ELSE max({as_of}) FILTER (WHERE {version} <> 0)"
        " OVER (PARTITION BY {key} ORDER BY {version} ROWS UNBOUNDED PRECEDING) END AS {begin}"
        " FROM (SELECT {columns} FROM {versions} UNION ALL SELECT {columns} FROM {base}) AS every"
        ") AS placed) AS compared WHERE {changed}) AS kept"
        " WHERE {end} IS NULL OR {end} > (SELECT kept_from FROM replication.histories WHERE history_name = {history})"
    ).format(
        view=view(target),
        names=identifiers((*history.view_columns(target), *shown_names(target))),
        begin=sql.Identifier(begin),
        end=sql.Identifier(end),
        changed=sql.Identifier(changed),
        deleted=sql.Identifier(DELETED),
        version=sql.Identifier(VERSION),
        as_of=sql.Identifier(AS_OF),
        mapping=sql.Literal(mapping_name),
        history=sql.Literal(history.table_name(target)),
        shown=identifiers(compared(target)),
        columns=identifiers(all_columns(target)),
        key=identifiers(target.primary_key),
        order=_order(target, begin),
        versions=versions(target),
        base=base(target),
    )


def compared(target: Target) -> tuple[str, ...]:
    """Names of the columns that the view shows: two versions that are equal in them are one row of it."""
    return (*(column.name for column in target.columns), *children_columns(target))


def shown_names(target: Target) -> tuple[str, ...]:
    """The same, by the names that they have in the view."""
    return (*(column.name for column in target.columns), *(child.name for child in target.children))


def _order(target: Target, begin: str) -> sql.Composed:
    """Compose the order of a row's versions: at one time, a snapshot comes after what the stream brought."""
    return sql.SQL("PARTITION BY {} ORDER BY {}, {} = 0, {}").format(
        identifiers(target.primary_key), sql.Identifier(begin), sql.Identifier(VERSION), sql.Identifier(VERSION)
    )


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def view_digest(target: Target, mapping_name: str) -> str:
    """Return what tells this view from an earlier one."""
    return hashlib.sha256(create_view(target, mapping_name).as_string().encode()).hexdigest()[:16]
