"""`make bench`: how fast Dynaurora loads, applies, reconciles and starts, compared with other tools and with COPY.

It writes build/benchmarks.json, a dated copy of that, and docs/benchmarks.md with the last three full runs. It exits
with 1 if a part failed or a result of ours was not exact; the other parts run all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench import again_race, against, apply_race, cold_start, load_race, profiles, promote, results, routes
from tests.bench.contestant import ROOT
from tests.bench.report import RUNS_SHOWN, newest_runs, write_report
from tests.bench.server import SETTINGS, BenchServer, running

BUILD = ROOT / "build"
DATA = BUILD / "bench"
Part = Callable[[], dict[str, Any]]
_NOT_QUICK = (
    "apply-narrow",
    "apply-wide",
    "apply-children",
    "apply-embeddings",
    "apply-history",
    "profile",
    "routes",
)


def main(arguments: list[str]) -> int:
    """Run the suite, or one part, or write the report again."""
    options = _options(arguments)
    if options.report:
        return _report()
    DATA.mkdir(parents=True, exist_ok=True)
    with running() as server:
        if options.profile:
            return profiles.show(options.profile, server, DATA, _say)
        if options.against:
            found = against.measure(
                server,
                DATA,
                options.against.resolve(),
                quick=options.quick,
                rounds=options.rounds,
                say=_say,
                only=options.only,
            )
            against.write(found, BUILD)
            return _told(found["problems"], "build/against.json")
        began = time.monotonic()
        parts = _run(_parts(server, options), options.only)
        seconds = time.monotonic() - began
        found = _described(server, parts, options, seconds)
    _write(found, whole=options.only is None)
    return _told(found["problems"], f"{seconds:.0f} s; build/benchmarks.json")


def _told(problems: list[str], last: str) -> int:
    for problem in problems:
        _say(f"FAILED: {problem}")
    _say(last)
    return 1 if problems else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small samples, one round: for daily use")
    parser.add_argument("--rounds", type=int, help="rounds of every contestant (3; quick 1)")
    parser.add_argument(
        "--only",
        help="one part: load-narrow, load-wide, load-children, load-embeddings, apply, apply-narrow, apply-wide,"
        " apply-children, apply-embeddings, apply-history, cold-start, promote, routes",
    )
    parser.add_argument("--profile", choices=profiles.PATHS, help="only show where the time of one path goes")
    parser.add_argument("--report", action="store_true", help="write docs/benchmarks.md from the existing runs")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="only compare with another checkout")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else against.ROUNDS if options.against else 3)
    return options


def _parts(server: BenchServer, options: argparse.Namespace) -> dict[str, Part]:
    quick, rounds = options.quick, options.rounds
    parts: dict[str, Part] = {
        **load_race.races(server, DATA, quick=quick, rounds=rounds, say=_say),
        **again_race.races(server, DATA, quick=quick, rounds=rounds, say=_say),
        **apply_race.races(server, DATA, quick=quick, rounds=rounds, say=_say),
        "cold-start": lambda: cold_start.measure(server, runs=2 if quick else 7, say=_say),
        "promote": lambda: _promote(server, 50_000 if quick else 1_000_000),
        "routes": lambda: routes.measure(server, DATA, quick=quick, say=_say),
        "profile": lambda: profiles.measure(server, DATA, quick=quick, say=_say),
    }
    if quick and options.only is None:  # to end within two minutes
        for name in _NOT_QUICK:
            del parts[name]
    return parts


def _promote(server: BenchServer, rows: int) -> dict[str, Any]:
    found = promote.measure(server.fresh("bench_promote"), rows, 100.0)
    server.drop("bench_promote")
    (BUILD / "promote.json").write_text(json.dumps(found, indent=2) + "\n")
    if found["lost"] or not found["finished"]:
        raise RuntimeError(f"{found['lost']} values lost, finished: {found['finished']}")
    return found


def _run(parts: dict[str, Part], only: str | None) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, part in parts.items():
        if only not in {None, name}:
            continue
        _say(name)
        began = time.monotonic()
        try:
            found[name] = part()
        except Exception as error:  # noqa: BLE001 - the other parts run all the same, and the suite exits 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            found[name] = {"failure": f"{type(error).__name__} at {place.name}:{place.lineno}: {str(error)[:200]}"}
            _say(f"  failed: {found[name]['failure']}")
        found[name]["seconds"] = round(time.monotonic() - began, 1)
    return found


def _described(
    server: BenchServer, parts: dict[str, dict[str, Any]], options: argparse.Namespace, seconds: float
) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "rounds": options.rounds,
        "seconds": round(seconds),
        "machine": {
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
            "architecture": platform.machine(),
            "python": platform.python_version(),
            "postgresql": server.version(),
            "postgresql_settings": SETTINGS,
        },
        "ours": results.ours(parts),
        "problems": results.problems(parts),
        "parts": parts,
    }


def _write(found: dict[str, Any], *, whole: bool) -> None:
    text = json.dumps(found, indent=2) + "\n"
    (BUILD / "benchmarks.json").write_text(text)
    if whole and not found["quick"]:
        time_name = found["date"].replace(":", "").replace("+0000", "Z")
        (BUILD / f"benchmarks-{time_name}.json").write_text(text)
        _report()


def _report() -> int:
    runs = newest_runs(BUILD)
    if not runs:
        _say("no full run yet: `make bench` makes one, and the report with it")
        return 2
    write_report(ROOT, runs, _say)
    _say(f"docs/benchmarks.md: {len(runs)} of at most {RUNS_SHOWN} runs")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
