"""Checks whether a storage table is as we create it, so that a new one can replace it without losing anything.

Invariant: everything that the answer does not name is either copied by `build_aside` (rows, owner, exact privileges,
comment, column defaults, comments and storage settings, the key's name), or replaced in place with its options (the
view). Reads only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.aurora.errors import translating
from pipeline.aurora.schema import catalog, tables
from pipeline.core.model.mapping import DELETED, STORAGE_SCHEMA

if TYPE_CHECKING:
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target


def beyond_standard(connection: Connection, target: Target) -> tuple[str, ...]:
    """Return the reasons why the target's storage table cannot be replaced; empty if it has the standard form."""
    stored = catalog.stored_table(connection, STORAGE_SCHEMA, target.storage_name)
    if stored is None:
        return ("there is no storage table",)
    found: list[str] = []
    if set(stored.columns) != set(tables.all_columns(target)) or stored.primary_key != target.primary_key:
        found.append("its columns or its primary key are not those of the mapping")
    view = catalog.existing_relation(connection, target.schema, target.name, target.storage_name)
    with translating("reading the catalog"):
        wanted = catalog.expected_definition(
            connection, tables.view_columns(target), STORAGE_SCHEMA, target.storage_name, DELETED
        )
        if view is None or view.kind != "view" or view.definition != wanted:
            found.append("the view over it is not the one of the mapping")
        parameters = {
            "schema": STORAGE_SCHEMA,
            "storage": target.storage_name,
            "view_schema": target.schema,
            "view": target.name,
            "options": tables.OPTIONS,
            "become": catalog.become(connection),
        }
        found += [what for (what,) in connection.execute(_BEYOND, parameters)]
    return tuple(found)


# `t` is the table, `v` its view. Every dependency that is not known to be ours counts (PostgreSQL manual, pg_depend):
# indexes, triggers, rules, policies, statistics, publications, sequences, inheritance, functions, other views.
_BEYOND = """
WITH t AS (SELECT c.* FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = %(schema)s AND c.relname = %(storage)s),
     v AS (SELECT c.oid, c.relowner, c.relnamespace FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = %(view_schema)s AND c.relname = %(view)s)
SELECT 'it is not a plain table' FROM t
 WHERE relkind <> 'r' OR relpersistence <> 'p' OR relispartition OR reloftype <> 0 OR reltablespace <> 0
    OR relam <> (SELECT oid FROM pg_am WHERE amname = 'heap')
UNION ALL
SELECT 'it has options' FROM t LEFT JOIN pg_class toast ON toast.oid = t.reltoastrelid
 WHERE t.reloptions <> ARRAY[%(options)s] OR toast.reloptions IS NOT NULL OR t.relreplident <> 'd'
UNION ALL
SELECT 'it has row security' FROM t WHERE relrowsecurity OR relforcerowsecurity
UNION ALL
SELECT 'it has triggers or foreign keys' FROM t
 WHERE EXISTS (SELECT FROM pg_trigger WHERE tgrelid = t.oid)
    OR EXISTS (SELECT FROM pg_constraint WHERE confrelid = t.oid)
UNION ALL
SELECT 'it inherits or is inherited' FROM t
 WHERE EXISTS (SELECT FROM pg_inherits WHERE inhrelid = t.oid OR inhparent = t.oid)
UNION ALL
SELECT 'it has an index or a constraint besides its plain primary key' FROM t
 WHERE EXISTS (SELECT FROM pg_constraint WHERE conrelid = t.oid AND contype NOT IN ('p', 'n'))
    OR EXISTS (SELECT FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid
                WHERE i.indrelid = t.oid AND NOT (i.indisprimary AND i.indimmediate AND NOT i.indisclustered
                  AND NOT i.indisreplident AND i.indnatts = i.indnkeyatts
                  AND ic.reloptions IS NULL AND ic.reltablespace = 0))
UNION ALL
SELECT 'column ' || quote_ident(a.attname) || ' has settings or grants of its own' FROM t
  JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE a.attidentity <> '' OR a.attgenerated <> '' OR a.attacl IS NOT NULL OR a.attoptions IS NOT NULL
    OR COALESCE(a.attstattarget, -1) <> -1
UNION ALL
SELECT 'it is published by ' || string_agg(quote_ident(pubname), ', ') || ', and subscribers would miss its new rows'
  FROM pg_publication_tables WHERE schemaname = %(schema)s AND tablename = %(storage)s HAVING count(*) > 0
UNION ALL
SELECT 'it has a security label' FROM t
 WHERE EXISTS (SELECT FROM pg_seclabel WHERE classoid = 'pg_class'::regclass AND objoid = t.oid)
UNION ALL
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) || ' depends on it' FROM t JOIN pg_depend d
    ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
 WHERE d.deptype <> 'i' AND d.classid NOT IN ('pg_attrdef'::regclass, 'pg_publication_rel'::regclass)
   AND NOT (d.classid = 'pg_constraint'::regclass
            AND d.objid IN (SELECT oid FROM pg_constraint WHERE conrelid = t.oid AND contype IN ('p', 'n')))
   AND NOT (d.classid = 'pg_rewrite'::regclass
            AND d.objid IN (SELECT r.oid FROM pg_rewrite r JOIN v ON v.oid = r.ev_class))
UNION ALL
SELECT pg_describe_object(d.classid, d.objid, d.objsubid) || ' depends on its row type' FROM t
  JOIN pg_type row_type ON row_type.oid = t.reltype
  JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid IN (row_type.oid, row_type.typarray)
 WHERE d.deptype <> 'i'
UNION ALL
SELECT 'the user may not replace it: it takes the owner of table and view, or a role that may SET ROLE to it, and'
       || ' CREATE on both schemas' FROM t, v
 WHERE NOT (has_schema_privilege(t.relnamespace, 'CREATE') AND pg_has_role(t.relowner, %(become)s)
            AND (pg_has_role(t.relowner, 'USAGE') AND pg_has_role(v.relowner, 'USAGE')
                 AND has_schema_privilege(v.relnamespace, 'CREATE')
                 OR pg_has_role(t.relowner, v.relowner, 'USAGE')
                 AND has_schema_privilege(t.relowner, t.relnamespace, 'CREATE')
                 AND has_schema_privilege(t.relowner, v.relnamespace, 'CREATE')))
"""
