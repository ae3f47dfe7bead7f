"""What the probe knows of a table's replication, in schema `replication`, and what it asks of the storage tables.

Invariant: `caught_up_through` is never later than what was proven, and a tick that another has overtaken writes
nothing: what a tick found is stored whole, on the state that it began from.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.rows import class_row

from pipeline.aurora import tables
from pipeline.aurora.apply import nullable_array_literal
from pipeline.aurora.connection import literal
from pipeline.aurora.errors import translating
from pipeline.core.conversion import array_literal
from pipeline.core.errors import DataError
from pipeline.core.mapping import AS_OF, VERSION
from pipeline.core.ordering import Position
from pipeline.core.probing import ShardProgress, Waiting

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime

    from pipeline.aurora.connection import Connection
    from pipeline.core.mapping import Target


def caught_up_through(connection: Connection, table_name: str) -> datetime | None:
    """Return the time before which no change of the source is still on its way; None when that is not known.

    Every change that the source made before it is in Aurora, or was overtaken there by a newer state of its key, or
    waits where a person sees it (`replication.rejects`), or was lost before the probe could read it: nothing will
    still bring it by itself. So a row that differs from what the source held before that time has drifted. The time
    is the source's clock as the reader's clock has it, less the probe's allowance for both.
    """
    with translating("asking how far replication is", table=table_name):
        row = connection.execute(
            "SELECT caught_up_through FROM replication.probes WHERE table_name = %s", [table_name]
        ).fetchone()
    return row[0] if row else None


@dataclass(frozen=True, slots=True)
class Tick:
    """What one tick of the probe found: a row of `replication.probes`."""

    stream_label: str
    ticked_at: datetime
    caught_up_through: datetime | None
    unread_until: datetime | None
    """Changes made before this time were passed by without being read."""
    newest_read: datetime | None
    """Creation time of the newest record read in any tick."""
    hole_since: datetime | None
    """From here on the stream dropped changes before the probe read them, and others have waited ever since."""
    read_whole: bool
    """Whether the stream is on and every shard was read to its end."""
    waiting: int
    """Keys with changes that have not arrived."""
    oldest_waiting: datetime | None
    shards: int
    calls: int
    records: int

    @property
    def lag_seconds(self) -> float | None:
        """Age of the oldest change that had not arrived, 0 when all had; None when not all was read."""
        if self.oldest_waiting is not None:
            return max(0.0, (self.ticked_at - self.oldest_waiting).total_seconds())
        return 0.0 if self.read_whole else None


@dataclass(frozen=True, slots=True)
class ProbeState:
    """What a tick begins from."""

    ticks: int = 0
    last: Tick | None = None
    shards: dict[str, ShardProgress] = field(default_factory=dict[str, ShardProgress])
    """By name, those of the stream `last.stream_label`."""
    waiting: list[Waiting] = field(default_factory=list[Waiting])
    purged_through: datetime | None = None
    applied_label: str | None = None
    """The stream that a change was last applied from."""
    applied_through: datetime | None = None
    """Creation time of the newest change that was applied from it."""


_TICK_COLUMNS = ", ".join(f.name for f in fields(Tick))
_SHARD_COLUMNS = "shard_id, parent_id, sequence_number::text, iterator, iterator_at, read_through, finished"


def read_tick(connection: Connection, table_name: str) -> Tick | None:
    """Return what the last tick found; None before the first."""
    with translating("reading the probe", table=table_name), connection.cursor(row_factory=class_row(Tick)) as cursor:
        return cursor.execute(
            literal(f"SELECT {_TICK_COLUMNS} FROM replication.probes WHERE table_name = %s"),  # noqa: S608 - constants only
            [table_name],
        ).fetchone()


def read_state(connection: Connection, table_name: str) -> ProbeState:
    """Return what the next tick begins from, as of one moment. Four statements."""
    with translating("reading the probe", table=table_name), connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        last = read_tick(connection, table_name)
        row = connection.execute(_FACTS, {"table": table_name}).fetchone() or (0, None, None, None)
        with connection.cursor(row_factory=class_row(ShardProgress)) as cursor:
            shards = cursor.execute(
                literal(
                    f"SELECT {_SHARD_COLUMNS} FROM replication.probe_shards"  # noqa: S608 - constants only
                    " WHERE table_name = %s AND stream_label = %s"
                ),
                [table_name, last.stream_label if last else ""],
            ).fetchall()
        waiting = [
            Waiting(target, tuple(key), int(version), as_of, since, shard_id)
            for target, key, version, as_of, since, shard_id in connection.execute(
                "SELECT target, key, version, as_of, since, shard_id FROM replication.probe_waiting"
                " WHERE table_name = %s ORDER BY since, version",
                [table_name],
            )
        ]
    return ProbeState(row[0] or 0, last, {s.shard_id: s for s in shards}, waiting, *row[1:])


_FACTS = """
SELECT p.ticks, t.purged_through, w.stream_label, w.as_of
  FROM replication.tables AS t
  LEFT JOIN replication.probes AS p ON p.table_name = t.name
  LEFT JOIN LATERAL (
       SELECT stream_label, max(as_of) AS as_of FROM replication.watermarks AS m
        WHERE m.table_name = t.name AND stream_label IS NOT NULL
        GROUP BY stream_label ORDER BY stream_label DESC LIMIT 1) AS w ON true
 WHERE t.name = %(table)s
"""


def stored_positions(
    connection: Connection, target: Target, keys: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], Position]:
    """Return where the stored rows of these keys stand, live or tombstone, in one statement.

    A key that PostgreSQL cannot take has no row; then each key is asked for on its own.
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
    arrays = sql.SQL(", ").join(sql.SQL(literal(f"%s::{c.type.input_sql}[]")) for c in target.key_columns)
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
    with translating(f"asking for {len(keys)} keys of {target.view_name}"):
        columns = [array_literal(list(texts)) for texts in zip(*keys, strict=True)]
        return {
            keys[n - 1]: Position(as_of, None if version is None else int(version))
            for n, version, as_of in connection.execute(query, columns)
        }


def rejected_versions(connection: Connection, table_name: str, versions: Collection[int]) -> set[int]:
    """Return which of these versions were set aside as rejects, replayed or not."""
    if not versions:
        return set()
    with translating("asking for rejects", table=table_name):
        return {
            int(row[0])
            for row in connection.execute(
                "SELECT position_version FROM replication.rejects"
                " WHERE table_name = %s AND position_version = ANY (%s::numeric[])",
                [table_name, array_literal([str(version) for version in versions])],
            )
        }


def save(
    connection: Connection,
    table_name: str,
    before: ProbeState,
    tick: Tick,
    shards: Sequence[ShardProgress],
    waiting: Sequence[Waiting],
) -> bool:
    """Store what a tick found, in one transaction; False, and nothing stored, when another tick came before it."""
    with translating("keeping what the probe found", table=table_name), connection.transaction():
        if not _save_tick(connection, table_name, before.ticks, tick):
            return False
        _save_shards(connection, table_name, tick.stream_label, shards)
        if waiting != before.waiting:
            _save_waiting(connection, table_name, waiting)
    return True


def _save_tick(connection: Connection, table_name: str, ticks: int, tick: Tick) -> bool:
    names = [f.name for f in fields(Tick)]
    values: dict[str, Any] = {name: getattr(tick, name) for name in names}
    values |= {"table": table_name, "before": ticks}
    assigned = sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in names)
    query = sql.SQL(
        "INSERT INTO replication.probes AS p (table_name, ticks, {names}) VALUES (%(table)s, %(before)s + 1, {values})"
        " ON CONFLICT (table_name) DO UPDATE SET ticks = excluded.ticks, {assigned} WHERE p.ticks = %(before)s"
    ).format(
        names=tables.identifiers(names),
        values=sql.SQL(", ").join(map(sql.Placeholder, names)),
        assigned=assigned,
    )
    return connection.execute(query, values).rowcount == 1


def _save_shards(connection: Connection, table_name: str, label: str, shards: Sequence[ShardProgress]) -> None:
    columns = [
        array_literal([shard.shard_id for shard in shards]),
        nullable_array_literal([shard.parent_id for shard in shards]),
        nullable_array_literal([shard.sequence_number for shard in shards]),
        nullable_array_literal([shard.iterator for shard in shards]),
        [shard.iterator_at for shard in shards],
        [shard.read_through for shard in shards],
        [shard.finished for shard in shards],
    ]
    connection.execute(
        "DELETE FROM replication.probe_shards WHERE table_name = %s"
        " AND (stream_label <> %s OR shard_id <> ALL (%s::text[]))",
        [table_name, label, columns[0]],
    )
    connection.execute(
        "INSERT INTO replication.probe_shards (table_name, stream_label, shard_id, parent_id, sequence_number,"
        " iterator, iterator_at, read_through, finished) SELECT %s, %s, u.* FROM unnest(%s::text[], %s::text[],"
        " %s::numeric[], %s::text[], %s::timestamptz[], %s::timestamptz[], %s::boolean[]) AS u"
        " ON CONFLICT (table_name, stream_label, shard_id) DO UPDATE SET parent_id = excluded.parent_id,"
        " sequence_number = excluded.sequence_number, iterator = excluded.iterator,"
        " iterator_at = excluded.iterator_at, read_through = excluded.read_through, finished = excluded.finished",
        [table_name, label, *columns],
    )


def _save_waiting(connection: Connection, table_name: str, waiting: Sequence[Waiting]) -> None:
    connection.execute("DELETE FROM replication.probe_waiting WHERE table_name = %s", [table_name])
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO replication.probe_waiting (table_name, target, key, version, as_of, since, shard_id)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            [[table_name, w.target, list(w.key), w.version, w.as_of, w.since, w.shard_id] for w in waiting],
        )
