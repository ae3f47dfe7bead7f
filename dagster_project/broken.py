"""Mapping files that cannot be used, shown in the graph beside the tables that can.

Invariant: a wrong file never hides another table, and is never invisible itself: it is a node with a failed check.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from dagster_project.progress import Event, evaluation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.mapping_files.yaml_fields import Problem

GROUP = "broken_mappings"
READABLE = "readable"


def broken_definitions(problems: Sequence[Problem]) -> dg.Definitions:
    """Define one asset and one check for each file that has problems."""
    by_file = _by_file(problems)
    return dg.Definitions(
        assets=[_spec(file, found) for file, found in by_file.items()],
        asset_checks=[_check(file, found) for file, found in by_file.items()],
    )


def report_broken(problems: Sequence[Problem], reported: str) -> tuple[list[Event], str]:
    """Return a failed check for each broken file, once for each state of the files, and what to remember."""
    now = "\n".join(map(str, problems))
    if now == reported:
        return [], reported
    return [evaluation(_result(file, found)) for file, found in _by_file(problems).items()], now


def _by_file(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    files: dict[str, list[Problem]] = {}
    for problem in problems:
        files.setdefault(problem.file, []).append(problem)
    return files


def _key(file: str) -> dg.AssetKey:
    return dg.AssetKey([GROUP, re.sub(r"[^A-Za-z0-9_]", "_", Path(file).name)])


def _text(found: Sequence[Problem]) -> str:
    return "\n".join(f"- `{problem}`" for problem in found)


def _spec(file: str, found: Sequence[Problem]) -> dg.AssetSpec:
    return dg.AssetSpec(
        _key(file),
        group_name=GROUP,
        kinds={"yaml"},
        description=f"The mapping file `{file}` cannot be used, so its table is not shown:\n\n{_text(found)}\n\nCorrect"
        " the file, then reload the definitions.",
        metadata={"file": dg.PathMetadataValue(file), "problems": dg.MetadataValue.md(_text(found))},
    )


def _check(file: str, found: Sequence[Problem]) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=_key(file),
        name=READABLE,
        description="The mapping file can be used. If this check fails: correct what it names, then reload the"
        " definitions.",
    )
    def readable() -> dg.AssetCheckResult:
        return _result(file, found)

    return readable


def _result(file: str, found: Sequence[Problem]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=False,
        asset_key=_key(file),
        check_name=READABLE,
        severity=dg.AssetCheckSeverity.ERROR,
        description="; ".join(map(str, found)),
    )
