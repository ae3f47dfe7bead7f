"""`dynaurora purge NAME`: removes old tombstones and leftovers."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.commands.session import Outcome
from pipeline.core.errors import ConfigurationError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.commands.session import Session
    from pipeline.jobs.purge import PurgeReport

_SPAN = re.compile(r"(\d{1,4})([hd])", re.ASCII)


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("name", metavar="NAME", help="the mapping")
    parser.add_argument(
        "--retention",
        metavar="SPAN",
        default="30d",
        help="how long tombstones and bookkeeping are kept, such as 12h or 30d (default: 30d)",
    )


def run(session: Session, arguments: Namespace) -> Outcome:
    """Purge; if no tombstone could be removed, a person must load first."""
    (mapping,) = session.mappings([arguments.name])
    retention = _span(arguments.retention)
    from pipeline.jobs.purge import purge_table  # noqa: PLC0415 - `--help` does without

    session.require_schema(mapping)
    with session.connect("purge") as connection, session.showing(mapping.name, "purging") as tell:
        report = purge_table(
            connection,
            mapping,
            retention=retention,
            on_progress=lambda done: tell(f"{done:,} tombstones removed"),
        )
    return Outcome(asdict(report), _lines(report), needs_person=report.through is None or bool(report.kept))


def _span(text: str) -> timedelta:
    found = _SPAN.fullmatch(text)
    if found is None or not int(found[1]):
        raise ConfigurationError(
            f'--retention "{text}" is not a duration of at least 1h; write a number and h or d, such as 30d'
        )
    return timedelta(**{{"h": "hours", "d": "days"}[found[2]]: int(found[1])})


def _lines(report: PurgeReport) -> list[str]:
    others = [
        f"  {report.writers_folded:,} watermarks of writers that are gone merged into one; {report.reconciliations:,}"
        f" reconciliations and {report.exports:,} loads removed",
    ]
    if report.versions:
        others.append(f"  {report.versions:,} versions removed that were older than the history keeps")
    if report.unrecorded:
        others.append(
            f"  {report.unrecorded:,} rows had been written without a version, which they have now; deploy the mapping"
            " to every replicator"
        )
    if report.through is None:
        return [
            f"{report.table}: no tombstone removed, because no full snapshot was loaded whole",
            *others,
            f"  ! run `dynaurora load {report.table}` first: only then is a late change known to be old",
        ]
    why = {"retention": "limited by the retention", "snapshot": "limited by the newest snapshot that was loaded whole"}[
        report.bound
    ]
    return [
        f"{report.table}: {report.tombstones:,} tombstones removed in {report.seconds:.1f} s, through"
        f" {report.through:%Y-%m-%d %H:%M:%S} UTC, {why}",
        *others,
        *(f"  ! {count:,} tombstones kept: {reason}" for reason, count in report.kept.items()),
        *([f"  ! {report.next_step}"] if report.kept else []),
    ]
