"""The person of the exam does what is printed, in order, and stops when nothing is printed."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from tests.exam.person import Answer, Person, printed

STATUS, RECONCILE = "dynaurora status t --probe", "dynaurora reconcile t"


def test_commands_are_read_from_what_is_printed_without_those_that_only_look() -> None:
    text = (
        "  ! lost: run `dynaurora catch-up t --from A\n --to B`\n  ! late: run `dynaurora status t --probe` again\n"
        "  ! set the clock (`chronyc tracking` shows it, `chronyc makestep` sets it), `pg_dump` not\n"
        "  ! lost: run `dynaurora catch-up t --from A --to B`\n"
    )
    assert printed(Answer("x", 1, text, 0.0)) == ["dynaurora catch-up t --from A --to B", "chronyc makestep"]


@pytest.fixture
def person(tmp_path: Path) -> Person:
    """A `dynaurora` that asks for a repair until one was made, and refuses the repair until the clock was set."""
    (tmp_path / "dynaurora").write_text(
        f"""#!/bin/sh
cd {tmp_path}
case "$*" in
status*) test -e repaired || {{ echo 'run `dynaurora repair t`'; exit 1; }} ;;
repair*) test -e right || {{ echo 'refused: `chronyc makestep`, and run it again'; exit 2; }}; touch repaired ;;
esac
"""
    )
    (tmp_path / "chronyc").write_text(f"#!/bin/sh\ntouch {tmp_path}/right\n")
    for name in ("dynaurora", "chronyc"):
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return Person("t", environment, lambda: None, io.StringIO())


def test_what_a_refused_command_names_is_done_and_the_command_again(person: Person) -> None:
    repair = person.put_right()
    assert repair.proven
    assert [(answer.command, answer.code) for answer in repair.followed] == [
        ("dynaurora repair t", 2),
        ("chronyc makestep", 0),
        ("dynaurora repair t", 0),
    ]
    assert repair.looks == 3


def test_what_never_ends_is_not_proven(person: Person, tmp_path: Path) -> None:
    (tmp_path / "chronyc").write_text("#!/bin/sh\n")
    repair = person.put_right()
    assert not repair.proven
    assert repair.looks == 25
