"""Finds the stored rows that a table built aside needs: those whose key it lacks, and those that supersede its row.

Invariant: the ordering rule decides, in its one SQL form. Of two rows of one state, the stored one is right, because a
promotion fills columns without giving the row a new position (`filled_since`).

The rows are found by one join of both tables over their keys and positions, which notes only where a row is, so its
memory and its temporary files do not grow with the width of the rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.rows.ordering_sql import supersedes
from pipeline.aurora.schema import tables
from pipeline.core.model.mapping import AS_OF, VERSION

if TYPE_CHECKING:
    from datetime import datetime

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

PLACES = sql.Identifier("pg_temp", "preferred places")
"""Where the rows are: their `ctid`, valid in the transaction that found them."""
_SETTINGS = (
    # For each process of the join; beyond that, it writes keys and positions to temporary files.
    ("work_mem", "32MB"),
    # The planner cannot know that the rule prefers few rows, and would not join with several processes.
    ("parallel_setup_cost", "0"),
    ("parallel_tuple_cost", "0"),
)


def filled_since(stored: str, copied: str, snapshot: datetime) -> sql.Composed:
    """SQL condition: the row `copied` was copied from the row `stored`, which a promotion may have filled since.

    A row of the build's own snapshot was not copied, and was decoded with all columns.
    """
    return sql.SQL(
        "({c}.{version} IS NOT DISTINCT FROM {s}.{version} AND {c}.{as_of} = {s}.{as_of}"
        " AND ({s}.{version} IS NOT NULL OR {s}.{as_of} <> {snapshot}))"
    ).format(
        c=sql.Identifier(copied),
        s=sql.Identifier(stored),
        version=sql.Identifier(VERSION),
        as_of=sql.Identifier(AS_OF),
        snapshot=sql.Literal(snapshot),
    )


def find_preferred(connection: Connection, target: Target, build: sql.Identifier, snapshot: datetime) -> None:
    """Fill the temporary table PLACES, until the end of the transaction.

    The transaction must see one state of the database in all its statements (REPEATABLE READ): another row may be at
    a place later.
    """
    for name, value in _SETTINGS:
        connection.execute("SELECT set_config(%s, %s, true)", [name, value])
    connection.execute(
        sql.SQL(
            "CREATE TEMP TABLE {places} ON COMMIT DROP AS SELECT s.ctid AS place FROM {storage} AS s"
            " WHERE NOT EXISTS (SELECT FROM {build} AS b WHERE {same_key} AND NOT ({supersedes} OR {filled}))"
        ).format(
            places=PLACES,
            storage=tables.storage(target),
            build=build,
            same_key=sql.SQL(" AND ").join(
                sql.SQL("b.{0} = s.{0}").format(sql.Identifier(name)) for name in target.primary_key
            ),
            supersedes=supersedes("s", "b"),
            filled=filled_since("s", "b", snapshot),
        )
    )
