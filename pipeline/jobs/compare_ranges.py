"""Comparing a target with its staged snapshot range by range, by several connections or by one that rests.

Invariant: every key is compared once, also when the run is killed and resumed: a range's mark moves with its result.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.aurora import key_ranges, loads, tables
from pipeline.jobs.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.aurora.compare import Comparison
    from pipeline.aurora.connection import Connection
    from pipeline.aurora.key_ranges import Key, Lane
    from pipeline.jobs.pace import Bounds
    from pipeline.jobs.services import Services

# A first chunk this small takes well under a second; the next ones follow from how long it took.
_FIRST_ROWS = 20_000
# Below this many rows a second connection takes longer to open than it saves.
_ROWS_WORTH_A_LANE = 50_000
_MOST_GROWTH, _MOST_SHRINKAGE = 4.0, 0.25


@dataclass(frozen=True, slots=True)
class Comparing:
    """One target's comparison, and what it may take. `pause` is called between chunks, and may wait or raise."""

    services: Services
    comparison: Comparison
    number: int
    rows: int
    """Rows to compare, about."""
    bounds: Bounds
    pause: Callable[[Connection], None]

    def lanes(self, connection: Connection, workers: int) -> list[Lane]:
        """Return the lanes that an earlier part of the run divided, or divide them."""
        found = key_ranges.lanes(connection, self.comparison.run_id, self.number)
        if found:
            return found
        count = workers if self.bounds.max_share == 1 else 1
        count = max(1, min(count, self.rows // _ROWS_WORTH_A_LANE))
        cuts = self.cuts(connection, key_ranges.Lane(self.number, 0, None, None)) if count > 1 else []
        between = [cuts[len(cuts) * number // count] for number in range(1, count)] if len(cuts) >= count else []
        return key_ranges.divide(connection, self.comparison.run_id, self.number, between)

    def cuts(self, connection: Connection, lane: Lane) -> list[Key]:
        """Return places to cut a lane at."""
        comparison = self.comparison
        relations = [comparison.staging.name, tables.storage(comparison.target)]
        return key_ranges.cuts(connection, comparison.target, relations, lane)

    def carry_out(self, connection: Connection, workers: int) -> None:
        """Compare what is not compared yet. Raises what the first lane to fail raised, once the others stand still."""
        lanes = [lane for lane in self.lanes(connection, workers) if not lane.done]
        stop, opened = threading.Event(), list["Connection"]()
        if not lanes:
            return
        with ThreadPoolExecutor(max_workers=len(lanes), thread_name_prefix="compare") as pool:
            working = [pool.submit(self._work_off, lane, stop, opened) for lane in lanes]
            try:
                wait(working, return_when=FIRST_EXCEPTION)
                for done in working:
                    if done.done():
                        done.result()
            except BaseException:
                stop.set()
                for each in opened:
                    if not each.closed:
                        each.cancel_safe()
                raise

    def _work_off(self, lane: Lane, stop: threading.Event, opened: list[Connection]) -> None:
        with self.services.connect("dynaurora reconcile comparison") as connection:
            opened.append(connection)
            loads.notice_lost_client(connection)
            self.comparison.set_up(connection)
            cuts = self.cuts(connection, lane)
            pace = Pace(self.bounds.max_share)
            position, stride = 0, _first_stride(self.rows, len(cuts))
            while not stop.is_set():
                self.pause(connection)
                position += stride
                through = cuts[position - 1] if position <= len(cuts) else None
                with pace.working():
                    started = time.monotonic()
                    self.comparison.compare(connection, lane, through)
                    seconds = time.monotonic() - started
                if through is None:
                    return
                lane = replace(lane, after=through)
                stride = next_stride(stride, seconds, self.bounds.chunk_seconds)


def _first_stride(rows: int, cuts: int) -> int:
    return max(1, _FIRST_ROWS * cuts // max(1, rows))


def next_stride(stride: int, seconds: float, wanted_seconds: float) -> int:
    """Return how many cuts to go next, for a chunk of `wanted_seconds`, when `stride` of them took `seconds`."""
    factor = wanted_seconds / max(seconds, 1e-3)
    return max(1, int(stride * min(_MOST_GROWTH, max(_MOST_SHRINKAGE, factor))))
