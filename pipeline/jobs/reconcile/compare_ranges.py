"""Compare a target with its staged snapshot range by range, on several connections or on one that pauses.

Invariant: every key is compared once, even if the run is killed and resumed: a range's mark moves with its result.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.aurora.compare import key_ranges
from pipeline.aurora.schema import tables
from pipeline.jobs.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.aurora.compare.compare import Comparison
    from pipeline.aurora.compare.key_ranges import Key, Lane
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.jobs.pace import Bounds
    from pipeline.jobs.services import Services

# A first chunk of this size takes well under a second; the time it took sets the size of the next ones.
_FIRST_ROWS = 100_000
# Below this many rows a second connection takes longer to open than it saves.
_ROWS_WORTH_A_LANE = 50_000
_MOST_GROWTH, _MOST_SHRINKAGE = 4.0, 0.25


@dataclass(frozen=True, slots=True)
class Comparing:
    """One target's comparison and its limits. `pause` is called between chunks, and may wait or raise."""

    services: Services
    comparison: Comparison
    number: int
    rows: int
    """Rows to compare, approximately."""
    bounds: Bounds
    pause: Callable[[Connection], None]

    def lanes(self, connection: Connection, workers: int) -> list[tuple[Lane, list[Key]]]:
        """Return the unfinished lanes of an earlier part of the run, or divide the work into lanes; with their cuts."""
        found = key_ranges.lanes(connection, self.comparison.run_id, self.number)
        if found:
            return [(lane, self._cuts(connection, lane)) for lane in found if not lane.done]
        cuts = self._cuts(connection, key_ranges.Lane(self.number, 0, None, None))
        count = workers if self.bounds.max_share == 1 else 1
        count = max(1, min(count, self.rows // _ROWS_WORTH_A_LANE, len(cuts)))
        edges = [len(cuts) * number // count for number in range(count + 1)]
        divided = key_ranges.divide(
            connection, self.comparison.run_id, self.number, [cuts[edge] for edge in edges[1:-1]]
        )
        # A lane includes the key at its edge; the next lane begins after it.
        return [(lane, cuts[edges[number] + (number > 0) : edges[number + 1]]) for number, lane in enumerate(divided)]

    def _cuts(self, connection: Connection, lane: Lane) -> list[Key]:
        comparison = self.comparison
        relations = [comparison.staging.name, tables.storage(comparison.target)]
        return key_ranges.cuts(connection, comparison.target, relations, lane, self.rows)

    def carry_out(self, connection: Connection, workers: int) -> None:
        """Compare what is not compared yet. Raises the first failure of a lane, once the other lanes have stopped."""
        lanes = self.lanes(connection, workers)
        stride = first_stride(self.rows, sum(len(cuts) for _, cuts in lanes))
        stop, opened = threading.Event(), list["Connection"]()
        if not lanes:
            return
        with ThreadPoolExecutor(max_workers=len(lanes), thread_name_prefix="compare") as pool:
            working = [pool.submit(self._work_off, lane, cuts, stride, stop, opened) for lane, cuts in lanes]
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

    def _work_off(
        self, lane: Lane, cuts: list[Key], stride: int, stop: threading.Event, opened: list[Connection]
    ) -> None:
        with self.services.connect("dynaurora reconcile comparison") as connection:
            opened.append(connection)
            self.comparison.set_up(connection)
            pace = Pace(self.bounds.max_share)
            position = 0
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


def first_stride(rows: int, cuts: int) -> int:
    """Return how many cuts the first chunk spans, where `cuts` cuts divide `rows` rows."""
    return max(1, _FIRST_ROWS * cuts // max(1, rows))


def next_stride(stride: int, seconds: float, wanted_seconds: float) -> int:
    """Return how many cuts the next chunk spans to take `wanted_seconds`, when `stride` of them took `seconds`."""
    factor = wanted_seconds / max(seconds, 1e-3)
    return max(1, int(stride * min(_MOST_GROWTH, max(_MOST_SHRINKAGE, factor))))
