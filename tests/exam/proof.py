"""The independent proof: a plain scan of DynamoDB against a plain SELECT on the view, without any product code.

Invariant: every value is compared exactly, numbers inside documents as the text they are.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import psycopg
from psycopg.types.json import set_json_loads

from tests.exam import ledger

if TYPE_CHECKING:
    from tests.exam.source import Source


@dataclass(frozen=True, slots=True)
class Proof:
    """The comparison of source and view."""

    items: int
    rows: int
    unequal: int

    @property
    def equal(self) -> bool:
        """Whether they are the same."""
        return self.items == self.rows and self.unequal == 0


def prove(source: Source) -> Proof:
    """Compare the whole table with the whole view. The writer must have stopped, and everything must be applied."""
    expected = {int(item["Id"]["N"]): _digest(ledger.row_of(item)) for item in source.aws.scan(ledger.TABLE)}
    items, rows, unequal = len(expected), 0, 0
    names = ", ".join(f'"{name}"' for name in ledger.COLUMNS)
    with psycopg.connect(source.stack.postgres.url) as connection:
        set_json_loads(partial(json.loads, parse_float=str), connection)
        cursor = connection.cursor("proof")
        cursor.itersize = 10_000
        cursor.execute(f'SELECT {names} FROM public."Ledger"'.encode())  # noqa: S608 - constants only
        for row in cursor:
            rows += 1
            unequal += expected.pop(row[0], b"") != _digest(_comparable(row))
    return Proof(items, rows, unequal + len(expected))


def _comparable(row: tuple[Any, ...]) -> tuple[Any, ...]:
    *values, tags, marks, address = row
    return (
        *values,
        None if tags is None else sorted(tags),
        None if marks is None else sorted(marks),
        None if address is None else json.dumps(address, sort_keys=True),
    )


def _digest(row: tuple[Any, ...]) -> bytes:
    return hashlib.blake2b("\x1f".join(map(_text, row)).encode(), digest_size=16).digest()


def _text(value: object) -> str:
    """Write equal values the same way, whatever scale or time zone they have."""
    match value:
        case list():
            return repr([_text(part) for part in cast("list[object]", value)])
        case Decimal():
            return f"{value.normalize():f}"
        case datetime():
            return value.astimezone(UTC).isoformat()
        case _:
            return repr(value)
