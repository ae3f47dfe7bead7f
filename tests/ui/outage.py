"""An outage for the tour: the replicator's event source mapping is disabled while writes continue.

Invariant: it only stops what an operator could stop, and does not tell the product. Afterwards it compares view and
table by another path than the product's.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self

from pipeline.local.equality import Equality, compare_employees
from pipeline.local.playground import Playground
from pipeline.local.writer import Writer

WRITES_PER_SECOND = 5.0
_NEVER = 10**9


class Outage:
    """Stops and starts the replicator of a playground; a context that ends its writer."""

    def __init__(self, playground: Playground, identifiers: range) -> None:
        """`identifiers`: the Ids that the table holds already."""
        self._playground = playground
        self._writer = Writer(playground.dynamodb, "Employees", identifiers, WRITES_PER_SECOND, sample_every=_NEVER)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Return this; nothing is stopped yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the writer."""
        self._stack.close()

    def begin(self) -> None:
        """Stop the replicator, and begin to write."""
        self._playground.replicate(on=False)
        self._writer.start()
        self._stack.callback(self._writer.stop)

    def end(self) -> None:
        """Start the replicator again; writes continue."""
        self._playground.replicate(on=True)

    def calm(self) -> int:
        """Stop writing; return how many writes there were."""
        self._stack.close()
        return self._writer.written.total

    def compare(self) -> Equality:
        """Compare table and view."""
        return compare_employees(self._playground.dynamodb, self._playground.stack.postgres.url)
