"""The demo's summary as a person reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console


def show(console: Console, summary: dict[str, Any], path: Path) -> None:
    """Print the summary and the verdict."""
    table = Table(show_header=False, box=None, padding=(0, 2))
    for label, value in _lines(summary):
        table.add_row(label, value)
    console.print()
    console.print(table)
    proved = summary["equal"] and summary["found_exactly_the_damage"]
    verdict = "equal: every item has its row, every row its item, column by column" if proved else "NOT PROVED"
    console.print(f"\n  [bold {'green' if proved else 'red'}]{verdict}[/]   ({path}, {summary['seconds']} s)\n")


def _lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    lag = summary["lag_seconds"]
    kinds = summary["drift_by_kind"]
    return [
        ("items loaded from the export", f"{summary['items_loaded']:,}"),
        ("writes while it was loaded", f"{summary['writes_during_load']:,} ({summary['writes_per_second']} a second)"),
        ("changes applied from the stream", f"{summary['changes_applied']:,}, of them {summary['deletes']:,} deletes"),
        ("older states left out by the rule", f"{summary['stale']:,}"),
        ("rejected records", f"{summary['rejected']:,}"),
        (
            "lag, write to visible",
            f"p50 {lag['p50']} s, p99 {lag['p99']} s, max {lag['max']} s ({lag['samples']} writes)"
            if lag
            else "not seen",
        ),
        (
            "drift found after the damage",
            f"{kinds['different']} altered, {kinds['missing']} deleted, {kinds['extra']} invented;"
            f" {summary['repaired']} repaired",
        ),
        ("items in DynamoDB, rows in the view", f"{summary['items']:,}, {summary['rows']:,}"),
    ]
