"""`dynaurora migrate`: brings the database to the mappings, never dropping data by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping import histories
from pipeline.aurora.rows.history_fill import fill
from pipeline.aurora.schema.migrate import migrate
from pipeline.commands.plan import cautioned, plan_document, refused
from pipeline.commands.session import Outcome, add_names

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.aurora.schema.plan import Step
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.commands.session import Session
    from pipeline.core.model.mapping import TableMapping


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    add_names(parser)
    parser.add_argument(
        "--new-privacy-key",
        action="store_true",
        help="the privacy key was replaced on purpose: empty what was hashed under the old one; a load fills it again",
    )


def run(session: Session, arguments: Namespace) -> Outcome:
    """Apply the plan. A person is needed only for what it refused."""
    mappings = tuple(map(session.services.with_key, session.mappings(arguments.names)))

    def say(step: Step) -> None:
        session.progress.print(f"{step.mapping or 'dynaurora'}: {step.what}", markup=False, highlight=False)

    with session.connect("migrate") as connection:
        done = migrate(
            connection,
            mappings,
            progress=say,
            watch=lambda: session.connect("migrate progress"),
            tell=session.notice,
            new_key=arguments.new_privacy_key,
        )
        filled = [line for mapping in mappings for line in _fill(session, connection, mapping)]
    lines = [f"{step.mapping}: {step.note}" for step in done.steps if step.note]
    if any(step.alters for step in done.steps):
        lines += [line.removeprefix("-- ").removeprefix("--") for line in cautioned(done.cautions)]
    lines += [line.removeprefix("-- ") for line in refused(done.refusals)]
    lines += filled
    count = len(done.steps)
    lines.append(f"{count} step{'' if count == 1 else 's'} done" if count else "nothing to do")
    return Outcome(plan_document(done), lines, needs_person=bool(done.refusals))


def _fill(session: Session, connection: Connection, mapping: TableMapping) -> list[str]:
    """Give the rows that are there a version in histories that are new; return what was done."""
    done: list[str] = []
    for target in mapping.targets:
        recorded = histories.read(connection, target) if target.history else None
        if recorded and not recorded.filled_at:
            session.progress.print(f"{mapping.name}: filling the history of {target.view_name}", markup=False)
            rows = fill(connection, mapping.name, target)
            done.append(f"{mapping.name}: the history of {target.view_name} begins with {rows} stored rows")
    return done
