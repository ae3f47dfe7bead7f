"""Building a first load's tables aside: filled without an index, keyed, brought up to date, swapped in.

Invariant: until its swap commits, nothing that a reader or a writer can see has changed; after it, each key has the
newest of what the export and the old table held, tombstones included, by the one ordering rule (`upsert`).
Every step can be killed and taken up again: what was done is read from the database, and a step is one transaction.

The swap is the only moment that others notice. It waits until nobody holds the table for long (`lock_holders`), locks
writers out (SHARE ROW EXCLUSIVE), carries over the few rows they wrote since the pass before, then locks readers out
too, view first as they do, and renames. Writers that waited find the new table under the old name: PostgreSQL plans
their prepared statement anew once it has the lock. A purge takes the same lock (see `purge`), so it is wholly before
the swap, which then refuses a snapshot it has passed, or after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.bookkeeping.load_lead import wait_for_files
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.ordering_sql import supersedes
from pipeline.aurora.rows.upsert import upsert
from pipeline.aurora.schema import belongings, catalog, lock_holders, tables
from pipeline.aurora.schema.standard_form import beyond_standard
from pipeline.core.errors import TerminalError, TransientError, UnreachableError
from pipeline.core.model.mapping import AS_OF, STORAGE_SCHEMA, VERSION

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

KEY_MEMORY = "256MB"
KEY_WORKERS = 2
# A pass without lock is followed by another until one has taken so few rows: the pass under lock takes fewer still.
FEW_ROWS = 5_000
LOCK_WAIT_SECONDS = 2.0
# An attempt keeps others waiting for 4 s at most; looking whether the table is free, for a quarter of an hour, nobody.
ATTEMPTS = 5
LOOKS = 450
_MOST_PASSES = 20


@dataclass(frozen=True, slots=True)
class Build:
    """One target's table in the making, of one export."""

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
                    " INCLUDING COMPRESSION) WITH ({})"
                ).format(build.identifier, tables.storage(target), sql.SQL(tables.OPTIONS))
            )
            # COPY then sends nothing of ours: no version, not deleted, as of the snapshot.
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
    """Return the builds that a load began, one for each target; None when they are not what the load now needs.

    That is so when a target came or went, when a table is gone, or when a storage table was altered since or has
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
    """Say why a build cannot take its storage table's place."""
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
    """Drop the unfinished builds of exports and forget what was loaded into them; those loads begin again.

    Waits for the files in work, which other runs may have; they take part in what was before, and no more after.
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
    """Discard builds of the table's other exports, once `export_id` is loaded: merging serves them better now."""
    with translating("looking for abandoned loads", table=table_name):
        abandoned = connection.execute(
            "SELECT DISTINCT export_id FROM replication.builds JOIN replication.exports AS e ON e.id = export_id"
            " WHERE table_name = %s AND export_id <> %s AND swapped_at IS NULL",
            [table_name, export_id],
        ).fetchall()
    discard(connection, [number for (number,) in abandoned], table_name)


def build_key(connection: Connection, build: Build) -> None:
    """Give the filled table its primary key; of rows with equal keys one is kept. Does nothing when it has it.

    Raises DataError when a key cannot be indexed.
    """
    add = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} PRIMARY KEY ({})").format(
        build.identifier, sql.Identifier(build.key_name), tables.identifiers(build.target.primary_key)
    )
    with translating("building the primary key", table=build.table_name), connection.transaction():
        keyed = connection.execute(
            "SELECT FROM pg_index WHERE indisprimary AND indrelid = %s::regclass", [build.identifier.as_string()]
        ).fetchone()
        if keyed is not None:
            return
        connection.execute(sql.SQL("SET LOCAL maintenance_work_mem = {}").format(sql.Literal(KEY_MEMORY)))
        connection.execute(sql.SQL("SET LOCAL max_parallel_maintenance_workers = {}").format(sql.Literal(KEY_WORKERS)))
        try:
            with connection.transaction():
                connection.execute(add)
        except psycopg.errors.UniqueViolation:
            _remove_repeated(connection, build)
            connection.execute(add)


def _remove_repeated(connection: Connection, build: Build) -> None:
    cursor = connection.execute(
        sql.SQL(
            "DELETE FROM {table} WHERE ctid = ANY (ARRAY(SELECT ctid FROM (SELECT ctid,"
            " row_number() OVER (PARTITION BY {key} ORDER BY ctid) AS nth FROM {table}) AS r WHERE nth > 1))"
        ).format(table=build.identifier, key=tables.identifiers(build.target.primary_key))
    )
    _count_overtaken(connection, build, cursor.rowcount)


def _count_overtaken(connection: Connection, build: Build, rows: int) -> None:
    connection.execute(
        "UPDATE replication.builds SET overtaken = overtaken + %s WHERE export_id = %s AND storage_name = %s",
        [rows, build.export_id, build.target.storage_name],
    )


@dataclass(frozen=True, slots=True)
class Brought:
    """How much of the storage table a build has: all that a pass has seen, so all but what was committed since.

    A row's xmin is the transaction that wrote it. Those of transactions below `since` were all seen. Of later ones
    table `_noted` has each that a pass has seen a row of: it had been committed, and with it all that it wrote. So one
    transaction that stays open, however long, makes no pass look again at what others wrote meanwhile; nor do
    subtransactions go amiss, which a snapshot (pg_current_snapshot) does not list.
    """

    since: str
    rows: int
    """Rows that the last pass took."""


def bring_over(connection: Connection, build: Build, brought: Brought | None = None) -> Brought:
    """Bring the storage table's rows over without any lock, in passes, until one takes few.

    `brought` is what an earlier call returned, on this connection; the rows taken then are not looked at again.
    """
    if brought is None:
        with translating("noting what is brought over", table=build.table_name):
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_noted(build)))
            connection.execute(sql.SQL("CREATE TEMP TABLE {} (xid xid)").format(_noted(build)))
    for _ in range(_MOST_PASSES):
        with translating("bringing rows over", table=build.table_name), connection.transaction():
            brought = _pass(connection, build, brought)
        if brought.rows <= FEW_ROWS:
            break
    assert brought is not None  # noqa: S101 - there is a first pass
    return brought


def _noted(build: Build) -> sql.Identifier:
    return sql.Identifier("pg_temp", f"{build.name}_noted")


def _pass(connection: Connection, build: Build, brought: Brought | None) -> Brought:
    """Take every stored row that was not brought yet, where the rule prefers it to the build's; one statement.

    Row ids wrap around; `age` compares them, and errs towards taking a row once more.
    """
    names = tables.identifiers(tables.all_columns(build.target))
    key = tables.identifiers(build.target.primary_key)
    since = sql.Literal(brought.since if brought else "0")
    new = sql.SQL(
        "WHERE age(s.xmin) <= age({since}::xid8::xid) AND NOT EXISTS (SELECT FROM {noted} AS n WHERE n.xid = s.xmin)"
    ).format(since=since, noted=_noted(build))
    row = connection.execute(
        sql.SQL(
            # No table may have a column that is named like the system's, so `xmin` is free.
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
            new=new if brought else sql.SQL(""),
            version=sql.Identifier(VERSION),
            as_of=sql.Identifier(AS_OF),
            snapshot=sql.Literal(build.as_of),
            supersedes=supersedes("c", "b"),
            upsert=upsert(build.target, sql.SQL("candidate AS c"), into=build.identifier, order=key),
        )
    ).fetchone()
    overtaken, rows, oldest_running = row or (0, 0, "0")
    if overtaken:
        _count_overtaken(connection, build, overtaken)
    return Brought(oldest_running, rows)


def swap(
    connection: Connection,
    build: Build,
    brought: Brought,
    *,
    stopped: threading.Event,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Put the build in its storage table's place, in one short transaction, once nobody holds the table for long.

    `brought` is what `bring_over` returned; setting `stopped` ends it. It tells whom it waits for, and tries once all
    the same where that does not end. Raises TerminalError when tombstones were purged as far as the snapshot, or when
    the storage table has become what a swap would damage; TransientError when the lock cannot be had.
    """
    relations = [tables.storage(build.target), tables.view(build.target)]
    for attempt in range(1, ATTEMPTS + 1):
        held = lock_holders.wait_until_free(
            connection, relations, pause=lambda: stopped.wait(LOCK_WAIT_SECONDS), looks=LOOKS, tell=tell
        )
        if stopped.is_set():
            break
        # What was written while others were waited for is not left to the pass under the lock.
        brought = bring_over(connection, build, brought)
        try:
            return _swap(connection, build, brought)
        except UnreachableError:
            raise
        except TransientError as error:
            if held or attempt == ATTEMPTS:
                held = lock_holders.holders(connection, relations)
                raise TransientError(error.message, table=build.table_name, hint=lock_holders.way_out(held)) from None
    raise TransientError("putting the loaded table in place: it was stopped", table=build.table_name)


def _swap(connection: Connection, build: Build, brought: Brought) -> None:
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
        _pass(connection, build, brought)
        connection.execute(sql.SQL("; ").join(_replacement(connection, build)))


def _replacement(connection: Connection, build: Build) -> list[sql.Composable]:
    """Compose the statements that make the build the storage table, with what belongs to the name.

    They are sent as one: from the first on, which locks readers out, to the commit it is two round trips.
    """
    target, storage = build.target, tables.storage(build.target)
    row = connection.execute(_KEY_AND_OWNER, {"storage": storage.as_string(), "view": tables.view(target).as_string()})
    oid, key_name, owner, is_owner = row.fetchone() or (0, "", "", True)
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
        # Readers lock the view and then its table: taking them in that order, nobody waits for each other in a ring,
        # and nobody is left with the old table's identity in hand. Locking a view locks its table with it.
        sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(tables.view(target)),
        sql.SQL("ALTER TABLE {} ALTER COLUMN {} DROP DEFAULT").format(build.identifier, sql.Identifier(AS_OF)),
        sql.SQL("ALTER TABLE {} RENAME TO {}").format(storage, sql.Identifier(old)),
        sql.SQL("ALTER TABLE {} RENAME TO {}").format(build.identifier, sql.Identifier(target.storage_name)),
        tables.create_view(target, view.options if view else ()),
        sql.SQL("DROP TABLE {}").format(sql.Identifier(STORAGE_SCHEMA, old)),
        sql.SQL("ALTER TABLE {} RENAME CONSTRAINT {} TO {}").format(
            storage, sql.Identifier(build.key_name), sql.Identifier(key_name)
        ),
        *restored,
        *belongings.table_comment(connection, oid, storage),
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
