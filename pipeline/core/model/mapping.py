"""The mapping: how one DynamoDB table becomes typed SQL tables. Plain values, valid by construction.

`pipeline.core.mapping_files.mapping_file` reads it from YAML, and checks every rule about it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from pipeline.core.model.protection import ANY, Protect, Rule, generalized, recorded, rules_by_target
from pipeline.core.ordering import DEFAULT_MARGIN

if TYPE_CHECKING:
    from pipeline.core.model.attributes import PathPart
    from pipeline.core.model.history import History
    from pipeline.core.model.index import Index
    from pipeline.core.model.key_patterns import Pattern
    from pipeline.core.model.protection import PrivacyKey
    from pipeline.core.types.sql_types import SqlType

STORAGE_SCHEMA = "replica"
BOOKKEEPING_SCHEMA = "replication"
# Our own columns of a storage table; a mapping may not use these names.
VERSION, AS_OF, DELETED = "_version", "_as_of", "_deleted"
BOOKKEEPING_COLUMNS = (VERSION, AS_OF, DELETED)
# In the path to a child's elements, each element of the list or map before it: no index of a path is negative.
EACH = -1
# Columns of staging tables that carry the rows of child targets; a mapping may not use names that begin so.
CARRIED_PREFIX = "_children_"


class OnError(StrEnum):
    """What happens to a value that its column cannot hold."""

    REJECT = "reject"
    """The whole record goes to `replication.rejects`."""
    NULL = "null"
    """The column is NULL; the record is applied."""
    TRUNCATE = "truncate"
    """Text is cut to the column's length; what cannot be cut is rejected."""


class Unmatched(StrEnum):
    """What happens to an item whose key matches no target."""

    REJECT = "reject"
    """The whole record goes to `replication.rejects`."""
    IGNORE = "ignore"
    """It is counted and ignored."""


@dataclass(frozen=True, slots=True)
class Column:
    """One typed column and the attribute it is filled from."""

    name: str
    attribute: str
    """The path as the mapping spells it."""
    path: tuple[PathPart, ...]
    type: SqlType
    default: str | None = None
    """Text for an item that does not have the attribute (NULL becomes NULL)."""
    on_error: OnError = OnError.REJECT
    epoch: str | None = None
    """For a timestamptz from N: `seconds` or `milliseconds`."""
    json: str | None = None
    """For a jsonb from S: `parse` if the string holds JSON; otherwise it becomes a JSON string."""
    description: str | None = None
    capture: str | None = None
    """The part of the key attribute that the target's pattern captures; None for the attribute itself."""
    protect: Protect | None = None
    """What is stored instead of the attribute's value, here and wherever else the attribute appears."""


@dataclass(frozen=True, slots=True)
class Target:
    """One storage table and the view over it."""

    schema: str
    name: str
    primary_key: tuple[str, ...]
    columns: tuple[Column, ...]
    unmapped: str | None = None
    """The jsonb column for unmapped attributes, or None to drop them."""
    unmapped_on_error: OnError = OnError.REJECT
    """What happens to an attribute that this column cannot hold: NULL puts JSON's null in its place."""
    match: tuple[tuple[str, Pattern], ...] = ()
    """Patterns by key attribute: the items that belong to this target. Empty: every item."""
    parent: str | None = None
    """For a child target, its parent's view. Its columns begin with the parent's key and the element's place."""
    explode: tuple[PathPart, ...] = ()
    """For a child target, the path from the item to the list, map or set whose elements are its rows. For a child of a
    child, EACH stands for an element of its parent's list or map."""
    children: tuple[Target, ...] = ()
    """The child targets, whose rows are replaced whole with this target's row, and theirs: each after its parent."""
    indexes: tuple[Index, ...] = ()
    """The indexes of the storage table besides its primary key."""
    readers: tuple[str, ...] | None = None
    """Database roles that may read the view; None while the file's are not known."""
    history: History | None = None
    """How its versions are kept; None: only the newest state of each row is."""
    protect: tuple[Rule, ...] = ()
    """Protects attributes that no column takes."""

    def __hash__(self) -> int:
        # A batch looks its targets up: the hash of all contents would take longer than a record.
        return hash((self.schema, self.name))

    member: str | None = None
    """For a child of a set, the set's attribute type: SS, NS or BS. An element's place is the element itself."""

    @property
    def storage_name(self) -> str:
        """Name in schema `replica`."""
        return self.name if self.schema == "public" else f"{self.schema}.{self.name}"

    @property
    def view_name(self) -> str:
        """Schema and name for people, unquoted."""
        return f"{self.schema}.{self.name}"

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """Columns of the primary key, in its order."""
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name] for name in self.primary_key)

    @property
    def stored_columns(self) -> tuple[str, ...]:
        """Names of a row's values in order: the columns, then the jsonb column if there is one."""
        names = tuple(column.name for column in self.columns)
        return (*names, self.unmapped) if self.unmapped else names

    @property
    def carried(self) -> tuple[str, ...]:
        """Names of the values that a row carries besides its stored columns: the rows of each child target, as JSON."""
        return tuple(f"{CARRIED_PREFIX}{number}" for number in range(len(self.children)))

    @property
    def rules(self) -> tuple[Rule, ...]:
        """What is protected in its items, children included; for a child, in an element."""
        found = set(self.protect)
        found |= {Rule(generalized(column.path), column.protect) for column in self.columns if column.protect}
        for child in self.children:
            place = (*generalized(child.explode), ANY)
            found |= {Rule((*place, *rule.path), rule.how) for rule in child.rules}
        return tuple(sorted(found))

    @property
    def places(self) -> tuple[Column, ...]:
        """For a child target, the columns for an element's place, in the item's list or map first."""
        return self.key_columns[-self.explode.count(EACH) - 1 :]

    @property
    def own_columns(self) -> tuple[Column, ...]:
        """For a child target, the columns that are filled from an element."""
        return self.columns[len(self.primary_key) :]


@dataclass(frozen=True, slots=True)
class TableMapping:
    """One DynamoDB table and the targets it fills."""

    name: str
    """Identifier for assets, jobs and bookkeeping."""
    table: str
    """The DynamoDB table's name."""
    key: dict[str, str]
    """Key attributes and their types, partition key first: `{"Id": "N"}`."""
    targets: tuple[Target, ...]
    margin: timedelta = DEFAULT_MARGIN
    path: str = ""
    """The file it was read from, for messages."""
    schedule: dict[str, str] = field(default_factory=dict[str, str])
    """Cron expressions by job, and `timezone`."""
    freshness: dict[str, timedelta] = field(default_factory=dict[str, timedelta])
    """`warn` and `fail`: the lags at which the freshness check warns and fails."""
    unmatched: Unmatched = Unmatched.REJECT
    """What happens to an item that no target matches."""
    owners: tuple[str, ...] = ()
    """Who owns the table: e-mail addresses and `team:NAME`."""

    privacy_key: PrivacyKey | None = field(default=None, repr=False, compare=False)
    """The key of its hashes; None until a job has read it."""

    @property
    def protects(self) -> bool:
        """Whether any attribute is protected."""
        return any(target.rules for target in self.targets)

    @property
    def hashes(self) -> bool:
        """Whether any attribute is hashed, which needs the key."""
        return any(rule.how is Protect.HASH for target in self.targets for rule in target.rules)

    @property
    def rules(self) -> dict[str, tuple[Rule, ...]]:
        """What is protected, by the target that takes an item; under "" for items of no target, or of all of them."""
        return rules_by_target([(t.view_name if t.match else "", t.rules) for t in self.targets])

    @property
    def protection(self) -> str:
        """The record of what is protected, and under which key; "" if nothing is."""
        return recorded(self.rules, self.privacy_key)

    @property
    def tables(self) -> tuple[Target, ...]:
        """Every target that has a table: `targets`, which items are routed to, each followed by its children."""
        return tuple(table for target in self.targets for table in (target, *target.children))
