"""The folder of mapping files: reads them, and checks what no file can see alone.

Invariant: of the mappings returned no two share a name, a source table, a view or a storage table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigurationError
from pipeline.core.mapping_file import ParsedMapping, parse_mapping
from pipeline.core.yaml_fields import MappingError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pipeline.core.mapping import TableMapping


def load_mappings(folder: Path) -> tuple[TableMapping, ...]:
    """Read every *.yaml and *.yml file of a folder, by name. Raises MappingError with all that is wrong."""
    mappings, problems = load_each(folder)
    if problems:
        raise MappingError(problems)
    return mappings


def load_each(folder: Path) -> tuple[tuple[TableMapping, ...], tuple[Problem, ...]]:
    """Read the files that can be used, and say what is wrong with the others: one must not hide the rest.

    Of two files that collide the first by name is taken. Raises ConfigurationError when there is no file at all.
    """
    taken: list[ParsedMapping] = []
    problems: list[Problem] = []
    for path in _files(folder):
        try:
            parsed = parse_mapping(_read(path), str(path))
            _check_against(parsed, taken)
        except MappingError as error:
            problems.extend(error.problems)
        else:
            taken.append(parsed)
    return tuple(parsed.mapping for parsed in taken), tuple(problems)


def _files(folder: Path) -> list[Path]:
    hint = "set DYNAURORA_TABLES to the folder of mapping files, or write the first one (docs/mapping.md)"
    if not folder.is_dir():
        raise ConfigurationError(f"reading the mapping files: there is no folder {folder}", hint=hint)
    found = sorted(path for path in folder.iterdir() if path.suffix in {".yaml", ".yml"} and path.is_file())
    if not found:
        raise ConfigurationError(f"reading the mapping files: folder {folder} has no *.yaml file", hint=hint)
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


def _check_against(parsed: ParsedMapping, taken: Iterable[ParsedMapping]) -> None:
    mapping, problems = parsed.mapping, list[Problem]()

    def collides(field: str, what: str, other: TableMapping, remedy: str) -> None:
        problems.append(Problem(mapping.path, parsed.lines[field], field, f"{what} {other.path}; {remedy}"))

    for other in (earlier.mapping for earlier in taken):
        if mapping.name == other.name:
            collides("name", f'"{mapping.name}" is also the name of the mapping in', other, "rename one")
        if mapping.table == other.table:
            what = f'table "{mapping.table}" is also mapped by'
            collides("source.table", what, other, "keep one file a table, with a target for each kind of row")
        theirs = {target.storage_name for target in other.tables}
        for target in mapping.tables:
            if target.storage_name in theirs:
                field = next(f for f in (f"targets.{target.name}", f"targets.{target.view_name}") if f in parsed.lines)
                collides(field, f"the view {target.view_name} is also a target of", other, "rename one")
    if problems:
        raise MappingError(problems)
