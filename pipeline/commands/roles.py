"""`dynaurora roles`: shows the database roles, and the SQL for what they lack. The text output is a script for psql."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from pipeline.aurora.schema.role_needs import Role
from pipeline.aurora.schema.roles import DEFAULT_NAMES, create_roles, plan_roles
from pipeline.commands.session import Outcome

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.aurora.schema.roles import RolesPlan
    from pipeline.commands.session import Session


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("--create", action="store_true", help="run the SQL, in one transaction, instead of printing it")
    for role, name in DEFAULT_NAMES.items():
        parser.add_argument(f"--{role.value}", metavar="NAME", default=name, help=f"its name (default: {name})")


def run(session: Session, arguments: Namespace) -> Outcome:
    """Show what the roles lack, or create it; if something is lacking and is only shown, a person is needed."""
    names = {role: str(getattr(arguments, role.value)) for role in Role}
    mappings = session.mappings()
    with session.connect("roles") as connection:
        planned = left = plan_roles(connection, mappings, names)
        if arguments.create and planned.statements:
            create_roles(connection, planned)
            # What a user may not grant on somebody else's schema is a warning, and no error.
            left = plan_roles(connection, mappings, names)
    document = asdict(planned) | {"created": bool(arguments.create), "left": [asdict(each) for each in left.statements]}
    lines = _done(planned, left) if arguments.create else _script(planned)
    return Outcome(document, lines, needs_person=bool(left.statements))


def _script(planned: RolesPlan) -> list[str]:
    lines: list[str] = []
    for role in planned.roles:
        state = "exists" if role.exists else "missing"
        lines.append(f"-- {role.role}: {role.name} ({state}) for {', '.join(role.verbs)}")
    lines += [f"-- NOTE: {caution}" for caution in planned.cautions]
    if not planned.statements:
        return [*lines, "-- nothing to do: every role has what its verbs need"]
    lines.append("BEGIN;")
    for statement in planned.statements:
        lines += [f"-- {statement.what}", f"{statement.sql};"]
    return [*lines, "COMMIT;"]


def _done(planned: RolesPlan, left: RolesPlan) -> list[str]:
    count = len(planned.statements)
    done = f"{count} statement{'' if count == 1 else 's'} run" if count else "nothing to do"
    return [
        *(statement.what for statement in planned.statements),
        *planned.cautions,
        *(f"! still missing, because this user may not grant it: {each.sql}" for each in left.statements),
        done,
    ]
