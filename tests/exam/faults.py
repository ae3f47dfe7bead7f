"""The faults of the exam: the damage to stored rows behind the product's back, and what must be reported of each.

Invariant: only cold items are damaged, which the writer does not touch, so each fault stays until it is found.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.core.errors import key_digest
from tests.exam import ledger
from tests.exam.source import Source, is_hot

if TYPE_CHECKING:
    from pipeline.aurora.sessions.connection import Connection

_INVENTED_FROM = 2_000_000_000
# The value that each column is altered to: it has the column's type, and no item has it.
ALTERED: dict[str, str] = {
    "Holder": "'somebody else'",
    "Amount": '"Amount" + 0.00000001',
    "Grade": "-1",
    "Visits": "-1",
    "Serial": "-1",
    "Ratio": "-0.5",
    "Paid": 'NOT "Paid"',
    "Branch": "'nowhere'",
    "Token": "'00000000-0000-4000-8000-000000000000'",
    "Opened": "'1066-10-14'",
    "Moment": "'1066-10-14T09:00:00Z'",
    "Scan": "'\\x00'",
    "Tags": "'{altered}'",
    "Marks": "'{0.1}'",
    "Address": """'{"street": "elsewhere"}'""",
    "attributes": """'{"remark": "altered"}'""",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One damaged row: what was done, and which kinds of drift are right for it."""

    identifier: int
    done: str
    kinds: frozenset[str]
    columns: frozenset[str] | None = None
    """The columns that must be named; None if the fault is not about columns, or about several."""

    @property
    def digest(self) -> str:
        """The name of the row in reports."""
        return key_digest([str(self.identifier)])


@dataclass
class Injection:
    """Damages rows: first `prepare`, while all flows work, then `inject`."""

    source: Source
    rows: int
    total: int
    faults: list[Fault] = field(default_factory=list[Fault])

    def __post_init__(self) -> None:
        choose = random.Random(1815)
        share = self.total // 20
        cold = [identifier for identifier in range(1, self.rows + 1) if not is_hot(identifier)]
        chosen = iter(choose.sample(cold, self.total))
        self._groups: dict[str, list[int]] = {
            name: [next(chosen) for _ in range(share * parts)]
            for name, parts in {"deleted": 4, "buried": 1, "emptied": 1, "stale": 3, "resurrected": 2}.items()
        }
        self._groups["invented"] = [_INVENTED_FROM + number for number in range(share * 2)]
        left = self.total - sum(map(len, self._groups.values()))
        for number, column in enumerate(ALTERED):
            size = left // len(ALTERED) + (number < left % len(ALTERED))
            self._groups[column] = [next(chosen) for _ in range(size)]

    def prepare(self, connection: Connection) -> None:
        """Keep the present state of some rows, then update or delete those items in the source."""
        stale, gone = self._groups["stale"], self._groups["resurrected"]
        connection.execute('CREATE TABLE public.exam_before AS SELECT * FROM replica."Ledger" WHERE false')
        connection.execute(
            'INSERT INTO public.exam_before SELECT * FROM replica."Ledger" WHERE "Id" = ANY(%s)', [stale + gone]
        )
        self.source.put(ledger.item(identifier, 1) for identifier in stale)
        self.source.delete(gone)

    def inject(self, connection: Connection) -> None:
        """Do all the damage, in one transaction."""
        with connection.transaction():
            self._do(connection, "deleted", 'DELETE FROM {} WHERE "Id" = ANY(%s)', {"missing"})
            self._do(connection, "buried", 'UPDATE {} SET _deleted = true WHERE "Id" = ANY(%s)', {"missing"})
            self._do(
                connection, "emptied", 'UPDATE {} SET "Amount" = NULL WHERE "Id" = ANY(%s)', {"different"}, "Amount"
            )
            self._do(
                connection,
                "invented",
                'INSERT INTO {} ("Id", "Holder", _as_of) SELECT i, \'invented\', now() FROM unnest(%s::bigint[]) AS i',
                {"extra"},
            )
            for column, value in ALTERED.items():
                statement = f'UPDATE {{}} SET "{column}" = {value} WHERE "Id" = ANY(%s)'  # noqa: S608 - constants only
                self._do(connection, column, statement, {"different"}, column)
            taken = 'DELETE FROM {} WHERE "Id" = ANY(%s)'
            for done, kinds in {"stale": {"stale", "different"}, "resurrected": {"extra"}}.items():
                self._do(connection, done, taken, kinds)
                connection.execute(
                    'INSERT INTO replica."Ledger" SELECT * FROM public.exam_before WHERE "Id" = ANY(%s)',
                    [self._groups[done]],
                )
        connection.execute("DROP TABLE public.exam_before")

    def _do(
        self, connection: Connection, done: str, statement: str, kinds: set[str], column: str | None = None
    ) -> None:
        identifiers = self._groups[done]
        connection.execute(statement.replace("{}", 'replica."Ledger"').encode(), [identifiers])
        columns = None if column is None else frozenset({column})
        name = done if column is None or done == "emptied" else f"altered {column}"
        self.faults += [Fault(identifier, name, frozenset(kinds), columns) for identifier in identifiers]
