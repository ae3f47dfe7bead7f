"""What the database has: storage tables, and the relations under the names of our views, from PostgreSQL's catalog.

Invariant: reads only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.connection import literal
from pipeline.aurora.errors import translating

if TYPE_CHECKING:
    from pipeline.aurora.connection import Connection

_KINDS = {"r": "table", "p": "partitioned table", "v": "view", "m": "materialized view", "f": "foreign table",
          "S": "sequence", "i": "index", "I": "index", "c": "composite type"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table: its columns with their types as PostgreSQL spells them, its key, its size with indexes."""

    columns: dict[str, str]
    primary_key: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ExistingRelation:
    """Whatever has the name of a view of ours. For anything but a view only `kind` is filled."""

    kind: str
    columns: tuple[str, ...] = ()
    definition: str = ""
    """As pg_get_viewdef prints it, without white space and without the storage table's name before its columns."""
    reads: frozenset[tuple[str, str]] = frozenset()
    """Schema and name of the relations the view reads."""
    dependents: tuple[str, ...] = ()
    """What would fall with the view, named for people."""
    restore: tuple[str, ...] = ()
    """Statements that give a new view of the name the old one's owner, options, grants and comment."""
    column_grants: tuple[tuple[str, str], ...] = ()
    """Column, and statement that gives a new view the grant on it."""


def schema_exists(connection: Connection, name: str) -> bool:
    """Whether the schema is there."""
    return connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", [name]).fetchone() is not None


def stored_table(connection: Connection, schema: str, name: str) -> StoredTable | None:
    """Read a table, or None where there is none of the name."""
    with translating("reading the catalog"):
        found = connection.execute(
            "SELECT c.oid, pg_total_relation_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p')",
            [schema, name],
        ).fetchone()
        if found is None:
            return None
        oid, size_bytes = found
        columns = connection.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [oid],
        ).fetchall()
        key = connection.execute(
            "SELECT a.attname FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(attnum, position)"
            " JOIN pg_attribute a ON a.attnum = k.attnum WHERE i.indrelid = %s AND i.indisprimary"
            " AND a.attrelid = i.indrelid ORDER BY k.position",
            [oid],
        ).fetchall()
    return StoredTable(dict(columns), tuple(column for (column,) in key), size_bytes)


def existing_relation(connection: Connection, schema: str, name: str, storage_name: str) -> ExistingRelation | None:
    """Read what has the name, or None where nothing has. `storage_name` is that of the view's storage table."""
    with translating("reading the catalog"):
        found = connection.execute(
            "SELECT c.oid, c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relname = %s",
            [schema, name],
        ).fetchone()
        if found is None:
            return None
        oid, kind = found
        if kind != "v":
            return ExistingRelation(_KINDS.get(kind, "relation"))
        columns = connection.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [oid],
        ).fetchall()
        definition = connection.execute(
            "SELECT pg_get_viewdef(%s::oid, true), quote_ident(%s)", [oid, storage_name]
        ).fetchone()
        reads = connection.execute(_READS, [oid]).fetchall()
        return ExistingRelation(
            "view",
            tuple(column for (column,) in columns),
            normal_definition(*(definition or ("", ""))),
            frozenset((namespace, relation) for namespace, relation in reads),
            dependents(connection, oid),
            restoring(connection, oid, "VIEW", sql.Identifier(schema, name)),
            _column_grants(connection, oid, sql.Identifier(schema, name)),
        )


def expected_definition(
    connection: Connection, columns: tuple[str, ...], schema: str, storage: str, deleted: str
) -> str:
    """Write what `ExistingRelation.definition` is for a view of ours."""
    row = connection.execute(
        "SELECT format('SELECT %%s FROM %%I.%%I WHERE NOT %%I', string_agg(quote_ident(name), ',' ORDER BY position),"
        " %s::text, %s::text, %s::text) FROM unnest(%s::text[]) WITH ORDINALITY AS c(name, position)",
        [schema, storage, deleted, list(columns)],
    ).fetchone()
    return normal_definition(row[0] if row else "", "")


def normal_definition(definition: str, storage_identifier: str) -> str:
    """Reduce a view's text to what does not depend on how a version of PostgreSQL prints it.

    Up to version 15 every column is printed with its relation before it (`"Employees"."Id"`), since 16 none is.
    """
    if storage_identifier:
        definition = definition.replace(f" {storage_identifier}.", " ")
    return "".join(definition.rstrip().removesuffix(";").split())


def dependents(connection: Connection, oid: int) -> tuple[str, ...]:
    """Name what depends on a relation and would fall with it: views, rules, functions, triggers, policies."""
    with translating("reading the catalog"):
        rows = connection.execute(_DEPENDENTS, [oid, oid]).fetchall()
    return tuple(name for (name,) in rows)


def storage_dependents(connection: Connection, schema: str, name: str, except_view: str) -> tuple[str, ...]:
    """Name what depends on a storage table, other than the view of ours called `except_view` (schema.name)."""
    row = connection.execute(
        "SELECT to_regclass(format('%%I.%%I', %s::text, %s::text))::oid", [schema, name]
    ).fetchone()
    found = dependents(connection, row[0]) if row and row[0] else ()
    return tuple(dependent for dependent in found if dependent != f"view {except_view}")


# A view's dependents hang on its rewrite rule or on the relation itself; a rule stands for the view it belongs to.
_DEPENDENTS = """
SELECT DISTINCT CASE WHEN r.ev_class IS NOT NULL
         THEN CASE v.relkind WHEN 'm' THEN 'materialized view ' WHEN 'v' THEN 'view ' ELSE 'rule on ' END
              || n.nspname || '.' || v.relname
         ELSE pg_describe_object(d.classid, d.objid, d.objsubid) END AS name
  FROM pg_depend d
  LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
  LEFT JOIN pg_class v ON v.oid = r.ev_class
  LEFT JOIN pg_namespace n ON n.oid = v.relnamespace
 WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %s AND d.deptype IN ('n', 'a')
   AND COALESCE(r.ev_class, 0) <> %s
   AND d.classid IN ('pg_rewrite'::regclass, 'pg_proc'::regclass, 'pg_trigger'::regclass, 'pg_policy'::regclass)
 ORDER BY name
"""

_READS = """
SELECT DISTINCT n.nspname, c.relname
  FROM pg_rewrite r
  JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
  JOIN pg_class c ON c.oid = d.refobjid AND c.oid <> r.ev_class
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE r.ev_class = %s
"""

_ROLE = "CASE WHEN grantee <> 0 THEN pg_get_userbyid(grantee) END"  # role 0 is PUBLIC
_AGAIN = "CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END"


def restoring(connection: Connection, oid: int, kind: str, view: sql.Identifier) -> tuple[str, ...]:
    """Return the statements that give the VIEW or TABLE `view` the owner, options, grants and comment of `oid`."""
    row = connection.execute(
        "SELECT pg_get_userbyid(relowner), reloptions, obj_description(oid, 'pg_class') FROM pg_class WHERE oid = %s",
        [oid],
    ).fetchone()
    owner, options, comment = row or ("", None, None)
    statements = [sql.SQL("ALTER {} {} OWNER TO {}").format(sql.SQL(literal(kind)), view, sql.Identifier(owner))]
    for option in options or ():
        name, _, value = str(option).partition("=")
        setting = sql.SQL("ALTER {} {} SET ({} = {})")
        statements.append(setting.format(sql.SQL(literal(kind)), view, sql.Identifier(name), sql.Literal(value)))
    grants = connection.execute(
        f"SELECT privilege_type, {_ROLE}, {_AGAIN}"  # noqa: S608 - constants only
        " FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = %s AND grantee <> relowner",
        [oid],
    )
    statements += [_grant(privilege, None, view, role, grantable) for privilege, role, grantable in grants]
    if comment is not None:
        statements.append(sql.SQL("COMMENT ON {} {} IS {}").format(sql.SQL(literal(kind)), view, sql.Literal(comment)))
    return tuple(statement.as_string(connection) for statement in statements)


def _column_grants(connection: Connection, oid: int, view: sql.Identifier) -> tuple[tuple[str, str], ...]:
    rows = connection.execute(
        f"SELECT attname, privilege_type, {_ROLE}, {_AGAIN}"  # noqa: S608 - constants only
        " FROM pg_attribute, aclexplode(attacl) WHERE attrelid = %s AND NOT attisdropped",
        [oid],
    )
    return tuple(
        (column, _grant(privilege, column, view, role, grantable).as_string(connection))
        for column, privilege, role, grantable in rows
    )


def _grant(privilege: str, column: str | None, view: sql.Identifier, role: str | None, grantable: str) -> sql.Composed:
    return sql.SQL("GRANT {}{} ON {} TO {}{}").format(
        sql.SQL(literal(privilege)),
        sql.SQL(" ({})").format(sql.Identifier(column)) if column else sql.SQL(""),
        view,
        sql.Identifier(role) if role else sql.SQL("PUBLIC"),
        sql.SQL(literal(grantable)),
    )
