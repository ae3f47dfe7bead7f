"""Several rounds of every contestant, in a new order each time, and the medians.

They are interleaved, so that other work on the machine affects all alike. Medians keep one bad run from deciding.
"""

from __future__ import annotations

import random
import statistics
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.contestant import ContestantError, Measurement

Say = Callable[[str], None]
EXACT = "exact"


@dataclass(frozen=True)
class Run:
    """One run of one contestant: its cost for how many items, and whether its result was right."""

    items: int
    measured: Measurement
    verdict: str
    """EXACT, or what was wrong."""


@dataclass(frozen=True)
class Entry:
    """A contestant entered for the rounds."""

    key: str
    label: str
    kind: str
    """`ours`, `rival` or `limit`."""
    run: Callable[[], Run]
    times: int = 1
    """Runs in a round, if there are several rounds: more than one if a stated ratio depends on a short run."""


@dataclass
class Outcome:
    """The results of one contestant over the rounds. Rates are medians, memory and verdict the worst."""

    key: str
    label: str
    kind: str
    items: int = 0
    rates: list[float] = field(default_factory=list[float])
    client_us: list[float] = field(default_factory=list[float])
    server_us: list[float] = field(default_factory=list[float])
    rss_mb: float = 0.0
    verdict: str = ""
    failure: str = ""
    figures: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def add(self, run: Run) -> None:
        """Add one run."""
        measured = run.measured
        self.items = run.items
        self.rates.append(run.items / measured.wall_seconds)
        self.client_us.append(measured.client_seconds / run.items * 1e6)
        self.server_us.append(measured.server_seconds / run.items * 1e6)
        self.rss_mb = max(self.rss_mb, measured.rss_mb)
        self.figures.append(measured.figures)
        if not self.verdict or run.verdict != EXACT:
            self.verdict = run.verdict

    @property
    def rate(self) -> float | None:
        """Items a second; None when no run finished."""
        return statistics.median(self.rates) if self.rates else None

    def to_json(self) -> dict[str, Any]:
        """Write it for the report."""
        return {
            "key": self.key,
            "label": self.label,
            "kind": self.kind,
            "items": self.items,
            "items_per_s": None if self.rate is None else round(self.rate, 1),
            "runs": [round(rate, 1) for rate in self.rates],
            "client_us_per_item": round(statistics.median(self.client_us), 2) if self.client_us else None,
            "server_us_per_item": round(statistics.median(self.server_us), 2) if self.server_us else None,
            "rss_mb": round(self.rss_mb, 1),
            "verdict": self.verdict,
            "failure": self.failure,
            **self._median_figures(),
        }

    def _median_figures(self) -> dict[str, Any]:
        """Medians of the numbers that contestants stated."""
        names = self.figures[0] if self.figures else ()
        stated = {name: [figures.get(name) for figures in self.figures] for name in names}
        return {
            name: round(statistics.median(values), 3)  # type: ignore[type-var]  # numbers, as just checked
            for name, values in stated.items()
            if all(isinstance(value, int | float) for value in values)
        }


def interleave(entries: Sequence[Entry], rounds: int, say: Say, *, seed: int = 7) -> dict[str, Outcome]:
    """Run every entry, `times` times a round. One that fails is noted and left out afterwards; the others continue."""
    choose = random.Random(seed)
    outcomes = {entry.key: Outcome(entry.key, entry.label, entry.kind) for entry in entries}
    counts = [entry.times if rounds > 1 else 1 for entry in entries]
    for number in range(1, rounds + 1):
        for entry in choose.sample(entries, counts=counts, k=sum(counts)):
            outcome = outcomes[entry.key]
            if outcome.failure:
                continue
            try:
                run = entry.run()
            except ContestantError as error:
                outcome.failure = str(error)[:300]
            except Exception as error:  # noqa: BLE001 - the suite goes on, and ends with status 1
                place = traceback.extract_tb(error.__traceback__)[-1]
                outcome.failure = f"{type(error).__name__} at {place.name}:{place.lineno}: {error}"[:300]
            else:
                outcome.add(run)
            rate = f"{outcome.rates[-1]:>12,.0f}/s" if not outcome.failure else f"failed: {outcome.failure}"
            say(f"  round {number}: {entry.label:<52} {rate} {outcome.verdict if outcome.verdict != EXACT else ''}")
    return outcomes
