"""`make bench BENCH="--against ../other"`: this checkout's load and replicator, against those of another checkout.

Only the code differs: both run in this environment, on one server, from the same export and the same events, in
interleaved rounds. So a ratio says what a change costs, on a machine whose speed changes from minute to minute.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench import apply_race, load_race
from tests.bench.contestant import ROOT
from tests.bench.network import Network
from tests.bench.rounds import EXACT, Entry, Outcome, Say, interleave
from tests.bench.server import BenchServer
from tests.bench.shapes import STAFF

ROUNDS = 8


def measure(
    server: BenchServer, folder: Path, other: Path, *, quick: bool, rounds: int, say: Say, only: str | None = None
) -> dict[str, Any]:
    """Return a result for each path and case: the ratio of this checkout's median rate to the other's, and all runs.

    `only` names one part, as in the suite: load-narrow, load-wide or apply.
    """
    found: list[dict[str, Any]] = []
    sizes = load_race.QUICK if quick else load_race.FULL
    for shape in ("narrow", "wide"):
        if only not in {None, f"load-{shape}"}:
            continue
        say(f"load {shape}")
        races = [load_race.LoadRace(server, folder, shape, sizes[shape], root=root) for root in (ROOT, other)]
        found.append(compared("load", shape, [race.ours() for race in races], rounds, say))
    if only in {None, "apply"}:
        found.append(_applied(server, folder, other, quick=quick, rounds=rounds, say=say))
    return {"results": found, "problems": [problem for one in found for problem in one.pop("problems")]}


def _applied(server: BenchServer, folder: Path, other: Path, *, quick: bool, rounds: int, say: Say) -> dict[str, Any]:
    say("apply batch-100")
    scale = apply_race.QUICK if quick else apply_race.FULL
    with server.synced(on=False), Network(server.postgres.url, apply_race.ROUND_TRIP_MS) as network:
        races = [apply_race.ApplyRace(server, network, folder, STAFF, scale, say, root=root) for root in (ROOT, other)]
        entries = [race.ours(scale.rows[0], 100, scale.batches[100]) for race in races]
        return compared("apply", "batch-100", entries, rounds, say)


def compared(path: str, case: str, entries: Iterable[Entry], rounds: int, say: Say) -> dict[str, Any]:
    """Run both entries, this checkout's first, and compare them."""
    named = [
        replace(entry, key=key, label=f"{entry.label}, {key}", times=1)
        for entry, key in zip(entries, ("here", "there"), strict=True)
    ]
    outcomes = interleave(named, rounds, say)
    here, there = outcomes["here"], outcomes["there"]
    ratio = here.rate / there.rate if here.rate and there.rate else None
    say(f"  {path} {case}: {ratio:.3f} of the other checkout's rate" if ratio else f"  {path} {case}: not measured")
    return {
        "path": path,
        "case": case,
        "ratio_to_other": None if ratio is None else round(ratio, 3),
        "here_per_s": [round(rate) for rate in here.rates],
        "there_per_s": [round(rate) for rate in there.rates],
        **{
            f"{key}_{side}_us": round(statistics.median(times), 2) if times else None
            for key, outcome in (("here", here), ("there", there))
            for side, times in (("client", outcome.client_us), ("server", outcome.server_us))
        },
        "problems": [problem for outcome in (here, there) for problem in _problems(f"{path} {case}", outcome)],
    }


def _problems(what: str, outcome: Outcome) -> list[str]:
    wrong = outcome.failure or ("" if outcome.verdict == EXACT else outcome.verdict)
    return [f"{what}, {outcome.label}: {wrong}"] if wrong else []


def write(found: dict[str, Any], build: Path) -> None:
    """Write build/against.json."""
    (build / "against.json").write_text(json.dumps(found, indent=2) + "\n")
