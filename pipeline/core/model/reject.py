"""A reject: something that could not be converted, from any source, kept whole with the reason.

Invariant: the reason quotes no attribute value. The record does, and is only stored in `replication.rejects`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.core.ordering import Position


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that could not be converted, whole, with the reason."""

    target: str
    """The target's view; empty for a record that matches no target."""
    reason: str
    record: Mapping[str, object] | bytes
    """A stream's record, or a line of an export as it was read."""
    position: Position | None
    key_digest: str | None = None
