"""The history of a target: how long versions of its rows are kept, and the names of what keeps them.

Invariant: every name fits, and none can be the name of a target except the table's and the view's own, which the
mapping reader checks (`pipeline.core.mapping_files.history_rules`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.core.names import fitting

if TYPE_CHECKING:
    from pipeline.core.model.mapping import Target

SUFFIX = "_history"
# Names of targets may not begin so: partitions and the base have such names.
OWN_PREFIX = "_history_"
# The columns that the view adds, in its order.
VIEW_COLUMNS = ("valid_from", "valid_to", "is_current", "deleted", "source", "gap")
# Months and weeks differ from calendar to calendar; partitions are counted in days from this Monday.
_FIRST_DAY = datetime(2001, 1, 1, tzinfo=UTC)
# How many days a partition spans, from how long versions are kept.
_SPANS = (
    (timedelta(days=2_000), 364),
    (timedelta(days=180), 28),
    (timedelta(days=30), 7),
    (timedelta(0), 1),
)


@dataclass(frozen=True, slots=True)
class History:
    """What a mapping says about a target's history."""

    keep: timedelta
    """How far back the view answers."""

    @property
    def partition_days(self) -> int:
        """How many days a partition spans: few partitions for a long history, little surplus for a short one."""
        return next(days for longer, days in _SPANS if self.keep >= longer)


def partition_begin(time: datetime, days: int) -> datetime:
    """Return the beginning of the partition of so many days that holds `time`."""
    since = (time - _FIRST_DAY) // timedelta(days=1)
    return _FIRST_DAY + timedelta(days=since - since % days)


def table_name(target: Target) -> str:
    """Name of the table of versions, in schema `replica`."""
    return fitting(f"{target.storage_name}{SUFFIX}")


def base_name(target: Target) -> str:
    """Name of the table of the versions that were valid where the kept history begins."""
    return fitting(f"{OWN_PREFIX}base_{target.storage_name}")


def rest_name(target: Target) -> str:
    """Name of the partition of versions that have no other yet."""
    return fitting(f"{OWN_PREFIX}rest_{target.storage_name}")


def partition_name(target: Target, start: datetime) -> str:
    """Name of the partition that begins at `start`."""
    return fitting(f"{OWN_PREFIX}{start:%Y%m%d}_{target.storage_name}")


def view_name(target: Target) -> str:
    """Name of the view, in the schema of the target's own."""
    return fitting(f"{target.name}{SUFFIX}")


def tables_of(target: Target) -> tuple[str, ...]:
    """Names of the tables that statements name, in schema `replica`; empty without a history."""
    return (table_name(target), base_name(target)) if target.history else ()


def views_of(target: Target) -> tuple[str, ...]:
    """Names of all views of a target, in its schema."""
    return (target.name, view_name(target)) if target.history else (target.name,)


def children_column(child: Target) -> str:
    """Name of the column that keeps a child target's rows; no column of a mapping can have such a name."""
    return fitting(f"_children_{child.storage_name}")


def view_columns(target: Target) -> tuple[str, ...]:
    """Names of the columns that the view adds: `history_source` if the target has a column `source`, and so on."""
    taken = {column.name for column in target.columns} | {child.name for child in target.children}
    return tuple(f"history_{name}" if name in taken else name for name in VIEW_COLUMNS)
