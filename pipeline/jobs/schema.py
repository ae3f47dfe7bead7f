"""Schema: does the database match a mapping? Checked before a load, and whenever somebody asks.

Invariant: it changes nothing; `dynaurora migrate` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.aurora.schema.plan import plan
from pipeline.core.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.core.model.mapping import TableMapping
    from pipeline.jobs.services import Services

_TIMEOUT_SECONDS = 20.0
_TOLD = 3


@dataclass(frozen=True, slots=True)
class SchemaReport:
    """What is missing in the database, in the words of `dynaurora plan`; both are empty if nothing is."""

    table: str
    steps: tuple[str, ...]
    """What `dynaurora migrate` would do."""
    refusals: tuple[tuple[str, str], ...]
    """What it would not do, and what to do instead."""
    ready: bool
    """Whether rows can be written: nothing is missing, or only grants to readers."""

    @property
    def matches(self) -> bool:
        """Whether the database is as the mapping says."""
        return not (self.steps or self.refusals)

    @property
    def what(self) -> str:
        """The first few differences."""
        differences = [*(what for what, _ in self.refusals), *self.steps]
        more = f", and {len(differences) - _TOLD} more" if len(differences) > _TOLD else ""
        return "; ".join(differences[:_TOLD]) + more

    @property
    def next_step(self) -> str:
        """What a person must do about it."""
        ways_out = [way_out for _, way_out in self.refusals]
        if self.steps:
            ways_out.append(f"run `dynaurora migrate {self.table}` (`dynaurora plan {self.table}` shows the SQL)")
        return "; ".join(ways_out)

    def require(self) -> None:
        """Raise ConfigurationError with the next step if rows cannot be written as the mapping says."""
        if not self.ready:
            raise ConfigurationError(
                f"the database is not as the mapping says, so nothing was started: {self.what}",
                table=self.table,
                hint=self.next_step,
            )


def schema_report(services: Services, mapping: TableMapping, *, needs_session: bool = True) -> SchemaReport:
    """Compare the database with the mapping. Raises TransientError, TerminalError.

    `needs_session=False` is for what also works through a transaction pooler.
    """
    with services.connect(
        "dynaurora plan", statement_timeout_seconds=_TIMEOUT_SECONDS, needs_session=needs_session
    ) as connection:
        planned = plan(connection, [services.with_key(mapping)])
    return SchemaReport(
        mapping.name,
        tuple(step.what for step in planned.steps),
        tuple((refusal.what, refusal.way_out) for refusal in planned.refusals),
        ready=all(each.grants for each in (*planned.steps, *planned.refusals)),
    )
