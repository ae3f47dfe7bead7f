"""Where `dynaurora discover` writes, and which names the mapping gets, beside the mapping files that exist.

Invariant: it never writes to another table's mapping file, with `--force` or without, even if file names that differ
only in case are one file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from pipeline.core.discover.mapping_draft import mapping_name, view_name
from pipeline.core.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Place:
    """The file to write. `because` says why its names carry a digest; it is "" if they need none."""

    path: Path
    because: str = ""

    @property
    def distinct(self) -> bool:
        """Whether another table already has the names that follow from this table's name."""
        return bool(self.because)


def place_for(table: str, folder: Path, output: Path | None) -> Place:
    """Find the place for a table's mapping: `output`, or a file in the folder of mappings.

    Raises ConfigurationError if `output` is another table's mapping.
    """
    if output and (owner := _read(output).get("table")) not in {None, table}:
        raise ConfigurationError(
            f"{output} is the mapping of table {owner}", hint="write this table's mapping to another file with --output"
        )
    because = _taken(table, output.parent if output else folder)
    return Place(output or folder / f"{mapping_name(table, distinct=bool(because))}.yaml", because)


def _taken(table: str, folder: Path) -> str:
    """Say which other table's file already has the file name, mapping name or view that this table would get."""
    name, view = mapping_name(table), view_name(table)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() not in {".yaml", ".yml"}:
            continue
        found = _read(path)
        same = path.name.casefold() == f"{name}.yaml" or found.get("name") == name
        if found.get("table") not in {None, table} and (same or view in found["views"]):
            return f"{path} is the mapping of table {found['table']}"
    return ""


def _read(path: Path) -> dict[str, Any]:
    """Read what a mapping file says about itself, as far as it can be read. A file with problems belongs to a table
    too.
    """
    try:
        document: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    fields = _mapping(document)
    table = _mapping(fields.get("source")).get("table")
    views = {str(view).removeprefix("public.") for view in _mapping(fields.get("targets"))}
    return {"table": None if table is None else str(table), "name": fields.get("name"), "views": views}


def _mapping(node: Any) -> dict[Any, Any]:  # noqa: ANN401 - whatever the file has there
    return cast("dict[Any, Any]", node) if isinstance(node, dict) else {}
