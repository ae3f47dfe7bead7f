"""How the cost grows with rows, workers and batch size: `python -m tests.bench.plots RUN.json PLOTS.svg`.

Runs in the rivals' environment, the only one that has matplotlib.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

Points = list[tuple[float, float]]


def main() -> None:
    """Draw."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    # Text stays text, and the same figures give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "dynaurora", "font.size": 8})
    pyplot = importlib.import_module("matplotlib.pyplot")
    found = json.loads(Path(sys.argv[1]).read_text())
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained")
    _load_by_workers(axes[0][0], found["ours"])
    _load_by_size(axes[0][1], found["parts"].get("load-narrow", {}).get("by_size", []))
    _apply_by_batch(axes[1][0], found["ours"])
    _apply_by_rows(axes[1][1], found["ours"])
    figure.savefig(sys.argv[2], metadata={"Date": None})


def _draw(axis: Any, title: str, across: str, lines: dict[str, Points], *, logarithmic: bool) -> None:  # noqa: ANN401 - matplotlib's
    for label, points in lines.items():
        if points:
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    if logarithmic:
        axis.set_xscale("log")
    axis.set(title=title, xlabel=across, ylim=(0, None))
    axis.grid(alpha=0.3)
    if len(lines) > 1 and any(lines.values()):
        axis.legend()


def _load_by_workers(axis: Any, ours: list[dict[str, Any]]) -> None:  # noqa: ANN401 - matplotlib's
    lines: dict[str, Points] = {}
    for shape in ("narrow", "wide"):
        for mine in ours:
            if mine["path"] == "load" and mine["case"].startswith(shape) and mine["ratio_to_copy_then_index"]:
                lines.setdefault(shape, []).append((mine["workers"], mine["ratio_to_copy_then_index"]))
    _draw(axis, "Load, as a part of psql \\copy, key after", "workers", lines, logarithmic=False)


def _load_by_size(axis: Any, sizes: list[dict[str, Any]]) -> None:  # noqa: ANN401 - matplotlib's
    points = [(size["items"], 1e6 / size["items_per_s"]) for size in sizes]
    memory = [(size["items"], size["rss_mb"] / 10) for size in sizes]
    lines: dict[str, Points] = {"µs an item": points, "RSS of a process, 10 MB": memory}
    _draw(axis, "Load of narrow items, by export", "items", lines, logarithmic=True)


def _apply_by_batch(axis: Any, ours: list[dict[str, Any]]) -> None:  # noqa: ANN401 - matplotlib's
    lines: dict[str, Points] = {"six columns": [], "three columns": []}
    for mine in ours:
        size = mine["case"].removeprefix("batch-").removesuffix("-three-columns")
        if mine["path"] == "apply" and size.isdigit() and mine["items_per_s"]:
            label = "three columns" if mine["case"].endswith("-three-columns") else "six columns"
            lines[label].append((int(size), mine["items_per_s"]))
    _draw(axis, "Apply, events a second", "records in a batch", lines, logarithmic=True)


def _apply_by_rows(axis: Any, ours: list[dict[str, Any]]) -> None:  # noqa: ANN401 - matplotlib's
    points: Points = []
    for mine in ours:
        rows = mine["case"].removeprefix("batch-100-rows-") if mine["case"] != "batch-100" else "100000"
        if mine["path"] == "apply" and rows.isdigit() and mine["items_per_s"]:
            points.append((int(rows), mine["items_per_s"]))
    _draw(axis, "Apply in batches of 100, events a second", "rows in the table", {"": points}, logarithmic=True)


if __name__ == "__main__":
    main()
