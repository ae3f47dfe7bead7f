"""`dynaurora status`: how far each table is, and what waits for a person."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from pipeline.aurora.status import TableStatus, read_status
from pipeline.commands.session import Outcome, add_names

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from datetime import datetime

    from pipeline.commands.session import Session
    from pipeline.core.mapping import TableMapping

_NOT_MIGRATED = "not in the database yet; run `dynaurora migrate`"


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    add_names(parser)


def run(session: Session, arguments: Namespace) -> Outcome:
    """Read the status of the mappings' tables."""
    mappings = session.mappings(arguments.names)
    with session.connect("status") as connection:
        found = read_status(connection, mappings)
    lines: list[str | Text] = []
    documents: list[dict[str, Any]] = []
    for mapping in mappings:
        status = found.get(mapping.name)
        attention = status.attention if status else (_NOT_MIGRATED,)
        documents.append(_document(mapping, status, attention))
        lines.append(Text.assemble((mapping.name, "bold"), f"  {mapping.table} → {_views(mapping)}"))
        lines += [f"  {line}" for line in (_lines(status) if status else ())]
        lines += [Text(f"  ! {what}", style="yellow") for what in attention]
    return Outcome({"tables": documents}, lines, needs_person=any(document["attention"] for document in documents))


def _views(mapping: TableMapping) -> str:
    return ", ".join(target.view_name for target in mapping.tables)


def _document(mapping: TableMapping, status: TableStatus | None, attention: tuple[str, ...]) -> dict[str, Any]:
    return {
        "name": mapping.name,
        "source_table": mapping.table,
        "views": [target.view_name for target in mapping.tables],
        "migrated": status is not None,
        **({name: value for name, value in asdict(status).items() if name != "name"} if status else {}),
        "attention": list(attention),
    }


def _lines(status: TableStatus) -> list[str]:
    return [
        f"load            {_load(status)}",
        f"replication     {_replication(status)}",
        f"rejects         {_rejects(status)}",
        f"reconciliation  {_reconciliation(status)}",
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
    lag = "" if status.lag_seconds is None else f", {status.lag_seconds:.1f} s after it was made"
    return (
        f"last batch at {_time(status.applied_at)}{lag}; {status.records:,} records by {status.writers} writer(s):"
        f" {status.applied:,} applied ({status.deleted:,} deletes, {status.expired:,} of them expired),"
        f" {status.stale:,} stale, {status.rejected:,} rejected"
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
        f" {status.different:,} different, {status.repaired:,} repaired"
    )


def _time(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if moment else "an unknown time"
