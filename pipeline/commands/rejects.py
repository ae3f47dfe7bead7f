"""`dynaurora rejects list | show | replay`: works through the records that could not be converted.

Invariant: no attribute value is printed unless `--show-values` asks for it.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from rich.text import Text

from pipeline.aurora.bookkeeping import rejects, settled
from pipeline.commands.session import Outcome, add_names
from pipeline.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.aurora.bookkeeping.rejects import RejectGroup, StoredReject
    from pipeline.commands.session import Session
    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.replay import ReplayReport

_SEE = "look at one with `dynaurora rejects show ID`; correct the mapping, then `dynaurora rejects replay NAME`"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this verb's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="list | show | replay", required=True)
    listed = actions.add_parser("list", help="how many wait, by reason")
    add_names(listed)
    listed.add_argument("--all", action="store_true", help="include those that were replayed")
    shown = actions.add_parser("show", help="show one of them, without its values")
    shown.add_argument("id", metavar="ID", type=int, help="the reject's number in the list")
    shown.add_argument("--show-values", action="store_true", help="print the whole record; it may hold personal data")
    replayed = actions.add_parser("replay", help="convert them again under today's mapping, and apply them")
    replayed.add_argument("name", metavar="NAME", help="the mapping whose rejects to replay")
    replayed.add_argument(
        "--limit", metavar="N", type=_count, help="replay only the N oldest, to try a corrected mapping on a few"
    )
    for action in (listed, shown, replayed):
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")


def run(session: Session, arguments: argparse.Namespace) -> Outcome:
    """List, show or replay; rejects that wait need a person."""
    if arguments.action == "show":
        return _show(session, arguments.id, values=arguments.show_values)
    if arguments.action == "replay":
        (mapping,) = session.mappings([arguments.name])
        session.require_schema(mapping)
        return _replay(session, mapping, arguments.limit)
    names = [mapping.name for mapping in session.mappings(arguments.names)] if arguments.names else None
    return _list(session, names, replayed_too=arguments.all)


def _list(session: Session, names: Sequence[str] | None, *, replayed_too: bool) -> Outcome:
    with session.connect("rejects list") as connection:
        found = rejects.groups(connection, names)
        bent = settled.read(connection, names)
    shown = found if replayed_too else [group for group in found if group.waiting]
    waiting = sum(group.waiting for group in found)
    lines: list[str | Text] = [line for group in shown for line in _group_lines(group)]
    lines.append(f"{waiting:,} waiting; {_SEE}" if waiting else "no rejects wait")
    lines += [
        f'{s.table}  {s.target}  column "{s.column}": {s.settled:,} values changed by its on_error, the last at'
        f" {s.last_at:%Y-%m-%d %H:%M:%S} UTC"
        for s in bent
    ]
    document = {
        "waiting": waiting,
        "groups": [asdict(group) for group in shown],
        "settled": [asdict(values) for values in bent],
    }
    return Outcome(document, lines, needs_person=waiting > 0)


def _group_lines(group: RejectGroup) -> list[str | Text]:
    done = f", {group.replayed:,} replayed" if group.replayed else ""
    return [
        Text.assemble((group.table, "bold"), f"  {group.target}  {group.reason}"),
        f"  {group.waiting:,} waiting{done}, from {group.oldest:%Y-%m-%d %H:%M:%S} to {group.newest:%Y-%m-%d %H:%M:%S}"
        f" UTC, by {' and '.join(group.sources)}; one is {group.id}",
    ]


def _show(session: Session, number: int, *, values: bool) -> Outcome:
    with session.connect("rejects show") as connection:
        reject = rejects.read(connection, number)
    if reject is None:
        raise ConfigurationError(f"there is no reject {number}", hint="`dynaurora rejects list` names them")
    document = asdict(reject) | {"record": reject.record if values else outline(reject.record)}
    return Outcome(document, _reject_lines(reject, document["record"], values=values))


def _reject_lines(reject: StoredReject, record: object, *, values: bool) -> list[str]:
    state = f"replayed at {reject.replayed_at:%Y-%m-%d %H:%M:%S} UTC" if reject.replayed_at else "waiting"
    as_of = f"{reject.position_as_of:%Y-%m-%d %H:%M:%S} UTC" if reject.position_as_of else "an unknown time"
    return [
        f"reject {reject.id} of {reject.table}, for {reject.target}: {state}",
        f"reason    {reject.reason}",
        f"source    {reject.source}, rejected at {reject.rejected_at:%Y-%m-%d %H:%M:%S} UTC",
        f"key       {reject.key_digest or 'unknown'} (a digest)",
        f"position  {as_of}" + (f", version {reject.position_version}" if reject.position_version is not None else ""),
        "record" if values else "record, without its values (`--show-values` prints them)",
        json.dumps(record, indent=2),
    ]


_ITEMS = frozenset({"Keys", "NewImage", "OldImage", "Item"})


def outline(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with each attribute's type instead of its value; what is not an item stays as it is."""
    if isinstance(record.get("dynamodb"), dict):
        return {**record, "dynamodb": outline(record["dynamodb"])}
    return {name: _item_outline(part) if name in _ITEMS else part for name, part in record.items()}


def _item_outline(item: object) -> object:
    if not isinstance(item, dict):
        return type(item).__name__
    return {name: _value_outline(value) for name, value in cast("dict[str, Any]", item).items()}


def _value_outline(attribute: object) -> str:
    if not isinstance(attribute, dict) or len(cast("dict[str, Any]", attribute)) != 1:
        return "no attribute value"
    tag, value = next(iter(cast("dict[str, Any]", attribute).items()))
    if tag in {"S", "B"} and isinstance(value, str):
        return f"{tag}, {len(value)} characters" + (" of base64" if tag == "B" else "")
    if tag == "N" and isinstance(value, str):
        return f"N, {sum(map(str.isdigit, value))} digits"
    if isinstance(value, list | dict):
        return f"{tag}, {len(cast('list[Any]', value))} elements"
    return tag[:8]


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


def _replay(session: Session, mapping: TableMapping, limit: int | None) -> Outcome:
    from pipeline.jobs.replay import replay  # noqa: PLC0415 - the other actions need none of it

    with session.connect("rejects replay") as connection, session.showing(mapping.name, "replaying") as tell:
        mapping = session.services.with_key(mapping)
        report = replay(connection, mapping, limit=limit, on_progress=lambda seen: tell(f"{seen:,} rejects looked at"))
    return Outcome(asdict(report), _report_lines(report), needs_person=report.waiting > 0)


def _report_lines(report: ReplayReport) -> list[str]:
    lines = [
        f"{report.table}: {report.replayed:,} rejects replayed in {report.seconds:.1f} s: {report.applied:,} applied,"
        f" {report.stale:,} stale because a newer state was stored",
    ]
    if report.waiting:
        lines.append(f"{report.waiting:,} still wait; `dynaurora rejects list {report.table}` says why")
    return lines
