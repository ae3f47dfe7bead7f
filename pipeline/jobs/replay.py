"""Replay: resolve a table's rejects once the mapping, or the database, can hold them.

Invariant: a record is applied at its own position, under the ordering rule, and marked as replayed in the transaction
that applied it. So replaying is idempotent, a killed replay resumes where it was, and a late one changes nothing that
is newer. What still fails stays, with today's reason.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline.aurora.bookkeeping import protection, rejects, sources
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.apply import ApplyStatement
from pipeline.aurora.rows.overtaken import overtaken
from pipeline.core.decode.protect import Protector, gone
from pipeline.core.decode.routing import MATCHES_NO_TARGET, NO_TARGET, Router
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import DataError, TerminalError
from pipeline.core.model.protection import entries_of
from pipeline.core.streams.rejected_records import decode_again, key_again, keys_again, protected_again

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.aurora.bookkeeping.rejects import StoredReject
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.change import Change
    from pipeline.core.model.mapping import TableMapping
    from pipeline.core.model.protection import Entry
    from pipeline.core.ordering import Position

# Records in one transaction: an item has at most 400 kB, so this many have at most 40 MB.
_CHUNK = 100


@dataclass(slots=True)
class ReplayReport:
    """What a replay did. `replayed` = `applied` + `stale`; `failed` still cannot be converted or stored."""

    table: str
    replayed: int = 0
    applied: int = 0
    stale: int = 0
    """A newer state of the item was already stored; including those that still could not be converted."""
    failed: int = 0
    waiting: int = 0
    """Rejects of the table that wait when the replay is done; some may have come meanwhile."""
    seconds: float = 0.0


@dataclass(slots=True)
class _Chunk:
    """What happened to one chunk's rejects so far."""

    settled: list[StoredReject] = field(default_factory=list["StoredReject"])
    failed: list[tuple[StoredReject, str]] = field(default_factory=list[tuple["StoredReject", str]])
    applied: int = 0


def replay(
    connection: Connection,
    mapping: TableMapping,
    *,
    limit: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> ReplayReport:
    """Decode every waiting reject of `mapping` again and apply it, or only the first `limit` if given.

    `on_progress` gets the number of records looked at. Raises TransientError, TerminalError; what was committed before
    stays.
    """
    started, report, after, seen = time.monotonic(), ReplayReport(mapping.name), 0, 0
    sources.require(connection, mapping.name, mapping.table, doing="replaying rejects")
    protection.require(connection, mapping, doing="replaying rejects")
    protection_ = _Protection(mapping)
    targets = {
        target.view_name: _Target(
            RowDecoder(target),
            ApplyStatement(target, mapping.name, mapping.table, of_rejects=True, protection=mapping.protection),
            protection_,
        )
        for target in mapping.targets
    }
    router = Router(mapping)
    while stored := rejects.waiting(
        connection, mapping.name, after=after, limit=_CHUNK if limit is None else min(_CHUNK, limit - seen)
    ):
        with translating("replaying rejects", table=mapping.name), connection.transaction():
            chunk = _replay_chunk(connection, stored, targets, router)
            rejects.mark_replayed(connection, chunk.settled)
            rejects.set_reasons(connection, chunk.failed)
        report.replayed += len(chunk.settled)
        report.applied += chunk.applied
        report.failed += len(chunk.failed)
        after, seen = stored[-1].id, seen + len(stored)
        if on_progress:
            on_progress(seen)
    report.stale = report.replayed - report.applied
    report.waiting = rejects.count_waiting(connection, mapping.name)
    report.seconds = time.monotonic() - started
    return report


@dataclass(frozen=True, slots=True)
class _Target:
    decoder: RowDecoder
    statement: ApplyStatement
    protection: _Protection


_GONE = "its protected values were stored in another way than the mapping asks for now: load the table"


@dataclass
class _Protection:
    """Replaces in the records of rejects what was not protected when they were stored."""

    mapping: TableMapping
    protectors: dict[frozenset[Entry], Protector] = field(default_factory=dict["frozenset[Entry]", Protector])

    def record(self, reject: StoredReject) -> dict[str, Any]:
        """Return the record, protected. Raises TerminalError if its values are gone."""
        already = entries_of(reject.protection or "", reject.target)
        if gone(self.mapping, reject.target, already):
            raise TerminalError(_GONE)
        if not self.mapping.protects:
            return reject.record
        if already not in self.protectors:
            self.protectors[already] = Protector(self.mapping, already)
        return protected_again(reject.record, self.protectors[already])


def _target_now(reject: StoredReject, router: Router) -> str:
    """Return the target that the mapping now gives a record that had none."""
    targets = router.route(keys_again(reject.record))
    return targets[0].view_name if targets else NO_TARGET


def _replay_chunk(
    connection: Connection, stored: Sequence[StoredReject], targets: dict[str, _Target], router: Router
) -> _Chunk:
    chunk = _Chunk()
    by_target: defaultdict[str, list[StoredReject]] = defaultdict(list)
    for reject in stored:
        by_target[reject.target or _target_now(reject, router)].append(reject)
    for name in sorted(by_target):
        target = targets.get(name)
        if target is None:
            reason = (
                MATCHES_NO_TARGET
                if name == NO_TARGET
                else f"the mapping no longer has a target {name}; give it one with that name, or leave the record here"
            )
            chunk.failed += [(reject, reason) for reject in by_target[name]]
            continue
        changes = _decode(connection, target, by_target[name], chunk)
        _apply(connection, target, changes, chunk)
    return chunk


def _decode(
    connection: Connection, target: _Target, stored: Sequence[StoredReject], chunk: _Chunk
) -> list[tuple[StoredReject, Change]]:
    changes: list[tuple[StoredReject, Change]] = []
    failed: list[tuple[StoredReject, str]] = []
    for reject in stored:
        if reject.position is None:
            chunk.failed.append((reject, reject.reason))  # it has no position, so nothing can be decided
            continue
        try:
            changes.append((reject, decode_again(target.decoder, target.protection.record(reject), reject.position)))
        except TerminalError as error:
            failed.append((reject, error.message))
    _set_stale_apart(connection, target, failed, chunk)
    return changes


def _set_stale_apart(
    connection: Connection, target: _Target, failed: Sequence[tuple[StoredReject, str]], chunk: _Chunk
) -> None:
    """Resolve records that cannot be converted if the stored row is newer: nobody will ever need them."""
    known: list[tuple[StoredReject, str]] = []
    candidates: list[tuple[tuple[str, ...], Position]] = []
    for reject, reason in failed:
        try:
            key = key_again(target.decoder, reject.record)
        except TerminalError:
            chunk.failed.append((reject, reason))
            continue
        if reject.position is not None:
            known.append((reject, reason))
            candidates.append((key, reject.position))
    stale = overtaken(connection, target.statement.mapping_name, target.decoder.target, candidates)
    chunk.settled += [reject for index, (reject, _) in enumerate(known) if index in stale]
    chunk.failed += [entry for index, entry in enumerate(known) if index not in stale]


def _apply(
    connection: Connection, target: _Target, changes: Sequence[tuple[StoredReject, Change]], chunk: _Chunk
) -> None:
    """Apply at once; if PostgreSQL refuses a value, one by one, each under a savepoint."""
    if not changes:
        return
    try:
        chunk.applied += _execute(connection, target, [change for _, change in changes])
        chunk.settled += [reject for reject, _ in changes]
    except DataError:
        for reject, change in changes:
            try:
                chunk.applied += _execute(connection, target, [change])
                chunk.settled.append(reject)
            except DataError as error:
                chunk.failed.append((reject, error.message))


def _execute(connection: Connection, target: _Target, changes: Sequence[Change]) -> int:
    with translating("applying changes"), connection.transaction():
        return target.statement.apply(connection, target.statement.candidates(changes))[0]
