"""Writes docs/benchmarks.md from the runs: the newest in full, and the ratios of the last three side by side."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.contestant import RIVALS_PYTHON
from tests.bench.rounds import EXACT, Say

RUNS_SHOWN = 3
PLOTS = "docs/images/benchmarks.svg"
_Run = dict[str, Any]
_RATIOS = {
    "ratio_to_copy_then_index": "`psql \\copy`, key after",
    "ratio_to_copy_indexed": "`psql \\copy`, key first",
    "ratio_to_upsert_by_hand": "`\\copy` and upsert by hand",
    "ratio_to_boto3_executemany": "boto3, executemany",
    "ratio_to_pandas": "pandas",
    "ratio_to_duckdb_adbc": "DuckDB, ADBC",
    "ratio_to_load": "load",
    "ratio_to_seed": "the seed's handler",
    "ratio_to_seed_silent": "the same, its logging off",
    "ratio_to_seed_without_select": "without its SELECT",
    "ratio_to_seed_silent_without_select": "without SELECT and logging",
    "ratio_to_100000_rows": "100,000 rows",
}


def newest_runs(build: Path) -> list[_Run]:
    """Return the newest full runs that were kept, the newest first."""
    paths = sorted(build.glob("benchmarks-2*.json"), reverse=True)[:RUNS_SHOWN]
    return [json.loads(path.read_text()) for path in paths]


def write_report(root: Path, runs: Sequence[_Run], say: Say) -> None:
    """Write the document, and its plots where matplotlib is installed."""
    (root / "docs/benchmarks.md").write_text(document(runs))
    newest = root / "build/benchmarks-newest.json"
    newest.write_text(json.dumps(runs[0]))
    if not RIVALS_PYTHON.exists():
        say("no plots: `make bench` sets up .venv-bench, which has matplotlib")
        return
    (root / PLOTS).parent.mkdir(exist_ok=True)
    command = [str(RIVALS_PYTHON), "-m", "tests.bench.plots", str(newest), str(root / PLOTS)]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    if done.returncode:
        say(f"no plots: {done.stderr.strip().splitlines()[-1]}")


def document(runs: Sequence[_Run]) -> str:
    """Return the text of the document."""
    newest, machine = runs[0], runs[0]["machine"]
    parts: dict[str, dict[str, Any]] = newest["parts"]
    lines = [
        "# Benchmarks",
        "",
        "`make bench` writes this page. It makes its data, starts its own PostgreSQL, and runs all contestants"
        f" interleaved, in {newest['rounds']} rounds. Those on which the targets' ratios depend run several times a"
        " round. Rates are medians; memory is that of a contestant's largest process. Every result is compared, value"
        " for value, with that of a separately written loader, and a wrong one is shown as wrong. Quote the ratios:"
        " they compare programs on one machine, in one run.",
        "",
        f"The newest run: {newest['date'][:10]}, {newest['seconds'] / 60:.0f} minutes, {machine['cores']} cores"
        f" ({machine['architecture']}), {machine['memory_gb']} GB, PostgreSQL {machine['postgresql']} on the same"
        f" machine, Python {machine['python']}. PostgreSQL is durable, with "
        + ", ".join(f"`{name} = {value}`" for name, value in machine["postgresql_settings"].items())
        + "; a checkpoint is made before each measurement.",
        "",
        f"![How cost grows]({PLOTS.removeprefix('docs/')})",
        "",
        *_ratio_tables(runs),
        *_load_tables(parts),
        *_apply_tables(parts),
        *_cold_start(parts.get("cold-start", {})),
        *_promotion(parts.get("promote", {})),
        *_profiles(parts.get("profile", {})),
    ]
    if newest["problems"]:
        lines += ["## What went wrong in this run", "", *(f"- {problem}" for problem in newest["problems"]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _ratio_tables(runs: Sequence[_Run]) -> list[str]:
    lines = ["## Ratios", ""]
    dates = ", ".join(run["date"][:16].replace("T", " ") for run in runs)
    lines += [f"How many times faster than each, in each of the last {len(runs)} runs ({dates} UTC, newest first).", ""]
    cases = [(mine["path"], mine["case"]) for mine in runs[0]["ours"]]
    rows = [["Path and case", "against", *(f"run {number + 1}" for number in range(len(runs)))]]
    for path, case in cases:
        found = [_case(run, path, case) for run in runs]
        for name, label in _RATIOS.items():
            if found[0].get(name) is not None:
                rows.append([f"{path} {case}", label, *(_number(mine.get(name)) for mine in found)])
    return [*lines, *_table(rows), ""]


def _case(run: _Run, path: str, case: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [mine for mine in run["ours"] if (mine["path"], mine["case"]) == (path, case)]
    return found[0] if found else {}


_LOAD_HEAD = ["", "items", "items/s", "client µs/item", "server µs/item", "RSS MB", "result"]


def _load_tables(parts: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["## Load and reconcile", ""]
    lines += [
        "Items in random order of their keys, in 8 gzip files of the documented export layout, from a local folder."
        " Rivals get a plain table with its key; the limits get our own table. Slow rivals get fewer items, which is"
        " in their favour. Ours decompresses with isal (the extra `fast`), except on the line without it. *Client* is"
        " the processor time of the loader's processes, *server* that of PostgreSQL's. Lists and maps that mostly have"
        " one form, like those of *wide*, are read by that form; those of *varied* are not.",
        "",
    ]
    for shape, title in (
        ("narrow", "Narrow: `Employees`, three attributes"),
        ("narrow-3-indexes", "Narrow, with three indexes besides the key"),
        ("wide", "Wide: 20 attributes of all types, 1.1 KB"),
        ("varied", "Varied: wide, its list and its map of another form in every item"),
        ("children", "Orders with four lines each, which are rows of a table of their own"),
        ("embeddings", "Embeddings: lists of 1,536 numbers as `double precision[]`"),
        ("narrow-again", "Narrow, into a table that holds the same items, all older"),
        ("narrow-again-index", "The same with an index besides the key"),
        ("wide-again", "Wide, into a table that holds the same items, all older"),
        ("narrow-merge", "A tenth of the narrow items, merged into a table that holds all"),
    ):
        outcomes = parts.get(f"load-{shape}", {}).get("outcomes", [])
        rows = [_LOAD_HEAD, *(_row(outcome) for outcome in sorted(outcomes, key=_fastest_first))]
        lines += [f"### {title}", "", *_table(rows), ""]
        if shape == "embeddings":
            stored = [outcome.get("stored_bytes_per_item") for outcome in outcomes if outcome["kind"] == "ours"]
            lines += [f"Stored bytes an item, table and index: {_number(stored[0])}.", ""] if stored else []
    if sizes := parts.get("load-narrow", {}).get("by_size"):
        rows = [["narrow items, 2 workers", "items/s", "RSS MB of the largest process"]]
        rows += [[f"{size['items']:,}", f"{size['items_per_s']:,}", str(size["rss_mb"])] for size in sizes]
        lines += ["### Memory by the size of the export", "", *_table(rows), ""]
    return lines


def _fastest_first(outcome: dict[str, Any]) -> float:
    return -(outcome["items_per_s"] or 0)


def _row(outcome: dict[str, Any]) -> list[str]:
    label = f"**{outcome['label']}**" if outcome["kind"] == "ours" else outcome["label"]
    if outcome["failure"]:
        return [label, "", "", "", "", "", f"did not finish: {outcome['failure']}"]
    numbers = (outcome["client_us_per_item"], outcome["server_us_per_item"], outcome["rss_mb"])
    verdict = outcome["verdict"] if outcome["verdict"] == EXACT else f"**{outcome['verdict']}**"
    return [label, f"{outcome['items']:,.0f}", f"{outcome['items_per_s']:,.0f}", *map(_number, numbers), verdict]


def _apply_tables(parts: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["## Apply", ""]
    lines += [
        "From an event's JSON to its commit, through the Lambda function's own handler with all its logging and"
        " counting; the seed's handler, rebuilt with the same behaviour, likewise. A proxy adds the network's round"
        " trip. Commits do not wait for the disk unless a line says so, because then every contestant would wait once a"
        " batch for this machine's disk. The first batch warms up and is not counted; the seed's handler connects for"
        " each batch, as the original does. *Client* is all the processor time of the function's process, including the"
        " parsing of the event, which on Lambda the runtime does; the next column gives that part.",
        "",
    ]
    for name, title in (
        ("apply", "Six columns, with a number of up to 38 digits and a map"),
        ("apply-narrow", "Three columns, as the seed has them"),
        ("apply-wide", "Twenty columns of all types, 1.1 KB an item"),
        ("apply-children", "Orders with four lines each, which are rows of a table of their own"),
        ("apply-embeddings", "Embeddings: lists of 1,536 numbers"),
        ("apply-history", "Six columns, with and without a history that keeps every version"),
    ):
        part = parts.get(name, {})
        network: dict[str, Any] = part.get("network", {})
        head = ["", "events/s", "client µs/event", "of it `json.loads`"]
        rows = [[*head, "server µs/event", "round trips a batch", "RSS MB", "result"]]
        for outcome in part.get("outcomes", []):
            items, rate, client, server, rss, verdict = _row(outcome)[1:]
            del items
            trips = _number(outcome.get("round_trips_per_batch")) if "no-delay" not in outcome["key"] else ""
            parsing = _number(outcome.get("json_loads_us_per_item"))
            rows.append([_row(outcome)[0], rate, client, parsing, server, trips, rss, verdict])
        added = f"Added round trip as measured: {network.get('added_ms')} ms; of it the proxy itself"
        lines += [f"### {title}", "", f"{added} {network.get('proxy_itself_ms')} ms.", "", *_table(rows), ""]
    return lines


def _cold_start(part: dict[str, Any]) -> list[str]:
    if "import_ms" not in part:
        return []
    rows = [["Import of the handler", "ms"]]
    rows += [[name, _number(taken)] for name, taken in part["import_ms"].items()]
    rows.append(["**all**", _number(part["import_total_ms"])])
    sizes = [["The zip", "kB"]]
    sizes += [[name, f"{size / 1000:,.0f}"] for name, size in part["zip_shares_bytes"].items()]
    sizes.append(["**the file**", f"{part['zip_bytes'] / 1000:,.0f}"])
    return [
        "## Cold start",
        "",
        "The packaged zip under AWS's Runtime Interface Emulator, with only the runtime client and boto3 on its path"
        " and, as on Lambda, no compiled bytecode beside its sources. The first invocation starts Python, imports,"
        " reads the secret, connects and applies 100 records. `-X importtime` gives each module's own time.",
        "",
        f"First invocation: {part['first_invocation_ms']} ms; the second: {part['second_invocation_ms']} ms."
        f" Processor time of the import: {part['import_cpu_ms']} ms.",
        "",
        *_table(rows),
        "",
        *_table(sizes),
        "",
    ]


def _promotion(part: dict[str, Any]) -> list[str]:
    if "rows" not in part:
        return []
    return [
        "## Promote",
        "",
        f"A column filled over {part['rows']:,} rows while {part['changes_a_second']:.0f} changes a second arrive:"
        f" {part['promote_seconds']} s, the longest lock {part['longest_lock_seconds']} s, the slowest batch"
        f" {part['slowest_batch_seconds']} s (before it {part['slowest_batch_before_seconds']} s), values lost:"
        f" {part['lost']}.",
        "",
    ]


_FLOORS = (
    "*Load*: the server runs COPY and builds the key, as for ready-made text; the client decompresses, recognises a"
    " line's form and writes COPY text. With a worker for each core both sides share the cores, so the time cannot fall"
    " below their sum divided by the number of cores: the last column. The rest of the time goes into starting the"
    " workers, the swap, and waiting for the disk.",
    "*Apply*: one shard's batches follow one another, so decode, network, statement and commit add up; only the cost of"
    " each can be reduced. Lambda parses the event's JSON, which is a good part of the client's time. There is one"
    " prepared statement for each target, sent in one round trip with its watermark.",
    "*Reconcile*: the load's decode, the copy of the snapshot to a staging table, and one comparison in the server.",
)


def _profiles(part: dict[str, Any]) -> list[str]:
    lines = ["## Where the time goes", ""]
    lines += [
        "Each path with one worker, without a network. The rest of the wall time is waiting: for the disk, or for the"
        " other side. The functions are ranked by their own processor time in cProfile (`python -m tests.bench"
        " --profile PATH`).",
        "",
    ]
    paths: dict[str, dict[str, Any]] = {name: value for name, value in part.items() if isinstance(value, dict)}
    rows = [["µs an item", "wall", "client", "server", "both sides over 2 cores"]]
    for path, found in paths.items():
        wall, client, server = (found[f"{name}_us_per_item"] for name in ("wall", "client", "server"))
        floor = "" if path == "apply" else _number((client + server) / 2)
        rows.append([path, *map(_number, (wall, client, server)), floor])
    lines += [*_table(rows), "", *(line for text in _FLOORS for line in (text, ""))]
    for path, found in paths.items():
        functions = [[f"{path}: function", "% of the client's"]]
        functions += [[f"`{share['where']}`", f"{share['percent']:.1f}"] for share in found["functions"]]
        lines += [*_table(functions), ""]
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return [head, f"| --- |{' ---: |' * (len(rows[0]) - 1)}", *body]


def _number(value: float | None) -> str:
    """Write a number with about three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
