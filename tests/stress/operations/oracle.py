"""What must hold at every tick, and at the end: judged from the world, never from what the product believes.

Invariant: a change is missing when the row shows neither it nor a later state of its item. Only the world knows which
row that is, and what functions will still bring.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.core.ordering import accepts
from pipeline.core.past.losses import NOT_BY_CATCH_UP, Kind
from pipeline.core.past.probing import State
from tests.stress.operations.product import ITERATOR_LIFE
from tests.stress.operations.source import SECOND
from tests.stress.operations.world import MARGIN, START

if TYPE_CHECKING:
    from pipeline.core.past.memory import Memory
    from pipeline.core.past.probing import ShardProgress
    from tests.stress.operations.product import Product
    from tests.stress.operations.source import Record
    from tests.stress.operations.world import World

WARN = timedelta(minutes=5)
AT_WORK_AFTER = timedelta(minutes=10)


class Wrong(AssertionError):  # noqa: N818 - the finding, not an error of ours
    """The product reported something wrong, or its remedies did not repair."""


class Oracle:
    """Judges one history. `healthy`: nothing goes wrong in it."""

    def __init__(self, world: World, product: Product, *, healthy: bool) -> None:
        self.world, self.product, self.healthy = world, product, healthy
        self.rewound = False
        """An event source mapping began again at an older place: what was skipped may still come."""
        self.stood: dict[str, tuple[datetime, int]] = {}
        """When something last happened in a shard, and the ticks since then that reached its end."""
        self.last: Memory | None = None
        """The result of the last tick."""

    def tick(self, before: Memory) -> None:
        if before is not self.last:  # a database was restored: what it calls stuck was stuck at that time
            self.stood |= {w.shard_id: (START, 2) for w in before.waiting if w.state is State.STUCK}
        self.last = self.product.memory
        self._claim()
        self._losses(before)
        self._stuck(before)
        self._purged()
        if not self.rewound:
            self._decisions()
            self._prompt()
            self._evidence(before)
        if self.healthy and self.product.remedies():
            raise Wrong(f"{self.product.remedies()} where nothing went wrong")

    def _losses(self, before: Memory) -> None:
        """Losses that share keys close with the last key; none is reported early; another table is reported as such."""
        memory, table = self.product.memory, self.world.table
        states = {waiting.state.value for waiting in memory.waiting}
        for loss in memory.losses:
            if loss.keys_kept and loss.kind.value not in states:
                raise Wrong(f"{loss} is open, and nothing of it is missing")
            if loss.kind is Kind.STUCK and loss.since > self.product.now() - WARN:
                raise Wrong(f"{loss} is reported before it has lasted")
        shown = any(run.clean and run.as_of >= table.made for run in self.world.database.reconciliations)
        another = before.table_id not in {None, table.table_id} and not shown
        if another and not any(loss.kind is Kind.TABLE_RECREATED for loss in memory.losses):
            raise Wrong(f"the table is another one, and the report is {memory.losses}")

    def _stuck(self, before: Memory) -> None:
        """Nothing is called stuck before its shard was still for a minute, the batching window, and two ticks."""
        product, memory, rows = self.product, self.product.memory, self.world.database.rows
        stream = self.world.table.stream
        assert stream is not None
        now, old = product.now(), {(w.key, w.version) for w in before.waiting}
        new = {(w.key, w.version) for w in memory.waiting}
        moved = {w.shard_id for w in memory.waiting if (w.key, w.version) not in old}
        for waiting in before.waiting:
            row = rows.get(int(waiting.key[0]))
            version = row.position.version if row else None
            gone = product.rules().parallelization == 1 and (waiting.key, waiting.version) not in new
            if gone and version is not None and version >= waiting.version:
                moved.add(waiting.shard_id)
        for name in list(moved):
            while (shard := stream.shards.get(name)) is not None and shard.parent:
                moved.add(name := shard.parent)
        for name, shard in stream.shards.items():
            since, ticks = self.stood.get(name, (now, 0))
            ended = (place := before.shards.get(name)) is not None and place.finished
            whole = (ended or name not in product.throttled) and shard.listed <= self.world.now
            self.stood[name] = (now, 0) if name in moved else (since, ticks + whole)
        least = timedelta(seconds=57) + product.rules().batching_window
        for waiting in memory.waiting:
            since, ticks = self.stood.get(waiting.shard_id, (now, 0))
            known = (waiting.key, waiting.version) in old
            if waiting.state is State.STUCK and known and (now - since < least or ticks < 2):
                raise Wrong(f"{waiting} is called stuck, and its shard stands still since {since}, for {ticks} ticks")

    def _claim(self) -> None:
        """No missing change was made before the time through which the table is said to be caught up."""
        world, database, claim = self.world, self.world.database, self.product.memory.caught_up_through
        if claim is None:
            return
        for key in world.keys:
            missing = world.table.right_until(key, database.shown(key), database.set_aside())
            if missing is not None and missing < claim and not self._deleted_in_loss(key, missing):
                raise Wrong(f"caught up through {claim}, and the change of {key} of {missing} is missing")

    def _deleted_in_loss(self, key: int, missing: datetime) -> bool:
        """Whether an open loss has a later delete of the item, and a load after that, which holds no such item.

        A catch-up leaves out what the load had, so the row may show any earlier state until the loss is repaired.
        """
        loads = [export.time for export in self.world.database.exports if export.by_load and export.time > missing]
        writes = [write for write in self.world.table.log[key] if loads and write.made <= max(loads)]
        return (
            bool(writes)
            and writes[-1].state is None
            and any(loss.since - MARGIN <= writes[-1].made <= loss.until + MARGIN for loss in self.product.losses())
        )

    def _decisions(self) -> None:
        """No change that a working function is about to bring was made before the time that decisions rest on.

        Changes of an older stream are excepted a margin after the new one began: they lose against what is read then.
        """
        world, settled = self.world, self.product.memory.settled_through
        stream = world.table.stream
        if settled is None or stream is None:
            return
        for replicator in world.replicators:
            at_work = replicator.enabled and not replicator.dead and world.now - replicator.works_from > AT_WORK_AFTER
            loses = replicator.stream is not stream and settled >= stream.made + MARGIN - SECOND
            if not at_work or loses or world.refuses(replicator.stream):
                continue
            for record in replicator.undelivered(world.now):
                if record.made < settled and not self._arrived(record):
                    raise Wrong(f"settled through {settled}, and the change of {record.key} of {record.made} is coming")

    def _prompt(self) -> None:
        """A change that a shard skipped is in a loss at the first tick that sees it, unless its key has a newer one."""
        world, stream, replicator = self.world, self.world.table.stream, self.world.replicator
        overtaking = self.product.rules().parallelization != 1
        if stream is None or replicator is None or overtaking or not self.product.reads_all:
            return
        newer = {waiting.key[0]: waiting.version for waiting in self.product.memory.waiting}
        losses, left = self.product.losses(), dict[str | None, "list[Record]"]()
        for shard in stream.listed(world.now).values():
            passed = left[shard.name] = list(left.get(shard.parent, ()))
            for record in shard.after(0, world.now):
                row = world.database.rows.get(record.key)
                if not self._arrived(record):
                    passed.append(record)
                elif row is not None and row.position.version == record.version:
                    for lost in passed:
                        told = any(loss.since <= lost.position.as_of <= loss.until for loss in losses)
                        told = told or self._behind_in_loss(lost.key)
                        if not told and newer.get(str(lost.key), 0) <= lost.version and self._is_missing(lost):
                            raise Wrong(f"the change of {lost.key} of {lost.made} was skipped, and is in no loss")
                    passed.clear()

    def _evidence(self, before: Memory) -> None:
        """A change seen applied ends a skipped stretch before it, and ends the waiting of changes before it."""
        world, stream, product = self.world, self.world.table.stream, self.product
        rows = world.database.rows
        if stream is None or product.rules().parallelization != 1:
            return
        for name, place in product.memory.shards.items():
            shard, earlier = stream.shards.get(name), before.shards.get(name)
            if shard is None or earlier is None:
                continue
            applied = [
                record
                for record in shard.after(0, world.now)
                if (row := rows.get(record.key)) is not None and row.position.version == record.version
            ]
            read = int(place.sequence_number or 0)
            unread, known = place.unread, int(earlier.sequence_number or 0)
            looked_up = {waiting.key: waiting.version for waiting in before.waiting}  # not those proven otherwise
            if unread and any(
                record.number <= read
                and record.position.as_of > unread.until
                and (record.number > known or looked_up.get((str(record.key),), 0) >= record.version)
                for record in applied
            ):
                raise Wrong(f"{unread} of {name} is over: a change after it is applied")
            if place.scout is not None and shard.closed is None and name not in product.throttled:
                self._scouted(earlier, applied)

    def _scouted(self, earlier: ShardProgress, applied: list[Record]) -> None:
        at = earlier.scout_at
        if earlier.scout is None or at is None or self.product.now() - at >= ITERATOR_LIFE:
            return
        newest = max((record.version for record in applied if record.number > int(earlier.scout)), default=0)
        for waiting in self.product.memory.waiting:
            if waiting.shard_id == earlier.shard_id and waiting.version < newest and not waiting.state.lost:
                raise Wrong(f"{waiting} is passed: a scout has seen a later change applied")

    def _purged(self) -> None:
        """A change without a row stops waiting once a purge has passed it."""
        purged, rows = self.world.database.purged_through, self.world.database.rows
        for waiting in self.product.memory.waiting:
            if purged is not None and waiting.as_of <= purged and int(waiting.key[0]) not in rows:
                raise Wrong(f"{waiting} waits, and a purge has passed it")

    def _behind_in_loss(self, key: int) -> bool:
        """Whether an open loss covers the change since which a row is wrong, or says that the row is left over."""
        database, log = self.world.database, self.world.table.log[key]
        missing = self.world.table.right_until(key, database.shown(key), database.set_aside())
        left_over = database.shown(key) not in {write.state for write in log}
        if left_over and any(loss.kind in NOT_BY_CATCH_UP for loss in self.product.losses()):
            return True
        return missing is not None and any(
            loss.since - MARGIN <= missing <= loss.until + MARGIN for loss in self.product.losses()
        )

    def _is_missing(self, record: Record) -> bool:
        database = self.world.database
        missing = self.world.table.right_until(record.key, database.shown(record.key), database.set_aside())
        return missing is not None and missing <= record.made

    def _arrived(self, record: Record) -> bool:
        database, row = self.world.database, self.world.database.rows.get(record.key)
        if record.version in database.rejects:
            return True
        return not accepts(record.position, row and row.position, database.purged_through)

    def dated(self) -> None:
        world, database, table = self.world, self.world.database, self.world.table
        if table.name != database.source or self.product.scouted:  # then not everything is read yet, nor claimed
            return
        losses = self.product.losses()
        for key in world.keys:
            missing = table.right_until(key, database.shown(key), database.set_aside())
            if missing is None:
                continue
            for write in table.log[key]:
                # What is lost behind an open loss may be proven, as an item that came and went again is.
                proven = write.made > missing and database.proof.shows(write.made, write.made, MARGIN)
                in_loss = proven or any(
                    loss.kind in NOT_BY_CATCH_UP or loss.since - MARGIN <= write.made <= loss.until + MARGIN
                    for loss in losses
                )
                if write.made >= missing and not in_loss:
                    raise Wrong(f"the change of {key} of {write.made} is lost, and in no loss: {losses}")

    def equal(self) -> None:
        world, database = self.world, self.world.database
        for key in world.keys:
            missing = world.table.right_until(key, database.shown(key), database.set_aside())
            if missing is not None:
                raise Wrong(
                    f"after the remedies key {key} shows {database.shown(key)}, and the source has"
                    f" {world.table.items.get(key)}"
                )
