"""Statements that give a recreated view or table everything that the old one had besides its definition.

Invariant: afterwards every role has exactly the same privileges on the new relation as on the old one, whatever ALTER
DEFAULT PRIVILEGES says. Reads only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.sessions.connection import trusted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.aurora.sessions.connection import Connection

_ROLE = "CASE WHEN grantee <> 0 THEN pg_get_userbyid(grantee) END"  # role 0 is PUBLIC


def of_view(connection: Connection, oid: int, view: sql.Identifier, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the statements that give `view`, recreated with these columns, everything that view `oid` had.

    They suit only the connected user, because the new view starts with that user's default privileges.
    """
    kept = list(columns)
    statements: list[sql.Composable] = [
        sql.SQL("ALTER VIEW {} ALTER COLUMN {} SET DEFAULT {}").format(
            view, sql.Identifier(column), sql.SQL(trusted(default))
        )
        for column, default in connection.execute(_DEFAULTS, [oid, kept])
    ]
    statements += [sql.SQL(trusted(definition)) for (definition,) in connection.execute(_RULES_AND_TRIGGERS, [oid] * 2)]
    statements += _comments(connection, oid, view, kept)
    statements += _labels(connection, oid, view, kept)
    defaults = [role for (role,) in connection.execute(_DEFAULT_PRIVILEGES, [oid])]
    statements += ownership(connection, oid, "VIEW", view, defaults)
    statements += _column_grants(connection, oid, view, kept)
    return tuple(statement.as_string(connection) for statement in statements)


def ownership(
    connection: Connection, oid: int, kind: str, relation: sql.Identifier, granted: Iterable[str | None]
) -> list[sql.Composable]:
    """Return the statements that give the new VIEW or TABLE `relation` the owner and privileges of `oid`.

    `granted` are the roles that got privileges when it was created; None is PUBLIC.
    """
    row = connection.execute(
        "SELECT pg_get_userbyid(relowner), relacl IS NULL FROM pg_class WHERE oid = %s", [oid]
    ).fetchone()
    owner, plain = row or ("", True)
    statements: list[sql.Composable] = [
        sql.SQL("ALTER {} {} OWNER TO {}").format(sql.SQL(trusted(kind)), relation, sql.Identifier(owner))
    ]
    roles = set(granted)
    if plain and not roles:
        return statements
    revoked = sql.SQL(", ").join(_role(role) for role in sorted(roles | {owner}, key=lambda role: role or ""))
    statements.append(sql.SQL("REVOKE ALL ON {} FROM {}").format(relation, revoked))
    if plain:
        return [*statements, sql.SQL("GRANT ALL ON {} TO {}").format(relation, sql.Identifier(owner))]
    statements += [
        grant(privileges, relation, role, grantable=grantable)
        for privileges, role, grantable in connection.execute(_GRANTS, [oid])
    ]
    return statements


def table_comment(connection: Connection, oid: int, table: sql.Identifier) -> list[sql.Composable]:
    """Return the statement that gives the new `table` the comment of `oid`."""
    return [
        sql.SQL("COMMENT ON TABLE {} IS {}").format(table, sql.Literal(comment))
        for (comment,) in connection.execute("SELECT obj_description(%s, 'pg_class')", [oid])
        if comment is not None
    ]


def _comments(connection: Connection, oid: int, view: sql.Identifier, columns: list[str]) -> list[sql.Composable]:
    return [
        sql.SQL("COMMENT ON {} IS {}").format(_named(kind, view, name), sql.Literal(comment))
        for kind, name, comment in connection.execute(_COMMENTS, [oid, oid, columns, oid, oid])
    ]


def _labels(connection: Connection, oid: int, view: sql.Identifier, columns: list[str]) -> list[sql.Composable]:
    return [
        sql.SQL("SECURITY LABEL FOR {} ON {} IS {}").format(
            sql.Identifier(provider), _named(kind, view, name), sql.Literal(label)
        )
        for kind, name, provider, label in connection.execute(_LABELS, [oid, columns])
    ]


def _column_grants(connection: Connection, oid: int, view: sql.Identifier, columns: list[str]) -> list[sql.Composable]:
    return [
        grant(privilege, view, role, column, grantable=grantable)
        for column, privilege, role, grantable in connection.execute(_COLUMN_GRANTS, [oid, columns])
    ]


def _named(kind: str, view: sql.Identifier, name: str) -> sql.Composed:
    """Spell a VIEW, a COLUMN of it, or a RULE or TRIGGER on it as COMMENT and SECURITY LABEL do."""
    if kind == "VIEW":
        return sql.SQL("VIEW {}").format(view)
    if kind == "COLUMN":
        return sql.SQL("COLUMN {}.{}").format(view, sql.Identifier(name))
    return sql.SQL("{} {} ON {}").format(sql.SQL(trusted(kind)), sql.Identifier(name), view)


def grant(
    privileges: str, relation: sql.Identifier, role: str | None, column: str | None = None, *, grantable: bool
) -> sql.Composed:
    """Compose the grant of privileges on a relation, or on one column of it; a role of None is PUBLIC."""
    return sql.SQL("GRANT {}{} ON {} TO {}{}").format(
        sql.SQL(trusted(privileges)),
        sql.SQL(" ({})").format(sql.Identifier(column)) if column else sql.SQL(""),
        relation,
        _role(role),
        sql.SQL(" WITH GRANT OPTION" if grantable else ""),
    )


def _role(name: str | None) -> sql.Composable:
    return sql.SQL("PUBLIC") if name is None else sql.Identifier(name)


_DEFAULTS = """
SELECT attname, pg_get_expr(adbin, adrelid)
  FROM pg_attrdef JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
 WHERE adrelid = %s AND attname = ANY (%s) ORDER BY attnum
"""

_RULES_AND_TRIGGERS = """
SELECT rtrim(pg_get_ruledef(oid), ';') FROM pg_rewrite WHERE ev_class = %s AND rulename <> '_RETURN'
UNION ALL
SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = %s AND NOT tgisinternal
"""

_COMMENTS = """
SELECT * FROM (
  SELECT 'VIEW', '', obj_description(%s, 'pg_class')
  UNION ALL
  SELECT 'COLUMN', attname, col_description(attrelid, attnum) FROM pg_attribute
   WHERE attrelid = %s AND attname = ANY (%s)
  UNION ALL
  SELECT 'RULE', rulename, obj_description(oid, 'pg_rewrite') FROM pg_rewrite WHERE ev_class = %s
  UNION ALL
  SELECT 'TRIGGER', tgname, obj_description(oid, 'pg_trigger') FROM pg_trigger WHERE tgrelid = %s
) AS c(kind, name, comment) WHERE comment IS NOT NULL
"""

_LABELS = """
SELECT CASE objsubid WHEN 0 THEN 'VIEW' ELSE 'COLUMN' END, COALESCE(attname, ''), provider, label
  FROM pg_seclabel LEFT JOIN pg_attribute ON attrelid = objoid AND attnum = objsubid AND objsubid > 0
 WHERE classoid = 'pg_class'::regclass AND objoid = %s AND (objsubid = 0 OR attname = ANY (%s))
 ORDER BY objsubid
"""

# The privileges that a view has at first if the connected user creates it in the same schema (PostgreSQL manual, ALTER
# DEFAULT PRIVILEGES: those of a schema add to those of all schemas).
_DEFAULT_PRIVILEGES = f"""
SELECT DISTINCT {_ROLE}
  FROM pg_class c JOIN pg_default_acl ON defaclnamespace IN (0, c.relnamespace), aclexplode(defaclacl)
 WHERE c.oid = %s AND defaclobjtype = 'r' AND defaclrole = current_user::regrole
"""  # noqa: S608 - constants only

_GRANTS = f"""
SELECT string_agg(privilege_type, ', ' ORDER BY privilege_type), {_ROLE}, is_grantable
  FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = %s GROUP BY grantee, is_grantable ORDER BY 2, 3
"""  # noqa: S608 - constants only

_COLUMN_GRANTS = f"""
SELECT attname, privilege_type, {_ROLE}, is_grantable
  FROM pg_attribute, aclexplode(attacl) WHERE attrelid = %s AND attname = ANY (%s) ORDER BY attnum, 2, 3
"""  # noqa: S608 - constants only
