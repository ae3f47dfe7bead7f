"""The ordering rule of `pipeline.core.ordering`, in SQL, in one place. Every statement that writes rows uses it.

Invariant: both versions of `supersedes` decide alike; tests/aurora/rows/test_ordering_sql.py compares them.
"""

from __future__ import annotations

from psycopg import sql

from pipeline.core.model.mapping import AS_OF, BOOKKEEPING_SCHEMA, VERSION


def supersedes(candidate: str, stored: str) -> sql.Composable:
    """SQL condition: the row `candidate` replaces the row `stored` (both are table aliases)."""
    return sql.SQL(
        "CASE WHEN {c}.{version} IS NOT NULL AND {s}.{version} IS NOT NULL THEN {c}.{version} > {s}.{version}"
        " ELSE {c}.{as_of} > {s}.{as_of}"
        " OR ({c}.{as_of} = {s}.{as_of} AND {c}.{version} IS NULL AND {s}.{version} IS NOT NULL) END"
    ).format(
        c=sql.Identifier(candidate),
        s=sql.Identifier(stored),
        version=sql.Identifier(VERSION),
        as_of=sql.Identifier(AS_OF),
    )


def admits_new_key(candidate: str, mapping_name: str) -> sql.Composable:
    """SQL condition: `candidate`, whose key has no row, may be stored because it is newer than `purged_through`."""
    return sql.SQL(
        "{c}.{as_of} > COALESCE((SELECT purged_through FROM {schema}.tables WHERE name = {name}), '-infinity')"
    ).format(
        c=sql.Identifier(candidate),
        as_of=sql.Identifier(AS_OF),
        schema=sql.Identifier(BOOKKEEPING_SCHEMA),
        name=sql.Literal(mapping_name),
    )


def newest_closed(mapping_name: str) -> sql.Composable:
    """SQL value: the time after which nothing was purged or proven to be in Aurora."""
    return sql.SQL(
        "COALESCE((SELECT GREATEST(purged_through, upper(proven)) FROM {schema}.tables WHERE name = {name}),"
        " '-infinity')"
    ).format(schema=sql.Identifier(BOOKKEEPING_SCHEMA), name=sql.Literal(mapping_name))
