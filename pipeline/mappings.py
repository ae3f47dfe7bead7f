"""The folder of mapping files: reads them, and checks what no file can check alone.

Invariant: no two of the returned mappings share a name, a source table, a view or a storage table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigurationError
from pipeline.core.mapping_files.mapping_file import ParsedMapping, parse_mapping
from pipeline.core.mapping_files.yaml_fields import MappingError, Problem
from pipeline.core.model import history

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.core.model.mapping import TableMapping


@dataclass(frozen=True, slots=True)
class Folder:
    """The contents of a folder of mapping files: the mappings that can be used, and the problems of the other files."""

    mappings: tuple[TableMapping, ...]
    problems: tuple[Problem, ...]
    contested: dict[str, tuple[Problem, ...]]
    """Mappings that another file collides with, by name: it is not known which of the two is meant."""

    def usable(self) -> tuple[TableMapping, ...]:
        """Return the mappings that no file's problem affects. Raises MappingError if there is none."""
        usable = tuple(mapping for mapping in self.mappings if mapping.name not in self.contested)
        if not usable:
            raise MappingError(self.problems)
        return usable


def load_mappings(folder: Path) -> tuple[TableMapping, ...]:
    """Read every *.yaml and *.yml file of a folder, by name. Raises MappingError with everything that is wrong."""
    mappings, problems = load_each(folder)
    if problems:
        raise MappingError(problems)
    return mappings


def load_each(folder: Path) -> tuple[tuple[TableMapping, ...], tuple[Problem, ...]]:
    """Read the files that can be used, and return the others' problems: `read_folder` without the contested ones."""
    read = read_folder(folder)
    return read.mappings, read.problems


def read_folder(folder: Path) -> Folder:
    """Read the files that can be used, and return the others' problems, so that one does not hide the rest.

    Of two files that collide, the first by name is taken. Raises ConfigurationError if there is no file at all.
    """
    taken: list[ParsedMapping] = []
    problems: list[Problem] = []
    contested: dict[str, tuple[Problem, ...]] = {}
    for path in _files(folder):
        try:
            parsed = parse_mapping(_read(path), str(path))
        except MappingError as error:
            problems.extend(error.problems)
            continue
        collisions = _collisions(parsed, taken)
        for name, problem in collisions:
            problems.append(problem)
            contested[name] = (*contested.get(name, ()), problem)
        if not collisions:
            taken.append(parsed)
    return Folder(tuple(parsed.mapping for parsed in taken), tuple(problems), contested)


def problems_of(name: str, folder: Folder) -> list[Problem]:
    """Return why the mapping with this name cannot be used; a broken file is found by its `name:` or file name."""
    found = list(folder.contested.get(name, ()))
    named = re.compile(rf"(?m)^name:\s*[\"']?{re.escape(name)}[\"']?\s*(#.*)?$")
    for problem in folder.problems:
        path = Path(problem.file)
        if problem not in found and (path.stem == name or named.search(_text(path))):
            found.append(problem)
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError:
        return ""


def _files(folder: Path) -> list[Path]:
    hint = "set DYNAURORA_TABLES to the folder of mapping files, or write the first one (docs/mapping.md)"
    doing = "reading the mapping files"
    try:
        # A link to nowhere counts too: it is reported as unreadable, not skipped.
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in {".yaml", ".yml"} and not p.is_dir())
    except FileNotFoundError:
        raise ConfigurationError(f"{doing}: there is no folder {folder}", hint=hint) from None
    except NotADirectoryError:
        raise ConfigurationError(f"{doing}: {folder} is a file, not a folder", hint=hint) from None
    except OSError as error:
        reason = (error.strerror or "it cannot be read").lower()
        hint = "check its permissions and DYNAURORA_TABLES"
        raise ConfigurationError(f"{doing}: folder {folder} cannot be listed ({reason})", hint=hint) from None
    if not found:
        raise ConfigurationError(f"{doing}: folder {folder} has no *.yaml file", hint=hint)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise MappingError([Problem(str(path), line, "", "is not UTF-8 text; save it as UTF-8")]) from None
    except OSError as error:
        reason = (error.strerror or "it cannot be read").lower()
        raise MappingError([Problem(str(path), 1, "", f"cannot be read ({reason}); check its permissions")]) from None


def _collisions(parsed: ParsedMapping, taken: Iterable[ParsedMapping]) -> list[tuple[str, Problem]]:
    """Return what collides with which mapping, by its name."""
    mapping, found = parsed.mapping, list[tuple[str, Problem]]()

    def collides(field: str, what: str, other: TableMapping, remedy: str) -> None:
        problem = Problem(mapping.path, parsed.lines[field], field, f"{what} {other.path}; {remedy}")
        found.append((other.name, problem))

    for other in (earlier.mapping for earlier in taken):
        if mapping.name == other.name:
            collides("name", f'"{mapping.name}" is also the name of the mapping in', other, "rename one")
        elif mapping.name.rstrip("_") == other.name.rstrip("_"):  # `a_purge` and `a__purge` are names of Dagster's
            what = f'"{mapping.name}" would give Dagster the same names as "{other.name}" of'
            collides("name", what, other, 'rename one: more than "_" at the end must differ')
        if mapping.table == other.table:
            what = f'table "{mapping.table}" is also mapped by'
            collides("source.table", what, other, "keep one file for each table, with a target for each kind of row")
        theirs = {target.storage_name for target in other.tables}
        histories = {name for target in other.tables for name in history.tables_of(target)}
        for target in mapping.tables:
            field = next(f for f in (f"targets.{target.name}", f"targets.{target.view_name}") if f in parsed.lines)
            if target.storage_name in theirs:
                collides(field, f"the view {target.view_name} is also a target of", other, "rename one")
            elif target.storage_name in histories:
                collides(field, f"the view {target.view_name} is also the history of a target of", other, "rename one")
            elif theirs.intersection(history.tables_of(target)):
                what = f"its history has the name {history.table_name(target)}, which is also a target of"
                collides(field, what, other, "rename one")
    return found
