"""One contestant in its own process: `python -m tests.bench.contest MODULE SPEC`.

The module's `prepare(spec)` imports and connects, and returns the work. The process then prints "ready". A line on its
standard input starts the work; the process answers with the cost as JSON. So nobody is charged for the interpreter's
start or for an import, unless the work itself starts processes. It uses only the standard library, so that it runs in
every environment.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

Work = Callable[[], "dict[str, Any] | None"]


@dataclass(frozen=True)
class Spec:
    """The task that a contestant is given."""

    url: str
    shape: str = "narrow"
    table: str = "rival"
    files: tuple[str, ...] = ()
    location: str = ""
    text_path: str = ""
    psql: str = ""
    workers: int = 1
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_json(self) -> str:
        """Write it for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Spec:
        """Read it again."""
        found: dict[str, Any] = json.loads(text)
        found["files"] = tuple(found["files"])
        return cls(**found)


def main() -> None:
    """Do the work once."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # the work pays for its logging, which must not get between the answers
    work = importlib.import_module(sys.argv[1]).prepare(Spec.from_json(sys.argv[2]))
    answers.write("ready\n")
    sys.stdin.readline()
    before, began = _cpu(), time.perf_counter()
    figures: dict[str, Any] = work() or {}
    wall = time.perf_counter() - began
    user, system = (now - then for now, then in zip(_cpu(), before, strict=True))
    # The work may state these two itself, without the parts that must not be counted.
    found: dict[str, Any] = {
        "wall_seconds": wall,
        "client_user_seconds": user,
        "client_system_seconds": system,
        **figures,
    }
    answers.write(json.dumps(found) + "\n")
    sys.stdin.readline()


def cpu_seconds() -> float:
    """Processor time of this process and of the children it has waited for."""
    return sum(_cpu())


def _cpu() -> tuple[float, float]:
    mine, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + children.ru_utime, mine.ru_stime + children.ru_stime


if __name__ == "__main__":
    main()
