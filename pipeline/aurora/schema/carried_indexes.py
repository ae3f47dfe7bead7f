"""The indexes and constraints of a storage table that a table built aside must have before it takes its place.

Invariant: they are copied as PostgreSQL prints them, no matter who made them. On the build, a name contains a digest of
the definition. So a killed load finds what it has built, and an index whose definition has changed since is built
again. Reads only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.sessions.connection import trusted
from pipeline.core.model.mapping import STORAGE_SCHEMA
from pipeline.core.names import with_digest

if TYPE_CHECKING:
    from pipeline.aurora.sessions.connection import Connection


@dataclass(frozen=True, slots=True)
class Carried:
    """An index, a unique constraint with its index, or a check, of a storage table."""

    name: str
    kind: str
    """`index`, `unique` or `check`."""
    definition: str
    """Of an index, what follows USING, and UNIQUE before it; of a check, the whole."""
    clauses: str = ""
    """Of a unique constraint: DEFERRABLE and so on."""

    @property
    def restricts(self) -> bool:
        """Whether it refuses rows."""
        return self.kind != "index" or self.definition.startswith("UNIQUE ")

    def on(self, build: str) -> str:
        """Name that it has on a table built aside, until the swap."""
        return with_digest(f"{build}_index", f"{self.name} {self.kind} {self.definition} {self.clauses}")

    def create(self, build: str) -> sql.Composed:
        """Statement that creates it on the table built aside."""
        table, name = sql.Identifier(STORAGE_SCHEMA, build), sql.Identifier(self.on(build))
        if self.kind == "check":
            return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(table, name, sql.SQL(trusted(self.definition)))
        unique, _, rest = self.definition.partition("INDEX ")
        return sql.SQL("CREATE {}INDEX {} ON {} USING {}").format(
            sql.SQL(trusted(unique)), name, table, sql.SQL(trusted(rest))
        )

    def rename(self, build: str, storage: sql.Identifier) -> sql.Composed:
        """Statement that gives it its own name, once the build has the storage table's and the old table is gone."""
        now, name = sql.Identifier(self.on(build)), sql.Identifier(self.name)
        if self.kind == "check":
            return sql.SQL("ALTER TABLE {} RENAME CONSTRAINT {} TO {}").format(storage, now, name)
        if self.kind == "unique":
            return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} UNIQUE USING INDEX {}{}").format(
                storage, name, now, sql.SQL(trusted(self.clauses))
            )
        return sql.SQL("ALTER INDEX {} RENAME TO {}").format(sql.Identifier(STORAGE_SCHEMA, self.on(build)), name)


def carried(connection: Connection, storage_name: str, build: str = "") -> tuple[tuple[Carried, ...], set[str]]:
    """Return a storage table's indexes and constraints besides its key, and the names of those that a build has."""
    with translating("reading the catalog"):
        rows = connection.execute(
            _CARRIED, {"schema": STORAGE_SCHEMA, "storage": storage_name, "build": build}
        ).fetchall()
    wanted = tuple(Carried(name, *more) for table, name, *more in rows if table == storage_name)
    return wanted, {name for table, name, *_ in rows if table == build}


# pg_get_indexdef prints `CREATE [UNIQUE] INDEX name ON schema.table USING …`; the names are cut out by their length.
_CARRIED = """
WITH t AS (SELECT c.oid, c.relname, n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE n.nspname = %(schema)s AND c.relname IN (%(storage)s, %(build)s))
SELECT t.relname, ic.relname, CASE WHEN con.oid IS NULL THEN 'index' ELSE 'unique' END,
       CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END || 'INDEX ' || substr(
           pg_get_indexdef(i.indexrelid),
           1 + length(format('CREATE %%sINDEX %%I ON %%I.%%I USING ', CASE WHEN i.indisunique THEN 'UNIQUE ' END,
                             ic.relname, t.nspname, t.relname))),
       CASE WHEN con.condeferrable THEN ' DEFERRABLE' ELSE '' END
       || CASE WHEN con.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END
  FROM t JOIN pg_index AS i ON i.indrelid = t.oid JOIN pg_class AS ic ON ic.oid = i.indexrelid
  LEFT JOIN pg_constraint AS con ON con.conindid = i.indexrelid AND con.conrelid = t.oid AND con.contype = 'u'
 WHERE NOT i.indisprimary AND ic.relname <> %(build)s || '_key'
UNION ALL
SELECT t.relname, conname, 'check', pg_get_constraintdef(con.oid), ''
  FROM t JOIN pg_constraint AS con ON con.conrelid = t.oid WHERE contype = 'c'
 ORDER BY 1, 2
"""
