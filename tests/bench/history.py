"""A stream's life: events in Lambda's form, and what the table must show after them.

Four in ten records insert, five modify, one removes; some keys come again soon, as in real streams. Records come in
order and once each: the seed's handler can do nothing else, and must end right to be compared.
"""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

from tests.bench.reference import plain
from tests.bench.shapes import NARROW, STAFF, Shape

STREAM = "arn:aws:dynamodb:eu-central-1:111122223333:table/Employees/stream/2024-06-01T00:00:00.000"
_NAMES = [
    "Akua",
    "Zoë",
    "José",
    "Li",
    "Мария",
    "Sam",
    "Nils",
    "Ana",
    "Kwame",
    "Chloé",
    "Bjørn",
    "Ivy",
    "太郎",
    "Priya",
    "Tom",
    "Eve",
]
_RECENT = 300


class History:
    """A table of `rows` rows and its changes, from a seed. `written` holds the changed rows: None is deleted."""

    def __init__(self, rows: int, seed: int = 7, *, shape: Shape = NARROW) -> None:
        self.rows = rows
        self._staff = shape is STAFF
        self._choose = random.Random(seed)
        self._next = rows + 1
        self._sequence = 4_421_584_500_000_000_017_450_439_091
        self._recent: list[int] = []
        self._gone: set[int] = set()
        self.written: dict[int, tuple[Any, ...] | None] = {}

    def batch(self, size: int) -> bytes:
        """Return the next event of `size` records, as JSON."""
        return json.dumps({"Records": [self._record() for _ in range(size)]}, separators=(",", ":")).encode()

    def _record(self) -> dict[str, Any]:
        choose = self._choose
        self._sequence += choose.randint(1, 3_000)
        kind = choose.random()
        if kind < 0.4:
            event, number = "INSERT", self._next
            self._next += 1
        else:
            event, number = ("MODIFY" if kind < 0.9 else "REMOVE"), self._existing()
        self._recent = [*self._recent[-_RECENT:], number]
        change: dict[str, Any] = {
            "ApproximateCreationDateTime": 1_717_200_000 + self._sequence % 1000,
            "Keys": {"Id": {"N": str(number)}},
            "SequenceNumber": str(self._sequence),
            "SizeBytes": 60,
            "StreamViewType": "NEW_IMAGE",
        }
        if event == "REMOVE":
            self._gone.add(number)
            self.written[number] = None
        else:
            change["NewImage"] = self._image(number)
        return {
            "eventID": f"{choose.getrandbits(128):032x}",
            "eventName": event,
            "eventVersion": "1.1",
            "eventSource": "aws:dynamodb",
            "awsRegion": "eu-central-1",
            "dynamodb": change,
            "eventSourceARN": STREAM,
        }

    def _image(self, number: int) -> dict[str, Any]:
        choose = self._choose
        name = f"{choose.choice(_NAMES)} {choose.randint(1, 10**6)}"
        department = f"Dept {choose.randint(1, 999)}"
        image: dict[str, Any] = {"Id": {"N": str(number)}, "empName": {"S": name}, "empDepartment": {"S": department}}
        self.written[number] = (name, department)
        if self._staff:
            salary = (
                str(choose.randint(10**37, 10**38 - 1)) if choose.random() < 0.1 else f"{choose.randint(1, 10**5)}.25"
            )
            tags = [{"S": choose.choice(_NAMES)}, {"N": str(choose.randint(0, 9))}]
            attrs = {
                "city": {"S": choose.choice(_NAMES)},
                "score": {"N": f"{choose.randint(0, 999)}.5"},
                "tags": {"L": tags},
            }
            active = choose.random() < 0.8
            image |= {"salary": {"N": salary}, "active": {"BOOL": active}, "attrs": {"M": attrs}}
            self.written[number] = (name, department, Decimal(salary), active, plain({"M": attrs}))
        return image

    def _existing(self) -> int:
        while True:
            if self._recent and self._choose.random() < 0.15:
                number = self._choose.choice(self._recent)
            else:
                number = self._choose.randint(1, self._next - 1)
            if number not in self._gone:
                return number

    @property
    def live(self) -> int:
        """Rows that the table must show."""
        written = sum(1 for number in self.written if number <= self.rows)
        return self.rows - written + sum(1 for values in self.written.values() if values is not None)
