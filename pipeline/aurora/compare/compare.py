"""Compares a snapshot with a target's stored rows, set by set.

Invariant: a hash or a timestamp never decides that rows differ: the columns themselves are compared, each with `IS
DISTINCT FROM`. The differences in a range of keys go to a list in the database, in the statement that marks the range
as compared; none of them is sent to the client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from psycopg import sql

from pipeline.aurora.compare import key_ranges
from pipeline.aurora.compare.candidates import CHANGED, PLACE, SOURCE_HASH, keys_sent, sent_keys
from pipeline.aurora.errors import translating
from pipeline.aurora.rows import children
from pipeline.aurora.schema import tables
from pipeline.core.model.mapping import AS_OF, DELETED, VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.aurora.compare.candidates import Candidates
    from pipeline.aurora.compare.key_ranges import Key, Lane
    from pipeline.aurora.rows.staging import Staging
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

Kind = Literal["missing", "extra", "different"]
# Memory for a chunk's join before it spills to temporary files, and for sorting the staged keys.
_JOIN_MEMORY = "64MB"
_INDEX_MEMORY = "256MB"
# Reading less than this for each range costs less than an index.
INDEX_FROM_BYTES = 128 << 20
# A range's rows lie on pages all over a table. If these are not in memory, asking for many at a time instead of one
# takes less than half the time; where the server's platform cannot, the most is 0.
_ASK_AHEAD = """
SELECT set_config(name, least(64, max_val::integer)::text, false)
  FROM pg_settings WHERE name = 'effective_io_concurrency'
"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One target against its staged snapshot, whose rows count as of `as_of`."""

    run_id: int
    target: Target
    staging: Staging
    candidates: Candidates
    as_of: datetime

    def set_up(self, connection: Connection) -> None:
        """Give a connection the memory for comparing chunks, and let it ask for many pages at a time."""
        with translating("setting up a connection of the reconciliation"):
            connection.execute(_ASK_AHEAD)
            connection.execute(sql.SQL("SET work_mem = {}").format(sql.Literal(_JOIN_MEMORY)))

    def index(self, connection: Connection, *, helpers: int = 0) -> None:
        """Index the staged keys once they are all there, if they are many: a range is then read without the others.

        Nothing is indexed twice. PostgreSQL may add as many `helpers`, processes of its own.
        """
        staging, key = self.staging.name, tables.identifiers(self.target.primary_key)
        with translating("indexing the staged keys"), connection.transaction():
            wanted = {"staging": staging.as_string(), "least": INDEX_FROM_BYTES}
            if connection.execute(_UNINDEXED, wanted).fetchone() != (True,):
                return
            connection.execute(sql.SQL("SET LOCAL maintenance_work_mem = {}").format(sql.Literal(_INDEX_MEMORY)))
            connection.execute(sql.SQL("SET LOCAL max_parallel_maintenance_workers = {}").format(sql.Literal(helpers)))
            connection.execute(sql.SQL("CREATE INDEX ON {} ({})").format(staging, key))
            connection.execute(sql.SQL("ANALYZE {} ({})").format(staging, key))

    def compare(self, connection: Connection, lane: Lane, through: Key | None) -> int:
        """Compare the lane's keys through `through` (None: to its end), and mark them; returns how many differ.

        One statement lists every difference, justified or not, and moves the mark.
        """
        end = lane.through if through is None else through
        parameters = key_ranges.bounds(lane.after, end) | {
            "as_of": self.as_of,
            "run": self.run_id,
            "number": lane.target,
            "lane": lane.number,
            "end": None if end is None else list(end),
            "done": through is None,
        }
        query = sql.SQL(
            "WITH found AS (INSERT INTO {list} ({names}) {differing} RETURNING {source_hash} IS NULL AS extra),"
            " counted AS (SELECT count(*) AS n, count(*) FILTER (WHERE extra) AS extra FROM found)"
            " UPDATE replication.reconciliation_ranges AS r SET after_key = %(end)s::text[], done = %(done)s,"
            " chunks = r.chunks + 1, found = r.found + counted.n, extra = r.extra + counted.extra,"
            " seconds = r.seconds + extract(epoch FROM clock_timestamp() - statement_timestamp())"
            " FROM counted WHERE r.reconciliation_id = %(run)s AND r.target = %(number)s AND r.lane = %(lane)s"
            " RETURNING counted.n"
        ).format(
            list=self.candidates.name,
            names=tables.identifiers((*self.candidates.key_names, SOURCE_HASH, CHANGED)),
            differing=self.differing(key_ranges.within(self.target, lane.after, end)),
            source_hash=sql.Identifier(SOURCE_HASH),
        )
        with translating("comparing a snapshot with its target"):
            row = connection.execute(query, parameters).fetchone()
        return row[0] if row else 0

    def differing(self, within: sql.Composable) -> sql.Composed:
        """Compose the differences within a range, one row each: key, hash of the source, whether changed since."""
        target = self.target
        query = sql.SQL(
            "SELECT {keys}, {source_hash}, COALESCE(t.{as_of} > %(as_of)s, false)"
            " FROM (SELECT * FROM {staging} WHERE {within}) AS s"
            " FULL JOIN (SELECT * FROM {storage} WHERE {within}) AS t ON {same_key}"
            " WHERE CASE WHEN s.{key} IS NULL THEN NOT t.{deleted}"
            " WHEN t.{key} IS NULL OR t.{deleted} THEN true ELSE {differs} END"
        ).format(
            keys=sql.SQL(", ").join(
                sql.SQL("COALESCE(s.{0}, t.{0})").format(sql.Identifier(name)) for name in target.primary_key
            ),
            source_hash=source_hash(target),
            as_of=sql.Identifier(AS_OF),
            staging=self.staging.name,
            storage=tables.storage(target),
            within=within,
            same_key=children.same_key(target, "s", "t"),
            key=sql.Identifier(target.primary_key[0]),
            deleted=sql.Identifier(DELETED),
            differs=_differs(target),
        )
        return query + self._orphans(within) if target.children else query

    def _orphans(self, within: sql.Composable) -> sql.Composed:
        """Compose the other differences: children of parents that neither the snapshot nor the target has."""
        target, key = self.target, tables.identifiers(self.target.primary_key)
        each = sql.SQL(" UNION ALL ").join(
            sql.SQL("SELECT {key}, {as_of} FROM {child} WHERE {within}").format(
                key=key, as_of=sql.Identifier(AS_OF), child=tables.storage(child), within=within
            )
            for child in target.children
        )
        qualified = children.qualified("o", target)
        return sql.SQL(
            " UNION ALL SELECT {qualified}, NULL::bigint, bool_and(COALESCE(t.{as_of}, o.{as_of}) > %(as_of)s)"
            " FROM ({each}) AS o LEFT JOIN {storage} AS t ON {of_parent} WHERE (t.{first} IS NULL OR t.{deleted})"
            " AND NOT EXISTS (SELECT FROM {staging} AS s WHERE {staged}) GROUP BY {qualified}"
        ).format(
            qualified=qualified,
            as_of=sql.Identifier(AS_OF),
            each=each,
            storage=tables.storage(target),
            of_parent=children.same_key(target, "o", "t"),
            first=sql.Identifier(target.primary_key[0]),
            deleted=sql.Identifier(DELETED),
            staging=self.staging.name,
            staged=children.same_key(target, "s", "o"),
        )


_UNINDEXED = """
SELECT pg_relation_size(%(staging)s::regclass) >= %(least)s
   AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = %(staging)s::regclass)
"""


@dataclass(frozen=True, slots=True)
class Compared:
    """One key, compared with the source's current state; `kind` None: equal."""

    kind: Kind | None
    columns: tuple[str, ...]
    """The columns that differ, for `different`."""
    mark: str
    """Changes whenever the stored row does; empty if no row is stored."""
    version: int | None
    as_of: datetime | None
    """The stored row's position; both None if there is no row."""
    deleted: bool | None
    """Whether the stored row is a tombstone; None if there is no row."""
    source_hash: int | None
    """Hash of the source's state, to check whether it is the snapshot's; None if the source has no such item."""


def marks(connection: Connection, target: Target, keys: Sequence[Key]) -> list[str]:
    """Return the mark of each key's stored row, in the keys' order."""
    query = sql.SQL(
        "SELECT COALESCE(t.xmin::text, '') FROM {sent} LEFT JOIN {storage} AS t ON {same} ORDER BY a.{place}"
    ).format(
        sent=sent_keys(target),
        storage=tables.storage(target),
        same=children.same_key(target, "a", "t"),
        place=sql.Identifier(PLACE),
    )
    with translating("reading the marks of stored rows"):
        return [mark for (mark,) in connection.execute(query, keys_sent(keys))]


def compare_keys(connection: Connection, target: Target, staging: Staging, keys: Sequence[Key]) -> list[Compared]:
    """Compare keys, in order, with the source's states in `staging`; the source lacks keys that are not staged."""
    values = [name for name in target.stored_columns if name not in target.primary_key]
    columns = sql.SQL(" || ").join(
        [
            *(_named(_column_differs(name), name) for name in values),
            *(
                _named(children.differs(child, carried, "s", "t"), child.view_name)
                for child, carried in zip(target.children, target.carried, strict=True)
            ),
            sql.SQL("'{}'::text[]"),
        ]
    )
    orphans = sql.SQL(" OR ").join(
        sql.SQL("EXISTS (SELECT FROM {} AS c WHERE {})").format(
            tables.storage(child), children.same_key(target, "c", "a")
        )
        for child in target.children
    )
    query = sql.SQL(
        "SELECT CASE WHEN s.{key} IS NULL THEN CASE WHEN NOT t.{deleted} OR {orphans} THEN 'extra' END"
        " WHEN t.{key} IS NULL OR t.{deleted} THEN 'missing' END,"
        " CASE WHEN s.{key} IS NOT NULL AND NOT t.{deleted} THEN {columns} END,"
        " COALESCE(t.xmin::text, ''), t.{version}, t.{as_of}, t.{deleted}, {source_hash}"
        " FROM {sent} LEFT JOIN {staging} AS s ON {staged} LEFT JOIN {storage} AS t ON {stored} ORDER BY a.{place}"
    ).format(
        key=sql.Identifier(target.primary_key[0]),
        deleted=sql.Identifier(DELETED),
        orphans=orphans if target.children else sql.SQL("false"),
        columns=columns,
        version=sql.Identifier(VERSION),
        as_of=sql.Identifier(AS_OF),
        source_hash=source_hash(target),
        sent=sent_keys(target),
        staging=staging.name,
        staged=children.same_key(target, "a", "s"),
        storage=tables.storage(target),
        stored=children.same_key(target, "a", "t"),
        place=sql.Identifier(PLACE),
    )
    with translating("comparing items read again with their rows"):
        return [
            Compared(
                absent or ("different" if differing else None),
                tuple(differing or ()),
                mark,
                None if version is None else int(version),
                as_of,
                deleted,
                hashed,
            )
            for absent, differing, mark, version, as_of, deleted, hashed in connection.execute(query, keys_sent(keys))
        ]


def source_hash(target: Target) -> sql.Composed:
    """Compose a hash of a staged row `s` by value, which distinguishes two states of one item; NULL without a row."""
    return sql.SQL("CASE WHEN s.{} IS NOT NULL THEN hash_record_extended(ROW({}), 0) END").format(
        sql.Identifier(target.primary_key[0]),
        sql.SQL(", ").join(
            sql.SQL("s.{}").format(sql.Identifier(name)) for name in (*target.stored_columns, *target.carried)
        ),
    )


def _differs(target: Target) -> sql.Composable:
    """Compose the condition that a staged and a live row, `s` and `t`, are not equal."""
    each = [_column_differs(name) for name in target.stored_columns if name not in target.primary_key]
    each += [
        children.differs(child, carried, "s", "t")
        for child, carried in zip(target.children, target.carried, strict=True)
    ]
    return sql.SQL(" OR ").join(each) if each else sql.SQL("false")


def _column_differs(name: str) -> sql.Composed:
    return sql.SQL("s.{0} IS DISTINCT FROM t.{0}").format(sql.Identifier(name))


def _named(condition: sql.Composable, name: str) -> sql.Composed:
    return sql.SQL("CASE WHEN {} THEN ARRAY[{}] ELSE '{{}}'::text[] END").format(condition, sql.Literal(name))


def texts_of_key(
    connection: Connection, target: Target, staging: Staging, key: Key
) -> dict[str, tuple[str | None, str | None]]:
    """Return a key's values by column as texts: the source's, as they would be stored, and the stored row's."""
    names = target.stored_columns
    query = sql.SQL(
        "SELECT {columns} FROM {sent} LEFT JOIN {staging} AS s ON {staged} LEFT JOIN {storage} AS t ON {stored}"
    ).format(
        columns=sql.SQL(", ").join(sql.SQL("s.{0}::text, t.{0}::text").format(sql.Identifier(name)) for name in names),
        sent=sent_keys(target),
        staging=staging.name,
        staged=children.same_key(target, "a", "s"),
        storage=tables.storage(target),
        stored=children.same_key(target, "a", "t"),
    )
    with translating("reading an item's values"):
        row = connection.execute(query, keys_sent([key])).fetchone() or (None,) * (2 * len(names))
    return {name: (row[2 * i], row[2 * i + 1]) for i, name in enumerate(names)}
