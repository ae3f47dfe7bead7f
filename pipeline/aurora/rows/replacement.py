"""The statements by which tables built aside become storage tables, with privileges and everything else that these had.

Invariant: whatever `standard_form` does not name is carried over. A table and its children are replaced together. The
caller has locked writers out and owns the transaction; readers are locked out by the first statement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.schema import belongings, catalog, table_belongings, tables
from pipeline.core.model.mapping import AS_OF, STORAGE_SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pipeline.aurora.rows.build_aside import Build
    from pipeline.aurora.schema.carried_indexes import Carried
    from pipeline.aurora.schema.table_belongings import OtherView
    from pipeline.aurora.sessions.connection import Connection

OTHER_VIEW_MILLISECONDS = 300


@dataclass(frozen=True, slots=True)
class _Steps:
    """The statements for one table, step by step, and the role that they are run as."""

    me: str
    """The connected user."""
    role: str
    given_away: list[sql.Composable]
    """Makes the role the build's owner, if it is not ours."""
    view: sql.Composable
    others: list[OtherView]
    renamed: list[sql.Composable]
    view_created: sql.Composable
    dropped: sql.Composable
    endowed: list[sql.Composable]
    """Gives the table what belonged to the old one, once that is gone."""


def replacement(connection: Connection, builds: Sequence[tuple[Build, Iterable[Carried]]]) -> list[sql.Composable]:
    """Compose the statements that turn builds into the storage tables; each comes with its indexes and checks.

    Send them together: from the first, which locks out readers, to the commit takes two round trips.
    """
    each = [_steps(connection, build, carried) for build, carried in builds]
    # A view may read several of the tables.
    others = {other.view.as_string(): (steps.role, other) for steps in each for other in steps.others}
    # Readers lock a view, then its table. Using the same order avoids a deadlock, and no reader keeps using the old
    # table's id. Locking a view also locks its table.
    locks = [
        *((steps.role, sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(steps.view)) for steps in each),
        *((role, other.lock) for role, other in others.values()),
    ]
    # A query that reads several may have locked another view first. Then we give up before PostgreSQL calls it a
    # deadlock (deadlock_timeout, 1 s) and cancels either of us.
    patience = sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(OTHER_VIEW_MILLISECONDS))
    return [
        *(statement for steps in each for statement in steps.given_away),
        *_as_roles(
            each[0].me,
            [
                locks[0],
                *[(locks[0][0], patience) for _ in locks[1:2]],
                *locks[1:],
                *((steps.role, statement) for steps in each for statement in steps.renamed),
                *((steps.role, steps.view_created) for steps in each),
                *((role, other.create) for role, other in others.values()),
                *((steps.role, steps.dropped) for steps in each),
                *((steps.role, statement) for steps in each for statement in steps.endowed),
            ],
        ),
    ]


def _as_roles(me: str, statements: Iterable[tuple[str, sql.Composable]]) -> Iterable[sql.Composable]:
    """Yield statements, each as its role until the end of the transaction; `me` is the role so far."""
    for role, statement in statements:
        if role != me:
            yield sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role))
            me = role
        yield statement


def _steps(connection: Connection, build: Build, carried: Iterable[Carried]) -> _Steps:
    target, storage, view = build.target, tables.storage(build.target), tables.view(build.target)
    row = connection.execute(_KEY_AND_OWNER, {"storage": storage.as_string(), "view": view.as_string()})
    oid, key_name, owner, is_owner, me = row.fetchone() or (0, "", "", True, "")
    found = table_belongings.read(connection, storage, view, build.identifier)
    ours = catalog.existing_relation(connection, target.schema, target.name, target.storage_name)
    granted = connection.execute(  # by ALTER DEFAULT PRIVILEGES
        "SELECT DISTINCT CASE WHEN grantee <> 0 THEN pg_get_userbyid(grantee) END"
        " FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = %s::regclass",
        [build.identifier.as_string()],
    ).fetchall()
    restored = belongings.ownership(connection, oid, "TABLE", storage, [role for (role,) in granted])
    # A user who does not inherit the owner's rights is the owner until the commit; nothing else needs them.
    give = sql.SQL("ALTER TABLE {} OWNER TO {}").format(build.identifier, sql.Identifier(owner))
    old = sql.Identifier(f"{build.name}_old")
    return _Steps(
        me=me,
        role=me if is_owner else owner,
        given_away=[] if is_owner else [give],
        view=view,
        others=found.other_views,
        renamed=[
            sql.SQL("ALTER TABLE {} ALTER COLUMN {} DROP DEFAULT").format(build.identifier, sql.Identifier(AS_OF)),
            sql.SQL("ALTER TABLE {} RENAME TO {}").format(storage, old),
            sql.SQL("ALTER TABLE {} RENAME TO {}").format(build.identifier, sql.Identifier(target.storage_name)),
        ],
        view_created=tables.create_view(target, ours.options if ours else ()),
        dropped=sql.SQL("DROP TABLE {}.{}").format(sql.Identifier(STORAGE_SCHEMA), old),
        endowed=[
            sql.SQL("ALTER TABLE {} RENAME CONSTRAINT {} TO {}").format(
                storage, sql.Identifier(build.key_name), sql.Identifier(key_name)
            ),
            *(one.rename(build.name, storage) for one in carried),
            *found.options(storage),
            *found.statements(storage),
            *belongings.table_comment(connection, oid, storage),
            *restored,
            # Revoking privileges of the table revokes those of its columns.
            *found.column_grants(storage),
            sql.SQL("UPDATE replication.builds SET swapped_at = clock_timestamp() WHERE build_name = {}").format(
                sql.Literal(build.name)
            ),
        ],
    )


_KEY_AND_OWNER = """
SELECT conrelid, conname, pg_get_userbyid(t.relowner),
       pg_has_role(t.relowner, 'USAGE') AND pg_has_role(v.relowner, 'USAGE'), current_user
  FROM pg_constraint JOIN pg_class t ON t.oid = conrelid, pg_class v
 WHERE contype = 'p' AND conrelid = %(storage)s::regclass AND v.oid = %(view)s::regclass
"""
