"""`dynaurora plan`: the SQL that would bring the database to the mappings. The text output is a script for psql."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.aurora.schema.plan import Plan, plan
from pipeline.commands.session import Outcome, add_names

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.aurora.schema.followers import Caution
    from pipeline.aurora.schema.plan import Refusal, Step
    from pipeline.commands.session import Session


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    add_names(parser)


def run(session: Session, arguments: Namespace) -> Outcome:
    """Compare the database with the mappings."""
    mappings = tuple(map(session.services.with_key, session.mappings(arguments.names)))
    with session.connect("plan") as connection:
        planned = plan(connection, mappings)
    lines = cautioned(planned.cautions)
    for step in planned.steps:
        # An index is built without blocking writers, which no transaction can do.
        statements = [step.sql] if step.index else ["BEGIN;", step.sql, "COMMIT;"]
        lines += [*_comment(step), *statements, ""]
    lines += refused(planned.refusals)
    if planned.empty:
        lines.append("-- nothing to do: the database is as the mappings say")
    return Outcome(plan_document(planned), lines, needs_person=not planned.empty)


def _comment(step: Step) -> list[str]:
    lines = [f"-- {step.mapping or 'dynaurora'}: {step.what}"]
    return [*lines, f"--   note: {step.note}"] if step.note else lines


def cautioned(cautions: tuple[Caution, ...]) -> list[str]:
    """Return what followers of this database need, as comments of a script."""
    return [
        line
        for caution in cautions
        for line in (
            f"-- CAUTION: {caution.what}",
            *(f"--   {number}. {step}" for number, step in enumerate(caution.steps, 1)),
            "",
        )
    ]


def refused(refusals: tuple[Refusal, ...]) -> list[str]:
    """Return what is not done automatically, as comments of a script."""
    return [
        line
        for refusal in refusals
        for line in (f"-- {refusal.mapping}: REFUSED: {refusal.what}", f"--   way out: {refusal.way_out}", "")
    ]


def plan_document(planned: Plan) -> dict[str, Any]:
    """Return a plan as JSON values."""
    return {
        "steps": [asdict(step) for step in planned.steps],
        "refusals": [asdict(refusal) for refusal in planned.refusals],
        "cautions": [asdict(caution) for caution in planned.cautions],
    }
