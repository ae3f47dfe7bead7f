"""Finds what the database's roles and their grants lack, as SQL that a database administrator can read and run.

Invariant: it only adds, and only what `role_needs` says; it never touches a password, and never revokes other
privileges. Grants on tables that do not exist yet are default privileges of the owner, who creates all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from pipeline.aurora.bookkeeping import bookkeeping
from pipeline.aurora.bookkeeping.migrations import MIGRATIONS
from pipeline.aurora.errors import translating
from pipeline.aurora.schema import catalog, role_needs
from pipeline.aurora.schema.role_cautions import SEPARATE_SET, cautions, see_others
from pipeline.aurora.schema.role_needs import ALL_TABLES, Needs, Role, VerbNeeds
from pipeline.aurora.sessions import advisory_locks
from pipeline.aurora.sessions.connection import trusted
from pipeline.core.errors import ConfigurationError, TerminalError
from pipeline.core.model.history import tables_of, views_of
from pipeline.core.model.mapping import BOOKKEEPING_SCHEMA, STORAGE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping

DEFAULT_NAMES = {role: f"dynaurora_{role.value}" for role in Role}
LOCK_WAIT_SECONDS = 3


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, and why."""

    what: str
    sql: str


@dataclass(frozen=True, slots=True)
class FoundRole:
    """A role as it is now."""

    role: str
    name: str
    exists: bool
    can_log_in: bool
    verbs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RolesPlan:
    """What the roles lack: `statements` in the order in which they must run, in one transaction."""

    roles: tuple[FoundRole, ...]
    statements: tuple[Statement, ...]
    cautions: tuple[str, ...] = ()
    """What is left for a person to do, in sentences."""


@dataclass(slots=True)
class Making:
    """A plan, being built."""

    connection: Connection
    names: Mapping[Role, str]
    mappings: Sequence[TableMapping]
    needs: Mapping[Role, Needs]
    existing: frozenset[str]
    version: int
    statements: list[Statement] = field(default_factory=list[Statement])

    def add(self, what: str, text: str, *names: str) -> None:
        """Add a statement; each `{}` of its text is an identifier."""
        statement = sql.SQL(trusted(text)).format(*map(sql.Identifier, names))
        self.statements.append(Statement(what, statement.as_string(self.connection)))

    def exists(self, role: Role) -> bool:
        return self.names[role] in self.existing

    def ask(self, query: str, *parameters: object) -> bool:
        """Return the answer of a query for one boolean; no row is no."""
        row = self.connection.execute(trusted(query), parameters).fetchone()
        return bool(row and row[0])

    @property
    def owner(self) -> str:
        return self.names[Role.OWNER]

    @property
    def view_schemas(self) -> list[str]:
        return sorted({target.schema for mapping in self.mappings for target in mapping.tables})


def plan_roles(
    connection: Connection,
    mappings: Iterable[TableMapping],
    names: Mapping[Role, str] = DEFAULT_NAMES,
    verbs: Sequence[VerbNeeds] = role_needs.VERBS,
) -> RolesPlan:
    """Compare the roles of these names, and their grants, with what these verbs need. Reads only.

    Raises ConfigurationError for names that cannot be used.
    """
    _check(names)
    with translating("reading the roles of the database"):
        known = dict(
            connection.execute(
                "SELECT rolname, rolcanlogin FROM pg_roles WHERE rolname = ANY (%s)", [list(names.values())]
            ).fetchall()
        )
        needs = {role: role_needs.of(role, verbs) for role in Role}
        making = Making(connection, names, tuple(mappings), needs, frozenset(known), connection.info.server_version)
        _create_roles(making)
        _database_grants(making)
        _view_schemas(making)
        _take_over(making)
        _owned_grants(making)
        see_others(making)
        found_cautions = cautions(making, known)
    under = {role: tuple(each.verb for each in verbs if each.role is role) for role in Role}
    found = tuple(
        FoundRole(role.value, names[role], names[role] in known, known.get(names[role], False), under[role])
        for role in Role
    )
    return RolesPlan(found, tuple(making.statements), tuple(found_cautions))


def create_roles(connection: Connection, planned: RolesPlan) -> None:
    """Run the statements in one transaction. Raises TerminalError naming the first that PostgreSQL refuses."""
    doing = "creating the roles"
    with translating(doing), connection.transaction():
        advisory_locks.MIGRATION.take_for_transaction(connection)
        connection.execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT_SECONDS}s'".encode())
        for statement in planned.statements:
            try:
                connection.execute(statement.sql.encode())
            except psycopg.errors.InsufficientPrivilege:
                raise TerminalError(
                    f"{doing}: the database user may not {statement.what} (42501); nothing was changed",
                    hint="run it as a user who may create roles and owns the database (on RDS, the master user), or"
                    " have the SQL run that `dynaurora roles` prints",
                ) from None


def _check(names: Mapping[Role, str]) -> None:
    if len(set(names.values())) < len(names):
        raise ConfigurationError("the roles need names that differ from each other")
    for name in names.values():
        if not name or len(name.encode()) > 63 or name.startswith("pg_") or name in {"public", "none"}:
            raise ConfigurationError(
                f'"{name}" cannot be the name of a role', hint="write 1 to 63 bytes that do not begin with pg_"
            )


def _create_roles(making: Making) -> None:
    for role, name in making.names.items():
        if making.exists(role):
            continue
        # NOINHERIT: before version 16 it alone keeps the operator from being the owner in all that it does.
        inherit = " NOINHERIT" if role is Role.OPERATOR and making.version < SEPARATE_SET else ""
        making.add(f"create role {name}", f"CREATE ROLE {{}} {'NO' if role is Role.READER else ''}LOGIN{inherit}", name)
    if not making.exists(Role.OWNER) or not _may_become(making, "current_user"):
        making.add(
            f"grant {making.owner} to the user who runs this, to act as it below",
            "GRANT {} TO CURRENT_USER",
            making.owner,
        )
    swaps = making.needs[Role.OPERATOR].swaps
    if swaps and not (making.exists(Role.OPERATOR) and _may_become(making, "%s", making.names[Role.OPERATOR])):
        how = " WITH INHERIT FALSE, SET TRUE" if making.version >= SEPARATE_SET else ""
        making.add(
            "let the operator take on the owner's role, for swaps alone",
            f"GRANT {{}} TO {{}}{how}",
            making.owner,
            making.names[Role.OPERATOR],
        )


def _may_become(making: Making, user: str, *parameters: str) -> bool:
    asked = [*parameters, making.owner, catalog.become(making.connection)]
    return making.exists(Role.OWNER) and making.ask(f"SELECT pg_has_role({user}, %s, %s)", *asked)


def _database_grants(making: Making) -> None:
    row = making.connection.execute("SELECT current_database()").fetchone()
    database = row[0] if row else ""
    for role, name in making.names.items():
        wanted = ["CONNECT"]
        if role is Role.OWNER:
            wanted.append("CREATE")  # the schemas
        if making.needs[role].temporary:
            wanted.append("TEMPORARY")
        missing = [
            privilege
            for privilege in wanted
            if not (making.exists(role) and making.ask(
                "SELECT has_database_privilege(%s, current_database(), %s)", name, privilege))
        ]  # fmt: skip
        if missing:
            listed = ", ".join(missing)
            making.add(
                f"grant {listed} on the database to {name}", f"GRANT {listed} ON DATABASE {{}} TO {{}}", database, name
            )


def _schema_owner(making: Making, schema: str) -> str | None:
    row = making.connection.execute(
        "SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = %s", [schema]
    ).fetchone()
    return row[0] if row else None


def _usage(
    making: Making, schema: str, role: Role, privileges: str = "USAGE", *, new: bool = False, option: str = ""
) -> None:
    name = making.names[role]
    has = (
        not new
        and making.exists(role)
        and all(
            making.ask("SELECT has_schema_privilege(%s, %s, %s)", name, schema, f"{one}{option}")
            for one in privileges.split(", ")
        )
    )
    if not has:
        what = f"grant {privileges} on schema {schema} to {name}{option.lower()}"
        making.add(what, f"GRANT {privileges} ON SCHEMA {{}} TO {{}}{option}", schema, name)


def _view_schemas(making: Making) -> None:
    """Let the owner create views, and the others use them, in existing schemas that belong to somebody else."""
    for schema in making.view_schemas:
        owner = _schema_owner(making, schema)
        if owner in {None, making.owner}:
            continue
        open_to_all = making.ask("SELECT has_schema_privilege('public', %s, 'USAGE')", schema)
        _usage(making, schema, Role.OWNER, "CREATE")
        # So that `migrate` can let a mapping's readers use the schema.
        _usage(making, schema, Role.OWNER, option="" if open_to_all else " WITH GRANT OPTION")
        _usage(making, schema, Role.OPERATOR)
        _usage(making, schema, Role.READER)


def _take_over(making: Making) -> None:
    """Give the owner everything that an earlier user migrated."""
    for schema in (STORAGE_SCHEMA, BOOKKEEPING_SCHEMA):
        if _schema_owner(making, schema) not in {None, making.owner}:
            making.add(f"give schema {schema} to {making.owner}", "ALTER SCHEMA {} OWNER TO {}", schema, making.owner)
    targets = [target for mapping in making.mappings for target in mapping.tables]
    ours = [
        *([STORAGE_SCHEMA, name] for target in targets for name in (target.storage_name, *tables_of(target))),
        *([target.schema, name] for target in targets for name in views_of(target)),
    ]
    rows = making.connection.execute(
        _OTHERS, [making.owner, BOOKKEEPING_SCHEMA, [schema for schema, _ in ours], [name for _, name in ours]]
    ).fetchall()
    for schema, name, kind in rows:
        making.add(f"give {kind.lower()} {schema}.{name} to {making.owner}", f"ALTER {kind} {{}}.{{}} OWNER TO {{}}",
                   schema, name, making.owner)  # fmt: skip


# A view of another relation than a storage table is not ours, whatever its name. A partition is its table's.
_OTHERS = """
SELECT n.nspname, c.relname, CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND c.relispartition LEFT JOIN pg_class p ON p.oid = i.inhparent
 WHERE pg_get_userbyid(c.relowner) <> %s
   AND (n.nspname = %s OR (n.nspname, COALESCE(p.relname, c.relname)) IN (SELECT * FROM unnest(%s::text[], %s::text[])))
   AND (c.relkind IN ('r', 'p') AND n.nspname IN ('replica', 'replication')
        OR c.relkind = 'v' AND EXISTS (
            SELECT FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
              JOIN pg_class s ON d.refclassid = 'pg_class'::regclass AND s.oid = d.refobjid
              JOIN pg_namespace sn ON sn.oid = s.relnamespace
             WHERE w.ev_class = c.oid AND sn.nspname = 'replica'))
 ORDER BY 3, 1, 2
"""


def _owned_grants(making: Making) -> None:
    """Add what the owner itself grants: on its schemas, its tables and, by default, its later tables."""
    before = len(making.statements)
    for schema in (STORAGE_SCHEMA, BOOKKEEPING_SCHEMA, *making.view_schemas):
        new = _schema_owner(making, schema) is None
        if new:
            making.add(f"create schema {schema}", "CREATE SCHEMA IF NOT EXISTS {}", schema)
        if schema in {STORAGE_SCHEMA, BOOKKEEPING_SCHEMA}:
            for role in (Role.REPLICATOR, Role.OPERATOR):
                creates = schema == STORAGE_SCHEMA and making.needs[role].creates
                _usage(making, schema, role, "USAGE, CREATE" if creates else "USAGE", new=new)
        elif new or _schema_owner(making, schema) == making.owner:
            _usage(making, schema, Role.OPERATOR, new=new)
            _usage(making, schema, Role.READER, new=new)
    workers = (Role.REPLICATOR, Role.OPERATOR)
    for role in workers:
        needs = making.needs[role]
        _default(making, role, STORAGE_SCHEMA, needs.storage)
        _default(making, role, BOOKKEEPING_SCHEMA, needs.bookkeeping.get(ALL_TABLES, frozenset()))
    _bookkeeping(making)
    for role in workers:
        _table_grants(making, role, making.needs[role])
    _reader_grants(making)
    if len(making.statements) > before:
        making.statements.insert(before, _plain(making, f"as {making.owner}", "SET LOCAL ROLE {}", making.owner))
        making.statements.append(Statement("as the user again", "RESET ROLE"))


def _plain(making: Making, what: str, text: str, name: str) -> Statement:
    return Statement(what, sql.SQL(trusted(text)).format(sql.Identifier(name)).as_string(making.connection))


def _bookkeeping(making: Making) -> None:
    """Create the bookkeeping's tables: some grants name them, so they cannot wait for `migrate`."""
    oid = _tables(making, BOOKKEEPING_SCHEMA).get("migrations")
    if oid is None:
        pending = [name for name, _ in MIGRATIONS]
    elif making.ask("SELECT has_table_privilege(%s::oid, 'SELECT')", oid):
        pending = bookkeeping.pending(making.connection)
    else:
        return
    if pending:
        text = bookkeeping.script(pending).rstrip().removesuffix(";")
        making.statements.append(Statement("create or complete the bookkeeping, as `migrate` does", text))


def _tables(making: Making, schema: str) -> dict[str, int]:
    """Return the tables of a schema with their oids; a name would need USAGE of the schema."""
    rows = making.connection.execute(
        "SELECT c.relname, c.oid::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p', 'v') AND n.nspname = %s ORDER BY 1",
        [schema],
    ).fetchall()
    return dict(rows)


def _table_grants(making: Making, role: Role, needs: Needs) -> None:
    existing = _tables(making, BOOKKEEPING_SCHEMA)
    by_default = needs.bookkeeping.get(ALL_TABLES, frozenset())
    new = {table for table in needs.bookkeeping if needs.on(table) - by_default} - existing.keys()
    for table in sorted(existing.keys() | new):
        _grant(making, role, BOOKKEEPING_SCHEMA, table, needs.on(table), existing.get(table))
    stored = _tables(making, STORAGE_SCHEMA)
    targets = [target for mapping in making.mappings for target in mapping.tables]
    wanted = {name for target in targets for name in (target.storage_name, *tables_of(target))}
    for table in sorted(wanted & stored.keys()):
        _grant(making, role, STORAGE_SCHEMA, table, needs.storage, stored[table])


def _reader_grants(making: Making) -> None:
    for target in (target for mapping in making.mappings for target in mapping.tables):
        for name in views_of(target):
            view = _tables(making, target.schema).get(name)
            if view is not None:
                _grant(making, Role.READER, target.schema, name, frozenset({"SELECT"}), view)
    for schema in making.view_schemas:
        _default(making, Role.READER, schema, frozenset({"SELECT"}))


def _grant(making: Making, role: Role, schema: str, table: str, privileges: frozenset[str], oid: int | None) -> None:
    name = making.names[role]
    missing = [
        privilege
        for privilege in sorted(privileges)
        if not (making.exists(role) and oid
                and making.ask("SELECT has_table_privilege(%s, %s::oid, %s)", name, oid, privilege))
    ]  # fmt: skip
    if missing:
        listed = ", ".join(missing)
        making.add(f"grant {listed} on {schema}.{table} to {name}", f"GRANT {listed} ON {{}}.{{}} TO {{}}",
                   schema, table, name)  # fmt: skip


def _default(making: Making, role: Role, schema: str, privileges: frozenset[str]) -> None:
    """Grant on tables that the owner creates later."""
    name = making.names[role]
    missing = [
        privilege
        for privilege in sorted(privileges)
        if not making.ask(_DEFAULTS, making.owner, schema, name, privilege)
    ]
    if missing:
        listed = ", ".join(missing)
        making.add(
            f"grant {listed} on later tables of schema {schema} to {name}",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {{}} GRANT {listed} ON TABLES TO {{}}",
            schema,
            name,
        )


_DEFAULTS = """
SELECT true FROM pg_default_acl d JOIN pg_roles o ON o.oid = d.defaclrole
  JOIN pg_namespace n ON n.oid = d.defaclnamespace, aclexplode(d.defaclacl) AS a JOIN pg_roles g ON g.oid = a.grantee
 WHERE o.rolname = %s AND n.nspname = %s AND g.rolname = %s AND a.privilege_type = %s AND d.defaclobjtype = 'r'
"""
