"""Which database role runs which verb, and what each verb needs. Every grant is derived from this one table.

Invariant: a role has only what its verbs need. Values only: `roles` turns them into SQL.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ALL_TABLES = "*"
_READ = frozenset({"SELECT"})
_WRITE = frozenset({"SELECT", "INSERT", "UPDATE"})
_CHANGE = _WRITE | {"DELETE"}
# What it takes to keep writers out (PostgreSQL manual, LOCK).
_LOCK = frozenset({"UPDATE"})


class Role(StrEnum):
    """Who uses the database."""

    OWNER = "owner"
    """Owns both schemas, the storage tables and the views, and changes them."""
    REPLICATOR = "replicator"
    """The Lambda function."""
    OPERATOR = "operator"
    """Dagster, and people on the command line."""
    READER = "reader"
    """Reads every view; log-ins of applications and people are made members of it."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Privileges beyond USAGE of the schemas: on storage tables, and on bookkeeping tables by name or ALL_TABLES."""

    storage: frozenset[str] = frozenset()
    bookkeeping: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    temporary: bool = False
    """Temporary tables."""
    creates: bool = False
    """Its own working tables in the storage schema."""
    swaps: bool = False
    """It may assume the owner's role (SET ROLE): while it puts a loaded table in place, and for partitions."""

    def __or__(self, other: Needs) -> Needs:
        """Return what both need."""
        names = self.bookkeeping.keys() | other.bookkeeping.keys()
        return Needs(
            self.storage | other.storage,
            {name: self.on(name) | other.on(name) for name in sorted(names)},
            temporary=self.temporary or other.temporary,
            creates=self.creates or other.creates,
            swaps=self.swaps or other.swaps,
        )

    def on(self, table: str) -> frozenset[str]:
        """Return the privileges on one bookkeeping table."""
        return self.bookkeeping.get(table, frozenset()) | self.bookkeeping.get(ALL_TABLES, frozenset())


@dataclass(frozen=True, slots=True)
class VerbNeeds:
    """A verb of the command line, or another program that uses the database, and the role that it runs under."""

    verb: str
    role: Role
    needs: Needs = field(default_factory=Needs)


# Storage tables of children are the reason for DELETE: their rows are replaced whole with their parent's.
_APPLIES = Needs(_CHANGE, {"tables": _READ, "watermarks": _WRITE, "rejects": _WRITE, "settled_values": _WRITE})
_LOOKS = Needs(_READ, {ALL_TABLES: _READ})
_WORKS = Needs(_CHANGE, {ALL_TABLES: _CHANGE})

VERBS = (
    VerbNeeds("migrate", Role.OWNER),
    VerbNeeds("the Lambda function", Role.REPLICATOR, _APPLIES),
    VerbNeeds("plan", Role.OPERATOR, _LOOKS),
    VerbNeeds("status", Role.OPERATOR, _LOOKS),
    VerbNeeds("unmapped", Role.OPERATOR, _LOOKS),
    VerbNeeds("reconcile --key", Role.OPERATOR, _LOOKS | Needs(temporary=True)),
    VerbNeeds("load", Role.OPERATOR, _WORKS | Needs(temporary=True, creates=True, swaps=True)),
    VerbNeeds("catch-up", Role.OPERATOR, _WORKS | Needs(temporary=True, creates=True)),
    VerbNeeds("reconcile", Role.OPERATOR, _WORKS | Needs(temporary=True, creates=True)),
    VerbNeeds("redrive", Role.OPERATOR, _LOOKS | _APPLIES),
    VerbNeeds("rejects", Role.OPERATOR, _LOOKS | _APPLIES),
    VerbNeeds("promote", Role.OPERATOR, _LOOKS | Needs(_WRITE, {"promotions": _WRITE})),
    # Partitions of histories are their owner's to create and drop.
    VerbNeeds("purge", Role.OPERATOR, Needs(_READ | {"INSERT", "DELETE"}, {ALL_TABLES: _CHANGE}, swaps=True)),
    VerbNeeds("forget", Role.OPERATOR, _WORKS),
    VerbNeeds("repoint", Role.OPERATOR, Needs(_LOCK, {ALL_TABLES: _CHANGE})),
    VerbNeeds("the sensors (probe, lost history)", Role.OPERATOR, Needs(_READ, {ALL_TABLES: _CHANGE})),
    VerbNeeds("reading the views", Role.READER),
)


def of(role: Role, verbs: Iterable[VerbNeeds] = VERBS) -> Needs:
    """Return what a role needs: the union over its verbs."""
    return reduce(Needs.__or__, (each.needs for each in verbs if each.role is role), Needs())
