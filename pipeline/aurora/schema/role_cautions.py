"""What the roles lack that is left to a person, in sentences; and what only some users may grant.

Invariant: reads only, and reads nothing that a user without special rights may not read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.aurora.schema.role_needs import Role
from pipeline.core.model.mapping import STORAGE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pipeline.aurora.schema.roles import Making

SEPARATE_SET = 160000  # PostgreSQL 16: whether a member inherits, and may SET ROLE, is said with each grant
_SEES_OTHERS = "pg_read_all_stats"
_WORKING_TABLE = "^_(load|reconcile)_[0-9]"


def see_others(making: Making) -> None:
    """Let migrate and swaps see whom they wait for, if the connected user may grant it."""
    may = making.ask(f"SELECT pg_has_role('{_SEES_OTHERS}', 'MEMBER WITH ADMIN OPTION')") or (
        making.version < SEPARATE_SET and making.ask("SELECT rolcreaterole FROM pg_roles WHERE rolname = current_user")
    )
    for role in (Role.OWNER, Role.OPERATOR):
        if may and not _sees_others(making, role):
            making.add(f"let {making.names[role]} see the state of other sessions", f"GRANT {_SEES_OTHERS} TO {{}}",
                       making.names[role])  # fmt: skip


def _sees_others(making: Making, role: Role) -> bool:
    return making.exists(role) and making.ask(f"SELECT pg_has_role(%s, '{_SEES_OTHERS}', 'MEMBER')", making.names[role])


def cautions(making: Making, known: Mapping[str, bool]) -> list[str]:
    """Return what is left for a person to do; `known` says of each role that exists whether it can log in."""
    return [*_log_ins(making, known), *_too_much(making), *_left_tables(making), *_blind(making)]


def _log_ins(making: Making, known: Mapping[str, bool]) -> list[str]:
    found: list[str] = []
    names = {role: name for role, name in making.names.items() if role is not Role.READER}
    if new := [name for name in names.values() if name not in known]:
        found.append(
            f"{', '.join(new)}: each has no password, so nobody can log in as it yet; in psql, `\\password NAME` sets"
            " one without showing it. IAM authentication (`GRANT rds_iam TO NAME`) overrides passwords, and Dynaurora"
            " logs in with the password of its secret"
        )
    found += [f"{name} cannot log in: `ALTER ROLE {name} LOGIN`" for name in names.values() if known.get(name) is False]
    reader = making.names[Role.READER]
    if reader not in known:
        found.append(
            f"{reader} is a group: `GRANT {reader} TO …` for each log-in that may read every view; `readers` in a"
            " mapping file names those that may read some"
        )
    return found


def _too_much(making: Making) -> list[str]:
    """Say who may do more than its verbs need."""
    found: list[str] = []
    operator, owner = making.names[Role.OPERATOR], making.owner
    both = making.exists(Role.OPERATOR) and making.exists(Role.OWNER)
    if both and making.ask("SELECT pg_has_role(%s, %s, 'USAGE')", operator, owner):
        found.append(f"{operator} is a superuser or inherits {owner}: it may drop what the owner may")
    if making.ask(
        "SELECT has_schema_privilege('public', 'public', 'CREATE') FROM pg_namespace WHERE nspname = 'public'"
    ):
        found.append(
            "anyone may create objects in schema public, the default up to PostgreSQL 14:"
            " `REVOKE CREATE ON SCHEMA public FROM PUBLIC`"
        )
    return found


def _left_tables(making: Making) -> list[str]:
    """Name working tables of others, which the operator could not drop."""
    operator = making.names[Role.OPERATOR]
    rows = making.connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename ~ %s AND tableowner <> %s ORDER BY 1",
        [STORAGE_SCHEMA, _WORKING_TABLE, operator],
    ).fetchall()
    return [
        f"{STORAGE_SCHEMA}.{name} was left by a load or reconciliation of another user: end that first, or"
        f" `ALTER TABLE {STORAGE_SCHEMA}.{name} OWNER TO {operator}`, because the operator could not drop it"
        for (name,) in rows
    ]


def _blind(making: Making) -> list[str]:
    granted = any(_SEES_OTHERS in statement.sql for statement in making.statements)
    if granted or all(_sees_others(making, role) for role in (Role.OWNER, Role.OPERATOR)):
        return []
    return [
        f"without {_SEES_OTHERS}, which this user may not grant, `migrate` and a load's swap say whom they wait for by"
        " process id alone"
    ]
