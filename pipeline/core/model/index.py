"""An index of a target, as the mapping defines it: its parts, its method, and the rows that it covers.

Invariant: an index changes no row, so it is not part of the mapping digest. Its name contains a digest of its
definition: a changed definition has another name, and is built before the old index is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.core.names import with_digest

if TYPE_CHECKING:
    from pipeline.core.model.attributes import PathPart

BTREE, GIN, BRIN = "btree", "gin", "brin"
METHODS = (BTREE, GIN, BRIN)
# PostgreSQL's INDEX_MAX_KEYS.
MOST_PARTS = 32


@dataclass(frozen=True, slots=True)
class IndexPart:
    """A column, or a value inside a jsonb column."""

    column: str
    path: tuple[PathPart, ...] = ()
    """The path inside the jsonb column; empty for the column itself."""
    descending: bool = False
    nulls_first: bool = False

    def __str__(self) -> str:
        inside = "".join(f"[{part}]" if isinstance(part, int) else f".{_printable(part)}" for part in self.path)
        order = " desc" if self.descending else ""
        nulls = "" if self.nulls_first == self.descending else f" nulls {'first' if self.nulls_first else 'last'}"
        return f"{self.column}{inside}{order}{nulls}"


@dataclass(frozen=True, slots=True)
class Condition:
    """Which rows a partial index covers: those whose column has one of the values, or has any, or none."""

    column: str
    values: tuple[str, ...] = ()
    """Texts that PostgreSQL reads as the column's type; with none, `null` decides."""
    null: bool = False

    def __str__(self) -> str:
        if self.values:
            return f"{self.column} in ({', '.join(map(_printable, self.values))})"
        return f"{self.column} is {'' if self.null else 'not '}null"


@dataclass(frozen=True, slots=True)
class Index:
    """One index of a target."""

    parts: tuple[IndexPart, ...]
    method: str = BTREE
    unique: bool = False
    where: tuple[Condition, ...] = ()
    """All of them must hold. A partial index covers no tombstones."""

    def __str__(self) -> str:
        kind = " ".join(filter(None, ("unique" if self.unique else "", self.method if self.method != BTREE else "")))
        where = f" where {' and '.join(map(str, self.where))}" if self.where else ""
        return f"{kind + ' ' if kind else ''}({', '.join(map(str, self.parts))}){where}"

    def name(self, storage_name: str) -> str:
        """Name of the index of a storage table: readable as far as 63 bytes allow, then a digest of the definition."""
        readable = "_".join([storage_name, *("_".join(map(str, part.path or [part.column])) for part in self.parts)])
        return with_digest(_printable(readable), repr((storage_name, _definition(self))))


def _printable(text: str) -> str:
    """Return the text without characters that would end a plan's comment."""
    return "".join(character if character.isprintable() else "_" for character in text)


def _definition(index: Index) -> tuple[object, ...]:
    """Return the values that the digest covers. Never change them: databases hold names made from them."""
    parts = [(part.column, part.path, part.descending, part.nulls_first) for part in index.parts]
    where = [(condition.column, condition.values, condition.null) for condition in index.where]
    return (parts, index.method, index.unique, where)
