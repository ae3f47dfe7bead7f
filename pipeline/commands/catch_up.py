"""`dynaurora catch-up NAME`: applies what was written in a range of the past, from incremental exports."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.commands.session import Outcome
from pipeline.commands.snapshots import (
    add_accept_other_table,
    add_export_wait,
    add_margin_and_workers,
    export_wait,
    margin,
    refuse_stray_acceptance,
)
from pipeline.core.errors import ConfigurationError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.commands.session import Session
    from pipeline.jobs.catch_up.catch_up import CatchUpReport, WindowReport

_SPAN = re.compile(r"(\d{1,4})([mhd])", re.ASCII)
# A current time, read from another clock, may differ by this much.
_CLOCKS_DIFFER = timedelta(minutes=5)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("name", metavar="NAME", help="the mapping")
    begin = parser.add_mutually_exclusive_group(required=True)
    begin.add_argument("--from", dest="start", metavar="TIME", help="begin at this time, such as 2026-05-01T10:00:00Z")
    begin.add_argument("--last", metavar="SPAN", help="begin this long before the end, such as 90m, 3h or 2d")
    begin.add_argument("--export-arn", metavar="ARN", help="apply only this incremental export")
    begin.add_argument(
        "--manifest",
        metavar="LOCATION",
        help="apply the incremental export whose manifest-summary.json is here (s3://bucket/… or file:///…)",
    )
    parser.add_argument("--to", dest="end", metavar="TIME", help="end before this time (default: now)")
    add_export_wait(parser)
    add_accept_other_table(parser)
    add_margin_and_workers(parser)


def run(session: Session, arguments: Namespace) -> Outcome:
    """Catch up; items that cannot be stored need a person."""
    (mapping,) = session.mappings([arguments.name])
    used, workers = margin(arguments), arguments.workers
    refuse_stray_acceptance(arguments)
    timeout = export_wait(arguments)
    given = arguments.export_arn or arguments.manifest
    if given and arguments.end:
        raise ConfigurationError("--to goes with --from or --last: an export has a window of its own")
    start, end = (None, None) if given else _range(arguments, datetime.now(UTC))
    from pipeline.jobs.catch_up.catch_up import apply_export, catch_up  # noqa: PLC0415 - the AWS SDK costs half a second
    from pipeline.jobs.clocks import source_now  # noqa: PLC0415

    if end is not None and not arguments.end:  # until now by the source's clock, because this host's may be ahead of it
        start, end = _range(arguments, source_now(session.services, mapping))

    session.require_schema(mapping)
    with session.showing(mapping.name, "catching up") as tell:
        if start is None or end is None:
            report = apply_export(
                session.services,
                mapping,
                export_arn=arguments.export_arn,
                location=arguments.manifest,
                margin=used,
                accept_other_table=arguments.accept_other_table,
                timeout=timeout,
                on_notice=session.notice,
                workers=workers,
                on_progress=tell,
            )
        else:
            report = catch_up(
                session.services,
                mapping,
                start,
                end,
                margin=used,
                workers=workers,
                timeout=timeout,
                on_progress=tell,
                on_notice=session.notice,
            )
    return Outcome(asdict(report), _lines(report), needs_person=report.rejected > 0)


def _range(arguments: Namespace, now: datetime) -> tuple[datetime, datetime]:
    end = _time("--to", arguments.end) if arguments.end else now
    if end > now + _CLOCKS_DIFFER:
        raise ConfigurationError(f"--to {arguments.end} is in the future", hint="leave --to out, to end now")
    if arguments.start:
        start = _time("--from", arguments.start)
        if start > now:
            raise ConfigurationError(f"--from {arguments.start} is in the future", hint="give a time in the past")
        if start >= end:
            raise ConfigurationError(
                f"--from {arguments.start} is not before --to {arguments.end}", hint="give the earlier time to --from"
            )
        return start, end
    span = _SPAN.fullmatch(arguments.last)
    if span is None:
        raise ConfigurationError(
            f'--last "{arguments.last}" is not a duration; write a number and m, h or d, such as 3h'
        )
    return end - timedelta(**{_UNITS[span[2]]: int(span[1])}), end


def _time(option: str, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ConfigurationError(
            f'{option} "{text}" is not a time with an offset', hint="write it as 2026-05-01T10:00:00Z"
        )
    return moment


def _lines(report: CatchUpReport) -> list[str]:
    lines = [
        f"{report.table}: {report.start:%Y-%m-%d %H:%M:%S} to {report.end:%Y-%m-%d %H:%M:%S} UTC caught up in"
        f" {report.seconds:.1f} s: {report.applied} of {report.items} items applied, {report.stale} stale because"
        " something newer is known",
        *(f"  {_window(window)}" for window in report.windows),
        f"  everything written before {report.healed_through:%Y-%m-%d %H:%M:%S} UTC is as DynamoDB has it",
    ]
    if report.read_again:
        lines.append(
            f"  {report.read_again} items that no export mentioned were read again; {report.removed} of them no longer"
            " exist"
        )
    if report.ignored:
        lines.append(f"  {report.ignored} items ignored because they match no target")
    if report.rejected:
        lines.append(f"  ! {report.rejected} items rejected; see `dynaurora rejects list {report.table}`")
    return lines


def _window(window: WindowReport) -> str:
    kind = "seam  " if window.is_seam else "window"
    done = ", applied by an earlier run" if window.already_applied else ""
    return (
        f"{kind} {window.start:%m-%d %H:%M:%S} to {window.end:%m-%d %H:%M:%S}: {window.items} items in {window.files}"
        f" files, {window.applied} applied{done}"
    )
