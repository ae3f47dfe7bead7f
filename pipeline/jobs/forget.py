"""Forget: remove everything that is kept about an item that its owner has deleted from DynamoDB.

What stays is its tombstone: the key and a position in time, so that no older state that still arrives brings the item
back. A purge removes it when nothing that old can arrive any more.

Invariant: nothing is removed while the item exists, because it would come back. Each part is a transaction of its own
and changes nothing when it is repeated, so a killed run is simply run again. No load or reconciliation of the table
runs meanwhile.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipeline.aurora.bookkeeping import forgetting, loads, protection, sources
from pipeline.aurora.compare import reconciliations
from pipeline.aurora.errors import translating
from pipeline.aurora.rows import history
from pipeline.aurora.rows.apply import ApplyStatement
from pipeline.aurora.sessions.advisory_locks import giving_locks_back
from pipeline.core.decode.routing import Router
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import ConfigurationError, ConversionError, TerminalError, key_digest
from pipeline.core.model.attribute_form import MALFORMED
from pipeline.core.model.change import Change
from pipeline.core.ordering import snapshot_position
from pipeline.core.streams.forgotten_records import without_item
from pipeline.core.streams.rejected_records import attributes_of
from pipeline.dynamodb.exports.objects import MissingObjectError, join_location
from pipeline.jobs.clocks import refuse_wrong_clock
from pipeline.jobs.protecting import read_again
from pipeline.jobs.reconcile.stage_file import item_digest
from pipeline.jobs.redrive import done_key, is_done, split_prefix

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.aurora.bookkeeping.rejects import StoredReject
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.attributes import Item
    from pipeline.core.model.mapping import TableMapping, Target
    from pipeline.core.ordering import Position
    from pipeline.jobs.services import Services

# How long the stream keeps a record, which may still arrive late (DynamoDB developer guide, Streams).
_STREAM_KEEPS = timedelta(hours=24)
LATER = (
    "run it again after a load, catch-up, redrive or replay of a time before the delete, which may bring old states to"
    " the history and the rejects"
)
NOT_REACHED = (
    "DynamoDB's point-in-time recovery and backups of the table, and its stream for 24 hours",
    "backups and snapshots of the Aurora cluster, and old row versions on its disk until they are vacuumed and reused",
    "older versions of objects, if a bucket keeps them",
    "whatever readers and subscribers have copied",
)


@dataclass(slots=True)
class ForgetReport:
    """What was removed. `left` is what a person must see to, `later` what may be to do some day; `exports` and
    `not_reached` cannot be reached.
    """

    table: str
    key_digest: str
    targets: tuple[str, ...] = ()
    rows: int = 0
    """Rows that were live, and are tombstones now."""
    versions: int = 0
    """Versions in histories."""
    rejects: int = 0
    records: int = 0
    """Records of drift, and of changes that were waited for; rows of unfinished loads."""
    batches: int = 0
    """Discarded batches that were rewritten, done ones included."""
    batch_records: int = 0
    tombstone_as_of: datetime | None = None
    """The tombstone stays until a purge goes this far, which needs a newer full load."""
    left: list[str] = field(default_factory=list[str])
    later: str = LATER
    exports: list[str] = field(default_factory=list[str])
    not_reached: tuple[str, ...] = NOT_REACHED
    seconds: float = 0.0


def forget(
    services: Services,
    mapping: TableMapping,
    key: Item,
    *,
    prefix: str | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> ForgetReport:
    """Remove the item with the key attributes `key` (wire form). Idempotent.

    `prefix` is where discarded batches are kept, the setting's unless given. Raises TerminalError if DynamoDB still has
    the item, or while a load or a reconciliation of the table runs; TransientError if it may be run again.
    """
    started, say, mapping = time.monotonic(), on_progress or _say_nothing, services.with_key(mapping)
    run = _Run(services, mapping, key, ForgetReport(mapping.name, item_digest(mapping, key)))
    with services.connect("dynaurora forget") as connection, giving_locks_back(connection):
        sources.require(connection, mapping.name, mapping.table, doing="forgetting an item")
        protection.require(connection, mapping, doing="forgetting an item")
        refuse_wrong_clock(services, mapping, mapping.margin, "forgetting an item", connection, say)
        with reconciliations.table_locked(connection, mapping.name), loads.table_locked(connection, mapping.name):
            # What could bring the item back comes first: nothing that was removed comes again from what is left.
            run.tombstones(connection, say)
            say("looking at discarded batches")
            run.discarded_batches(prefix or services.settings.on_failure)
            run.database(connection, say)
    run.report.seconds = time.monotonic() - started
    return run.report


def _say_nothing(_: str) -> None:
    """Report progress to nobody."""


@dataclass
class _Run:
    services: Services
    mapping: TableMapping
    key: Item
    report: ForgetReport
    rows: list[tuple[Target, tuple[str, ...]]] = field(default_factory=list[tuple["Target", tuple[str, ...]]])
    """The targets that the item's rows are in, with their keys there, if they are tombstones now."""
    nameless: int = 0
    """Rejects that name no key."""

    def tombstones(self, connection: Connection, say: Callable[[str], None]) -> None:
        mapping, report = self.mapping, self.report
        (read,) = read_again(self.services, mapping, [self.key])
        if read.item is not None:
            raise TerminalError(
                "forgetting an item: DynamoDB still has it, so it would come back",
                table=mapping.name,
                key_digest=report.key_digest,
                hint="delete it there, then run this again",
            )
        position = snapshot_position(read.read_at, mapping.margin)
        targets = Router(mapping).route(read.key)
        report.targets = tuple(target.view_name for target in targets)
        report.tombstone_as_of = position.as_of if targets else None
        say("dropping what reconciliations left")
        reconciliations.drop_leftovers(connection, mapping.name)
        for target in targets:
            say(f"removing the row of {target.view_name}")
            self._target(connection, target, read.key, position)
        if any(target.history for target in targets):
            again = read.read_at + _STREAM_KEEPS
            report.left.append(
                f"run it again after {again:%Y-%m-%d %H:%M} UTC: until then the stream may still bring old versions to"
                " the history"
            )

    def database(self, connection: Connection, say: Callable[[str], None]) -> None:
        """Remove what is left in the database, last of all: nothing brings it again."""
        mapping, report = self.mapping, self.report
        for target, key in self.rows:
            say(f"removing the versions of {target.view_name}")
            with connection.transaction():
                if forgetting.row_is_live(connection, target, key) is None:  # it was not put again meanwhile
                    report.versions += history.forget(connection, target, key)
            say(f"renewing the statistics of {target.view_name}")
            forgetting.analyze(connection, target)
        say("looking at rejects")
        report.rejects = forgetting.delete_rejects(connection, mapping.name, self._is_reject)
        report.exports = forgetting.exports(connection, mapping.name)
        if former := protection.former_tables(connection, mapping):
            report.left.append(
                f"{', '.join(former)}, of targets that the mapping has no more, are not looked at: drop them with their"
                " views"
            )
        if self.nameless:
            report.left.append(f"{self.nameless:,} rejects name no key: look whether they are the item's")

    def _target(self, connection: Connection, target: Target, keys: Item, position: Position) -> None:
        mapping, report = self.mapping, self.report
        try:
            key = RowDecoder(target).key(keys)
        except ConversionError:
            return  # no row can have it
        statement = ApplyStatement(target, mapping.name, mapping.table, protection=mapping.protection)
        with translating("removing a row", table=mapping.name), connection.transaction():
            was_live = forgetting.row_is_live(connection, target, key)
            statement.apply(connection, [Change(key, None, position)])
            newer = forgetting.row_is_live(connection, target, key)
            report.rows += was_live is not None and newer is None
            if newer is None:
                forgetting.empty_tombstone(connection, target, key)
                self.rows.append((target, key))
        if newer is not None:
            again = newer + mapping.margin + timedelta(seconds=1)
            report.left.append(
                f"the row of {target.view_name} is newer than what DynamoDB's answer proves, with the margin: run this"
                f" again after {again:%Y-%m-%d %H:%M:%S} UTC, or when the stream has brought the delete"
            )
        digest = key_digest(key)
        report.records += forgetting.delete_records(connection, mapping.name, target, key, digest, position)
        report.records += forgetting.delete_from_builds(connection, mapping, target, key)

    def _is_theirs(self, record: dict[str, Any]) -> bool | None:
        """Whether a record names the item's key anywhere; None if it names no key at all."""
        digests: set[str] = set()
        for attributes in attributes_of(record):
            with suppress(*MALFORMED):
                if all(name in attributes for name in self.mapping.key):
                    digests.add(item_digest(self.mapping, attributes))
        return self.report.key_digest in digests if digests else None

    def _is_reject(self, reject: StoredReject) -> bool:
        theirs = self._is_theirs(reject.record)
        self.nameless += theirs is None
        return bool(theirs)

    def discarded_batches(self, location: str | None) -> None:
        """Rewrite the objects that hold records of the item, those that were redriven included."""
        if location is None:
            self.report.left.append(
                "it is not known where discarded batches are kept: set DYNAURORA_ON_FAILURE or give --prefix, and run"
                " it again"
            )
            return
        bucket, prefix = split_prefix(location)
        store = self.services.store(location)
        # Those that were redriven are kept too, under another prefix.
        keys = [*store.keys(bucket, prefix), *store.keys(bucket, done_key(prefix, prefix))]
        for key in dict.fromkeys(keys):
            try:
                self._object(bucket, prefix, key, store.read(bucket, key))
            except MissingObjectError:  # a redrive has moved it: it comes again under its new key, or in the next run
                self.report.left.append(f"{join_location(bucket, key)} was moved meanwhile: run this again")
            except ConfigurationError:
                raise
            except TerminalError as error:
                self.report.left.append(f"{join_location(bucket, key)} cannot be read ({error.message}): look at it")

    def _object(self, bucket: str, prefix: str, key: str, content: bytes) -> None:
        store = self.services.store(join_location(bucket, key))
        found = without_item(content, self.mapping.table, self._is_theirs)
        if found is None:
            return
        if found.nameless:
            self.report.left.append(
                f"{join_location(bucket, key)} has {found.nameless:,} records that name no key: look whether they are"
                " the item's"
            )
        if found.removed:
            store.write(bucket, key, found.content)
            self.report.batches += 1
            self.report.batch_records += found.removed
        if not found.records and not is_done(key, prefix):
            store.move(bucket, key, done_key(key, prefix))
