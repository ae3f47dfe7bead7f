"""docs/scale.md, from build/scale.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LINEAR = 1.2
"""How much longer a row of the largest size may take than one of a smaller size."""
_TITLES = {"load": "load", "catch-up": "catch up", "reconcile": "reconcile and repair", "purge": "purge"}


def write_report(root: Path, found: dict[str, Any]) -> None:
    """Write the page."""
    (root / "docs").mkdir(exist_ok=True)
    lines = _head(found)
    if found["sizes"]:
        lines += [*_steps(found), *_ratios(found)]
    (root / "docs" / "scale.md").write_text("\n".join(lines) + "\n")


def _head(found: dict[str, Any]) -> list[str]:
    return [
        "# Scale",
        "",
        "`python -m tests.bench.scale` writes this page: 1, 10 and 100 million rows of one table of three attributes,"
        " on one machine. Each size goes through the command line:",
        "",
        "1. load a full export;",
        "2. catch up with an incremental export, in which one item in a hundred was changed, inserted or deleted;",
        "3. damage one row in a hundred by SQL, then reconcile with a new full export, with `--repair`;",
        "4. purge the tombstones of the deleted items.",
        "",
        "After each step every row is compared with the source. Exports have 8 files, whatever the size, in random"
        " order of their keys. 100 million rows need about 50 GB of disk; `--items` takes fewer.",
        "",
        _machine(found) if found["sizes"] else "There is no run yet.",
    ]


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    settings = ", ".join(f"`{name} = {value}`" for name, value in machine["postgresql_settings"].items())
    return (
        f"The newest run: {found['date'][:10]}, {machine['cores']} cores ({machine['architecture']}),"
        f" {machine['memory_gb']} GB, PostgreSQL {machine['postgresql']} on the same machine, Python"
        f" {machine['python']}; {settings}."
    )


def _steps(found: dict[str, Any]) -> list[str]:
    """One table for each step: a line for each size."""
    lines = [
        "",
        "## Steps",
        "",
        "*Client* is the largest resident set of any of the command's processes, *server* the largest private memory of"
        " any PostgreSQL process (without `shared_buffers`). Log and temporary files are the most there was at any"
        " moment; PostgreSQL keeps log for reuse up to `max_wal_size`. Sorting keys takes up to 256 MB of a"
        " server process, which the smallest size does not need.",
    ]
    for name, title in _TITLES.items():
        lines += [
            "",
            f"### {title[0].upper()}{title[1:]}",
            "",
            "| items in the table | items of this step | seconds | items/s | client CPU s | server CPU s | client MB |"
            " server MB | table MB | indexes MB | log MB | temporary MB | result |",
            "| " + "---: | " * 12 + "--- |",
        ]
        for size in found["sizes"]:
            if (step := size["steps"].get(name)) is not None:
                numbers = (
                    size["items"],
                    step["items"],
                    step["seconds"],
                    step["items_per_s"],
                    step["client_cpu_seconds"],
                    step["server_cpu_seconds"],
                    step["client_mb"],
                    step["server_mb"],
                    step["table_mb"],
                    step["indexes_mb"],
                    step["wal_mb"],
                    step["temporary_files_mb"],
                )
                lines.append("| " + " | ".join(_shown(number) for number in numbers) + f" | {step['verdict']} |")
    return lines


def _ratios(found: dict[str, Any]) -> list[str]:
    *others, largest = sorted(found["sizes"], key=lambda size: size["items"])
    lines = [
        "",
        f"## {largest['items']:,} items against fewer",
        "",
        f"Linear is a time for each row of at most {LINEAR} times the smaller size's. Flat is memory that does not grow"
        " with the table.",
        "",
        "| step | against | time for each row | client memory | server memory |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, title in _TITLES.items():
        for other in others:
            if (ratios := compared(largest, other, name)) is not None:
                shown = " | ".join(f"{ratio:.2f}" for ratio in ratios.values())
                lines.append(f"| {title} | {other['items']:,} | {shown} |")
    return lines


def compared(size: dict[str, Any], other: dict[str, Any], step: str) -> dict[str, float] | None:
    """Return how a step of a size compares with that of a smaller one; None if one of them was not taken."""
    mine, others = size["steps"].get(step), other["steps"].get(step)
    if mine is None or others is None:
        return None
    return {
        "time_per_row": (mine["seconds"] / mine["items"]) / (others["seconds"] / others["items"]),
        "client_memory": mine["client_mb"] / others["client_mb"],
        "server_memory": mine["server_mb"] / others["server_mb"],
    }


def _shown(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.1f}"
