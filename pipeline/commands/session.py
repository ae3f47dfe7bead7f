"""What every verb works with: the settings, the mappings, a connection; and the outcome that it returns.

Invariant: a verb prints nothing itself. It returns what it found, once for machines and once for people, so that
`--json` always holds everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import ConfigurationError, TerminalError
from pipeline.mappings import load_mappings
from pipeline.settings import Settings

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.text import Text

    from pipeline.aurora.connection import Connection
    from pipeline.core.mapping import TableMapping
    from pipeline.jobs.services import Services


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a verb found. `document` is all of it as JSON values; `lines` is the same for people.

    `needs_person` is the exit code: 1 where someone must look (drift, rejects, a plan with changes), else 0.
    """

    document: dict[str, Any]
    lines: Sequence[str | Text] = ()
    needs_person: bool = False


@dataclass(frozen=True)
class Session:
    """One run of the command line. `progress` is where a verb may show how far it is: standard error."""

    environment: Mapping[str, str] = field(repr=False)
    progress: Console

    @cached_property
    def settings(self) -> Settings:
        """The settings. Raises ConfigurationError."""
        return Settings.from_environment(self.environment)

    @cached_property
    def services(self) -> Services:
        """The database, DynamoDB and S3, each connected when it is asked for."""
        from pipeline.jobs.services import Services  # noqa: PLC0415 - the AWS SDK costs half a second; `--help` has none

        return Services(self.settings)

    def mappings(self, names: Sequence[str] = ()) -> tuple[TableMapping, ...]:
        """Read the mappings: all, or those of the names. Raises MappingError, ConfigurationError."""
        loaded = load_mappings(self.settings.tables_folder)
        by_name = {mapping.name: mapping for mapping in loaded}
        for name in names:
            if name not in by_name:
                near = get_close_matches(name, by_name, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the mappings are {', '.join(by_name)}"
                raise ConfigurationError(f"no mapping in {self.settings.tables_folder} is named {name}", hint=hint)
        return tuple(by_name[name] for name in dict.fromkeys(names)) if names else loaded

    def connect(self, verb: str) -> Connection:
        """Open a connection to Aurora, to be closed by the caller. Raises UnreachableError, ConfigurationError."""
        try:
            return self.services.connect(f"dynaurora {verb}")
        except ConfigurationError:
            raise
        except TerminalError as error:  # the server refuses the user, password or database that it was given
            raise ConfigurationError(error.message, hint=error.hint or "check DATABASE_URL, or the secret") from None


def add_names(parser: ArgumentParser) -> None:
    """Add the argument of verbs that work on some mappings or all."""
    parser.add_argument("names", metavar="NAME", nargs="*", help="the mappings to look at (default: all)")
