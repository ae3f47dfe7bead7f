"""The readers of the mappings: roles that may read a view, what the database grants them, and the steps between.

Invariant: a grant is ours if `replication.reader_grants` has it, which is recorded in the transaction that grants it.
What is not recorded is a person's, and is neither adopted nor revoked. A reader gets SELECT on the view and, where it
lacks it, USAGE of the view's schema; nothing of the storage schema and nothing of the bookkeeping.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.sessions.connection import trusted
from pipeline.core.model.history import views_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping, Target


class Grant(NamedTuple):
    """SELECT on a view, or USAGE of a schema if `view` is ""."""

    schema: str
    view: str
    role: str

    @property
    def what(self) -> str:
        return f"{self.schema}.{self.view}" if self.view else f"schema {self.schema}"


@dataclass(frozen=True, slots=True)
class ReaderStep:
    """Statements that grant or revoke, with what is recorded of it."""

    what: str
    sql: str


@dataclass(slots=True)
class ReaderPlan:
    """What is between the grants and the mapping."""

    steps: list[ReaderStep] = field(default_factory=list[ReaderStep])
    problems: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """What a person must do first, and how."""


def plan_readers(connection: Connection, mapping: TableMapping, targets: Collection[Target]) -> ReaderPlan:
    """Compare the grants with the mapping's readers, for those of its targets whose views can be there. Reads only."""
    made = ReaderPlan()
    wanted = {
        Grant(target.schema, name, role)
        for target in targets
        for name in views_of(target)
        for role in target.readers or ()
    }
    refused = _views(mapping.tables) - _views(targets)
    with translating("reading who may read the views", table=mapping.name):
        recorded = _recorded(connection)
        ours = {grant for grant, name in recorded.items() if name == mapping.name and grant.what not in refused}
        roles = _existing_roles(connection, {grant.role for grant in wanted | recorded.keys()})
        for role in sorted({grant.role for grant in wanted} - roles):
            views = ", ".join(sorted(grant.what for grant in wanted if grant.role == role))
            made.problems.append(
                (
                    f'role "{role}" does not exist, and is a reader of {views}',
                    f"create it ({_text(connection, 'CREATE ROLE {}', role)}; with LOGIN if it is no group), or correct"
                    f" `readers` in {mapping.path or 'the mapping file'}",
                )
            )
        possible = sorted(grant for grant in wanted if grant.role in roles)
        held = _held(connection, wanted | recorded.keys())
        _grant(connection, made, mapping.name, possible, held)
        gone = sorted(grant for grant in ours - wanted if grant.view)
        left = (recorded.keys() - set(gone)) | wanted
        in_use = {(grant.schema, grant.role) for grant in left if grant.view}
        touched = {(grant.schema, grant.role) for grant in gone}
        usage = [
            grant
            for grant in sorted(recorded)
            if not grant.view
            and (grant in ours or (grant.schema, grant.role) in touched)
            and (grant.schema, grant.role) not in in_use
        ]
        made.steps += [_revoke(connection, grant, held) for grant in (*gone, *usage)]
    return made


def _views(targets: Iterable[Target]) -> set[str]:
    return {f"{target.schema}.{name}" for target in targets for name in views_of(target)}


def _recorded(connection: Connection) -> dict[Grant, str]:
    """Return what mappings have granted, and which mapping."""
    row = connection.execute("SELECT to_regclass('replication.reader_grants') IS NOT NULL").fetchone()
    if not row or not row[0]:
        return {}
    rows = connection.execute("SELECT schema_name, view_name, role, table_name FROM replication.reader_grants")
    return {Grant(*grant): name for *grant, name in rows}


def _existing_roles(connection: Connection, names: Collection[str]) -> set[str]:
    rows = connection.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)", [list(names)])
    return {name for (name,) in rows}


def _held(connection: Connection, grants: Collection[Grant]) -> set[Grant]:
    """Return which of these grants there are, whoever gave them; an owner needs none."""
    found = connection.execute(
        _HELD,
        {"schemas": [g.schema for g in grants], "views": [g.view for g in grants], "roles": [g.role for g in grants]},
    )
    return {Grant(*row) for row in found}


# USAGE counts wherever it comes from, such as PUBLIC; SELECT only if it names the role, so that a role that leaves a
# group keeps what the mapping says.
_HELD = """
SELECT w.* FROM unnest(%(schemas)s::text[], %(views)s::text[], %(roles)s::text[]) AS w (schema, view, role)
  JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_roles r ON r.rolname = w.role
 WHERE CASE WHEN w.view = '' THEN has_schema_privilege(r.oid, n.oid, 'USAGE')
            ELSE EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = w.view AND c.relkind = 'v'
                            AND (c.relowner = r.oid OR EXISTS (SELECT FROM aclexplode(c.relacl) AS a
                                  WHERE a.grantee = r.oid AND a.privilege_type = 'SELECT'))) END
"""


def _grant(
    connection: Connection, made: ReaderPlan, mapping_name: str, wanted: Sequence[Grant], held: Collection[Grant]
) -> None:
    usage = sorted({Grant(grant.schema, "", grant.role) for grant in wanted})
    has_usage = _held(connection, usage)
    for grant in (*[each for each in usage if each not in has_usage], *[each for each in wanted if each not in held]):
        if not grant.view and not _may_grant_usage(connection, grant.schema):
            statement = _text(connection, "GRANT USAGE ON SCHEMA {} TO {}", grant.schema, grant.role)
            made.problems.append(
                (f'role "{grant.role}" may not use {grant.what}, and this user may not grant it',
                 f"let the schema's owner run {statement}")
            )  # fmt: skip
            continue
        record = sql.SQL(
            "INSERT INTO replication.reader_grants (schema_name, view_name, role, table_name) VALUES ({})"
            " ON CONFLICT (schema_name, view_name, role) DO UPDATE SET table_name = excluded.table_name"
        ).format(sql.SQL(", ").join(map(sql.Literal, (*grant, mapping_name))))
        statement = _statement(connection, "GRANT {} ON {} TO {}", grant)
        reading = f"let {grant.role} {'read' if grant.view else 'use'} {grant.what}"
        made.steps.append(ReaderStep(reading, f"{statement};\n{record.as_string(connection)};"))


def _may_grant_usage(connection: Connection, schema: str) -> bool:
    """Whether the user, or a role that it may become, may grant it; a schema to be created will be its own."""
    row = connection.execute(
        "SELECT bool_or(has_schema_privilege(r.oid, n.oid, 'USAGE WITH GRANT OPTION'))"
        " FROM pg_namespace n, pg_roles r WHERE n.nspname = %s AND pg_has_role(r.oid, 'MEMBER')",
        [schema],
    ).fetchone()
    return row is None or row[0] is not False


def _revoke(connection: Connection, grant: Grant, held: Collection[Grant]) -> ReaderStep:
    forget = sql.SQL("DELETE FROM replication.reader_grants WHERE (schema_name, view_name, role) = ({})").format(
        sql.SQL(", ").join(map(sql.Literal, grant))
    )
    text = f"{forget.as_string(connection)};"
    if grant not in held:
        return ReaderStep(f"forget that {grant.role} could {'read' if grant.view else 'use'} {grant.what}", text)
    statement = _statement(connection, "REVOKE {} ON {} FROM {}", grant)
    return ReaderStep(
        f"revoke {grant.what} from {grant.role}, no longer a reader in the mapping", f"{statement};\n{text}"
    )


def _statement(connection: Connection, text: str, grant: Grant) -> str:
    on = sql.Identifier(grant.schema, grant.view) if grant.view else sql.SQL("SCHEMA {}").format(
        sql.Identifier(grant.schema)
    )  # fmt: skip
    privilege = sql.SQL("SELECT" if grant.view else "USAGE")
    return sql.SQL(trusted(text)).format(privilege, on, sql.Identifier(grant.role)).as_string(connection)


def _text(connection: Connection, text: str, *names: str) -> str:
    return sql.SQL(trusted(text)).format(*map(sql.Identifier, names)).as_string(connection)
