"""Runs a contestant in its process and reports the cost: time, processor time of both sides, memory."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench import processes

if TYPE_CHECKING:
    from tests.bench.contest import Spec
    from tests.bench.shapes import Shape

ROOT = Path(__file__).parents[2]
OURS_PYTHON = ROOT / ".venv/bin/python"
RIVALS_PYTHON = ROOT / ".venv-bench/bin/python"


class ContestantError(Exception):
    """A contestant did not finish; the text says why."""


@dataclass(frozen=True)
class Measurement:
    """The cost of one run. Memory is that of the contestant's largest process."""

    wall_seconds: float
    client_seconds: float
    server_seconds: float
    rss_mb: float
    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    """Other numbers that the contestant stated."""


def run(
    module: str, spec: Spec, *, server_pid: int, python: Path, first_on_path: Path | None = None, root: Path = ROOT
) -> Measurement:
    """Run a contestant once. Raises ContestantError with the end of what it said.

    `first_on_path` is a folder whose modules come before all others; `root` is the checkout whose code runs.
    """
    environment = os.environ | ({"PYTHONPATH": str(first_on_path)} if first_on_path else {})
    command = [str(python), "-m", "tests.bench.contest", module, spec.to_json()]
    with subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        if process.stdin is None or process.stdout is None:  # pragma: no cover - both were asked for
            raise ContestantError(f"{module}: no pipes")
        if process.stdout.readline() == "ready\n":
            before = processes.cpu_seconds(server_pid)
            with processes.PeakMemory(process.pid) as memory:
                process.stdin.write("go\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            if answer:
                server_seconds = processes.cpu_seconds(server_pid) - before
                return _measurement(json.loads(answer), server_seconds, memory.largest_mb)
        _, told = process.communicate()
    reason = told.strip().splitlines()[-1] if told.strip() else f"it ended with status {process.returncode}"
    raise ContestantError(f"{module.rpartition('.')[2]}: {reason}")


def migrate(url: str, shape: Shape, folder: Path, root: Path = ROOT) -> None:
    """Make the tables of a shape's mapping as the checkout at `root` makes them."""
    mappings = folder / "tables"
    mappings.mkdir(exist_ok=True)
    (mappings / "employees.yaml").write_text(shape.mapping)
    environment = os.environ | {"DATABASE_URL": url, "DYNAURORA_TABLES": str(mappings)}
    command = [str(OURS_PYTHON), "-c", "from pipeline.cli import main; raise SystemExit(main(['migrate']))"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ContestantError(f"migrate of {root}: {done.stderr.strip()[-200:]}")


def _measurement(found: dict[str, Any], server_seconds: float, rss_mb: float) -> Measurement:
    client = found.pop("client_user_seconds") + found.pop("client_system_seconds")
    server_seconds = found.pop("server_seconds", server_seconds)
    return Measurement(found.pop("wall_seconds"), client, server_seconds, rss_mb, found)
