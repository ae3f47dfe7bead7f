"""Decides whether a load is built aside or merged, and says why.

Invariant: what a swap would lose makes a load merge. Otherwise only the sizes decide: building aside reads the stored
table and writes all of it that the export lacks, while a merge writes each exported row at a random place of every
index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.schema import tables
from pipeline.aurora.schema.standard_form import beyond_standard

if TYPE_CHECKING:
    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import TableMapping, Target

# A load of this size or more is built aside: below, merging takes a second or two and locks nothing.
ASIDE_FROM_ITEMS = 50_000
# An export that holds a smaller share of the stored rows is merged: most of the table would have to be copied.
ASIDE_FROM_SHARE = 0.5
# Smaller tables are counted. Of larger ones PostgreSQL knows well enough how many rows they have.
COUNTED_BYTES = 8_000_000


@dataclass(frozen=True, slots=True)
class Way:
    """How a load is done: `aside` or `merge`."""

    strategy: str
    why: tuple[str, ...]


def choose(connection: Connection, mapping: TableMapping, items: int, *, aside_from: int) -> Way:
    """Choose the way for an export of `items` items. Loads of `aside_from` items or more may be built aside."""
    if items < aside_from:
        return Way("merge", (f"the export has fewer than {aside_from:,} items",))
    counts = [_rows(connection, target) for target in mapping.targets]
    # With patterns an item is a row of one target at most; without them it is one of each.
    rows = sum(counts) if any(target.match for target in mapping.targets) else max(counts)
    sizes = f"the export has {items:,} items, and the table " + (f"about {rows:,} rows" if rows else "is empty")
    if items < rows * ASIDE_FROM_SHARE:
        return Way("merge", (f"{sizes}, which is more than twice as many",))
    lost = tuple(
        f"{target.view_name}: {why}" for target in mapping.tables for why in beyond_standard(connection, target)
    )
    return Way("merge", lost) if lost else Way("aside", (sizes,))


def _rows(connection: Connection, target: Target) -> int:
    """Return about how many rows a storage table has, tombstones included; 0 if it is missing."""
    storage = tables.storage(target)
    with translating("looking up the size of the table"):
        size = connection.execute(
            "SELECT pg_relation_size(to_regclass(%s))", [storage.as_string(connection)]
        ).fetchone()
        if not size or not size[0]:
            return 0
        if size[0] < COUNTED_BYTES:
            counted = connection.execute(sql.SQL("SELECT count(*) FROM {}").format(storage)).fetchone()
            return counted[0] if counted else 0
        plan = connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) SELECT FROM {}").format(storage)).fetchone()
    return int(plan[0][0]["Plan"]["Plan Rows"]) if plan else 0
