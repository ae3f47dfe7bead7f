"""`dynaurora load NAME`: loads a full export into the table's targets, with a progress bar.

Invariant: if the database is not as the mapping says, no export is requested and nothing is written. What Dagster's
check `schema_matches_mapping` refuses is refused here, with the same next step.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, cast

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from pipeline.commands import snapshots
from pipeline.commands.session import Outcome
from pipeline.core.exports.ways import NO_LINES

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from datetime import timedelta

    from pipeline.commands.session import Session
    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.load.load import LoadProgress, LoadReport
    from pipeline.jobs.snapshots.snapshot import Snapshot


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    snapshots.add_arguments(parser)


def run(session: Session, arguments: Namespace) -> Outcome:
    """Load into a database that is as the mapping says; rejected items need a person."""
    (mapping,) = session.mappings([arguments.name])
    margin = snapshots.margin(arguments)
    snapshots.check(arguments)
    session.require_schema(mapping)
    report = _load(session, mapping, arguments, margin)
    return Outcome(asdict(report), _lines(report), needs_person=report.rejected > 0)


def _load(session: Session, mapping: TableMapping, arguments: Namespace, margin: timedelta | None) -> LoadReport:
    from pipeline.jobs.load.load_once import load_once  # noqa: PLC0415 - the AWS SDK costs half a second

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[files]}"),
        TimeRemainingColumn(),
    )
    shown = Progress(*columns, console=session.progress, transient=True)
    task = shown.add_task(f"loading {mapping.name}", total=None, files="")

    def take() -> Snapshot:
        shown.stop()  # it shows its own progress
        return snapshots.take(session, mapping, arguments)

    def tell(progress: LoadProgress) -> None:
        shown.start()
        files = f"items, {progress.files_done}/{progress.files} files, {progress.rows_per_second:,.0f}/s"
        done = progress.files_done == progress.files
        doing = progress.phase if done else files
        shown.update(task, total=progress.rows, completed=progress.rows_done, files=escape(doing))

    try:
        *_, report = load_once(
            session.services,
            mapping,
            take,
            joins=not snapshots.names_one(arguments),
            say=session.notice,
            workers=arguments.workers,
            on_progress=tell,
            margin=margin,
            accept_other_table=arguments.accept_other_table,
        )
    finally:
        shown.stop()
    return cast("LoadReport", report)  # it comes last


def _lines(report: LoadReport) -> list[str]:
    if report.led_elsewhere:
        return [
            f"{report.table}: loaded by the other run that led it: {report.items} items in {report.files} files,"
            f" snapshot of {report.snapshot_time:%Y-%m-%d %H:%M:%S} UTC; this run did not load again"
        ]
    if report.already_loaded:
        return [f"{report.table}: this export is already loaded ({report.items} items in {report.files} files)"]
    resumed = f", {report.files_resumed} of them by an earlier run" if report.files_resumed else ""
    lines = [
        f"{report.table}: {report.items} items in {report.files} files in {report.seconds:.1f} s{resumed}",
        f"  {report.applied} rows applied, {report.stale} stale because Aurora already had something newer",
        f"  snapshot of {report.snapshot_time:%Y-%m-%d %H:%M:%S} UTC, counts as of {report.as_of:%H:%M:%S}",
    ]
    if report.ways != NO_LINES:
        lines.append(f"  {report.ways}")
    if report.merged_because:
        lines.append(f"  merged instead of built aside and swapped in: {'; '.join(report.merged_because)}")
    if report.aside_because:
        lines.append(f"  built aside and swapped in: {'; '.join(report.aside_because)}")
    if report.ignored:
        lines.append(f"  {report.ignored} items ignored because they match no target")
    if report.rejected:
        lines.append(f"  ! {report.rejected} items rejected; see `dynaurora rejects list {report.table}`")
    return lines
