"""`dynaurora unmapped`: the attributes that no column takes, since when, and the mapping lines that would."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.commands.session import Outcome, add_names

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.commands.session import Session
    from pipeline.jobs.unmapped import UnmappedAttribute, UnmappedReport


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    add_names(parser)


def run(session: Session, arguments: Namespace) -> Outcome:
    """Report; attributes without a column are for information, those that wait to be promoted need a person."""
    from pipeline.jobs.unmapped import State, unmapped_of  # noqa: PLC0415 - `--help` does without

    mappings = session.mappings(arguments.names)
    lines: list[str] = []
    documents: list[dict[str, object]] = []
    waiting = False
    with session.connect("unmapped") as connection:
        for mapping in mappings:
            reports = unmapped_of(connection, mapping)
            documents.append({"name": mapping.name, "targets": [asdict(report) for report in reports]})
            for report in reports:
                lines += _lines(mapping.name, report)
            if any(found.state is State.WAITING for report in reports for found in report.attributes):
                waiting = True
                lines.append(f"  ! run `dynaurora promote {mapping.name}` to fill the columns from what is waiting")
    return Outcome({"tables": documents}, lines, needs_person=waiting)


def _lines(name: str, report: UnmappedReport) -> list[str]:
    rows = (
        f"about {report.rows:,} rows, {report.sampled_fraction:.1%} of the table read"
        if report.estimated
        else f"{report.rows:,} rows"
    )
    if not report.attributes:
        return [f"{name}: {report.target}, {rows}: every attribute has its column"]
    lines = [f"{name}: {report.target}, {rows}"]
    for found in report.attributes:
        lines.append(f"  {found.attribute}  {_what(found)}")
        if found.line:
            lines.append(f"      {found.line}" + "".join(f"  # {remark}" for remark in found.remarks))
    return lines


def _what(found: UnmappedAttribute) -> str:
    state = {
        "new": "no column takes it",
        "in part": "columns take parts of it",
        "waiting": "has a column, not filled from here yet",
    }[found.state]
    return f"{state}: {found.rows:,} rows, at least since {found.since:%Y-%m-%d %H:%M:%S} UTC, {found.evidence}"
