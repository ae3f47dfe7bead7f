"""Builds a load's tables aside: fills them, builds key and indexes, brings them up to date, swaps them in.

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
from itertools import count
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.bookkeeping.load_lead import wait_for_files
from pipeline.aurora.errors import translating
from pipeline.aurora.rows import build_indexes
from pipeline.aurora.rows.children import same_key
from pipeline.aurora.rows.ordering_sql import supersedes
from pipeline.aurora.rows.preferred import PLACES, filled_since, find_preferred
from pipeline.aurora.rows.replacement import replacement
from pipeline.aurora.rows.staging import returned_key
from pipeline.aurora.rows.upsert import upsert
from pipeline.aurora.schema import lock_holders, table_belongings, tables
from pipeline.aurora.schema.standard_form import beyond_standard
from pipeline.core.errors import TerminalError, TransientError, UnreachableError
from pipeline.core.model.mapping import AS_OF, STORAGE_SCHEMA, VERSION

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

# Passes without a lock repeat until one copies at most this many rows; the pass under the lock then copies even fewer.
FEW_ROWS = 5_000
LOCK_WAIT_SECONDS = 2.0
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
    children: tuple[Build, ...] = ()
    """The tables of its target's children, which are filled and swapped with it."""

    @property
    def tables(self) -> tuple[Build, ...]:
        """It and its children."""
        return (self, *self.children)

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
    names = (f"_load_{export_id}_{number}" for number in count())
    with translating("creating tables to load aside", table=table_name), connection.transaction():
        builds = _builds(export_id, table_name, targets, as_of, lambda _: (next(names), False))
        for build in (one for whole in builds for one in whole.tables):
            _create(connection, build)
    return builds


def _builds(
    export_id: int,
    table_name: str,
    targets: Sequence[Target],
    as_of: datetime,
    known: Callable[[Target], tuple[str, bool]],
) -> tuple[Build, ...]:
    """Return each target's build with those of its children; `known` says a table's name and whether it is swapped."""

    def build(target: Target) -> Build:
        name, swapped = known(target)
        return Build(export_id, target, table_name, name, as_of, swapped, tuple(map(build, target.children)))

    return tuple(map(build, targets))


def _create(connection: Connection, build: Build) -> None:
    target = build.target
    connection.execute(
        sql.SQL(
            "CREATE TABLE {} (LIKE {} INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING COMMENTS INCLUDING STORAGE"
            " INCLUDING COMPRESSION)"
        ).format(build.identifier, tables.storage(target))
    )
    found = table_belongings.read(connection, tables.storage(target), tables.view(target), build.identifier)
    for statement in found.options(build.identifier):
        connection.execute(statement)
    # COPY then needs no bookkeeping columns: the defaults say no version, not deleted, as of the snapshot.
    connection.execute(
        sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET DEFAULT {}").format(
            build.identifier, sql.Identifier(AS_OF), sql.Literal(build.as_of)
        )
    )
    connection.execute(
        "INSERT INTO replication.builds (export_id, storage_name, build_name) VALUES (%s, %s, %s)",
        [build.export_id, target.storage_name, build.name],
    )


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
    if known.keys() != {table.storage_name for target in targets for table in (target, *target.children)}:
        return None
    builds = _builds(export_id, table_name, targets, as_of, lambda target: known[target.storage_name])
    return builds if all(build.swapped or not unfit(connection, build) for build in builds) else None


def unfit(connection: Connection, build: Build) -> tuple[str, ...]:
    """Return the reasons why a build and its children cannot replace their storage tables."""
    return tuple(
        f"{one.target.view_name}: {reason}" if one is not build else reason
        for one in build.tables
        for reason in _unfit(connection, one)
    )


def _unfit(connection: Connection, build: Build) -> tuple[str, ...]:
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
    """Copy the stored rows that the build needs, without any lock, in passes, until a pass copies few.

    The first pass joins both tables, since usually the build needs few of the stored rows. `copied` is what an earlier
    call on this connection returned; rows that were seen then are not copied again.
    """
    if copied is None:
        with translating("noting which rows are copied", table=build.table_name):
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_noted(build)))
            connection.execute(sql.SQL("CREATE TEMP TABLE {} (xid xid)").format(_noted(build)))
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_taken(build)))
            connection.execute(
                sql.SQL("CREATE TEMP TABLE {} AS SELECT {} FROM {} WITH NO DATA").format(
                    _taken(build), tables.identifiers(build.target.primary_key), build.identifier
                )
            )
    for _ in range(_MOST_PASSES):
        with translating("copying stored rows to the new table", table=build.table_name), connection.transaction():
            if copied is None:
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                find_preferred(connection, build.target, build.identifier, build.as_of)
            copied = _pass(connection, build, copied)
        if copied.rows <= FEW_ROWS:
            break
    assert copied is not None  # noqa: S101 - there is a first pass
    return copied


def _noted(build: Build) -> sql.Identifier:
    return sql.Identifier("pg_temp", f"{build.name}_noted")


def _taken(build: Build) -> sql.Identifier:
    """Name the table of the keys that a pass copied, for their children."""
    return sql.Identifier("pg_temp", f"{build.name}_taken")


def _pass(connection: Connection, build: Build, copied: Copied | None) -> Copied:
    """Copy the stored rows that no pass has seen, if the rule prefers them to the build's, and their children.

    For the first pass, `find_preferred` has seen all rows. Transaction ids wrap around; `age` compares them, and errs
    towards copying a row again.
    """
    copied = _copy_rows(connection, build, copied)
    if build.children and copied.rows:
        _copy_children(connection, build)
    return copied


def _copy_children(connection: Connection, build: Build) -> None:
    """Replace the build's children of the copied rows by the stored ones.

    If a row has changed since it was copied, its children may be newer than it here. Then another pass copies both,
    because whoever replaces children writes the parent's row.
    """
    key, taken = build.target.primary_key, _taken(build)
    connection.execute(sql.SQL("ANALYZE {}").format(taken))
    for child in build.children:
        names = tables.identifiers(tables.all_columns(child.target))
        of_taken = sql.SQL("({}) IN (SELECT * FROM {})").format(tables.identifiers(key), taken)
        connection.execute(sql.SQL("DELETE FROM {} WHERE {}").format(child.identifier, of_taken))
        connection.execute(
            sql.SQL("INSERT INTO {} ({names}) SELECT {names} FROM {} WHERE {}").format(
                child.identifier, tables.storage(child.target), of_taken, names=names
            )
        )
    connection.execute(sql.SQL("TRUNCATE {}").format(taken))


def _copy_rows(connection: Connection, build: Build, copied: Copied | None) -> Copied:
    names = tables.identifiers(tables.all_columns(build.target))
    key = tables.identifiers(build.target.primary_key)
    since = sql.Literal(copied.since if copied else "0")
    storage = tables.storage(build.target)
    new = sql.SQL(
        "{storage} AS s WHERE age(s.xmin) <= age({since}::xid8::xid)"
        " AND NOT EXISTS (SELECT FROM {noted} AS n WHERE n.xid = s.xmin)"
    ).format(storage=storage, since=since, noted=_noted(build))
    # An array of places could not hold more than 67 million.
    preferred = sql.SQL("{} AS p JOIN {} AS s ON s.ctid = p.place").format(PLACES, storage)
    row = connection.execute(
        sql.SQL(
            # No table may have a column named like a system column, so `xmin` is unambiguous.
            "WITH candidate AS MATERIALIZED (SELECT s.xmin, {names} FROM {rows}),"
            # Row by row: the planner knows nothing of the build, and would read all of it under the swap's lock.
            " overtaken AS (SELECT count(*) AS n FROM candidate AS c"
            " CROSS JOIN LATERAL (SELECT * FROM {build} AS x WHERE {same_key} LIMIT 1) AS b"
            " WHERE b.{version} IS NULL AND b.{as_of} = {snapshot} AND {supersedes}),"
            " moved AS ({upsert}{taken}),"
            " noted AS (INSERT INTO {noted} SELECT DISTINCT xmin FROM candidate"
            " WHERE age(xmin) <= age(pg_snapshot_xmin(pg_current_snapshot())::xid))"
            " SELECT n, (SELECT count(*) FROM candidate), pg_snapshot_xmin(pg_current_snapshot())::text FROM overtaken"
        ).format(
            names=names,
            same_key=same_key(build.target, "x", "c"),
            rows=new if copied else preferred,
            build=build.identifier,
            noted=_noted(build),
            version=sql.Identifier(VERSION),
            as_of=sql.Identifier(AS_OF),
            snapshot=sql.Literal(build.as_of),
            supersedes=supersedes("c", "b"),
            upsert=upsert(
                build.target,
                sql.SQL("candidate AS c"),
                into=build.identifier,
                order=key,
                otherwise=filled_since("excluded", "stored", build.as_of),
            ),
            taken=sql.SQL(" RETURNING {}), taken AS (INSERT INTO {} SELECT * FROM moved").format(
                returned_key(build.target), _taken(build)
            )
            if build.children
            else sql.SQL(""),
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
    check: Callable[[], None] = lambda: None,
) -> None:
    """Replace the storage table by the build, in one short transaction, once no long transaction holds the table.

    `copied` is what `copy_over` returned; setting `stopped` ends the wait. It reports whom it waits for, and makes one
    attempt even if they do not finish. `check` is called once no writer can come between. Raises TerminalError if
    tombstones were purged up to the snapshot, or if the storage table was altered so that a swap would damage it;
    TransientError if it cannot get the lock.
    """
    relations = [
        relation
        for one in build.tables
        for relation in (tables.storage(one.target), tables.view(one.target), *_other_views(connection, one.target))
    ]
    for attempt in range(1, ATTEMPTS + 1):
        held = lock_holders.wait_until_free(
            connection, relations, pause=lambda: stopped.wait(LOCK_WAIT_SECONDS), looks=LOOKS, tell=tell
        )
        if stopped.is_set():
            break
        for one in build.tables:
            if build_indexes.complete(connection, one) is None:
                build_indexes.build(connection, one)
        # Copies what was written during the wait, so that the pass under the lock has less to do.
        copied = copy_over(connection, build, copied)
        try:
            return _swap(connection, build, copied, check)
        except UnreachableError:
            raise
        except TransientError as error:
            if held or attempt == ATTEMPTS:
                held = lock_holders.holders(connection, relations)
                raise TransientError(error.message, table=build.table_name, hint=lock_holders.way_out(held)) from None
    raise TransientError("putting the loaded table in place: it was stopped", table=build.table_name)


def _swap(connection: Connection, build: Build, copied: Copied, check: Callable[[], None] = lambda: None) -> None:
    target = build.target
    with translating("putting the loaded table in place", table=build.table_name), connection.transaction():
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(int(LOCK_WAIT_SECONDS * 1000))))
        # The parent first, as its writers do: whoever replaces children has locked it.
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(_storages(build)))
        loads.refuse_purged(connection, build.table_name, build.as_of)
        check()
        if reasons := unfit(connection, build):
            raise TerminalError(
                f"putting the loaded table in place: {tables.storage(target).as_string()} was altered during the load"
                f" ({'; '.join(reasons)})",
                table=build.table_name,
                hint="run the load again; it will then merge",
            )
        complete = [(one, build_indexes.complete(connection, one)) for one in build.tables]
        builds = [(one, carried) for one, carried in complete if carried is not None]
        if len(builds) < len(complete):
            raise TransientError(
                "putting the loaded table in place: an index was built or dropped meanwhile", table=build.table_name
            )
        _pass(connection, build, copied)
        connection.execute(sql.SQL("; ").join(replacement(connection, builds)))


def _storages(build: Build) -> sql.Composed:
    return sql.SQL(", ").join(tables.storage(one.target) for one in build.tables)


def _other_views(connection: Connection, target: Target) -> list[sql.Identifier]:
    found = table_belongings.read(connection, tables.storage(target), tables.view(target), tables.storage(target))
    return [other.view for other in found.other_views]
