"""Everything that belongs to a storage table besides its rows, columns, owner, privileges, indexes and checks.

It is read from the old table, in one statement because writers wait meanwhile, and becomes statements that give it to
the new one, once that has the old one's name.

Invariant: what has a name of its own is created after the old table was dropped, except views, which are pointed at the
new table before. `standard_form` names whatever this does not carry. Reads only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.schema import belongings
from pipeline.aurora.sessions.connection import trusted

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.aurora.sessions.connection import Connection

_TOAST = "toast."


@dataclass(frozen=True, slots=True)
class OtherView:
    """A view of a person's that reads the storage table itself."""

    view: sql.Identifier
    lock: sql.Composed
    """Takes the view alone: LOCK TABLE would take every table that it reads."""
    create: sql.Composed


@dataclass(frozen=True, slots=True)
class TableBelongings:
    """What was read, by query."""

    _rows: dict[str, list[list[Any]]]

    @property
    def other_views(self) -> list[OtherView]:
        """The views that read the table, besides ours, so that they can be pointed at the new one."""
        return [_other_view(*row) for row in self._rows["other_views"]]

    def options(self, table: sql.Identifier) -> list[sql.Composed]:
        """Return the statements that give the new table the storage parameters of the old one, and no others."""
        wanted, there = self._rows["options"], self._rows["options_of_new"]
        surplus = [_option(name) for name, _ in there if name not in {name for name, _ in wanted}]
        statements: list[sql.Composed] = []
        if surplus:
            statements.append(_alter(table, sql.SQL("RESET ({})").format(sql.SQL(", ").join(surplus))))
        if wanted != there:
            pairs = sql.SQL(", ").join(
                sql.SQL("{} = {}").format(_option(name), sql.Literal(value)) for name, value in wanted
            )
            statements.append(_alter(table, sql.SQL("SET ({})").format(pairs)))
        return statements if wanted else statements[:1]

    def statements(self, table: sql.Identifier) -> list[sql.Composable]:
        """Return the statements that give the new `table`, which has all its indexes, what belonged to the old one."""
        rows = self._rows
        return [
            *(each for row in rows["column_settings"] for each in _column_settings(table, *row)),
            *(_index_target(*row) for row in rows["index_targets"]),
            *(each for row in rows["marked_indexes"] for each in _marks(table, *row)),
            *(sql.SQL(trusted(definition)) for (definition,) in rows["triggers"]),
            *(_trigger_state(table, *row) for row in rows["trigger_states"]),
            *(_policy(table, *row) for row in rows["policies"]),
            *(_alter(table, sql.SQL("ENABLE ROW LEVEL SECURITY")) for _ in rows["row_security"]),
            *(each for row in rows["statistics"] for each in _statistics(*row)),
            *(_comment(table, *row) for row in rows["comments"]),
        ]

    def column_grants(self, table: sql.Identifier) -> list[sql.Composed]:
        """Return the statements that grant on columns of the new table what was granted on those of the old one."""
        return [
            belongings.grant(privilege, table, role, column, grantable=grantable)
            for column, privilege, role, grantable in self._rows["column_grants"]
        ]


def read(connection: Connection, table: sql.Identifier, view: sql.Identifier, new: sql.Identifier) -> TableBelongings:
    """Read what belongs to `table`; `view` is ours over it, `new` the table that will take its place."""
    parameters = {"table": table.as_string(), "view": view.as_string(), "new": new.as_string()}
    with translating("reading the catalog"):
        row = connection.execute(_READ, parameters).fetchone()
    found: dict[str, list[dict[str, Any]] | None] = row[0] if row else {}
    return TableBelongings({name: [list(one.values()) for one in found.get(name) or ()] for name in _QUERIES})


def _other_view(schema: str, name: str, owner: str, definition: str, options: list[str] | None) -> OtherView:
    view = sql.Identifier(schema, name)
    create = sql.SQL("CREATE OR REPLACE VIEW {}{} AS {}").format(
        view,
        sql.SQL(" WITH ({})").format(_settings(options)) if options else sql.SQL(""),
        sql.SQL(trusted(definition.rstrip().removesuffix(";"))),
    )
    return OtherView(view, sql.SQL("ALTER VIEW {} OWNER TO {}").format(view, sql.Identifier(owner)), create)


def _column_settings(
    table: sql.Identifier, name: str, target: int | None, texts: list[str] | None
) -> Iterable[sql.Composed]:
    column = sql.Identifier(name)
    if target is not None:
        yield _alter(table, sql.SQL("ALTER COLUMN {} SET STATISTICS {}").format(column, sql.Literal(target)))
    if texts:
        yield _alter(table, sql.SQL("ALTER COLUMN {} SET ({})").format(column, _settings(texts)))


def _index_target(schema: str, name: str, number: int, target: int) -> sql.Composed:
    return sql.SQL("ALTER INDEX {} ALTER COLUMN {} SET STATISTICS {}").format(
        sql.Identifier(schema, name), sql.Literal(number), sql.Literal(target)
    )


def _marks(table: sql.Identifier, index: str | None, *marks: bool | str | None) -> Iterable[sql.Composed]:
    clustered, is_identity, identity = marks
    if index and clustered:
        yield _alter(table, sql.SQL("CLUSTER ON {}").format(sql.Identifier(index)))
    if index and is_identity:
        yield _alter(table, sql.SQL("REPLICA IDENTITY USING INDEX {}").format(sql.Identifier(index)))
    if isinstance(identity, str):
        yield _alter(table, sql.SQL(trusted(f"REPLICA IDENTITY {identity}")))


def _trigger_state(table: sql.Identifier, name: str, state: str) -> sql.Composed:
    return _alter(table, sql.SQL("{} TRIGGER {}").format(sql.SQL(trusted(state)), sql.Identifier(name)))


def _policy(
    table: sql.Identifier,
    name: str,
    kind: str,
    command: str,
    roles: list[str | None],
    using: str | None,
    check: str | None,
) -> sql.Composed:
    return sql.SQL("CREATE POLICY {} ON {} AS {} FOR {} TO {}{}{}").format(
        sql.Identifier(name),
        table,
        sql.SQL(trusted(kind)),
        sql.SQL(trusted(command)),
        sql.SQL(", ").join(sql.SQL("PUBLIC") if role is None else sql.Identifier(role) for role in roles),
        sql.SQL(trusted(f" USING ({using})" if using else "")),
        sql.SQL(trusted(f" WITH CHECK ({check})" if check else "")),
    )


def _statistics(
    schema: str, name: str, definition: str, owner: str, target: int | None, comment: str | None
) -> Iterable[sql.Composable]:
    statistics = sql.Identifier(schema, name)
    yield sql.SQL(trusted(definition))
    if target is not None:
        yield sql.SQL("ALTER STATISTICS {} SET STATISTICS {}").format(statistics, sql.Literal(target))
    if comment is not None:
        yield sql.SQL("COMMENT ON STATISTICS {} IS {}").format(statistics, sql.Literal(comment))
    yield sql.SQL("ALTER STATISTICS {} OWNER TO {}").format(statistics, sql.Identifier(owner))


def _comment(table: sql.Identifier, kind: str, name: list[str], comment: str) -> sql.Composed:
    of_table = sql.SQL(" ON {}").format(table) if kind != "INDEX" else sql.SQL("")
    return sql.SQL("COMMENT ON {} {}{} IS {}").format(
        sql.SQL(trusted(kind)), sql.Identifier(*name), of_table, sql.Literal(comment)
    )


def _alter(table: sql.Identifier, clause: sql.Composable) -> sql.Composed:
    return sql.SQL("ALTER TABLE {} {}").format(table, clause)


def _option(name: str) -> sql.Identifier:
    return sql.Identifier("toast", name.removeprefix(_TOAST)) if name.startswith(_TOAST) else sql.Identifier(name)


def _settings(texts: Iterable[str]) -> sql.Composed:
    pairs = [text.partition("=") for text in texts]
    return sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, _, value in pairs
    )


_OPTIONS = """
SELECT prefix || split_part(option, '=', 1) AS name, substr(option, strpos(option, '=') + 1) AS value
  FROM (SELECT '' AS prefix, reloptions FROM pg_class WHERE oid = {oid}
        UNION ALL
        SELECT 'toast.', toast.reloptions
          FROM pg_class AS c JOIN pg_class AS toast ON toast.oid = c.reltoastrelid WHERE c.oid = {oid}) AS o,
       unnest(reloptions) WITH ORDINALITY AS u (option, place)
 ORDER BY prefix, place
"""
# Each column has a name of its own, because the rows travel as JSON objects.
_QUERIES = {
    "options": _OPTIONS.format(oid="o.old"),
    "options_of_new": _OPTIONS.format(oid="o.new"),
    "other_views": """
SELECT DISTINCT n.nspname, v.relname, pg_get_userbyid(v.relowner) AS owner, pg_get_viewdef(v.oid) AS definition,
       v.reloptions
  FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid AND r.rulename = '_RETURN'
  JOIN pg_class AS v ON v.oid = r.ev_class AND v.relkind = 'v' JOIN pg_namespace AS n ON n.oid = v.relnamespace
 WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = o.old
   AND v.oid IS DISTINCT FROM o.view ORDER BY 1, 2
""",
    "column_settings": """
SELECT attname, target, options AS attoptions FROM (
  SELECT attname, attnum, CASE WHEN attstattarget >= 0 THEN attstattarget END AS target,
         -- A server may note something of its own there (15.20: pg_attver), which is no setting of a person.
         NULLIF(ARRAY(SELECT one FROM unnest(attoptions) AS one WHERE starts_with(one, 'n_distinct')), '{}') AS options
    FROM pg_attribute WHERE attrelid = o.old AND attnum > 0 AND NOT attisdropped) AS c
 WHERE target IS NOT NULL OR options IS NOT NULL ORDER BY attnum
""",
    "index_targets": """
SELECT n.nspname, c.relname, attnum, attstattarget FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
  JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_attribute ON attrelid = c.oid
 WHERE i.indrelid = o.old AND attstattarget >= 0 ORDER BY 2, 3
""",
    "marked_indexes": """
SELECT ic.relname, i.indisclustered, i.indisreplident AND c.relreplident = 'i' AS is_identity, NULL AS identity
  FROM pg_class AS c JOIN pg_index AS i ON i.indrelid = c.oid JOIN pg_class AS ic ON ic.oid = i.indexrelid
 WHERE c.oid = o.old AND (i.indisclustered OR i.indisreplident)
UNION ALL
SELECT NULL, false, false, CASE relreplident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END FROM pg_class
 WHERE oid = o.old AND relreplident IN ('f', 'n')
""",
    "triggers": """
SELECT pg_get_triggerdef(oid) AS definition FROM pg_trigger WHERE tgrelid = o.old AND NOT tgisinternal ORDER BY tgname
""",
    "trigger_states": """
SELECT tgname, CASE tgenabled WHEN 'D' THEN 'DISABLE' WHEN 'R' THEN 'ENABLE REPLICA' ELSE 'ENABLE ALWAYS' END AS state
  FROM pg_trigger WHERE tgrelid = o.old AND NOT tgisinternal AND tgenabled <> 'O' ORDER BY tgname
""",
    "policies": """
SELECT polname, CASE WHEN polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END AS kind,
       CASE polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE'
                   ELSE 'ALL' END AS command,
       ARRAY(SELECT CASE WHEN role <> 0 THEN pg_get_userbyid(role) END FROM unnest(polroles) AS role) AS roles,
       pg_get_expr(polqual, polrelid) AS using, pg_get_expr(polwithcheck, polrelid) AS check
  FROM pg_policy WHERE polrelid = o.old ORDER BY polname
""",
    "row_security": "SELECT true AS enabled FROM pg_class WHERE oid = o.old AND relrowsecurity",
    # The target is NULL, and before version 17 -1, where nobody has set one.
    "statistics": """
SELECT n.nspname, s.stxname, pg_get_statisticsobjdef(s.oid) AS definition, pg_get_userbyid(s.stxowner) AS owner,
       CASE WHEN s.stxstattarget >= 0 THEN s.stxstattarget END AS target,
       obj_description(s.oid, 'pg_statistic_ext') AS comment
  FROM pg_statistic_ext AS s JOIN pg_namespace AS n ON n.oid = s.stxnamespace WHERE s.stxrelid = o.old ORDER BY 1, 2
""",
    "comments": """
SELECT * FROM (
  SELECT 'CONSTRAINT', ARRAY[conname::text], obj_description(oid, 'pg_constraint') FROM pg_constraint
   WHERE conrelid = o.old
  UNION ALL
  SELECT 'INDEX', ARRAY[n.nspname::text, c.relname::text], obj_description(c.oid, 'pg_class')
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
   WHERE i.indrelid = o.old
  UNION ALL
  SELECT 'TRIGGER', ARRAY[tgname::text], obj_description(oid, 'pg_trigger') FROM pg_trigger WHERE tgrelid = o.old
  UNION ALL
  SELECT 'POLICY', ARRAY[polname::text], obj_description(oid, 'pg_policy') FROM pg_policy WHERE polrelid = o.old
) AS c (kind, name, comment) WHERE comment IS NOT NULL
""",
    "column_grants": """
SELECT attname, privilege_type, CASE WHEN grantee <> 0 THEN pg_get_userbyid(grantee) END AS role, is_grantable
  FROM pg_attribute, aclexplode(attacl) WHERE attrelid = o.old AND attnum > 0 AND NOT attisdropped
 ORDER BY attnum, 2, 3
""",
}
_LISTS = ", ".join(
    f"'{name}', (SELECT json_agg(row_to_json(x)) FROM ({query}) AS x)"  # noqa: S608 - constants only
    for name, query in _QUERIES.items()
)
_READ = trusted(
    f"SELECT json_build_object({_LISTS}) FROM (SELECT to_regclass(%(table)s)::oid AS old,"  # noqa: S608 - constants only
    " to_regclass(%(view)s)::oid AS view, to_regclass(%(new)s)::oid AS new) AS o"
)
