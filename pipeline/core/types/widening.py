"""Decides which type changes keep every stored value as the mapping would write it today.

Invariant: after a widening, the stored rows equal what a new load would store. So `uuid` to `text` is not a widening,
although PostgreSQL would cast it: a new load would keep the case of the letters.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.core.types.sql_types import SqlType


class TypeChange(Enum):
    """What is needed to turn a stored column into the wanted type."""

    NONE = "none"
    CATALOG = "a change of the catalog alone"
    REWRITE = "a rewrite of the table"
    REFUSED = "not a widening"


def type_change(stored: SqlType, wanted: SqlType) -> TypeChange:
    """Compare a stored column's type with the one the mapping wants."""
    codec = stored.codec
    if stored.name == wanted.name and codec.full_params(stored.params) == codec.full_params(wanted.params):
        return TypeChange.NONE
    return codec.widened(stored.params, wanted)
