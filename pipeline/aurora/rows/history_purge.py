"""Keeps a history's partitions: creates those to come, and drops those that are older than what is kept.

Invariant: what the view shows from `kept_from` on never changes. A partition is dropped in the transaction that records
`kept_from`, and that moves to the base, for each of its rows, the version that was still valid at its end. So a version
that comes late is shown, or not, whether it came before or after the purge.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.bookkeeping import histories
from pipeline.aurora.errors import translating
from pipeline.aurora.schema import history_tables, tables
from pipeline.aurora.schema.plan_history import starts
from pipeline.core.errors import TerminalError
from pipeline.core.model.history import partition_begin, partition_name, table_name
from pipeline.core.model.mapping import AS_OF, DELETED, STORAGE_SCHEMA, VERSION

if TYPE_CHECKING:
    from pipeline.aurora.bookkeeping.histories import Recorded
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

LOCK_SECONDS = 2.0
# Creation times of a row's records may run back against their numbers by this much: more than the clocks of DynamoDB's
# hosts ever differ.
MOST_BACK = timedelta(days=1)
_BOUNDS = re.compile(r"FOR VALUES FROM \('(.*)'\) TO \('(.*)'\)")


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition, by name and bounds; the end is exclusive."""

    name: str
    start: datetime
    end: datetime

    @property
    def identifier(self) -> sql.Identifier:
        """Its qualified name."""
        return sql.Identifier(STORAGE_SCHEMA, self.name)


def partitions(connection: Connection, target: Target) -> list[Partition]:
    """Return the partitions in time, without the default one."""
    with translating("reading the partitions of a history"):
        rows = connection.execute(
            "SELECT relname, pg_get_expr(relpartbound, oid) FROM pg_inherits JOIN pg_class ON oid = inhrelid"
            " WHERE inhparent = %s::regclass",
            [history_tables.versions(target).as_string(connection)],
        ).fetchall()
    found = [(name, _BOUNDS.fullmatch(bounds)) for name, bounds in rows]
    return sorted(
        (Partition(name, *map(datetime.fromisoformat, bounds.groups())) for name, bounds in found if bounds),
        key=lambda partition: partition.start,
    )


def missing(connection: Connection, target: Target, now: datetime) -> list[tuple[datetime, datetime]]:
    """Return the spans that need a partition: today's, those ahead, and those of what the default partition holds."""
    recorded = _recorded(connection, target)
    days, there = recorded.partition_days, partitions(connection, target)
    ahead = starts(now, days)
    with translating("reading the default partition of a history"), connection.transaction():
        _become_owner(connection, target)  # roles have grants on the whole table, not on its partitions
        rows = connection.execute(
            sql.SQL(
                "SELECT DISTINCT {as_of} AT TIME ZONE 'UTC' FROM {rest} WHERE {as_of} >= %s AND {as_of} < %s"
            ).format(as_of=sql.Identifier(AS_OF), rest=history_tables.rest(target)),
            [recorded.kept_from, ahead[-1] + timedelta(days=days)],
        ).fetchall()
    held = {partition_begin(time.replace(tzinfo=now.tzinfo), days) for (time,) in rows}
    wanted = [start for start in sorted({*ahead, *held}) if start >= recorded.kept_from]
    return [
        (start, start + timedelta(days=days))
        for start in wanted
        if not any(one.start <= start < one.end for one in there)
    ]


def add_partition(connection: Connection, target: Target, start: datetime, end: datetime) -> None:
    """Create a partition, with what the default one holds of its span. One transaction that locks the history."""
    name = sql.Identifier(STORAGE_SCHEMA, partition_name(target, start))
    span = sql.SQL("{0} >= {1} AND {0} < {2}").format(sql.Identifier(AS_OF), sql.Literal(start), sql.Literal(end))
    versions = history_tables.versions(target)
    with translating("adding a partition to a history"), connection.transaction():
        _lock(connection, target)
        connection.execute(
            sql.SQL(
                "CREATE TABLE {name} (LIKE {versions} INCLUDING DEFAULTS);"
                " WITH moved AS (DELETE FROM {rest} WHERE {span} RETURNING *) INSERT INTO {name} SELECT * FROM moved;"
                " ALTER TABLE {versions} ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({end})"
            ).format(
                name=name,
                versions=versions,
                rest=history_tables.rest(target),
                span=span,
                start=sql.Literal(start),
                end=sql.Literal(end),
            )
        )


def expired(connection: Connection, target: Target, now: datetime) -> list[Partition]:
    """Return the partitions that end before what is kept begins."""
    begin = bound(_recorded(connection, target), now)
    return [partition for partition in partitions(connection, target) if partition.end <= begin]


def drop_partition(connection: Connection, target: Target, partition: Partition) -> int:
    """Drop an expired partition, once the base has what outlives it; return how many versions it had.

    One transaction. It locks out late writers of the partition, and at its end, for a moment, everyone.
    """
    with translating("dropping a partition of a history"), connection.transaction():
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(int(LOCK_SECONDS * 1000))))
        _become_owner(connection, target)
        connection.execute(sql.SQL("LOCK TABLE {} IN SHARE MODE").format(partition.identifier))
        dropped = _compact(connection, target, partition.identifier, sql.SQL("true"), partition.end)
        _keep_from(connection, target, partition.end)
        connection.execute(sql.SQL("DROP TABLE {}").format(partition.identifier))
    return dropped


def tidy(connection: Connection, target: Target, mapping_name: str, now: datetime) -> int:
    """Move what came too late for a partition to the base, and drop rows that were deleted and cannot come back.

    Run it once the expired partitions are gone. Returns how many versions it dropped.
    """
    recorded = _recorded(connection, target)
    begin = max(bound(recorded, now), recorded.kept_from)
    late = sql.SQL("{} < {}").format(sql.Identifier(AS_OF), sql.Literal(begin))
    with translating("tidying a history", table=mapping_name), connection.transaction():
        _lock(connection, target)
        dropped = _compact(connection, target, history_tables.rest(target), late, begin)
        connection.execute(sql.SQL("DELETE FROM {} WHERE {}").format(history_tables.rest(target), late))
        _keep_from(connection, target, begin)
    return dropped + _drop_gone(connection, target, mapping_name)


def _drop_gone(connection: Connection, target: Target, mapping_name: str) -> int:
    """Drop every version in the base of rows whose last state is a delete that was purged; return how many.

    It needs no lock: a change as old as what was purged brings no row back (`ordering_sql.admits_new_key`). Dropping
    the delete alone would show the version before it as the current one.
    """
    gone = sql.SQL(
        "DELETE FROM {base} AS b USING {base} AS c, replication.tables AS t"
        " WHERE t.name = %s AND c.{deleted} AND c.{as_of} <= t.purged_through AND {same_row}"
        " AND NOT EXISTS (SELECT FROM {storage} AS k WHERE {stored})"
        " AND NOT EXISTS (SELECT FROM {base} AS u WHERE {later} AND NOT u.{deleted} AND u.{as_of} > c.{as_of})"
    ).format(
        base=history_tables.base(target),
        deleted=sql.Identifier(DELETED),
        as_of=sql.Identifier(AS_OF),
        same_row=_same_key(target, "b", "c"),
        storage=tables.storage(target),
        stored=_same_key(target, "k", "c"),
        later=_same_key(target, "u", "c"),
    )
    with translating("tidying a history", table=mapping_name), connection.transaction():
        _become_owner(connection, target)
        return connection.execute(gone, [mapping_name]).rowcount


def _compact(
    connection: Connection, target: Target, source: sql.Identifier, condition: sql.Composable, end: datetime
) -> int:
    """Give the base, of the rows in `source`, what is shown from `end` on; return how many versions go.

    That is the last version before `end`, the first of the run of equal ones that it ends, because the run is valid
    from there, and the one before, which the run differs from. They take the places of the older ones that the base
    has. A row whose creation times run back against its sequence numbers keeps every version.
    """
    alike = tables.identifiers((DELETED, *history_tables.compared(target)))
    row = connection.execute(
        sql.SQL(
            "WITH fresh AS (SELECT {names} FROM {source} AS b WHERE {condition} AND NOT EXISTS"
            " (SELECT FROM {base} AS c WHERE {is_it})),"
            " old AS (SELECT *, true AS fresh FROM fresh UNION ALL SELECT {names}, false FROM {base}"
            " WHERE ({key}) IN (SELECT {key} FROM fresh)),"
            " placed AS (SELECT *, CASE WHEN {version} = 0 THEN {as_of} ELSE max({as_of}) FILTER (WHERE {version} <> 0)"
            " OVER (PARTITION BY {key} ORDER BY {version} ROWS UNBOUNDED PRECEDING) END AS placed FROM old),"
            " compared AS (SELECT {key}, {as_of}, {version}, fresh, row_number() OVER back AS place,"
            " ROW({alike}) IS DISTINCT FROM lead(ROW({alike})) OVER back AS changed,"
            " bool_or({version} <> 0 AND {as_of} <> placed) OVER (PARTITION BY {key}) AS runs_back,"
            " max({version}) OVER (PARTITION BY {key}) AS highest FROM placed"
            " WINDOW back AS (PARTITION BY {key} ORDER BY placed DESC, {version} = 0 DESC, {version} DESC)),"
            " numbered AS (SELECT *, min(place) FILTER (WHERE changed) OVER (PARTITION BY {key}) AS first"
            " FROM compared),"
            " outlived AS (SELECT * FROM numbered AS c WHERE place NOT IN (1, first, first + 1)"
            " AND NOT runs_back AND NOT EXISTS (SELECT FROM {versions} AS u WHERE {same_key} AND u.{as_of} >= {end}"
            " AND u.{as_of} < {soon} AND u.{version} <> 0 AND u.{version} < c.highest)),"
            " removed AS (DELETE FROM {base} AS b USING outlived AS c WHERE NOT c.fresh AND {is_it} RETURNING 1),"
            " taken AS (INSERT INTO {base} ({names}) SELECT {names} FROM fresh AS b WHERE NOT EXISTS"
            " (SELECT FROM outlived AS c WHERE c.fresh AND {is_it}) RETURNING 1)"
            " SELECT (SELECT count(*) FROM fresh) + (SELECT count(*) FROM removed) - (SELECT count(*) FROM taken)"
        ).format(
            names=tables.identifiers(history_tables.all_columns(target)),
            source=source,
            condition=condition,
            base=history_tables.base(target),
            is_it=sql.SQL("{} AND b.{as_of} = c.{as_of} AND b.{version} = c.{version}").format(
                _same_key(target, "b", "c"), as_of=sql.Identifier(AS_OF), version=sql.Identifier(VERSION)
            ),
            key=tables.identifiers(target.primary_key),
            as_of=sql.Identifier(AS_OF),
            version=sql.Identifier(VERSION),
            alike=alike,
            versions=history_tables.versions(target),
            same_key=_same_key(target, "u", "c"),
            end=sql.Literal(end),
            soon=sql.Literal(end + MOST_BACK),
        )
    ).fetchone()
    return row[0] if row else 0


def _keep_from(connection: Connection, target: Target, begin: datetime) -> None:
    connection.execute(
        "UPDATE replication.histories SET kept_from = GREATEST(kept_from, %s) WHERE history_name = %s",
        [begin, table_name(target)],
    )


def bound(recorded: Recorded, now: datetime) -> datetime:
    """Return the beginning of what is kept: that of a partition."""
    return partition_begin(now - recorded.keep, recorded.partition_days)


def _recorded(connection: Connection, target: Target) -> Recorded:
    recorded = histories.read(connection, target)
    if recorded is None:
        raise TerminalError(
            f"purging the history of {target.view_name}: it is not recorded", hint="run `dynaurora migrate`"
        )
    return recorded


def _lock(connection: Connection, target: Target) -> None:
    """Lock everyone out, as the history's owner, until the transaction ends."""
    connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(int(LOCK_SECONDS * 1000))))
    _become_owner(connection, target)
    connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(history_tables.versions(target)))


def _become_owner(connection: Connection, target: Target) -> None:
    """Become the history's owner for the transaction, unless the user has its rights: only owners alter partitions."""
    row = connection.execute(
        "SELECT pg_get_userbyid(relowner), pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = %s::regclass",
        [history_tables.versions(target).as_string(connection)],
    ).fetchone()
    if row and not row[1]:
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(row[0])))


def _same_key(target: Target, one: str, other: str) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("{0}.{2} = {1}.{2}").format(sql.Identifier(one), sql.Identifier(other), sql.Identifier(name))
        for name in target.primary_key
    )
