"""`dynaurora`: the command line. A table of verbs, each in its own module of `pipeline.commands`.

Invariant: standard output holds only the outcome, as text or with `--json` as one JSON document, which an error is too.
Progress and errors for people go to standard error. The exit code says what to do: 0 done, 1 a person must look,
2 wrong use or configuration, 3 a dependency could not be reached (try again). None of our own errors shows a traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from datetime import datetime, timedelta
from decimal import Decimal
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, cast

from rich.console import Console

from pipeline.commands.session import Session
from pipeline.core.errors import (
    ConfigurationError,
    LoginRefusedError,
    NotMigratedError,
    ReplicationError,
    TransientError,
)
from pipeline.core.mapping_files.yaml_fields import MappingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.commands.session import Outcome

DONE, NEEDS_PERSON, WRONG_USE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130


class Verb(NamedTuple):
    """A verb, and the module that is imported when it is used."""

    name: str
    summary: str
    module: str


class Command(Protocol):
    """What the module of a verb offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the verb's own arguments."""
        ...

    def run(self, session: Session, arguments: argparse.Namespace) -> Outcome:
        """Do the work. Raises ReplicationError."""
        ...


# A new verb needs a line here, and its module.
VERBS = (
    Verb("discover", "profile a DynamoDB table and write its mapping file", "pipeline.commands.discover"),
    Verb("plan", "show the SQL that would bring the database to the mappings", "pipeline.commands.plan"),
    Verb("migrate", "bring the database to the mappings, never dropping data", "pipeline.commands.migrate"),
    Verb("roles", "show the database roles and the SQL of what they lack", "pipeline.commands.roles"),
    Verb("repoint", "make the table that a mapping now names its source of record", "pipeline.commands.repoint"),
    Verb("load", "load a full export of a table into its targets", "pipeline.commands.load"),
    Verb("catch-up", "apply what was written in a range of the past, including deletes", "pipeline.commands.catch_up"),
    Verb(
        "reconcile", "compare a table's targets with a snapshot, and repair on request", "pipeline.commands.reconcile"
    ),
    Verb("redrive", "apply the batches that Lambda discarded", "pipeline.commands.redrive"),
    Verb("rejects", "list, show and replay records that could not be converted", "pipeline.commands.rejects"),
    Verb("unmapped", "show the attributes that no column takes, with lines to add", "pipeline.commands.unmapped"),
    Verb("promote", "fill new columns of a mapping from the jsonb column", "pipeline.commands.promote"),
    Verb("forget", "remove what is kept about a deleted item", "pipeline.commands.forget"),
    Verb("purge", "remove old tombstones and leftovers", "pipeline.commands.purge"),
    Verb("status", "show how far each table is, and what waits for a person", "pipeline.commands.status"),
)


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> int:
    """Run one verb and return the exit code. `argv` and `environment` are the process's own unless given."""
    words = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # a terminal that is not UTF-8 gets the rest of the text
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        arguments = _parser(words).parse_args(words)
    except ConfigurationError as error:
        return _fail(error, WRONG_USE, as_json="--json" in words)
    command = _command(next(verb for verb in VERBS if verb.name == arguments.verb))
    session = Session(os.environ if environment is None else environment, Console(stderr=True, soft_wrap=True))
    try:
        return _run(command, session, arguments)
    except BrokenPipeError:
        # The reader of our output is gone (`dynaurora plan | head`), so there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NEEDS_PERSON


def _run(command: Command, session: Session, arguments: argparse.Namespace) -> int:
    try:
        outcome = command.run(session, arguments)
    except ReplicationError as error:
        return _fail(error, _exit_code(error), as_json=arguments.json)
    except KeyboardInterrupt:
        message = "interrupted"
        error = TransientError(message, hint="what was committed stays, run it again to resume")
        return _fail(error, INTERRUPTED, as_json=arguments.json)
    broken = MappingError(session.broken) if session.broken else None  # the verb has done what it could for the others
    if arguments.json:
        error = {"error": _error_document(broken, WRONG_USE)} if broken else {}
        print(json.dumps(outcome.document | error, indent=2, default=_json))
    else:
        console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
        for line in outcome.lines:
            console.print(line)
    sys.stdout.flush()
    if broken:
        print(broken, file=sys.stderr)
        return WRONG_USE
    return NEEDS_PERSON if outcome.needs_person else DONE


def _fail(error: ReplicationError, code: int, *, as_json: bool) -> int:
    prefix = "" if isinstance(error, MappingError) else "dynaurora: "  # file:line first, for editors
    print(f"{prefix}{error}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": _error_document(error, code)}, indent=2))
    return code


def _error_document(error: ReplicationError, code: int) -> dict[str, object]:
    """Say the error in parts; `problems` are those of mapping files."""
    problems = [asdict(problem) for problem in error.problems] if isinstance(error, MappingError) else []
    parts: dict[str, object] = {
        "message": error.message,
        "hint": error.hint,
        "table": error.table,
        "exit_code": code,
    }
    return parts | ({"problems": problems} if problems else {})


class _Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviated options: one that is new could change what an old script means."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - those of argparse
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise ConfigurationError(message, hint=f"`{self.prog} --help` says what there is")


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dynaurora",
        description="Keeps DynamoDB tables readable as typed Aurora PostgreSQL tables.",
        epilog="exit codes: 0 done, 1 a person must look, 2 wrong use or configuration, 3 a dependency could not be"
        " reached",
    )
    installed = version("dynaurora") if "--version" in words else ""
    parser.add_argument("--version", action="version", version=f"dynaurora {installed}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        added = verbs.add_parser(verb.name, help=verb.summary, description=verb.summary)
        added.add_argument("--json", action="store_true", help="print the outcome as one JSON document")
        if verb.name in words:  # no need to import the others to refuse their arguments
            _command(verb).add_arguments(added)
    return parser


def _command(verb: Verb) -> Command:
    return cast("Command", import_module(verb.module))


def _json(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return str(value)  # a JSON number may be read as a float
    message = f"a {type(value).__name__} has no JSON form here"
    raise TypeError(message)


def _exit_code(error: ReplicationError) -> int:
    if isinstance(error, ConfigurationError | LoginRefusedError | NotMigratedError):
        return WRONG_USE
    return UNREACHABLE if isinstance(error, TransientError) else NEEDS_PERSON


if __name__ == "__main__":
    sys.exit(main())
