"""A table with a scripted stream and clock, the probe on it, and backups of its database to restore."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from psycopg import sql

from pipeline.aurora.bookkeeping import probes
from pipeline.aurora.bookkeeping.losses import note_caught_up, open_losses
from pipeline.aurora.bookkeeping.probes import Tick
from pipeline.aurora.bookkeeping.proofs import prove_caught_up
from pipeline.aurora.compare import reconciliations
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.mapping import TableMapping
from pipeline.core.past.loss_remedies import Means, catch_up_range
from pipeline.core.past.losses import Kind, Loss
from pipeline.core.past.probing import SETTLE
from pipeline.jobs.probe.probe import probe
from pipeline.jobs.probe.probe_shards import Limits
from tests.dynamodb.scripted_stream import ScriptedServices, ScriptedStream

START = 1_778_753_000.0  # some minutes after the stream's label
# All bookkeeping about the replica; a backup of the database contains it.
TABLES = [
    ("replica", "Employees"),
    *(
        ("replication", name)
        for name in ("probes", "probe_shards", "probe_waiting", "losses", "watermarks", "rejects", "caught_up",
                     "reconciliations", "source_states")
    ),
]  # fmt: skip


@dataclass
class World:
    """A table with a scripted stream and clock, and the probe on it."""

    services: ScriptedServices
    mapping: TableMapping
    connection: Connection
    stream: ScriptedStream
    clock: float = START
    limits: dict[str, Any] = field(default_factory=dict[str, Any])

    def tick(self, after: float = 30.0) -> Tick:
        self.clock += after
        limits = Limits(1.0, monotonic=lambda: 0.0, sleep=lambda _: None, now=self.now, **self.limits)
        return probe(self.services, self.mapping, limits=limits)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock, UTC)

    def write(
        self,
        shard: str,
        number: int,
        event: str = "MODIFY",
        *,
        ago: float = 0.0,
        **image: Any,  # noqa: ANN401 - attribute values
    ) -> dict[str, Any]:
        return self.stream.write(shard, number, self.clock - ago, event, **image)

    @property
    def through(self) -> datetime | None:
        """The last tick's claim: every change made before this is in Aurora."""
        tick = probes.read_tick(self.connection, self.mapping.name)
        return tick.caught_up_through if tick else None

    @property
    def decided(self) -> datetime | None:
        """The time through which the last tick lets differences be decided."""
        tick = probes.read_tick(self.connection, self.mapping.name)
        return tick.settled_through if tick else None

    @property
    def losses(self) -> list[Loss]:
        return open_losses(self.connection, self.mapping.name)

    @property
    def kinds(self) -> list[Kind]:
        return [loss.kind for loss in self.losses]

    def time(self, clock: float) -> datetime:
        """A creation time, in the stream's form."""
        return datetime.fromtimestamp(clock // 1, UTC)

    def catch_up(self) -> None:
        """Carry out the commands that are printed for the losses."""
        name, margin = self.mapping.name, self.mapping.margin
        for loss in self.losses:
            since, until = catch_up_range(loss, Means(name, margin))
            prove_caught_up(self.connection, name, since, until, margin)
            note_caught_up(self.connection, name, since, until)

    def reconcile(self, as_of: datetime) -> None:
        """Record a reconciliation that left nothing to do."""
        (run_id,) = self.connection.execute(
            "INSERT INTO replication.reconciliations (table_name, snapshot, snapshot_time, as_of)"
            " VALUES (%s, 's', %s, %s) RETURNING id",
            [self.mapping.name, as_of + self.mapping.margin, as_of],
        ).fetchone() or (0,)
        reconciliations.finish(self.connection, run_id, undecided=0)

    def back_up(self, name: str = "backup") -> None:
        """Copy the database as it is now."""
        self.connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        for schema, table in TABLES:
            self.connection.execute(
                sql.SQL("CREATE TABLE {} AS TABLE {}").format(
                    sql.Identifier(name, table), sql.Identifier(schema, table)
                )
            )
        self.connection.execute(
            sql.SQL("CREATE TABLE {} AS SELECT name, proven FROM replication.tables").format(
                sql.Identifier(name, "tables")
            )
        )

    def rows(self) -> set[int]:
        """Keys of the rows that are shown."""
        return {row[0] for row in self.connection.execute('SELECT "Id" FROM public."Employees"')}

    def restore(self, name: str = "backup") -> None:
        """Put the database back to that state; nobody tells the product."""
        with self.connection.transaction():
            for schema, table in TABLES:
                target, source = sql.Identifier(schema, table), sql.Identifier(name, table)
                self.connection.execute(sql.SQL("DELETE FROM {}").format(target))
                self.connection.execute(
                    sql.SQL("INSERT INTO {} OVERRIDING SYSTEM VALUE SELECT * FROM {}").format(target, source)
                )
            self.connection.execute(
                sql.SQL(
                    "UPDATE replication.tables AS t SET proven = b.proven FROM {} AS b WHERE t.name = b.name"
                ).format(sql.Identifier(name, "tables"))
            )

    @property
    def settled(self) -> datetime:
        return self.now() - SETTLE
