"""How late is late: a mapping's `freshness`, as the windows that checks, policy and sensor share.

The check `lag` turns at `warn` and `fail`, at the tick that finds the table late. Dagster's freshness covers what the
check cannot say: that nobody looks any more. It counts from the last materialization, and each of those costs three
events that Dagster keeps. So it fails at `fail`, and warns no earlier than three quarters of that.

Invariant: the sensor reports often enough that a table which is caught up never looks late.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from pipeline.core.model.mapping import TableMapping

DEFAULT_WARN, DEFAULT_FAIL = timedelta(minutes=5), timedelta(minutes=30)
# Dagster accepts no shorter window, and its daemon looks every 30 s.
SHORTEST_WINDOW = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Freshness:
    """`warn` ≤ `fail`."""

    warn: timedelta
    fail: timedelta

    @classmethod
    def of(cls, mapping: TableMapping) -> Freshness:
        """Return what the mapping says, or the defaults. If only `fail` is given, it is also when to warn."""
        if not mapping.freshness:
            return cls(DEFAULT_WARN, DEFAULT_FAIL)
        fail = mapping.freshness.get("fail", DEFAULT_FAIL)
        return cls(min(mapping.freshness.get("warn", fail), fail), fail)

    @property
    def policy(self) -> dg.FreshnessPolicy:
        """The policy for Dagster, each window at least a minute."""
        fail = max(self.fail, SHORTEST_WINDOW)
        warn = max(self.warn, SHORTEST_WINDOW, fail * 0.75)
        return dg.FreshnessPolicy.time_window(fail_window=fail, warn_window=warn if warn < fail else None)

    @property
    def report_every(self) -> timedelta:
        """How often to report while changes are being applied: well inside the policy's windows."""
        return max(max(self.warn, SHORTEST_WINDOW) * 0.6, max(self.fail, SHORTEST_WINDOW) * 0.5)
