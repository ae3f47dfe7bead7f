"""A change: one row-level change for one target, and its position in time.

Invariant: a change is a whole state of its row, never a difference, so taking the newest one loses nothing. Values are
text as PostgreSQL reads it (`None` is NULL): exact for every type, and the same for arrays, COPY and jsonb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pipeline.core.ordering import Position, supersedes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.core.model.mapping import Target

Row = tuple[str | None, ...]
"""One text per stored column of the target, in the target's column order, keys included; then what it carries: the
rows of each child target, as a JSON array of arrays of texts."""


class Change(NamedTuple):
    """`row` None is a delete. `key` has the primary key's texts in primary-key order, as they are in `row`."""

    key: tuple[str, ...]
    row: Row | None
    position: Position
    expired: bool = False
    """A delete that DynamoDB's time to live made, not a user."""
    origin: int = 0
    """Index of the record in its batch, to trace a refused change to its whole record."""

    def texts(self, target: Target) -> Row:
        """Return the texts of its row for `target`; for a delete, only the key."""
        if self.row is not None:
            return self.row
        texts = dict(zip(target.primary_key, self.key, strict=True))
        return tuple([texts.get(name) for name in target.stored_columns])


def coalesce(changes: Iterable[Change]) -> list[Change]:
    """Return the newest change of each key. `ON CONFLICT` needs one change for each key."""
    newest: dict[tuple[str, ...], Change] = {}
    for change in changes:
        known = newest.setdefault(change.key, change)
        if known is not change and supersedes(change.position, known.position):
            newest[change.key] = change
    return list(newest.values())
