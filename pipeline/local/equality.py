"""The independent proof: a plain scan of DynamoDB against a plain SELECT on the view.

Invariant: nothing of the product takes part. The seed's mapping is written out here by hand, so that an error in a
codec, the ordering rule or the comparison cannot hide itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient


@dataclass(frozen=True, slots=True)
class Equality:
    """How source and view compare, key by key."""

    items: int
    rows: int
    missing: int
    extra: int
    different: int

    @property
    def equal(self) -> bool:
        """Whether every item has its row, every row its item, and all columns agree."""
        return self.missing == self.extra == self.different == 0 and self.items == self.rows


def compare_employees(client: DynamoDBClient, database_url: str) -> Equality:
    """Compare the table `Employees` with `public."Employees"`, both read whole."""
    expected: dict[int, tuple[str, str]] = {}
    for page in client.get_paginator("scan").paginate(TableName="Employees", ConsistentRead=True):
        for item in page["Items"]:
            attributes: dict[str, Any] = dict(item)
            name = attributes.get("empName", {"S": "NA"})["S"]
            expected[int(attributes["Id"]["N"])] = (name, attributes.get("empDepartment", {"S": "NA"})["S"])
    with psycopg.connect(database_url) as connection:
        rows = connection.execute('SELECT "Id", "Name", "Department" FROM public."Employees"').fetchall()
    stored = {row[0]: (row[1], row[2]) for row in rows}
    both = expected.keys() & stored.keys()
    return Equality(
        items=len(expected),
        rows=len(rows),
        missing=len(expected.keys() - stored.keys()),
        extra=len(stored.keys() - expected.keys()),
        different=sum(expected[key] != stored[key] for key in both),
    )
