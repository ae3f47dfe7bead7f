"""Checks whether a storage table is as we create it, so that a new one can replace it without losing anything.

Invariant: everything that the answer does not name is either copied by `build_aside` (rows, owner, exact privileges,
comment, column defaults, comments and storage settings, the key's name, and what `carried_indexes` and
`table_belongings` read), or replaced in place with its options (the view, and other views of the table). Reads only.
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
    ours = set(tables.all_columns(target))
    with translating("reading the catalog"):
        # A person's own: it is copied with the table, and no statement of ours writes it.
        generated = {
            name for (name,) in connection.execute(_GENERATED, [tables.storage(target).as_string(connection)])
        } - ours
    if set(stored.columns) - generated != ours or stored.primary_key != target.primary_key:
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
            "become": catalog.become(connection),
            "ours": sorted(ours),
        }
        found += [what for (what,) in connection.execute(_BEYOND, parameters)]
    return tuple(found)


_GENERATED = """
SELECT attname FROM pg_attribute
 WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped AND attgenerated <> ''
"""
# `t` is the table, `v` our view. Every dependency that is not known to be carried counts (PostgreSQL manual,
# pg_depend): publications, sequences, inheritance, functions, materialized views, rules.
_BEYOND = """
WITH t AS (SELECT c.* FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = %(schema)s AND c.relname = %(storage)s),
     v AS (SELECT c.oid, c.relowner, c.relnamespace FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = %(view_schema)s AND c.relname = %(view)s),
     indexes AS (SELECT i.*, ic.relname, ic.reloptions, ic.reltablespace, con.contype, pg_get_indexdef(ic.oid) AS text
                   FROM t JOIN pg_index i ON i.indrelid = t.oid JOIN pg_class ic ON ic.oid = i.indexrelid
                   LEFT JOIN pg_constraint con ON con.conindid = ic.oid AND con.conrelid = t.oid),
     -- The role that the swap works under (`build_aside`).
     acting AS (SELECT CASE WHEN pg_has_role(t.relowner, 'USAGE') AND pg_has_role(v.relowner, 'USAGE')
                            THEN current_user::regrole::oid ELSE t.relowner END AS oid FROM t, v),
     other_views AS (SELECT r.oid, w.relname, pg_has_role(acting.oid, w.relowner, 'USAGE')
                            AND has_schema_privilege(acting.oid, w.relnamespace, 'CREATE') AS may_replace
                       FROM acting, pg_rewrite r JOIN pg_class w ON w.oid = r.ev_class
                      WHERE r.rulename = '_RETURN' AND w.relkind = 'v' AND w.oid NOT IN (SELECT oid FROM v))
SELECT 'it is not a plain table' FROM t
 WHERE relkind <> 'r' OR relpersistence <> 'p' OR relispartition OR reloftype <> 0 OR reltablespace <> 0
    OR relam <> (SELECT oid FROM pg_am WHERE amname = 'heap')
UNION ALL
SELECT 'row security may hide rows from the load' FROM t WHERE relforcerowsecurity OR row_security_active(t.oid)
UNION ALL
SELECT 'trigger ' || quote_ident(tgname) || ' fires for rows that are loaded' FROM t JOIN pg_trigger ON tgrelid = t.oid
 WHERE NOT tgisinternal AND tgenabled <> 'D' AND tgtype & (4 | 16) <> 0  -- INSERT, UPDATE
UNION ALL
SELECT 'it inherits or is inherited' FROM t
 WHERE EXISTS (SELECT FROM pg_inherits WHERE inhrelid = t.oid OR inhparent = t.oid)
UNION ALL
SELECT 'its primary key is not a plain one' FROM indexes
 WHERE indisprimary AND NOT (indimmediate AND indnatts = indnkeyatts AND reloptions IS NULL AND reltablespace = 0)
UNION ALL
SELECT 'index ' || quote_ident(relname)
       || CASE WHEN NOT indisvalid THEN ' is not valid: REINDEX or drop it'
               WHEN contype = 'x' THEN ' is an exclusion constraint''s' ELSE ' is in another tablespace' END
  FROM indexes WHERE NOT indisprimary AND (NOT indisvalid OR contype = 'x' OR reltablespace <> 0)
UNION ALL
SELECT 'column ' || quote_ident(a.attname) || ' is an identity or generated' FROM t
  JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE a.attidentity <> '' OR (a.attgenerated <> '' AND a.attname = ANY (%(ours)s))
UNION ALL
SELECT 'it is published by ' || string_agg(quote_ident(pubname), ', ') || ', and subscribers would miss its new rows'
  FROM pg_publication_tables WHERE schemaname = %(schema)s AND tablename = %(storage)s HAVING count(*) > 0
UNION ALL
SELECT 'it has a security label' FROM t
 WHERE EXISTS (SELECT FROM pg_seclabel WHERE classoid = 'pg_class'::regclass AND objoid = t.oid)
UNION ALL
SELECT 'view ' || quote_ident(relname) || ' reads it, and the user may not replace that' FROM other_views
 WHERE NOT may_replace AND EXISTS (SELECT FROM t JOIN pg_depend d ON d.refobjid = t.oid
                                    WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = other_views.oid)
UNION ALL
SELECT 'the user may not recreate statistics object ' || quote_ident(stxname)
  FROM t, acting, pg_statistic_ext s WHERE s.stxrelid = t.oid
   AND NOT (pg_has_role(acting.oid, s.stxowner, 'USAGE') AND has_schema_privilege(acting.oid, s.stxnamespace, 'CREATE')
            AND has_schema_privilege(s.stxowner, s.stxnamespace, 'CREATE'))
UNION ALL
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid) || ' depends on it' FROM t JOIN pg_depend d
    ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
 WHERE d.deptype <> 'i' AND d.classid NOT IN ('pg_attrdef'::regclass, 'pg_publication_rel'::regclass,
                                              'pg_statistic_ext'::regclass)
   AND NOT (d.classid = 'pg_policy'::regclass AND d.objid IN (SELECT oid FROM pg_policy WHERE polrelid = t.oid))
   AND NOT (d.classid = 'pg_constraint'::regclass
            AND d.objid IN (SELECT oid FROM pg_constraint WHERE conrelid = t.oid AND contype <> 'f'))
   AND NOT (d.classid = 'pg_class'::regclass AND d.objid IN (SELECT indexrelid FROM indexes))
   AND NOT (d.classid = 'pg_trigger'::regclass AND d.objid IN (SELECT oid FROM pg_trigger WHERE tgrelid = t.oid))
   AND NOT (d.classid = 'pg_rewrite'::regclass
            AND d.objid IN (SELECT r.oid FROM pg_rewrite r JOIN v ON v.oid = r.ev_class
                            UNION ALL SELECT oid FROM other_views))
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
