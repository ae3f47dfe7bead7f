"""`dynaurora promote NAME`: fills new columns of the mapping from the jsonb column."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.commands.session import Outcome

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.commands.session import Session
    from pipeline.jobs.promote import PromoteProgress, PromoteReport


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("name", metavar="NAME", help="the mapping")
    parser.add_argument("--attribute", metavar="ATTRIBUTE", help="promote only this attribute (default: all that wait)")


def run(session: Session, arguments: Namespace) -> Outcome:
    """Promote; values that a column cannot hold, and rows that keep arriving without it, need a person."""
    from pipeline.jobs.promote import promote  # noqa: PLC0415 - `--help` does without

    (mapping,) = session.mappings([arguments.name])
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=session.progress, transient=True) as shown:
        task = shown.add_task(f"promoting {mapping.name}", total=None)

        def tell(progress: PromoteProgress) -> None:
            shown.update(
                task,
                description=f"promoting {progress.attribute} of {progress.target}",
                completed=progress.rows_done,
                total=progress.rows,
            )

        report = promote(session.services, mapping, attribute=arguments.attribute, on_progress=tell)
    document = asdict(report) | {"refused": report.refused, "finished": report.finished}
    return Outcome(document, _lines(report), needs_person=bool(report.refused) or not report.finished)


def _lines(report: PromoteReport) -> list[str]:
    if not report.attributes:
        return [f"{report.table}: nothing waits in a jsonb column for a column of the mapping"]
    lines = [
        f"{report.table}: {sum(found.filled for found in report.attributes):,} rows filled in {report.seconds:.1f} s,"
        f" none locked longer than {report.longest_lock_seconds:.2f} s"
    ]
    for found in report.attributes:
        lines.append(f"  {found.attribute} → {found.target} ({', '.join(found.columns)}): {found.filled:,} rows filled")
        if found.settled:
            lines.append(
                f"    {found.settled:,} values that the column cannot hold became NULL or were cut, as on_error says"
            )
        lines += [f"  ! {count:,} values stay in the jsonb column: {reason}" for reason, count in found.refused.items()]
        if not found.finished:
            lines.append(
                "  ! rows keep being written without the column: deploy the mapping to every replicator, promote again,"
                f" then `dynaurora reconcile {report.table}`"
            )
    return lines
