"""`dynaurora redrive NAME`: applies the batches that Lambda discarded, and marks them as done."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.commands.session import Outcome

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from rich.text import Text

    from pipeline.commands.session import Session
    from pipeline.jobs.redrive import RedriveReport


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("name", metavar="NAME", help="the mapping whose batches to apply")
    parser.add_argument("--object", metavar="LOCATION", help="redrive only this one, as a line `left:` names it")
    parser.add_argument(
        "--accept-partial",
        action="store_true",
        help="with --object: apply the records of a damaged batch that can be read, and mark it as done",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--prefix", metavar="LOCATION", help="where they are in S3, s3://BUCKET/PREFIX (default: DYNAURORA_ON_FAILURE)"
    )
    source.add_argument("--queue", metavar="URL", help="the SQS queue whose messages name them")


def run(session: Session, arguments: Namespace) -> Outcome:
    """Redrive; batches that are left, and records that cannot be stored, need a person."""
    (mapping,) = session.mappings([arguments.name])
    session.require_schema(mapping, needs_session=False)
    from pipeline.jobs.redrive import redrive  # noqa: PLC0415 - the AWS SDK costs half a second

    with session.showing(arguments.name, "redriving") as tell:
        report = redrive(
            session.services,
            (mapping,),
            prefix=arguments.prefix,
            queue_url=arguments.queue,
            only=arguments.object,
            accept_partial=arguments.accept_partial,
            on_progress=lambda seen: tell(f"{seen:,} batches looked at"),
        )
    return Outcome(asdict(report), _lines(report), needs_person=bool(report.left or report.partial or report.rejected))


def _lines(report: RedriveReport) -> list[str | Text]:
    name = ", ".join(report.tables)
    lines: list[str | Text] = [
        f"{name}: {report.batches:,} batches redriven in {report.seconds:.1f} s: {report.records:,} records,"
        f" {report.applied:,} applied ({report.deleted:,} deletes), {report.stale:,} stale because something newer is"
        f" stored, {report.rejected:,} rejected"
    ]
    if report.read_again:
        lines.append(f"  {report.read_again:,} of them were read from the stream again")
    if report.of_other_tables:
        lines.append(f"  {report.of_other_tables:,} batches of other tables were left in place")
    if report.rejected:
        lines.append(f"  ! records were rejected; see `dynaurora rejects list {name}`")
    for word, batches in (("left", report.left), ("in part", report.partial)):
        for batch in batches:
            lines.append(f"  ! {word}: {batch.location}: {batch.reason}")
            if batch.next_step:
                lines.append(f"      {batch.next_step}")
    return lines
