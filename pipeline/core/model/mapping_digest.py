"""The shape of a mapping's targets: a digest of all that decides which row an item becomes.

Invariant: two mappings of one shape make the same rows of the same items, so what was loaded under the one counts as
loaded under the other; descriptions, schedules and the like do not matter.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.core.model.mapping import TableMapping


def shape(mapping: TableMapping) -> str:
    """Return sixteen hex digits that name the shape of the mapping's targets."""
    targets = sorted(
        repr(replace(target, columns=tuple(replace(column, description=None) for column in target.columns)))
        for target in mapping.targets
    )
    return hashlib.sha256("\n".join([repr(mapping.key), *targets]).encode()).hexdigest()[:16]
