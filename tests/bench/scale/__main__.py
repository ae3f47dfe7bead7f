"""Whether time stays linear and memory flat: `python -m tests.bench.scale`; build/scale.json and docs/scale.md.

It takes a hundredth, a tenth and the whole of `--items` narrow items, each in turn: loaded, caught up by one change in
a hundred, reconciled with one row in a hundred damaged, and purged. Each size is written down when it is done, and
`--resume` passes over those that build/scale.json has. It exits with 1 if a result was not exact.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench.contestant import ROOT
from tests.bench.scale import rows
from tests.bench.scale.report import write_report
from tests.bench.scale.run import STEPS, Size, needed_bytes
from tests.bench.server import SETTINGS, BenchServer, running

_GIB = 1 << 30


def main(arguments: list[str]) -> int:
    """Measure every size, and write what was found after each."""
    options = _options(arguments)
    build = options.root / "build"
    build.mkdir(parents=True, exist_ok=True)
    kept = build / "scale.json"
    if options.report:
        write_report(options.root, json.loads(kept.read_text()))
        return 0
    sizes = [options.items // 100, options.items // 10, options.items]
    if short := _short_of_space(build, sizes[-1]):
        _say(short)
        return 2
    before: list[dict[str, Any]] = json.loads(kept.read_text())["sizes"] if options.resume and kept.exists() else []
    measured = [size for size in before if _whole(size)]
    done = {size["items"] for size in measured}
    with running() as server:
        found = _described(server)

        def write(so_far: list[dict[str, Any]]) -> None:
            found["sizes"] = so_far
            kept.write_text(json.dumps(found, indent=2) + "\n")

        for items in sizes:
            if items not in done:
                _say(f"{items:,} items")
                size = Size(server, build / "scale" / str(items), items, _say, keep=options.keep)
                measured.append(size.measure(lambda so_far: write([*measured, so_far])))
            write(measured)
    write_report(options.root, found)
    wrong = [size["items"] for size in measured if not _whole(size)]
    _say(f"build/scale.json, docs/scale.md{': NOT EXACT: ' + str(wrong) if wrong else ''}")
    return 1 if wrong else 0


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale", description=__doc__)
    parser.add_argument("--items", type=int, default=100_000_000, help="items of the largest of the three sizes")
    parser.add_argument("--keep", action="store_true", help="keep the exports under build/scale")
    parser.add_argument("--resume", action="store_true", help="leave out the sizes that build/scale.json has")
    parser.add_argument("--report", action="store_true", help="only write docs/scale.md from build/scale.json")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.items < 100 * rows.EVERY or options.items % (100 * rows.EVERY):
        parser.error(f"--items must be a multiple of {100 * rows.EVERY}")
    return options


def _whole(size: dict[str, Any]) -> bool:
    return all(size["steps"].get(name, {}).get("verdict") == "exact" for name in STEPS)


def _short_of_space(build: Path, items: int) -> str | None:
    needed, free = needed_bytes(items), shutil.disk_usage(build).free
    _say(f"{items:,} items need {needed / _GIB:.1f} GB of disk at most; {free / _GIB:.1f} GB are free")
    if needed <= free:
        return None
    return "not enough: free some, or give fewer --items (PostgreSQL's folder is a temporary one: TMPDIR moves it)"


def _described(server: BenchServer) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB),
            "architecture": platform.machine(),
            "python": platform.python_version(),
            "postgresql": server.version(),
            "postgresql_settings": SETTINGS,
        },
    }


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a command line


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGINT):  # a shell's background command ignores the latter
        signal.signal(ending, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
