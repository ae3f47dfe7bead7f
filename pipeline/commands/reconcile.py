"""`dynaurora reconcile NAME`: compares the targets with a snapshot, reports the drift, and mends it when asked."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.commands import snapshots
from pipeline.commands.session import Outcome

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.commands.session import Session
    from pipeline.jobs.reconcile import ReconcileReport


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    snapshots.add_arguments(parser)
    parser.add_argument("--repair", action="store_true", help="mend what drifted, under the ordering rule")


def run(session: Session, arguments: Namespace) -> Outcome:
    """Reconcile; drift that was not repaired, and items that cannot be stored, need a person."""
    (mapping,) = session.mappings([arguments.name])
    margin = snapshots.margin(arguments)
    snapshot = snapshots.take(session, mapping, arguments)
    from pipeline.jobs.reconcile import reconcile  # noqa: PLC0415 - the AWS SDK costs half a second

    with session.progress.status(f"{mapping.name}: reconciling") as shown:
        report = reconcile(
            session.services,
            mapping,
            snapshot.location,
            repair=arguments.repair,
            margin=margin,
            workers=arguments.workers,
            on_progress=lambda text: shown.update(f"{mapping.name}: {text}"),
        )
    return Outcome(
        asdict(report) | {"drift": report.drift}, _lines(report), needs_person=report.drift > report.repaired
    )


def _lines(report: ReconcileReport) -> list[str]:
    lines = [
        f"{report.table}: {report.compared} keys compared with the snapshot of {report.snapshot_time:%Y-%m-%d %H:%M:%S}"
        f" UTC in {report.seconds:.1f} s, {report.in_flight} in flight",
    ]
    if report.rejected:
        lines.append(
            f"  ! {report.rejected} items cannot be stored under this mapping;"
            f" see `dynaurora rejects list {report.table}`"
        )
    if not report.drift and report.rejected:
        return [*lines, "  all others are equal"]
    if not report.drift:
        return [*lines, "  equal: nothing missing, nothing extra, nothing different"]
    lines.append(
        f"  drift: {report.missing} missing, {report.extra} extra, {report.different} different;"
        f" {report.repaired} repaired"
    )
    lines += [f"  column {name}: {count} rows" for name, count in report.by_column.items()]
    lines += [
        f"  key {sample.key_digest}: {sample.kind}{' in ' + ', '.join(sample.columns) if sample.columns else ''}"
        f"{', repaired' if sample.repaired else ''}"
        for sample in report.samples
    ]
    if report.repaired < report.drift:
        lines.append(f"  ! run `dynaurora reconcile {report.table} --repair` to mend it")
    return lines
