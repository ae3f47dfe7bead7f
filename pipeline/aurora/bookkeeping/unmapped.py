"""Surveys the jsonb column: by attribute and JSON type, how often, since when, how long.

Invariant: it reads a bounded amount and writes nothing. Above SAMPLED_FROM_BYTES it reads only some blocks of the
table; counts are then scaled up, and reported as estimates. No text leaves the database, only counts, lengths and
ranges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pipeline.aurora.errors import translating
from pipeline.aurora.schema import tables
from pipeline.core.model.mapping import AS_OF, DELETED

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.model.mapping import Target

# Takes a few seconds to read. From a larger table, as many blocks are read, spread over all of it.
SAMPLED_FROM_BYTES = 512 * 2**20

# What a text could be stored as: PostgreSQL's regular expressions, as close as possible to the product's converters.
_FORMS = {
    "empty": "^$",
    "uuid": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
    "date": "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$",
    "time": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:?[0-9]{2})$",
    "local time": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?$",
    "number": r"^-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?$",
}


@dataclass(frozen=True, slots=True)
class Look:
    """How much was read. `fraction` below 1: only a sample of the table's blocks, and every count is an estimate."""

    rows: int
    """Live rows; an estimate if it was a sample."""
    fraction: float


@dataclass(frozen=True, slots=True)
class Landed:
    """One attribute with one JSON type, over the rows that were read; `rows` is scaled to the table."""

    attribute: str
    json_type: str
    rows: int
    since: datetime
    """The oldest `_as_of` among the rows that have it: the attribute is at least that old. It may be older: a row only
    knows its last write, and a loaded row only its snapshot.
    """
    longest: int
    smallest: Decimal | None
    largest: Decimal | None
    fraction_digits: int
    forms: dict[str, int]


def look(
    connection: Connection, target: Target, *, sampled_from_bytes: int = SAMPLED_FROM_BYTES
) -> tuple[Look, list[Landed]]:
    """Survey a target's jsonb column, which it must have. Raises TerminalError if the target is not migrated."""
    with translating(f"surveying the unmapped attributes of {target.view_name}"), connection.transaction():
        size = connection.execute(
            sql.SQL("SELECT pg_table_size({}::regclass)").format(sql.Literal(tables.storage(target).as_string()))
        ).fetchone()
        fraction = min(1.0, sampled_from_bytes / max(1, size[0] if size else 1))
        # REPEATABLE: both statements see the same blocks.
        sample = (
            sql.SQL("")
            if fraction == 1.0
            else sql.SQL("TABLESAMPLE SYSTEM ({}) REPEATABLE (1)").format(sql.Literal(100 * fraction))
        )
        parts = {"storage": tables.storage(target), "sample": sample, "deleted": sql.Identifier(DELETED)}
        count = connection.execute(
            sql.SQL("SELECT count(*) FROM {storage} {sample} WHERE NOT {deleted}").format(**parts)
        ).fetchone()
        rows = connection.execute(
            _QUERY.format(
                **parts, forms=_FORM_COUNTS, unmapped=sql.Identifier(target.unmapped or ""), as_of=sql.Identifier(AS_OF)
            ),
            list(_FORMS.values()),
        ).fetchall()
    looked_at = Look(round((count[0] if count else 0) / fraction), fraction)
    return looked_at, [_landed(row, fraction) for row in rows]


def _landed(row: tuple[object, ...], fraction: float) -> Landed:
    name, json_type, count, since, longest, smallest, largest, digits, *forms = row
    assert isinstance(count, int)  # noqa: S101 - for the type checker: count(*) is a bigint
    found = {form: n for form, n in zip([*_FORMS, "epoch seconds", "epoch milliseconds"], forms, strict=True) if n}
    return Landed(
        str(name),
        str(json_type),
        max(count, round(count / fraction)),
        since,  # type: ignore[arg-type]  # the columns of _QUERY
        longest or 0,  # type: ignore[arg-type]
        smallest,  # type: ignore[arg-type]
        largest,  # type: ignore[arg-type]
        digits or 0,  # type: ignore[arg-type]
        found,  # type: ignore[arg-type]
    )


_FORM_COUNTS = sql.SQL(", ").join([sql.SQL("count(*) FILTER (WHERE text ~ %s)")] * len(_FORMS))
_QUERY = sql.SQL(
    "SELECT name, type, count(*), min(as_of),"
    " max(CASE type WHEN 'string' THEN length(text) WHEN 'array' THEN jsonb_array_length(value) END),"
    " min(number), max(number), max(scale(trim_scale(number))),"
    " {forms}, count(*) FILTER (WHERE number = trunc(number) AND number BETWEEN 946684800 AND 4102444799)"
    ", count(*) FILTER (WHERE number = trunc(number) AND number BETWEEN 946684800000 AND 4102444799999)"
    " FROM (SELECT a.key AS name, a.value, jsonb_typeof(a.value) AS type, stored.{as_of} AS as_of,"
    " CASE jsonb_typeof(a.value) WHEN 'string' THEN a.value #>> '{{}}' END AS text,"
    " CASE jsonb_typeof(a.value) WHEN 'number' THEN (a.value #>> '{{}}')::numeric END AS number"
    " FROM {storage} AS stored {sample}, jsonb_each(stored.{unmapped}) AS a WHERE NOT stored.{deleted}) AS landed"
    " GROUP BY name, type ORDER BY name, count(*) DESC"
)
