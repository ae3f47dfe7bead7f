"""Schema `replication`, Dynaurora's records of its own work: what creates and completes it.

Invariant: migrations are applied in order, each in one transaction with the mark that it was applied.
"""

from __future__ import annotations

from textwrap import dedent
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping.migrations import MIGRATIONS
from pipeline.aurora.errors import translating
from pipeline.aurora.sessions import advisory_locks
from pipeline.core.model.mapping import BOOKKEEPING_SCHEMA, STORAGE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.aurora.sessions.connection import Connection


def installed(connection: Connection) -> bool:
    """Whether schema `replication` exists with its table of migrations."""
    with translating("reading the bookkeeping"):
        row = connection.execute("SELECT to_regclass('replication.migrations') IS NOT NULL").fetchone()
    return bool(row and row[0])


def pending(connection: Connection) -> list[str]:
    """Names of the bookkeeping migrations not applied yet."""
    if not installed(connection):
        return [name for name, _ in MIGRATIONS]
    with translating("reading the bookkeeping"):
        applied = {row[0] for row in connection.execute("SELECT name FROM replication.migrations")}
    return [name for name, _ in MIGRATIONS if name not in applied]


def install(connection: Connection) -> list[str]:
    """Create or complete the bookkeeping; return the names of the migrations applied. Safe to call twice at once."""
    with translating("creating the bookkeeping"), connection.transaction():
        # One installer at a time: CREATE SCHEMA IF NOT EXISTS is not safe against itself.
        advisory_locks.MIGRATION.take_for_transaction(connection)
        names = pending(connection)
        connection.execute(script(names).encode())
    return names


def script(names: Iterable[str]) -> str:
    """Return the SQL that applies the migrations of these names, each with its mark, for one transaction."""
    texts = dict(MIGRATIONS)
    parts = [f"CREATE SCHEMA IF NOT EXISTS {schema};" for schema in (BOOKKEEPING_SCHEMA, STORAGE_SCHEMA)]
    parts.append(
        "CREATE TABLE IF NOT EXISTS replication.migrations"
        " (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());"
    )
    for name in names:
        mark = sql.SQL("INSERT INTO replication.migrations (name) VALUES ({});").format(sql.Literal(name))
        parts += [dedent(texts[name]).strip(), mark.as_string()]
    return "\n".join(parts)


def register_table(connection: Connection, name: str, source_table: str) -> None:
    """Make sure that the mapping `name` has its row; an existing row keeps its source of record."""
    with translating("registering the table", table=name):
        connection.execute(
            "INSERT INTO replication.tables (name, source_table) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            [name, source_table],
        )
