"""Builds a first load's tables aside: fills them, builds key and indexes, brings them up to date, swaps them in.

Invariant: until its swap commits, readers and writers see no change; afterwards each key has the newest state from the
export and the old table, tombstones included, by the one ordering rule (`upsert`). Every step can be killed and
resumed: it is one transaction, and the database shows which steps are done.

Others notice only the swap. It waits until no long transaction holds the table (`lock_holders`), locks out writers
(SHARE ROW EXCLUSIVE), copies the few rows that they wrote since the last pass, then locks out readers too, view first
as they do, and renames the tables. Waiting writers find the new table under the old name: PostgreSQL replans their
prepared statement once it has the lock. A purge takes the same lock (see `purge`), so it is either completely before
the swap, which then refuses a snapshot that the purge has passed, or after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.bookkeeping.load_lead import wait_for_files
from pipeline.aurora.errors import translating
from pipeline.aurora.rows import build_indexes
from pipeline.aurora.rows.ordering_sql import supersedes
from pipeline.aurora.rows.upsert import upsert
from pipeline.aurora.schema import belongings, catalog, lock_holders, table_belongings, tables
from pipeline.aurora.schema.standard_form import beyond_standard
from pipeline.core.errors import TerminalError, TransientError, UnreachableError
from pipeline.core.model.mapping import AS_OF, STORAGE_SCHEMA, VERSION

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from pipeline.aurora.schema.carried_indexes import Carried
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

# Passes without a lock repeat until one copies at most this many rows; the pass under the lock then copies even fewer.
FEW_ROWS = 5_000
LOCK_WAIT_SECONDS = 2.0
OTHER_VIEW_MILLISECONDS = 300
# An attempt makes others wait for 4 s at most. Checking whether the table is free makes nobody wait, and lasts up to a
# quarter of an hour.
ATTEMPTS = 5
LOOKS = 450
_MOST_PASSES = 20


@dataclass(frozen=True, slots=True)
class Build:
    """One target's table, being built from one export."""

    export_id: int
    target: Target
    table_name: str
    """The mapping's name."""
    name: str
    as_of: datetime
    swapped: bool = False

    @property
    def identifier(self) -> sql.Identifier:
        """Its qualified name."""
        return sql.Identifier(STORAGE_SCHEMA, self.name)

    @property
    def key_name(self) -> str:
        """Name of its primary key until the swap."""
        return f"{self.name}_key"


def create(
    connection: Connection, export_id: int, table_name: str, targets: Sequence[Target], as_of: datetime
) -> tuple[Build, ...]:
    """Create the empty tables of an export and record them, in one transaction."""
    made: list[Build] = []
    with translating("creating tables to load aside", table=table_name), connection.transaction():
        for number, target in enumerate(targets):
            build = Build(export_id, target, table_name, f"_load_{export_id}_{number}", as_of)
            connection.execute(
                sql.SQL(
                    "CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING COMMENTS INCLUDING STORAGE"
                    " INCLUDING COMPRESSION)"
                ).format(build.identifier, tables.storage(target))
            )
            found = table_belongings.read(connection, tables.storage(target), tables.view(target), build.identifier)
            for statement in found.options(build.identifier):
                connection.execute(statement)
            # COPY then needs no bookkeeping columns: the defaults say no version, not deleted, as of the snapshot.
            connection.execute(
                sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET DEFAULT {}").format(
                    build.identifier, sql.Identifier(AS_OF), sql.Literal(as_of)
                )
            )
            connection.execute(
                "INSERT INTO replication.builds (export_id, storage_name, build_name) VALUES (%s, %s, %s)",
                [export_id, target.storage_name, build.name],
            )
            made.append(build)
    return tuple(made)


def find(
    connection: Connection, export_id: int, table_name: str, targets: Sequence[Target], as_of: datetime
) -> tuple[Build, ...] | None:
    """Return the builds that a load began, one per target; None if the load can no longer use them.

    That happens if a target was added or removed, a table is gone, or a storage table was altered since or has
    something that a swap would lose.
    """
    with translating("looking for tables loaded aside", table=table_name):
        rows = connection.execute(
            "SELECT storage_name, build_name, swapped_at IS NOT NULL FROM replication.builds WHERE export_id = %s",
            [export_id],
        ).fetchall()
    known = {storage_name: (name, swapped) for storage_name, name, swapped in rows}
    if known.keys() != {target.storage_name for target in targets}:
        return None
    builds = tuple(Build(export_id, t, table_name, known[t.storage_name][0], as_of, known[t.storage_name][1])
                   for t in targets)  # fmt: skip
    return builds if all(build.swapped or not unfit(connection, build) for build in builds) else None


def unfit(connection: Connection, build: Build) -> tuple[str, ...]:
    """Return the reasons why a build cannot replace its storage table."""
    reasons = beyond_standard(connection, build.target)
    with translating("comparing columns", table=build.table_name):
        first, second = [
            connection.execute(_COLUMNS, [STORAGE_SCHEMA, name]).fetchall()
            for name in (build.name, build.target.storage_name)
        ]
    return reasons if first == second else (*reasons, "its columns were altered")


_COLUMNS = """
SELECT a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attnotnull
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = %s AND c.relname = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attname
"""


def discard(connection: Connection, export_ids: Iterable[int], table_name: str, *, strategy: str = "merge") -> None:
    """Drop the exports' unfinished builds and forget what was loaded into them; those loads start over.

    Waits for files that other runs are loading: those finish before the builds go, and no file is loaded into them
    afterwards.
    """
    with translating("dropping tables loaded aside", table=table_name), connection.transaction():
        wait_for_files(connection, table_name)
        for export_id in export_ids:
            names = connection.execute(
                "DELETE FROM replication.builds WHERE export_id = %s RETURNING build_name, swapped_at", [export_id]
            ).fetchall()
            for name, swapped_at in names:
                if swapped_at is None:
                    connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(STORAGE_SCHEMA, name)))
            loads.begin_again(connection, export_id, strategy)


def discard_abandoned(connection: Connection, export_id: int, table_name: str) -> None:
    """Discard builds of the table's other exports, once `export_id` is loaded: merging now suits them better."""
    with translating("looking for abandoned loads", table=table_name):
        abandoned = connection.execute(
            "SELECT DISTINCT export_id FROM replication.builds JOIN replication.exports AS e ON e.id = export_id"
            " WHERE table_name = %s AND export_id <> %s AND swapped_at IS NULL",
            [table_name, export_id],
        ).fetchall()
    discard(connection, [number for (number,) in abandoned], table_name)


@dataclass(frozen=True, slots=True)
class Copied:
    """How much of the storage table a build has: everything the passes saw, so all but what was committed since.

    A row's xmin is the transaction that wrote it. The passes saw all rows of transactions below `since`. The table
    `_noted` lists every later transaction of which a pass saw a row: it had committed, so the pass saw all its rows. So
    a transaction that stays open, however long, does not make passes copy again what others wrote meanwhile.
    Subtransactions, which a snapshot (pg_current_snapshot) does not list, are covered too.
    """

    since: str
    rows: int
    """Rows that the last pass copied."""


def copy_over(connection: Connection, build: Build, copied: Copied | None = None) -> Copied:
    """Copy the storage table's rows without any lock, in passes, until a pass copies few.

    `copied` is what an earlier call on this connection returned; rows copied then are not read again.
    """
    if copied is None:
        with translating("noting which rows are copied", table=build.table_name):
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_noted(build)))
            connection.execute(sql.SQL("CREATE TEMP TABLE {} (xid xid)").format(_noted(build)))
    for _ in range(_MOST_PASSES):
        with translating("copying stored rows to the new table", table=build.table_name), connection.transaction():
            copied = _pass(connection, build, copied)
        if copied.rows <= FEW_ROWS:
            break
    assert copied is not None  # noqa: S101 - there is a first pass
    return copied


def _noted(build: Build) -> sql.Identifier:
    return sql.Identifier("pg_temp", f"{build.name}_noted")


def _pass(connection: Connection, build: Build, copied: Copied | None) -> Copied:
    """Copy every stored row not yet copied, if the rule prefers it to the build's; one statement.

    Transaction ids wrap around; `age` compares them, and errs towards copying a row again.
    """
    names = tables.identifiers(tables.all_columns(build.target))
    key = tables.identifiers(build.target.primary_key)
    since = sql.Literal(copied.since if copied else "0")
    new = sql.SQL(
        "WHERE age(s.xmin) <= age({since}::xid8::xid) AND NOT EXISTS (SELECT FROM {noted} AS n WHERE n.xid = s.xmin)"
    ).format(since=since, noted=_noted(build))
    row = connection.execute(
        sql.SQL(
            # No table may have a column named like a system column, so `xmin` is unambiguous.
            "WITH candidate AS MATERIALIZED (SELECT s.xmin, {names} FROM {storage} AS s {new}),"
            " overtaken AS (SELECT count(*) AS n FROM candidate AS c JOIN {build} AS b USING ({key})"
            " WHERE b.{version} IS NULL AND b.{as_of} = {snapshot} AND {supersedes}),"
            " moved AS ({upsert}),"
            " noted AS (INSERT INTO {noted} SELECT DISTINCT xmin FROM candidate"
            " WHERE age(xmin) <= age(pg_snapshot_xmin(pg_current_snapshot())::xid))"
            " SELECT n, (SELECT count(*) FROM candidate), pg_snapshot_xmin(pg_current_snapshot())::text FROM overtaken"
        ).format(
            names=names,
            key=key,
            storage=tables.storage(build.target),
            build=build.identifier,
            noted=_noted(build),
            new=new if copied else sql.SQL(""),
            version=sql.Identifier(VERSION),
            as_of=sql.Identifier(AS_OF),
            snapshot=sql.Literal(build.as_of),
            supersedes=supersedes("c", "b"),
            upsert=upsert(build.target, sql.SQL("candidate AS c"), into=build.identifier, order=key),
        )
    ).fetchone()
    overtaken, rows, oldest_running = row or (0, 0, "0")
    if overtaken:
        build_indexes.count_overtaken(connection, build, overtaken)
    return Copied(oldest_running, rows)


def swap(
    connection: Connection,
    build: Build,
    copied: Copied,
    *,
    stopped: threading.Event,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Replace the storage table by the build, in one short transaction, once no long transaction holds the table.

    `copied` is what `copy_over` returned; setting `stopped` ends the wait. It reports whom it waits for, and makes one
    attempt even if they do not finish. Raises TerminalError if tombstones were purged up to the snapshot, or if the
    storage table was altered so that a swap would damage it; TransientError if it cannot get the lock.
    """
    relations = [tables.storage(build.target), tables.view(build.target), *_other_views(connection, build.target)]
    for attempt in range(1, ATTEMPTS + 1):
        held = lock_holders.wait_until_free(
            connection, relations, pause=lambda: stopped.wait(LOCK_WAIT_SECONDS), looks=LOOKS, tell=tell
        )
        if stopped.is_set():
            break
        if build_indexes.complete(connection, build) is None:
            build_indexes.build(connection, build)
        # Copies what was written during the wait, so that the pass under the lock has less to do.
        copied = copy_over(connection, build, copied)
        try:
            return _swap(connection, build, copied)
        except UnreachableError:
            raise
        except TransientError as error:
            if held or attempt == ATTEMPTS:
                held = lock_holders.holders(connection, relations)
                raise TransientError(error.message, table=build.table_name, hint=lock_holders.way_out(held)) from None
    raise TransientError("putting the loaded table in place: it was stopped", table=build.table_name)


def _swap(connection: Connection, build: Build, copied: Copied) -> None:
    target = build.target
    with translating("putting the loaded table in place", table=build.table_name), connection.transaction():
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(int(LOCK_WAIT_SECONDS * 1000))))
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(tables.storage(target)))
        loads.refuse_purged(connection, build.table_name, build.as_of)
        if reasons := unfit(connection, build):
            raise TerminalError(
                f"putting the loaded table in place: {tables.storage(target).as_string()} was altered during the load"
                f" ({'; '.join(reasons)})",
                table=build.table_name,
                hint="run the load again; it will then merge",
            )
        carried = build_indexes.complete(connection, build)
        if carried is None:
            raise TransientError(
                "putting the loaded table in place: an index was built or dropped meanwhile", table=build.table_name
            )
        _pass(connection, build, copied)
        connection.execute(sql.SQL("; ").join(_replacement(connection, build, carried)))


def _other_views(connection: Connection, target: Target) -> list[sql.Identifier]:
    found = table_belongings.read(connection, tables.storage(target), tables.view(target), tables.storage(target))
    return [other.view for other in found.other_views]


def _replacement(connection: Connection, build: Build, carried: Iterable[Carried]) -> list[sql.Composable]:
    """Compose the statements that turn the build into the storage table, with privileges and everything else that it
    has.

    They are sent together: from the first, which locks out readers, to the commit takes two round trips.
    """
    target, storage = build.target, tables.storage(build.target)
    row = connection.execute(_KEY_AND_OWNER, {"storage": storage.as_string(), "view": tables.view(target).as_string()})
    oid, key_name, owner, is_owner = row.fetchone() or (0, "", "", True)
    found = table_belongings.read(connection, storage, tables.view(target), build.identifier)
    others = found.other_views
    view = catalog.existing_relation(connection, target.schema, target.name, target.storage_name)
    granted = connection.execute(  # by ALTER DEFAULT PRIVILEGES
        "SELECT DISTINCT CASE WHEN grantee <> 0 THEN pg_get_userbyid(grantee) END"
        " FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = %s::regclass",
        [build.identifier.as_string()],
    ).fetchall()
    restored = belongings.ownership(connection, oid, "TABLE", storage, [role for (role,) in granted])
    old = f"{build.name}_old"
    # A user who does not inherit the owner's rights is the owner until the commit; nothing else needs them.
    as_owner = [
        sql.SQL("ALTER TABLE {} OWNER TO {}").format(build.identifier, sql.Identifier(owner)),
        sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(owner)),
    ]
    return [
        *([] if is_owner else as_owner),
        # Readers lock the view, then its table. Using the same order avoids a deadlock, and no reader keeps using the
        # old table's id. Locking a view also locks its table.
        sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(tables.view(target)),
        # A query that reads both may have locked the other view first. Then we give up before PostgreSQL calls it a
        # deadlock (deadlock_timeout, 1 s) and cancels either of us.
        *[sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(OTHER_VIEW_MILLISECONDS)) for _ in others[:1]],
        *(other.lock for other in others),
        sql.SQL("ALTER TABLE {} ALTER COLUMN {} DROP DEFAULT").format(build.identifier, sql.Identifier(AS_OF)),
        sql.SQL("ALTER TABLE {} RENAME TO {}").format(storage, sql.Identifier(old)),
        sql.SQL("ALTER TABLE {} RENAME TO {}").format(build.identifier, sql.Identifier(target.storage_name)),
        tables.create_view(target, view.options if view else ()),
        *(other.create for other in others),
        sql.SQL("DROP TABLE {}").format(sql.Identifier(STORAGE_SCHEMA, old)),
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
    ]  # fmt: skip


_KEY_AND_OWNER = """
SELECT conrelid, conname, pg_get_userbyid(t.relowner),
       pg_has_role(t.relowner, 'USAGE') AND pg_has_role(v.relowner, 'USAGE')
  FROM pg_constraint JOIN pg_class t ON t.oid = conrelid, pg_class v
 WHERE contype = 'p' AND conrelid = %(storage)s::regclass AND v.oid = %(view)s::regclass
"""
