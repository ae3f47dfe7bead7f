"""Reads PostgreSQL's catalog: storage tables, and relations with the names of our views.

Invariant: reads only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.aurora.errors import translating

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.aurora.sessions.connection import Connection

_KINDS = {"r": "table", "p": "partitioned table", "v": "view", "m": "materialized view", "f": "foreign table",
          "S": "sequence", "i": "index", "I": "index", "c": "composite type"}  # fmt: skip
_SET_IS_SEPARATE_SINCE = 160000


@dataclass(frozen=True, slots=True)
class StoredTable:
    """A table: its columns with their types as PostgreSQL spells them, its key, its size with indexes."""

    columns: dict[str, str]
    primary_key: tuple[str, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ExistingRelation:
    """The relation that has the name of one of our views. If it is not a view, only `kind` is set."""

    kind: str
    columns: tuple[str, ...] = ()
    definition: str = ""
    """As pg_get_viewdef prints it, without white space and without the storage table's name before its columns."""
    reads: frozenset[tuple[str, str]] = frozenset()
    """Schema and name of the relations the view reads."""
    dependents: tuple[str, ...] = ()
    """Names of objects that would be dropped with the view and could not be recreated with it."""
    oid: int = 0
    options: tuple[tuple[str, str], ...] = ()
    """Options such as security_invoker, with their values. CREATE OR REPLACE VIEW resets them unless it names them."""


def become(connection: Connection) -> str:
    """Return what `pg_has_role` calls the right to SET ROLE: until PostgreSQL 15, every member has it."""
    return "SET" if connection.info.server_version >= _SET_IS_SEPARATE_SINCE else "MEMBER"


def schema_exists(connection: Connection, name: str) -> bool:
    """Whether the schema exists."""
    return connection.execute("SELECT FROM pg_namespace WHERE nspname = %s", [name]).fetchone() is not None


def stored_table(connection: Connection, schema: str, name: str) -> StoredTable | None:
    """Read a table, or None if there is none with this name."""
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
    """Read the relation of this name; None if there is none. `storage_name` is the name of the view's storage table."""
    with translating("reading the catalog"):
        found = connection.execute(
            "SELECT c.oid, c.relkind::text, c.reloptions FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relname = %s",
            [schema, name],
        ).fetchone()
        if found is None:
            return None
        oid, kind, options = found
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
            oid,
            tuple((option, value) for option, _, value in (text.partition("=") for text in options or ())),
        )


def expected_definition(
    connection: Connection, columns: tuple[str, ...], schema: str, storage: str, deleted: str
) -> str:
    """Return the `ExistingRelation.definition` that one of our views has."""
    row = connection.execute(
        "SELECT format('SELECT %%s FROM %%I.%%I WHERE NOT %%I', string_agg(quote_ident(name), ',' ORDER BY position),"
        " %s::text, %s::text, %s::text) FROM unnest(%s::text[]) WITH ORDINALITY AS c(name, position)",
        [schema, storage, deleted, list(columns)],
    ).fetchone()
    return normal_definition(row[0] if row else "", "")


def normal_definition(definition: str, storage_identifier: str) -> str:
    """Reduce a view's text to a form that is the same in every version of PostgreSQL.

    Up to version 15 every column is printed with its relation before it (`"Employees"."Id"`); since 16 none is.
    """
    if storage_identifier:
        definition = definition.replace(f" {storage_identifier}.", " ")
    return "".join(definition.rstrip().removesuffix(";").split())


def dependents(connection: Connection, oid: int) -> tuple[str, ...]:
    """Name the objects that would be dropped with a view or its row type, except the view's own rules and triggers."""
    return tuple(name for (name,) in connection.execute(_DEPENDENTS, {"oid": oid}))


def bound_to_columns(connection: Connection, oid: int, columns: Sequence[str]) -> tuple[str, ...]:
    """Name the rules and triggers of a view that read any of these columns."""
    return tuple(name for (name,) in connection.execute(_BOUND, [oid, list(columns)]))


def bars_widening(
    connection: Connection, schema: str, name: str, columns: Sequence[str], except_view: str
) -> list[str]:
    """Name the objects, besides our view (schema.name), that prevent changing the type of these columns.

    PostgreSQL rebuilds keys, indexes, constraints and statistics. Objects that only depend on other columns do not
    count (`RememberAllDependentForRebuilding` in its tablecmds.c).
    """
    rows = connection.execute(_BARS, [schema, name, list(columns)])
    return [dependent for (dependent,) in rows if dependent != f"view {except_view}"]


_NAME = """CASE WHEN r.ev_class IS NOT NULL
         THEN CASE v.relkind WHEN 'm' THEN 'materialized view ' WHEN 'v' THEN 'view ' ELSE 'rule on ' END
              || n.nspname || '.' || v.relname
         ELSE pg_describe_object(d.classid, d.objid, d.objsubid) END AS name
  FROM pg_depend d
  LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
  LEFT JOIN pg_class v ON v.oid = r.ev_class
  LEFT JOIN pg_namespace n ON n.oid = v.relnamespace"""

# A view's dependents depend on its rewrite rule or on the relation itself; a rule represents its view.
_DEPENDENTS = f"""
WITH row_type AS (SELECT unnest(ARRAY[oid, typarray]) AS oid FROM pg_type WHERE typrelid = %(oid)s)
SELECT DISTINCT {_NAME}
 WHERE (d.refclassid = 'pg_class'::regclass AND d.refobjid = %(oid)s
        OR d.refclassid = 'pg_type'::regclass AND d.refobjid IN (SELECT oid FROM row_type))
   AND d.deptype IN ('n', 'a') AND COALESCE(r.ev_class, 0) <> %(oid)s
   AND NOT (d.classid = 'pg_trigger'::regclass AND d.objid IN (SELECT oid FROM pg_trigger WHERE tgrelid = %(oid)s))
   AND NOT (d.classid = 'pg_attrdef'::regclass AND d.objid IN (SELECT oid FROM pg_attrdef WHERE adrelid = %(oid)s))
 ORDER BY name
"""  # noqa: S608 - constants only

_BOUND = """
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) AS name
  FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
 WHERE d.refclassid = 'pg_class'::regclass AND a.attrelid = %s AND a.attname = ANY (%s)
   AND (d.classid = 'pg_rewrite'::regclass AND d.objid IN (SELECT oid FROM pg_rewrite WHERE ev_class = a.attrelid)
        OR d.classid = 'pg_trigger'::regclass AND d.objid IN (SELECT oid FROM pg_trigger WHERE tgrelid = a.attrelid))
 ORDER BY name
"""

_BARS = f"""
SELECT DISTINCT {_NAME}
  JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND a.attnum > 0
  JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace s ON s.oid = c.relnamespace
 WHERE d.refclassid = 'pg_class'::regclass AND s.nspname = %s AND c.relname = %s AND a.attname = ANY (%s)
   AND (d.classid IN ('pg_rewrite'::regclass, 'pg_proc'::regclass, 'pg_trigger'::regclass, 'pg_policy'::regclass,
                      'pg_publication_rel'::regclass)
        OR d.classid = 'pg_attrdef'::regclass
           AND d.objid NOT IN (SELECT oid FROM pg_attrdef WHERE adrelid = a.attrelid AND adnum = a.attnum))
 ORDER BY name
"""  # noqa: S608 - constants only

_READS = """
SELECT DISTINCT n.nspname, c.relname
  FROM pg_rewrite r
  JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND d.refclassid = 'pg_class'::regclass
  JOIN pg_class c ON c.oid = d.refobjid AND c.oid <> r.ev_class
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE r.ev_class = %s AND r.rulename = '_RETURN'
"""
