"""The rows of the scale run: any number of narrow items, each made from its number alone, in Python and in SQL.

Invariant: both forms say the same, so that PostgreSQL can check every stored row by its key. In the *second* state of
the source, one item in a hundred has changed.
"""

from __future__ import annotations

from collections.abc import Iterator

_FIRST = ("Akua", "Zoë", "José", "Li", "Мария", "Sam", "Nils", "Ana")
_LAST = ("Mensah", "Müller", "García", "Wang", "Иванова", "Smith", "O'Neil", "山田")
_NAMES = [f"{first} {last}" for first in _FIRST for last in _LAST]
_SPREAD, _SECOND, _RANGE, _DEPARTMENTS = 2_654_435_761, 40_503, 1 << 32, 999

EVERY = 1_000
"""Counts of items are multiples of this: of every thousand numbers, those with certain last digits change."""
_UPDATED, _DELETED = range(6), range(6, 8)
_WRONG, _LOST = range(100, 108), range(108, 109)
NEW = 2
"""New items for every thousand, numbered after the others: as many as are deleted."""
CHANGES = len(_UPDATED) + len(_DELETED) + NEW
"""Changes for every thousand items."""
DELETES = len(_DELETED)
DAMAGED = len(_WRONG) + len(_LOST) + 1
"""Rows for every thousand that `damage` alters, deletes or adds; none of them is among the changed."""


def item(number: int, state: int) -> str:
    """Return an item in DynamoDB's JSON: state 0 is the first, 1 the second."""
    mixed = (number * _SPREAD + state * _SECOND) % _RANGE
    return (
        f'{{"Id":{{"N":"{number}"}},"empName":{{"S":"{_NAMES[mixed & 63]}"}},'
        f'"empDepartment":{{"S":"Dept {mixed // 64 % _DEPARTMENTS + 1}"}}}}'
    )


def second_state(number: int, items: int) -> int | None:
    """Return the state that an item has in the second state of the source; None: there is no such item."""
    if number > items:
        return 1 if number <= items + items // EVERY * NEW else None
    rest = number % EVERY
    return None if rest in _DELETED else int(rest in _UPDATED)


def changed(items: int) -> Iterator[int]:
    """Yield the numbers whose items the second state has changed, in no order of their size."""
    for rest in (*_UPDATED, *_DELETED):
        yield from range(rest or EVERY, items + 1, EVERY)
    yield from range(items + 1, items + items // EVERY * NEW + 1)


def check(items: int, *, second: bool) -> str:
    """SQL that counts the rows of the view, and those of them that are right."""
    states = (
        f'CASE WHEN "Id" > {items} THEN CASE WHEN "Id" <= {items + items // EVERY * NEW} THEN 1 END'
        f' WHEN "Id" % {EVERY} IN ({_listed(_DELETED)}) THEN NULL'
        f' WHEN "Id" % {EVERY} IN ({_listed(_UPDATED)}) THEN 1 ELSE 0 END'
    )
    names = ", ".join("'" + name.replace("'", "''") + "'" for name in _NAMES)
    state = states if second else f'CASE WHEN "Id" BETWEEN 1 AND {items} THEN 0 END'
    return (
        "SELECT count(*), count(*) FILTER (WHERE"
        f' "Name" = (ARRAY[{names}])[(mixed & 63) + 1]'
        f""" AND "Department" = 'Dept ' || (mixed / 64 % {_DEPARTMENTS} + 1))"""
        f' FROM public."Employees", LATERAL (SELECT ("Id" * {_SPREAD} + ({state}) * {_SECOND}) % {_RANGE}) AS m(mixed)'
    )


def damage(items: int) -> list[str]:
    """SQL that damages one row in a hundred of the storage table, as a person with psql might."""
    table, extra = 'replica."Employees"', items + items // EVERY * NEW
    return [
        f"""UPDATE {table} SET "Name" = 'wrong' WHERE "Id" <= {items} AND "Id" % {EVERY} IN ({_listed(_WRONG)})""",
        f"""DELETE FROM {table} WHERE "Id" <= {items} AND "Id" % {EVERY} IN ({_listed(_LOST)})""",
        f"""INSERT INTO {table} ("Id", "Name", _as_of) SELECT n, 'extra', (SELECT min(_as_of) FROM {table})
            FROM generate_series({extra + 1}, {extra + items // EVERY}) AS n""",
    ]


def _listed(rests: range) -> str:
    return ", ".join(map(str, rests))
