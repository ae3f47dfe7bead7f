"""`dynaurora reconcile NAME --key …`: explains one item.

Invariant: no value is printed unless `--values` asks for it.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.commands.key_argument import parse_key
from pipeline.commands.session import Outcome

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.commands.session import Session
    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.explain import Explanation, ItemInTarget


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments about one item."""
    parser.add_argument(
        "--key",
        action="append",
        metavar="KEY",
        help="""explain one item: '{"Id": {"N": "7"}}', or Id=7, once for each key attribute""",
    )
    parser.add_argument("--values", action="store_true", help="with --key: print values; they may be personal data")
    parser.add_argument(
        "--wait-seconds",
        type=float,
        default=0.0,
        metavar="S",
        help="with --key: how long to wait until replication has passed the item (default: 0)",
    )


def run(session: Session, mapping: TableMapping, arguments: Namespace) -> Outcome:
    """Explain; an item that will not become right by itself needs a person."""
    key = parse_key(mapping, arguments.key)
    from pipeline.jobs.explain import explain  # noqa: PLC0415 - the AWS SDK costs half a second

    explanation = explain(
        session.services,
        mapping,
        key,
        values=arguments.values,
        patience=timedelta(seconds=arguments.wait_seconds),
    )
    return Outcome(asdict(explanation), _lines(explanation), needs_person=explanation.needs_person)


def _lines(explanation: Explanation) -> list[str]:
    state = explanation.state
    here = f"exists, with {explanation.attributes} attributes" if explanation.source == "exists" else "does not exist"
    basis = {"probe": "as a probe has shown", "late batches": "as late batches show"}.get(
        explanation.applied_basis, "assumed, because no probe is running"
    )
    lines = [
        f"{explanation.table}: item {explanation.key_digest} {here} in DynamoDB, read at {_time(explanation.read_at)}",
        f"  replication  through {_time(explanation.applied_through)}, {basis}",
        *(
            f"  writer       {mark.writer}: newest change of {_time(mark.as_of)}, applied at {_time(mark.applied_at)}"
            for mark in explanation.writers[:_WRITERS_SHOWN]
        ),
        f"  load         {'one is running; ' if state.loading else ''}the newest complete one is as of"
        f" {_time(state.loaded_as_of)}",
        f"  purged       tombstones through {_time(state.purged_through)}",
        *(
            f"  reject {reject.id}     for {reject.target or 'no target'}, of {_time(reject.position.as_of)},"
            f" from {reject.source.split(' ')[0]}: {reject.reason}"
            for reject in explanation.rejects
        ),
    ]
    if not explanation.targets:
        return [*lines, "  = not routed: the key matches no target of the mapping"]
    return [*lines, *(line for target in explanation.targets for line in _target_lines(target))]


_WRITERS_SHOWN = 5


def _target_lines(target: ItemInTarget) -> list[str]:
    if target.version is not None:
        position = f"stream of {_time(target.stream_created)}, sequence number {target.sequence_number}, "
    else:
        position = "a snapshot, "
    stands = "" if target.as_of is None else f", from {position}as of {_time(target.as_of)}"
    lines = [f"{target.target}: the row is {target.state}{stands} (key digest {target.key_digest})"]
    different = [name for name, equal in target.columns.items() if not equal]
    if target.columns:
        equal = len(target.columns) - len(different)
        lines.append(f"  columns      {equal} equal" + (f"; different: {', '.join(different)}" if different else ""))
    lines += [
        f"  {name}: source {_shown(source)}, stored {_shown(row)}" for name, (source, row) in target.values.items()
    ]
    lines += [
        f"  drift        reconciliation {drift.reconciliation_id} found it {drift.kind} at {_time(drift.found_at)}"
        f"{', and repaired it' if drift.repaired else ''}"
        for drift in target.drift
    ]
    lines += [
        f"  promotion    of {promotion.attribute}"
        f" {f'ended at {_time(promotion.finished_at)}' if promotion.finished_at else 'is running'}"
        for promotion in target.promotions
    ]
    lines.append(f"  = {target.verdict}: {target.why}")
    if target.next_step:
        lines.append(f"    {target.next_step}")
    return lines


def _shown(text: str | None) -> str:
    return "NULL" if text is None else repr(text)


def _time(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"
