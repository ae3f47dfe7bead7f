"""Where items come in: no module reads items, or lines of exports, but those that protect them."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Each function that returns items or lines of the source, and the modules that may call it.
ENTRANCES = {
    "read_items": {"pipeline/jobs/protecting.py"},
    "read_lines": {"pipeline/jobs/export_file.py", "pipeline/jobs/discover.py"},  # discover: there is no mapping yet
    "scan_segments": {"pipeline/jobs/snapshots/scan_snapshot.py", "pipeline/jobs/discover.py"},
    "records_of": {"pipeline/jobs/replicate.py"},
    "get_item": set[str](),
    "batch_get_item": {"pipeline/dynamodb/items.py"},
    "execute_statement": set[str](),
}
FOLDERS = ("pipeline", "lambda_replicator", "dagster_project")


def names_of(path: Path) -> set[str]:
    """The names that a module uses, except the functions that it defines itself."""
    tree = ast.parse(path.read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return used - defined


def test_items_come_in_only_where_they_are_protected() -> None:
    found: dict[str, set[str]] = {name: set() for name in ENTRANCES}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            place = path.relative_to(ROOT).as_posix()
            if place.startswith("pipeline/local/"):
                continue
            for name in names_of(path) & set(ENTRANCES):
                found[name].add(place)
    assert found == ENTRANCES
