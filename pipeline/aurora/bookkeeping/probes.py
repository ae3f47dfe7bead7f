"""Stores what the probe knows about a table's replication in schema `replication`, and queries the storage tables for
it.

Invariant: a tick that another one has overtaken writes nothing. A tick's conclusions (the places in the shards, what
has not arrived, the losses) are stored in one transaction, and only if the state that it started from is unchanged.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from psycopg import IsolationLevel, sql
from psycopg.rows import class_row

from pipeline.aurora.bookkeeping import losses
from pipeline.aurora.bookkeeping.sources import SourceOfRecord
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.apply import nullable_array_literal
from pipeline.aurora.schema import tables
from pipeline.aurora.sessions.connection import trusted
from pipeline.core.errors import DataError
from pipeline.core.model.mapping import AS_OF, VERSION
from pipeline.core.ordering import Position
from pipeline.core.past.losses import Proof
from pipeline.core.past.memory import Memory
from pipeline.core.past.probing import Applied, ShardProgress, State, Unread, Waiting
from pipeline.core.types.arrays import array_literal

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Mapping, Sequence
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target
    from pipeline.core.past.memory import Conclusion


@dataclass(frozen=True, slots=True)
class Tick:
    """What one tick of the probe found: a row of `replication.probes`. See `pipeline.core.past.memory.Memory`."""

    stream_label: str
    ticked_at: datetime
    caught_up_through: datetime | None
    """Every change made before this time is in Aurora, was superseded there, or waits as a reject."""
    settled_through: datetime | None
    """No change made before this time is still on its way."""
    read_through: datetime | None
    """The same for keys that have no known change on its way."""
    settles_from: datetime | None
    table_id: str | None
    newest_read: datetime | None
    """Creation time of the newest record read in any tick."""
    read_whole: bool
    """Whether the stream is on and every shard was read to its end."""
    waiting: int
    """Keys with changes that have not arrived and are not lost."""
    oldest_waiting: datetime | None
    stuck: int
    """Of those, keys whose shard is still."""
    lost: int
    """Keys with changes that will not arrive by themselves."""
    shards: int
    calls: int
    records: int
    clock_ahead_seconds: float | None = None
    """How far this host's clock was ahead of the source's; None: unknown."""

    @property
    def lag_seconds(self) -> float | None:
        """Age of the oldest change that had not arrived: 0 if all had, None if not everything was read."""
        if self.oldest_waiting is not None:
            return max(0.0, (self.ticked_at - self.oldest_waiting).total_seconds())
        return 0.0 if self.read_whole else None


@dataclass(frozen=True, slots=True)
class ProbeState:
    """The state that a tick starts from, all as of one moment."""

    ticks: int = 0
    memory: Memory = field(default_factory=Memory)
    purged_through: datetime | None = None
    applied_label: str | None = None
    """The stream from which a change was last applied."""
    applied_through: datetime | None = None
    """Creation time of the newest change applied from that stream."""
    proof: Proof = field(default_factory=Proof)
    """Catch-ups and reconciliations that could matter for a waiting change or an open loss."""
    loaded: datetime | None = None
    """Time of the newest fully loaded snapshot."""
    parallelization: int | None = None
    """Of the event source mapping; None: unknown."""
    batching_window: timedelta = timedelta(0)
    record: SourceOfRecord | None = None
    """The source of record; None if the mapping is not registered."""


_TICK_COLUMNS = ", ".join(f.name for f in fields(Tick))


def read_tick(connection: Connection, table_name: str) -> Tick | None:
    """Return what the last tick found; None before the first."""
    with translating("reading the probe", table=table_name), connection.cursor(row_factory=class_row(Tick)) as cursor:
        return cursor.execute(
            trusted(f"SELECT {_TICK_COLUMNS} FROM replication.probes WHERE table_name = %s"),  # noqa: S608 - constants only
            [table_name],
        ).fetchone()


@contextmanager
def one_moment(connection: Connection) -> Generator[None]:
    """Make the block's statements, which only read, see the database as of one moment."""
    level = connection.isolation_level
    connection.isolation_level, connection.read_only = IsolationLevel.REPEATABLE_READ, True
    try:
        with connection.transaction():
            yield
    finally:
        if not connection.closed:
            connection.isolation_level, connection.read_only = level, None


def read_state(connection: Connection, table_name: str) -> ProbeState:
    """Return the state that the next tick starts from. Five statements."""
    with translating("reading the probe", table=table_name), one_moment(connection):
        last = read_tick(connection, table_name)
        row = connection.execute(_FACTS, {"table": table_name}).fetchone() or (None,) * 15
        shards = _read_shards(connection, table_name, last.stream_label if last else "")
        waiting = [
            Waiting(target, tuple(key), int(version), as_of, since, shard_id, State(state))
            for target, key, version, as_of, since, shard_id, state in connection.execute(
                "SELECT target, key, version, as_of, since, shard_id, state FROM replication.probe_waiting"
                " WHERE table_name = %s ORDER BY since, version",
                [table_name],
            )
        ]
        known = Memory(waiting=waiting, losses=losses.open_losses(connection, table_name))
    if last is not None:
        known = Memory(
            stream_label=last.stream_label,
            table_id=last.table_id,
            ticked_at=last.ticked_at,
            caught_up_through=last.caught_up_through,
            settled_through=last.settled_through,
            read_through=last.read_through,
            settles_from=last.settles_from,
            newest_read=last.newest_read,
            shards={shard.shard_id: shard for shard in shards},
            waiting=known.waiting,
            losses=known.losses,
        )
    ticks, purged, label, as_of, reconciled, loaded, since, until, parallelization, window, *record = row
    return ProbeState(
        ticks=ticks or 0,
        memory=known,
        purged_through=purged,
        applied_label=label,
        applied_through=as_of,
        proof=Proof.of(zip(since or (), until or (), strict=True), reconciled),
        loaded=loaded,
        parallelization=parallelization,
        batching_window=timedelta(seconds=window or 0),
        record=SourceOfRecord(record[0] or "", *record[1:]) if record[0] else None,
    )


# A catch-up matters only if a change within its range has not arrived, or may be lost.
_FACTS = trusted(f"""
SELECT p.ticks, t.purged_through, w.stream_label, w.as_of,
       (SELECT max(r.as_of) FROM replication.reconciliations AS r
         WHERE r.table_name = t.name AND {losses.LEFT_NOTHING}),
       (SELECT max(e.snapshot_time) FROM replication.exports AS e
         WHERE e.table_name = t.name AND e.kind <> 'incremental' AND e.status = 'loaded'),
       c.since, c.until, s.parallelization, s.batching_window_seconds,
       t.source_table, t.source_arn, t.source_table_id, t.source_since, t.stream_label
  FROM replication.tables AS t
  LEFT JOIN replication.probes AS p ON p.table_name = t.name
  LEFT JOIN replication.source_states AS s ON s.table_name = t.name
  LEFT JOIN LATERAL (
       SELECT stream_label, max(as_of) AS as_of FROM replication.watermarks AS m
        WHERE m.table_name = t.name AND stream_label IS NOT NULL
        GROUP BY stream_label ORDER BY stream_label DESC LIMIT 1) AS w ON true
 CROSS JOIN LATERAL (
       SELECT array_agg(since) AS since, array_agg(until) AS until FROM replication.caught_up AS u
        WHERE u.table_name = t.name AND u.until + interval '1 day' > LEAST(
              (SELECT min(since) FROM replication.probe_waiting AS x WHERE x.table_name = t.name),
              (SELECT min(since) FROM replication.losses AS x WHERE x.table_name = t.name AND healed_at IS NULL))) AS c
 WHERE t.name = %(table)s
""")  # noqa: S608 - constants only

_SHARD_COLUMNS = {
    "shard_id": "text",
    "parent_id": "text",
    "sequence_number": "numeric",
    "iterator": "text",
    "iterator_at": "timestamptz",
    "read_through": "timestamptz",
    "finished": "boolean",
    "applied_version": "numeric",
    "applied_as_of": "timestamptz",
    "moved_at": "timestamptz",
    "still_ticks": "int",
    "unread_since": "timestamptz",
    "unread_until": "timestamptz",
    "scout": "text",
    "scout_at": "timestamptz",
}


def _read_shards(connection: Connection, table_name: str, stream_label: str) -> list[ShardProgress]:
    rows = connection.execute(
        trusted(
            f"SELECT {', '.join(_SHARD_COLUMNS)} FROM replication.probe_shards"  # noqa: S608 - constants only
            " WHERE table_name = %s AND stream_label = %s"
        ),
        [table_name, stream_label],
    )
    return [
        ShardProgress(
            shard_id=name,
            parent_id=parent,
            sequence_number=None if number is None else str(number),
            iterator=iterator,
            iterator_at=iterator_at,
            read_through=read_through,
            finished=finished,
            applied=None if version is None else Applied(int(version), as_of),
            moved_at=moved_at,
            still_ticks=still,
            unread=None if since is None else Unread(since, until),
            scout=scout,
            scout_at=scout_at,
        )
        for (
            name, parent, number, iterator, iterator_at, read_through, finished,
            version, as_of, moved_at, still, since, until, scout, scout_at,
        ) in rows
    ]  # fmt: skip


def _shard_values(shard: ShardProgress) -> tuple[object, ...]:
    return (
        shard.shard_id,
        shard.parent_id,
        shard.sequence_number,
        shard.iterator,
        shard.iterator_at,
        shard.read_through,
        shard.finished,
        shard.applied and str(shard.applied.version),
        shard.applied and shard.applied.as_of,
        shard.moved_at,
        shard.still_ticks,
        shard.unread and shard.unread.since,
        shard.unread and shard.unread.until,
        shard.scout,
        shard.scout_at,
    )


def stored_positions(
    connection: Connection, target: Target, keys: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], Position]:
    """Return the positions of these keys' stored rows, live or tombstone, in one statement.

    A key that PostgreSQL cannot hold has no row; if there is one, each key is looked up separately.
    """
    try:
        return _positions(connection, target, keys)
    except DataError:
        if len(keys) == 1:
            return {}
        return {key: position for one in keys for key, position in stored_positions(connection, target, [one]).items()}


def _positions(
    connection: Connection, target: Target, keys: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], Position]:
    if not keys:
        return {}
    arrays = sql.SQL(", ").join(sql.SQL(trusted(f"%s::{c.type.input_sql}[]")) for c in target.key_columns)
    query = sql.SQL(
        "SELECT c.n, k.{version}, k.{as_of} FROM ROWS FROM (unnest({arrays})) WITH ORDINALITY AS c ({names}, n)"
        " JOIN {storage} AS k ON {same_key}"
    ).format(
        version=sql.Identifier(VERSION),
        as_of=sql.Identifier(AS_OF),
        arrays=arrays,
        names=tables.identifiers(target.primary_key),
        storage=tables.storage(target),
        same_key=sql.SQL(" AND ").join(
            sql.SQL("k.{0} = c.{0}").format(sql.Identifier(name)) for name in target.primary_key
        ),
    )
    with translating(f"looking up {len(keys)} keys of {target.view_name}"):
        columns = [array_literal(list(texts)) for texts in zip(*keys, strict=True)]
        return {
            keys[n - 1]: Position(as_of, None if version is None else int(version))
            for n, version, as_of in connection.execute(query, columns)
        }


def set_aside(connection: Connection, table_name: str, versions: Collection[int]) -> tuple[set[int], datetime | None]:
    """Return which of these versions became rejects, replayed or not, and `purged_through`."""
    with translating("looking up rejects", table=table_name):
        row = connection.execute(
            "SELECT ARRAY(SELECT position_version FROM replication.rejects AS r WHERE r.table_name = t.name"
            " AND position_version = ANY (%s::numeric[])), purged_through FROM replication.tables AS t"
            " WHERE name = %s",
            [array_literal([str(version) for version in versions]), table_name],
        ).fetchone()
    return ({int(version) for version in row[0]}, row[1]) if row else (set(), None)


def save(connection: Connection, table_name: str, before: ProbeState, tick: Tick, concluded: Conclusion) -> bool:
    """Store a tick's conclusions in one transaction; if another tick came first, store nothing and return False."""
    with translating("recording what the probe found", table=table_name), connection.transaction():
        if not _save_tick(connection, table_name, before.ticks, tick):
            return False
        after = concluded.memory
        _save_shards(connection, table_name, tick.stream_label, after.shards)
        _save_waiting(connection, table_name, before.memory.waiting, after.waiting)
        losses.replace(connection, table_name, before.memory.losses, after.losses)
    return True


def _save_tick(connection: Connection, table_name: str, ticks: int, tick: Tick) -> bool:
    names = [f.name for f in fields(Tick)]
    values: dict[str, Any] = {name: getattr(tick, name) for name in names}
    values |= {"table": table_name, "before": ticks}
    assigned = sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in names)
    query = sql.SQL(
        # If the row is gone, it was removed together with its table (`pipeline.aurora.bookkeeping.repointing`).
        "INSERT INTO replication.probes AS p (table_name, ticks, {names}) SELECT %(table)s, %(before)s + 1, {values}"
        " WHERE %(before)s = 0 OR EXISTS (SELECT FROM replication.probes WHERE table_name = %(table)s)"
        " ON CONFLICT (table_name) DO UPDATE SET ticks = excluded.ticks, {assigned} WHERE p.ticks = %(before)s"
    ).format(
        names=tables.identifiers(names),
        values=sql.SQL(", ").join(map(sql.Placeholder, names)),
        assigned=assigned,
    )
    return connection.execute(query, values).rowcount == 1


def _save_shards(connection: Connection, table_name: str, label: str, shards: Mapping[str, ShardProgress]) -> None:
    connection.execute(
        "DELETE FROM replication.probe_shards WHERE table_name = %s"
        " AND (stream_label <> %s OR shard_id <> ALL (%s::text[]))",
        [table_name, label, array_literal(list(shards))],
    )
    if not shards:
        return
    columns = zip(*map(_shard_values, shards.values()), strict=True)
    connection.execute(_SAVE_SHARDS, [table_name, label, *(_array(list(column)) for column in columns)])


_SAVE_SHARDS = trusted(
    f"INSERT INTO replication.probe_shards (table_name, stream_label, {', '.join(_SHARD_COLUMNS)})"  # noqa: S608 - constants only
    f" SELECT %s, %s, u.* FROM unnest({', '.join(f'%s::{kind}[]' for kind in _SHARD_COLUMNS.values())}) AS u"
    " ON CONFLICT (table_name, stream_label, shard_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _SHARD_COLUMNS if name != "shard_id")
)


def _array(values: list[object]) -> object:
    """Return a parameter for an array; texts become one literal, which is cheapest for psycopg."""
    texts = [value for value in values if value is None or isinstance(value, str)]
    return nullable_array_literal(texts) if len(texts) == len(values) else values


def _save_waiting(connection: Connection, table_name: str, before: Sequence[Waiting], after: Sequence[Waiting]) -> None:
    """Store the waiting changes: delete those gone, and write those that are new or have another state."""
    gone = {(w.target, w.version) for w in before} - {(w.target, w.version) for w in after}
    if gone:
        connection.execute(
            "DELETE FROM replication.probe_waiting AS w USING unnest(%s::text[], %s::numeric[]) AS u (target, version)"
            " WHERE w.table_name = %s AND w.target = u.target AND w.version = u.version",
            [
                array_literal([target for target, _ in gone]),
                array_literal([str(version) for _, version in gone]),
                table_name,
            ],
        )
    known = set(before)
    new = [waiting for waiting in after if waiting not in known]
    if not new:
        return
    connection.execute(
        "INSERT INTO replication.probe_waiting (table_name, target, key, version, as_of, since, shard_id, state)"
        " SELECT %s, target, key::text[], version, as_of, since, shard_id, state FROM unnest(%s::text[], %s::text[],"
        " %s::numeric[], %s::timestamptz[], %s::timestamptz[], %s::text[], %s::text[])"
        " AS u (target, key, version, as_of, since, shard_id, state)"
        " ON CONFLICT (table_name, target, version) DO UPDATE SET since = excluded.since, state = excluded.state",
        [
            table_name,
            array_literal([w.target for w in new]),
            array_literal([array_literal(list(w.key)) for w in new]),
            array_literal([str(w.version) for w in new]),
            [w.as_of for w in new],
            [w.since for w in new],
            array_literal([w.shard_id for w in new]),
            array_literal([w.state.value for w in new]),
        ],
    )
