"""Gives events to a handler as Lambda does, one after another, each from its JSON to its answer.

The client's time is the process's processor time for all of it: parsing the event, as Lambda's runtime does, and the
handler with its driver, its log and its metrics. The parsing alone is `json_loads_seconds`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.contest import Work, cpu_seconds


def invocations(handler: Callable[[dict[str, Any], Any], Any], context: Any, events: Path) -> Work:  # noqa: ANN401 - as Lambda's
    """Return the work of handling the events of a file, one a line. The first one warms up and is not counted."""
    warm, *lines = events.read_bytes().splitlines()

    def work() -> dict[str, float]:
        handler(json.loads(warm), context)
        parsing, cpu, began = 0, cpu_seconds(), time.perf_counter()
        for line in lines:
            before = time.process_time_ns()
            event = json.loads(line)
            parsing += time.process_time_ns() - before
            handler(event, context)
        return {
            "wall_seconds": time.perf_counter() - began,
            "client_user_seconds": cpu_seconds() - cpu,
            "client_system_seconds": 0.0,
            "json_loads_seconds": parsing / 1e9,
        }

    return work
