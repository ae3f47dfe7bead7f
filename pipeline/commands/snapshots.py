"""The arguments that say which snapshot of a table to work with: a new export, one that exists, or its files."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ConfigurationError
from pipeline.core.ordering import SMALLEST_MARGIN
from pipeline.core.spans import HOW_TO_WRITE, parse_span

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.commands.session import Session
    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.snapshots.snapshot import Snapshot


def add_arguments(parser: ArgumentParser) -> None:
    """Add NAME, the snapshot's source and the margin."""
    parser.add_argument("name", metavar="NAME", help="the mapping")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--export-arn", metavar="ARN", help="use this export (default: request a new one)")
    source.add_argument(
        "--manifest",
        metavar="LOCATION",
        help="use the export whose manifest-summary.json is here (s3://bucket/… or file:///…)",
    )
    source.add_argument(
        "--scan",
        action="store_true",
        help="scan the table, if it cannot be exported (no point-in-time recovery)",
    )
    parser.add_argument(
        "--read-capacity",
        type=float,
        metavar="UNITS",
        help="read capacity units a second that a scan may use (default: 100)",
    )
    parser.add_argument(
        "--segments", type=int, metavar="N", help="parts that a scan reads at the same time (default: 4)"
    )
    parser.add_argument(
        "--new-export",
        action="store_true",
        help="request a new export, even if one that an earlier run requested is under way (default: resume it)",
    )
    add_export_wait(parser)
    add_accept_other_table(parser)
    add_margin_and_workers(parser)


def add_export_wait(parser: ArgumentParser) -> None:
    """Add how long to wait for an export."""
    parser.add_argument(
        "--export-wait",
        metavar="SPAN",
        help="how long to wait for an export, such as 90m or 6h (default: DYNAURORA_EXPORT_WAIT, else 6h); the export"
        " continues after that, and the next run resumes it",
    )


def export_wait(arguments: Namespace) -> timedelta | None:
    """Return the wait that was asked for. Raises ConfigurationError if it is not a duration."""
    if arguments.export_wait is None:
        return None
    span = parse_span(arguments.export_wait)
    if span is None:
        raise ConfigurationError(f'--export-wait "{arguments.export_wait}" is not a duration', hint=HOW_TO_WRITE)
    return span


def add_accept_other_table(parser: ArgumentParser) -> None:
    """Add the option that accepts an export of another table."""
    parser.add_argument(
        "--accept-other-table",
        action="store_true",
        help="accept the given export even if it is of another account, Region, table name or table id, because the"
        " table was restored, copied or recreated",
    )


def refuse_stray_acceptance(arguments: Namespace) -> None:
    """Raise ConfigurationError if another table is accepted but no export is given."""
    if arguments.accept_other_table and not (arguments.export_arn or arguments.manifest):
        raise ConfigurationError("--accept-other-table needs --export-arn or --manifest")


def add_margin_and_workers(parser: ArgumentParser) -> None:
    """Add the margin, and how many files are handled at the same time."""
    parser.add_argument(
        "--margin-seconds",
        type=float,
        metavar="S",
        help="how much older than its time a snapshot counts, to cover clocks that disagree (default: the mapping's)",
    )
    parser.add_argument(
        "--workers", type=int, default=2, metavar="N", help="files handled at the same time (default: 2)"
    )


def margin(arguments: Namespace) -> timedelta | None:
    """Return the margin that was asked for. Raises ConfigurationError if it, or the number of workers, is too small."""
    if arguments.workers < 1:
        raise ConfigurationError("--workers must be at least 1")
    if arguments.margin_seconds is None:
        return None
    asked = timedelta(seconds=arguments.margin_seconds)
    if asked < SMALLEST_MARGIN:
        raise ConfigurationError(
            f"--margin-seconds must be at least {SMALLEST_MARGIN.total_seconds():.0f}",
            hint="the stream's times are whole seconds; the default of five minutes is right for AWS",
        )
    return asked


def check(arguments: Namespace) -> None:
    """Raise ConfigurationError for arguments that contradict each other."""
    if _of_scan(arguments) and not arguments.scan:
        raise ConfigurationError("--read-capacity and --segments need --scan: an export uses no read capacity")
    refuse_stray_acceptance(arguments)
    if arguments.new_export and (arguments.export_arn or arguments.manifest or arguments.scan):
        raise ConfigurationError("--new-export cannot be combined with --export-arn, --manifest or --scan")
    export_wait(arguments)


def names_one(arguments: Namespace) -> bool:
    """Whether the arguments ask for one particular snapshot. If so, a running load of another one will not do."""
    return bool(arguments.export_arn or arguments.manifest or arguments.scan or arguments.new_export)


def _of_scan(arguments: Namespace) -> dict[str, Any]:
    asked = {"read_capacity": arguments.read_capacity, "segments": arguments.segments}
    return {name: value for name, value in asked.items() if value is not None}


def take(session: Session, mapping: TableMapping, arguments: Namespace) -> Snapshot:
    """Take the snapshot that the arguments ask for, and show progress."""
    from pipeline.jobs.snapshots.snapshot import ScanChoice, take_snapshot  # noqa: PLC0415 - the AWS SDK costs half a second

    check(arguments)

    with session.showing(mapping.name, "taking a snapshot") as tell:
        return take_snapshot(
            session.services,
            mapping,
            export_arn=arguments.export_arn,
            manifest=arguments.manifest,
            scan=ScanChoice(**_of_scan(arguments)) if arguments.scan else None,
            accept_other_table=arguments.accept_other_table,
            on_progress=tell,
            new_export=arguments.new_export,
            timeout=export_wait(arguments),
            on_notice=session.notice,
        )
