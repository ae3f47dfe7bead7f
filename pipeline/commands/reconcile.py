"""`dynaurora reconcile NAME`: compares the targets with a snapshot, reports the drift, and repairs it on request.

With `--key`, it explains one item instead.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.commands import explain_key, snapshots
from pipeline.commands.session import Outcome
from pipeline.core.errors import ConfigurationError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.commands.session import Session
    from pipeline.jobs.reconcile.reconcile_report import ReconcileReport


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    snapshots.add_arguments(parser)
    parser.add_argument("--repair", action="store_true", help="repair the drift, under the ordering rule")
    parser.add_argument("--show-keys", action="store_true", help="show the keys of drifted rows, not only digests")
    parser.add_argument(
        "--chunk-seconds", type=float, default=2.0, metavar="S", help="how long one statement should take (default: 2)"
    )
    parser.add_argument(
        "--max-share",
        type=float,
        default=1.0,
        metavar="F",
        help="use one connection, for this share of the time (default: 1, which uses --workers connections)",
    )
    parser.add_argument(
        "--max-lag-seconds",
        type=float,
        default=300.0,
        metavar="S",
        help="pause while the probe says that replication is further behind than this (default: 300)",
    )
    parser.add_argument(
        "--patience-seconds",
        type=float,
        default=900.0,
        metavar="S",
        help="how long to wait for replication, before failing or leaving rows undecided (default: 900)",
    )
    explain_key.add_arguments(parser)


def run(session: Session, arguments: Namespace) -> Outcome:
    """Reconcile; drift that was not repaired, and rows that replication is too far behind for, need a person."""
    (mapping,) = session.mappings([arguments.name])
    if arguments.key:
        return explain_key.run(session, mapping, arguments)
    if arguments.values:
        raise ConfigurationError("--values needs --key", hint="a reconciliation of the whole table shows no values")
    margin = snapshots.margin(arguments)
    from pipeline.jobs.reconcile.reconcile import Bounds, reconcile  # noqa: PLC0415 - the AWS SDK costs half a second

    bounds = Bounds(
        chunk_seconds=arguments.chunk_seconds,
        max_share=arguments.max_share,
        max_lag=timedelta(seconds=arguments.max_lag_seconds),
        patience=timedelta(seconds=arguments.patience_seconds),
    )
    session.require_schema(mapping)
    snapshot = snapshots.take(session, mapping, arguments)
    with session.showing(mapping.name, "reconciling") as tell:
        report = reconcile(
            session.services,
            mapping,
            snapshot.location,
            repair=arguments.repair,
            margin=margin,
            accept_other_table=arguments.accept_other_table,
            workers=arguments.workers,
            on_progress=tell,
            bounds=bounds,
            show_keys=arguments.show_keys,
        )
    found = {"drift": report.drift, "verdict": report.verdict, "items_per_second": report.items_per_second}
    return Outcome(asdict(report) | found, _lines(report), needs_person=report.needs_person)


def _lines(report: ReconcileReport) -> list[str]:
    resumed = ", resuming an earlier run" if report.resumed else ""
    lines = [
        f"{report.table}: {report.compared} keys compared with the snapshot of {report.snapshot_time:%Y-%m-%d %H:%M:%S}"
        f" UTC in {report.seconds:.1f} s{resumed} ({report.items_per_second:,.0f}/s), {report.in_flight} in flight",
    ]
    if report.rejected:
        lines.append(
            f"  ! {report.rejected} items cannot be stored under this mapping;"
            f" see `dynaurora rejects list {report.table}`"
        )
    if report.no_proof:
        lines.append(f"  ! this run closes no loss: {report.no_proof}; run it again")
    if report.why_undecided:
        lines.append(f"  {'! ' if report.needs_person else ''}{report.why_undecided}")
    if not report.drift and (report.rejected or report.undecided):
        return [*lines, "  all others are equal"]
    if not report.drift:
        return [*lines, "  equal: nothing missing, nothing extra, nothing different"]
    lines.append(
        f"  drift: {report.missing} missing, {report.extra} extra, {report.different} different, {report.stale} stale;"
        f" {report.repaired} repaired"
    )
    lines += [f"  column {name}: {count} rows" for name, count in report.by_column.items()]
    lines += [
        f"  key {sample.key or sample.key_digest}: {sample.kind}"
        f"{' in ' + ', '.join(sample.columns) if sample.columns else ''}{', repaired' if sample.repaired else ''}"
        for sample in report.samples
    ]
    if report.repaired < report.drift:
        lines.append(f"  ! run `dynaurora reconcile {report.table} --repair` to repair it")
    return lines
