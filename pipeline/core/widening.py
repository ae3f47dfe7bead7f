"""Which change of a column's type keeps every value it holds as the mapping would write it today.

Invariant: after a widening the stored rows equal what a fresh load would store. So `uuid` to `text` is none,
although PostgreSQL would cast it: a load would now keep the letters' case.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.core.sql_types import SqlType

# Decimal digits that the largest value of each integer type may have.
_INTEGER_DIGITS = {"smallint": 5, "integer": 10, "bigint": 19}


class TypeChange(Enum):
    """What it takes to turn a stored column into the wanted type."""

    NONE = "none"
    CATALOG = "a change of the catalog alone"
    REWRITE = "a rewrite of the table"
    REFUSED = "not a widening"


def type_change(stored: SqlType, wanted: SqlType) -> TypeChange:
    """Compare a stored column's type with the one the mapping wants.

    PostgreSQL rewrites no table when a varchar or numeric only loses or raises its limit (manual, ALTER TABLE).
    """
    if (stored.name, _limits(stored)) == (wanted.name, _limits(wanted)):
        return TypeChange.NONE
    if stored.name == "varchar":
        wider = wanted.name == "text" or (wanted.name == "varchar" and wanted.params > stored.params)
        return TypeChange.CATALOG if wider else TypeChange.REFUSED
    if stored.name in _INTEGER_DIGITS:
        return _from_integer(_INTEGER_DIGITS[stored.name], wanted)
    if stored.name == "numeric" and wanted.name == "numeric":
        return _from_numeric(_limits(stored), _limits(wanted))
    return TypeChange.REFUSED


def _from_integer(digits: int, wanted: SqlType) -> TypeChange:
    if wanted.name in _INTEGER_DIGITS:
        return TypeChange.REWRITE if _INTEGER_DIGITS[wanted.name] > digits else TypeChange.REFUSED
    if wanted.name == "numeric":
        limits = _limits(wanted)
        return TypeChange.REWRITE if not limits or limits[0] - limits[1] >= digits else TypeChange.REFUSED
    return TypeChange.REFUSED


def _from_numeric(stored: tuple[int, ...], wanted: tuple[int, ...]) -> TypeChange:
    if not wanted:
        # With a scale, 1.5 is stored as 1.50 and equal to it; without one nothing is added. Equal all the same.
        return TypeChange.CATALOG
    if not stored or wanted[1] < stored[1] or wanted[0] - wanted[1] < stored[0] - stored[1]:
        return TypeChange.REFUSED
    return TypeChange.CATALOG if wanted[1] == stored[1] else TypeChange.REWRITE


def _limits(sql_type: SqlType) -> tuple[int, ...]:
    """Return precision and scale in full: `numeric(12)` is `numeric(12,0)`."""
    if sql_type.name == "numeric" and len(sql_type.params) == 1:
        return (sql_type.params[0], 0)
    return sql_type.params
