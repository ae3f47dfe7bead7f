"""What every verb works with: the settings, the mappings, a connection; and the outcome that it returns.

Invariant: a verb prints nothing itself. It returns what it found, once for machines and once for people, so that
`--json` always has everything.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.core.errors import ConfigurationError
from pipeline.core.mapping_files.yaml_fields import MappingError, Problem
from pipeline.mappings import problems_of, read_folder
from pipeline.settings import Settings

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Callable, Generator, Mapping, Sequence

    from rich.console import Console
    from rich.text import Text

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.services import Services
    from pipeline.mappings import Folder


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a verb found. `document` is all of it as JSON values; `lines` is the same for people.

    `needs_person` decides the exit code: 1 if somebody must look (drift, rejects, a plan with changes), else 0.
    """

    document: dict[str, Any]
    lines: Sequence[str | Text] = ()
    needs_person: bool = False


@dataclass(frozen=True)
class Session:
    """One run of the command line. `progress` is where a verb shows its progress: standard error."""

    environment: Mapping[str, str] = field(repr=False)
    progress: Console
    broken: list[Problem] = field(default_factory=list[Problem])
    """Problems of mapping files that the verb was asked for and skipped: the exit code is then 2."""

    @cached_property
    def settings(self) -> Settings:
        """The settings. Raises ConfigurationError."""
        return Settings.from_environment(self.environment)

    @cached_property
    def services(self) -> Services:
        """The database, DynamoDB and S3, each connected when it is first used."""
        from pipeline.jobs.services import Services  # noqa: PLC0415 - the AWS SDK costs half a second; `--help` has none

        return Services(self.settings)

    def mappings(self, names: Sequence[str] = ()) -> tuple[TableMapping, ...]:
        """Read the mappings that can be used: all, or those named.

        A file that cannot be used does not stop the others. If it was asked for, its problems go into `broken`; if not,
        a warning is shown. Raises MappingError if nothing that was asked for can be used, and ConfigurationError for a
        name that no file has.
        """
        folder = read_folder(self.settings.tables_folder)
        usable = {mapping.name: mapping for mapping in folder.mappings if mapping.name not in folder.contested}
        if not names:
            wanted, broken = list(usable), list(folder.problems)
        else:
            wanted, broken = [name for name in dict.fromkeys(names) if name in usable], list[Problem]()
            for name in dict.fromkeys(names):
                if name not in usable:
                    broken += problems_of(name, folder) or self._unknown(name, usable, folder)
        if broken and not wanted:
            raise MappingError(broken)
        self.broken.extend(broken)
        for problem in folder.problems:
            if problem not in broken:
                self.progress.print(f"warning: skipped: {problem}", highlight=False, markup=False)
        return tuple(usable[name] for name in wanted)

    def _unknown(self, name: str, usable: Mapping[str, TableMapping], folder: Folder) -> NoReturn:
        near = get_close_matches(name, usable, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the mappings are {', '.join(usable)}"
        if folder.problems:
            hint += f"; files that cannot be used: {', '.join(dict.fromkeys(p.file for p in folder.problems))}"
        raise ConfigurationError(f"no mapping in {self.settings.tables_folder} is named {name}", hint=hint)

    @contextmanager
    def showing(self, name: str, what: str) -> Generator[Callable[[str], None]]:
        """Show what is being done: on a terminal as one line that changes, otherwise as lines."""
        if self.progress.is_terminal:
            with self.progress.status(f"{name}: {what}") as shown:
                yield lambda text: shown.update(f"{name}: {text}")
        else:
            yield lambda text: self.progress.print(f"{name}: {text}", highlight=False, markup=False)

    def notice(self, text: str) -> None:
        """Show a line that stays visible, whatever progress is shown meanwhile."""
        self.progress.print(f"note: {text}", highlight=False, markup=False)

    def require_schema(self, mapping: TableMapping, *, needs_session: bool = True) -> None:
        """Raise ConfigurationError if the database is not as the mapping says: before anything is asked for or read."""
        from pipeline.jobs.schema import schema_report  # noqa: PLC0415 - `--help` does without

        schema_report(self.services, mapping, needs_session=needs_session).require()

    def connect(self, verb: str) -> Connection:
        """Open a connection to Aurora, to be closed by the caller. Raises UnreachableError, ConfigurationError."""
        return self.services.connect(f"dynaurora {verb}")


def add_names(parser: ArgumentParser) -> None:
    """Add the argument of verbs that work on some or all mappings."""
    parser.add_argument("names", metavar="NAME", nargs="*", help="the mappings to look at (default: all)")
