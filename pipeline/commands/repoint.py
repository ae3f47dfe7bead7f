"""`dynaurora repoint NAME`: makes the table that the mapping file names the source of record, instead of another."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.commands.session import Outcome

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.commands.session import Session
    from pipeline.jobs.repoint import RepointReport


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("name", metavar="NAME", help="the mapping, whose file already names the new table")
    parser.add_argument("--dry-run", action="store_true", help="only check, and show what would happen")


def run(session: Session, arguments: Namespace) -> Outcome:
    """Switch; with --dry-run, a switch that is still to be done needs a person."""
    (mapping,) = session.mappings([arguments.name])
    from pipeline.jobs.repoint import repoint  # noqa: PLC0415 - `--help` does without

    def show(effects: tuple[str, ...]) -> None:
        for effect in effects:
            session.notice(effect)

    report = repoint(session.services, mapping, dry_run=arguments.dry_run, on_effects=show)
    return Outcome(asdict(report), _lines(report), needs_person=report.to_do)


def _lines(report: RepointReport) -> list[str]:
    if not report.effects:
        return [f"{report.table}: nothing to do, {report.new_arn} is already the source of record"]
    steps = [f"  {number}. {step}" for number, step in enumerate(report.next_steps, 1)]
    if report.since is None:
        return [
            f"{report.table}: would switch from {report.old_table} to {report.new_table}; the steps after it:",
            *steps,
        ]
    return [
        f"{report.table}: {report.new_arn} is the source of record since {report.since:%Y-%m-%d %H:%M:%S} UTC; now:",
        *steps,
    ]
