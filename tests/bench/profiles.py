"""Where the time of each path goes: the processor time of both sides, the waits, and the most expensive functions.

`python -m tests.bench --profile load-wide` shows one path. The shares of the functions are cProfile's own processor
time, without the functions that they call, with one worker in one process. cProfile charges Python calls more than C
calls, so read them as a ranking.
"""

from __future__ import annotations

import cProfile
import pstats
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import connect
from pipeline.core.mapping_files.mapping_file import read_mapping
from tests.bench.contest import Spec, Work
from tests.bench.contestant import OURS_PYTHON, run
from tests.bench.export import generate
from tests.bench.history import History
from tests.bench.rounds import Say
from tests.bench.server import BenchServer
from tests.bench.shapes import SHAPES

PATHS = ("load-narrow", "load-wide", "apply", "reconcile-narrow", "reconcile-wide")
_ITEMS = {"narrow": 200_000, "wide": 20_000}
_QUICK_ITEMS = {"narrow": 20_000, "wide": 2_000}
_SHOWN = 12


@dataclass(frozen=True)
class Share:
    """One function: its place, and its part of the processor time."""

    where: str
    percent: float


def prepare(spec: Spec) -> Work:
    """Return the work of another contestant under cProfile, as a contestant itself."""
    work = _prepared(spec)

    def profiled() -> dict[str, Any]:
        profiles = [_profiler()]

        def begin(*_: object) -> None:  # at a new thread's first call: cProfile only watches the thread that enables it
            profiles.append(_profiler())
            profiles[-1].enable()

        threading.setprofile(begin)
        profiles[0].runcall(work)
        threading.setprofile(None)
        return {"functions": [vars(share) for share in _shares(profiles)]}

    return profiled


def _profiler() -> cProfile.Profile:
    return cProfile.Profile(time.thread_time)  # processor time: a function that waits costs nothing


def _prepared(spec: Spec) -> Work:
    from tests.bench.ours import apply, load, reconcile  # noqa: PLC0415 - the handler is imported where it is profiled

    makers: dict[str, Callable[[Spec], Work]] = {
        "apply": apply.prepare,
        "load": load.prepare,
        "reconcile": reconcile.prepare,
    }
    return makers[spec.options["path"]](spec)


def _shares(profiles: list[cProfile.Profile]) -> list[Share]:
    found = pstats.Stats(*profiles)
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = vars(found)["stats"]
    total = sum(own for _, _, own, _, _ in stats.values()) or 1.0
    largest = sorted(stats.items(), key=lambda entry: entry[1][2], reverse=True)[:_SHOWN]
    return [Share(_place(*key), round(values[2] / total * 100, 1)) for key, values in largest]


def _place(file: str, line: int, function: str) -> str:
    if file == "~":
        return function
    path = Path(file)
    parts = path.parts[-3:] if "pipeline" in path.parts else path.parts[-2:]
    return f"{'/'.join(parts)}:{line} {function}"


def measure(server: BenchServer, folder: Path, *, quick: bool, say: Say) -> dict[str, Any]:
    """Profile every path."""
    return {path: _profile(path, server, folder, quick=quick, say=say) for path in PATHS}


def show(path: str, server: BenchServer, folder: Path, say: Say) -> int:
    """Profile one path and print it."""
    found = _profile(path, server, folder, quick=False, say=say)
    for share in found["functions"]:
        say(f"  {share['percent']:5.1f} %  {share['where']}")
    return 0


def _profile(path: str, server: BenchServer, folder: Path, *, quick: bool, say: Say) -> dict[str, Any]:
    """Run a path twice: as it is, for the times, and under the profiler, for the functions."""
    kind, _, shape = path.partition("-")
    make = _apply_spec if kind == "apply" else _load_spec
    spec, items = make(server, folder, kind, shape or "narrow", quick=quick)
    times = run(f"tests.bench.ours.{kind}", spec, server_pid=server.pid, python=OURS_PYTHON)
    spec, items = make(server, folder, kind, shape or "narrow", quick=quick)
    profiled = run("tests.bench.profiles", spec, server_pid=server.pid, python=OURS_PYTHON)
    found = {
        "items": items,
        "wall_us_per_item": round(times.wall_seconds / items * 1e6, 2),
        "client_us_per_item": round(times.client_seconds / items * 1e6, 2),
        "server_us_per_item": round(times.server_seconds / items * 1e6, 2),
        "functions": profiled.figures["functions"],
    }
    say(
        f"  {path}: {found['wall_us_per_item']} us an item; client {found['client_us_per_item']},"
        f" server {found['server_us_per_item']}"
    )
    return found


def _load_spec(server: BenchServer, folder: Path, kind: str, shape: str, *, quick: bool) -> tuple[Spec, int]:
    data = generate(folder, shape, (_QUICK_ITEMS if quick else _ITEMS)[shape])
    url = _migrated(server, shape)
    spec = Spec(url, shape, files=data.files, location=data.location, options={"path": kind, "threads": True})
    if kind == "reconcile":
        run("tests.bench.ours.load", spec, server_pid=server.pid, python=OURS_PYTHON)
    server.settle()
    return spec, data.count


def _apply_spec(server: BenchServer, folder: Path, kind: str, shape: str, *, quick: bool) -> tuple[Spec, int]:
    url, batches = _migrated(server, shape), 20 if quick else 200
    history, events, mappings = History(10_000), folder / "profile.jsonl", folder / "tables"
    events.write_bytes(b"\n".join(history.batch(100) for _ in range(batches + 1)))
    mappings.mkdir(exist_ok=True)
    (mappings / "employees.yaml").write_text(SHAPES[shape].mapping)
    return Spec(url, shape, location=str(mappings), text_path=str(events), options={"path": kind}), batches * 100


def _migrated(server: BenchServer, shape: str) -> str:
    url = server.fresh("bench_profile")
    with closing(connect(url, application_name="bench")) as connection:
        migrate(connection, [read_mapping(SHAPES[shape].mapping, "bench.yaml")])
    return url
