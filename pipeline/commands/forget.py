"""`dynaurora forget NAME --key …`: removes everything that is kept about an item that was deleted from DynamoDB."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.commands.key_argument import parse_key
from pipeline.commands.session import Outcome

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.commands.session import Session
    from pipeline.jobs.forget import ForgetReport

_EXPORTS_SHOWN = 5


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("name", metavar="NAME", help="the mapping")
    parser.add_argument(
        "--key",
        action="append",
        required=True,
        metavar="KEY",
        help="""the item: '{"Id": {"N": "7"}}', or Id=7, once for each key attribute""",
    )
    parser.add_argument(
        "--prefix",
        metavar="s3://BUCKET/PREFIX",
        help="where discarded batches are kept (default: DYNAURORA_ON_FAILURE)",
    )


def run(session: Session, arguments: Namespace) -> Outcome:
    """Forget; what could not be removed yet needs a person."""
    (mapping,) = session.mappings([arguments.name])
    key = parse_key(mapping, arguments.key)
    from pipeline.jobs.forget import forget  # noqa: PLC0415 - the AWS SDK costs half a second

    with session.showing(mapping.name, "forgetting an item") as tell:
        report = forget(session.services, mapping, key, prefix=arguments.prefix, on_progress=tell)
    return Outcome(asdict(report), _lines(report), needs_person=bool(report.left))


def _lines(report: ForgetReport) -> list[str]:
    lines = [
        f"{report.table}: item {report.key_digest} removed in {report.seconds:.1f} s: {report.rows:,} rows,"
        f" {report.versions:,} versions, {report.rejects:,} rejects, {report.batch_records:,} records of"
        f" {report.batches:,} discarded batches, {report.records:,} other records",
    ]
    if report.tombstone_as_of:
        lines.append(
            f"  its tombstone, the key and a time, keeps older states out until a purge reaches"
            f" {report.tombstone_as_of:%Y-%m-%d %H:%M:%S} UTC, which needs a newer full load"
        )
    lines += [f"  ! {text}" for text in report.left]
    lines.append(f"  later: {report.later}")
    if report.exports:
        shown = ", ".join(report.exports[:_EXPORTS_SHOWN])
        more = f" and {len(report.exports) - _EXPORTS_SHOWN} more" if len(report.exports) > _EXPORTS_SHOWN else ""
        lines.append(f"  not reached: exports and scans in S3: {shown}{more}")
    return [*lines, *(f"  not reached: {text}" for text in report.not_reached)]
