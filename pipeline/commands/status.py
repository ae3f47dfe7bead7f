"""`dynaurora status`: how far each table is, and what waits for a person."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.text import Text

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.bookkeeping.losses import open_losses
from pipeline.aurora.bookkeeping.probes import Tick, read_tick
from pipeline.aurora.bookkeeping.status import TableStatus, read_status
from pipeline.aurora.sessions.clock import database_now, host_ahead
from pipeline.commands.session import Outcome, add_names
from pipeline.core.errors import ReplicationError
from pipeline.core.model.history import views_of
from pipeline.core.past.loss_remedies import Means, as_finding
from pipeline.dynamodb.clock import NOTABLE, SET_IT, how_far, in_doubt

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.commands.session import Session
    from pipeline.core.model.mapping import TableMapping
    from pipeline.core.past.losses import Loss

_LATE = timedelta(minutes=5)  # if the mapping has no `freshness`
_NOT_MIGRATED = "not in the database yet; run `dynaurora migrate`"


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    add_names(parser)
    parser.add_argument(
        "--probe",
        action="store_true",
        help="first read the tables' streams and ask Aurora what has arrived: the lag at this moment",
    )


def run(session: Session, arguments: Namespace) -> Outcome:
    """Read the status of the mappings' tables."""
    mappings = session.mappings(arguments.names)
    problems = _probe(session, mappings) if arguments.probe else {}
    with session.connect("status") as connection:
        found, now = read_status(connection, mappings), database_now(connection)
        ahead = host_ahead(connection)
        seen = {mapping.name: _seen(connection, mapping) for mapping in mappings if mapping.name in found}
    lines: list[str | Text] = []
    documents: list[dict[str, Any]] = []
    for mapping in mappings:
        status = found.get(mapping.name)
        tick, losses, lost = seen.get(mapping.name, (None, [], ()))
        more = (*_late(mapping, tick, now), *_doubtful(mapping, tick, ahead, probed=arguments.probe))
        attention = (*problems.get(mapping.name, ()), *lost, *more, *status.attention) if status else (_NOT_MIGRATED,)
        documents.append(_document(mapping, status, tick, losses, attention))
        lines.append(Text.assemble((mapping.name, "bold"), f"  {mapping.table} → {_views(mapping)}"))
        lines += [f"  {line}" for line in (_lines(status, tick, _clocks(tick, ahead)) if status else ())]
        lines += [Text(f"  ! {what}", style="yellow") for what in attention]
    lines += [Text(f"! {problem}", style="yellow") for problem in session.broken]
    document: dict[str, Any] = {"tables": documents, "host_ahead_of_database_seconds": ahead.total_seconds()}
    if session.broken:
        document["broken"] = [asdict(problem) for problem in session.broken]
    return Outcome(document, lines, needs_person=any(document["attention"] for document in documents))


def _probe(session: Session, mappings: Sequence[TableMapping]) -> dict[str, tuple[str]]:
    """Probe the tables; return, by name, why some could not be probed. Raises UnreachableError."""
    # Without --probe there is no need of the AWS SDK.
    from pipeline.jobs.probe.probe_tables import probe_tables  # noqa: PLC0415

    found = zip(mappings, probe_tables(session.services, mappings), strict=True)
    return {
        mapping.name: (f"the lag could not be measured: {error}",)
        for mapping, error in found
        if isinstance(error, ReplicationError)
    }


def _seen(connection: Connection, mapping: TableMapping) -> tuple[Tick | None, list[Loss], tuple[str, ...]]:
    """Return what the probe last found, what may be lost, and the latter in words."""
    losses = open_losses(connection, mapping.name)
    snapshots = loads.snapshot_times(connection, mapping.name) if losses else []
    findings = [as_finding(loss, Means(mapping.name, mapping.margin, snapshots=snapshots)) for loss in losses]
    words = tuple(f"{finding.what}: {finding.remedy}" for finding in findings)
    return read_tick(connection, mapping.name), losses, words


def _late(mapping: TableMapping, tick: Tick | None, now: datetime) -> tuple[str, ...]:
    late = mapping.freshness.get("warn", mapping.freshness.get("fail", _LATE))
    if tick is None or tick.oldest_waiting is None or now - tick.oldest_waiting <= late:
        return ()
    return (
        f"{tick.waiting:,} keys have changes that have not arrived, the oldest made at {_time(tick.oldest_waiting)};"
        " look at the errors and the iterator age of the table's Lambda function, and run"
        f" `dynaurora status {mapping.name} --probe` again",
    )


def _views(mapping: TableMapping) -> str:
    return ", ".join(_view_names(mapping))


def _view_names(mapping: TableMapping) -> list[str]:
    return [f"{target.schema}.{name}" for target in mapping.tables for name in views_of(target)]


def _document(
    mapping: TableMapping,
    status: TableStatus | None,
    tick: Tick | None,
    losses: Sequence[Loss],
    attention: tuple[str, ...],
) -> dict[str, Any]:
    return {
        "name": mapping.name,
        "source_table": mapping.table,
        "views": _view_names(mapping),
        "migrated": status is not None,
        **({name: value for name, value in asdict(status).items() if name != "name"} if status else {}),
        "probe": {**asdict(tick), "lag_seconds": tick.lag_seconds} if tick else None,
        "losses": [asdict(loss) for loss in losses],
        "attention": list(attention),
    }


def _lines(status: TableStatus, tick: Tick | None, clocks: list[str]) -> list[str]:
    caught_up = [f"catch-up        through {_time(status.caught_up_through)}"] if status.caught_up_through else []
    purged = [f"purged          through {_time(status.purged_through)}"] if status.purged_through else []
    return [
        f"load            {_load(status)}",
        *caught_up,
        f"replication     {_replication(status)}",
        f"lag             {_lag(tick)}",
        *clocks,
        f"rejects         {_rejects(status)}",
        f"reconciliation  {_reconciliation(status)}",
        *purged,
    ]


def _load(status: TableStatus) -> str:
    if status.load_status is None:
        return "none yet"
    return (
        f"{status.load_status}: {status.load_kind} snapshot of {_time(status.load_snapshot_time)},"
        f" {status.load_items_done:,} of {status.load_items:,} items,"
        f" {status.load_files_done:,} of {status.load_files:,} files"
    )


def _replication(status: TableStatus) -> str:
    if status.applied_at is None:
        return "no change applied yet"
    refused = f" ({status.refused:,} refused, as old as what was purged)" if status.refused else ""
    lag = "" if status.lag_seconds is None else f", {status.lag_seconds:.1f} s after it was made"
    return (
        f"last batch at {_time(status.applied_at)}{lag}; {status.records:,} records by {status.writers} writer(s):"
        f" {status.applied:,} applied ({status.deleted:,} deletes, {status.expired:,} of them expired),"
        f" {status.stale:,} stale{refused}, {status.rejected:,} rejected"
    )


def _lag(tick: Tick | None) -> str:
    if tick is None:
        return "not probed yet; add --probe"
    lag, through = tick.lag_seconds, tick.caught_up_through
    known = "not known: the stream was not read to its end" if lag is None else f"{lag:.1f} s"
    waiting = f", {tick.waiting:,} keys have changes that have not arrived" if tick.waiting else ""
    stuck = f" ({tick.stuck:,} of them in shards where nothing moves)" if tick.stuck else ""
    lost = f", {tick.lost:,} keys have changes that are lost" if tick.lost else ""
    proven = f"; every change made before {_time(through)} is in Aurora" if through else ""
    return f"{known} at {_time(tick.ticked_at)}{waiting}{stuck}{lost}{proven}"


def _probed_ahead(tick: Tick | None) -> timedelta:
    return timedelta(seconds=(tick and tick.clock_ahead_seconds) or 0)


def _clocks(tick: Tick | None, of_database: timedelta) -> list[str]:
    """Say which clocks disagree by more than a person would expect, and what uses which."""
    told: list[str] = []
    if abs(ahead := _probed_ahead(tick)) >= NOTABLE:
        told.append(f"of the host that probed: {how_far(ahead)} DynamoDB's; the lag is measured by DynamoDB's")
    if abs(of_database) >= NOTABLE:
        told.append(
            f"of this host: {how_far(of_database)} the database's; purge, and the check for snapshots from the future,"
            " use the database's"
        )
    return [f"clock           {what}" for what in told]


def _doubtful(mapping: TableMapping, tick: Tick | None, of_database: timedelta, *, probed: bool) -> tuple[str, ...]:
    """Report a clock that is so far off that repairs are refused."""
    host, ahead, whose = "this host's clock", of_database, "the database's"
    if tick is not None and tick.clock_ahead_seconds is not None:
        ahead, whose = _probed_ahead(tick), "DynamoDB's"
        host = host if probed else "the clock of the host that probed"
    if not in_doubt(ahead, mapping.margin):
        return ()
    return (
        f"{host} is {how_far(ahead)} {whose}: `--repair`, `--scan` and catch-ups are refused there, because what they"
        f" write could count as newer than later changes; {SET_IT}",
    )


def _rejects(status: TableStatus) -> str:
    if not status.rejects_waiting:
        return "none waiting"
    return f"{status.rejects_waiting:,} waiting, the oldest since {_time(status.oldest_reject)}"


def _reconciliation(status: TableStatus) -> str:
    if status.reconciliation_status is None:
        return "none yet"
    if status.reconciliation_status != "done":
        return f"{status.reconciliation_status}: snapshot of {_time(status.reconciliation_snapshot_time)}"
    return (
        f"done at {_time(status.reconciliation_finished_at)}: {status.compared:,} compared,"
        f" {status.in_flight:,} in flight, {status.missing:,} missing, {status.extra:,} extra,"
        f" {status.different:,} different, {status.behind or 0:,} stale, {status.undecided or 0:,} undecided,"
        f" {status.repaired:,} repaired"
    )


def _time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "an unknown time"
