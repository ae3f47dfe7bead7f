"""A stream's life: events in Lambda's form, and what the table must show after them.

Four in ten records insert, five modify, one removes; some keys come again soon, as in real streams. Records come in
order and once each: the seed's handler can do nothing else, and must end right to be compared.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tests.bench.items import OTHER_ITEMS, Item, wide
from tests.bench.shapes import NARROW, Shape

STREAM = "arn:aws:dynamodb:eu-central-1:111122223333:table/{table}/stream/2024-06-01T00:00:00.000"
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
    """A table of `rows` rows and its changes, from a seed. `written` holds the changed items: None is deleted."""

    def __init__(self, rows: int, seed: int = 7, *, shape: Shape = NARROW) -> None:
        self.rows = rows
        self._shape, self._image = shape, _IMAGES[shape.items_of or shape.name]
        self._choose = random.Random(seed)
        self._next = rows + 1
        self._sequence = 4_421_584_500_000_000_017_450_439_091
        self._recent: list[int] = []
        self._gone: set[int] = set()
        self.written: dict[int, Item | None] = {}

    def batch(self, size: int) -> bytes:
        """Return the next event of `size` records, as JSON."""
        return json.dumps({"Records": [self._record() for _ in range(size)]}, separators=(",", ":")).encode()

    def key(self, number: int) -> dict[str, str]:
        """Return the key attribute of an item."""
        return {"N": str(number)} if self._shape.key.tag == "N" else {"S": f"item#{number}"}

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
        key = {self._shape.key.attribute: self.key(number)}
        change: dict[str, Any] = {
            "ApproximateCreationDateTime": 1_717_200_000 + self._sequence % 1000,
            "Keys": key,
            "SequenceNumber": str(self._sequence),
            "SizeBytes": 60,
            "StreamViewType": "NEW_IMAGE",
        }
        if event == "REMOVE":
            self._gone.add(number)
            self.written[number] = None
        else:
            change["NewImage"] = self.written[number] = self._image(number, choose) | key
        return {
            "eventID": f"{choose.getrandbits(128):032x}",
            "eventName": event,
            "eventVersion": "1.1",
            "eventSource": "aws:dynamodb",
            "awsRegion": "eu-central-1",
            "dynamodb": change,
            "eventSourceARN": STREAM.format(table=self._shape.table),
        }

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
        return self.rows - written + sum(1 for item in self.written.values() if item is not None)


def _three(_: int, choose: random.Random) -> Item:
    return {
        "empName": {"S": f"{choose.choice(_NAMES)} {choose.randint(1, 10**6)}"},
        "empDepartment": {"S": f"Dept {choose.randint(1, 999)}"},
    }


def _six(number: int, choose: random.Random) -> Item:
    salary = str(choose.randint(10**37, 10**38 - 1)) if choose.random() < 0.1 else f"{choose.randint(1, 10**5)}.25"
    attrs = {
        "city": {"S": choose.choice(_NAMES)},
        "score": {"N": f"{choose.randint(0, 999)}.5"},
        "tags": {"L": [{"S": choose.choice(_NAMES)}, {"N": str(choose.randint(0, 9))}]},
    }
    more: Item = {"salary": {"N": salary}, "active": {"BOOL": choose.random() < 0.8}, "attrs": {"M": attrs}}
    return _three(number, choose) | more


# The attributes of each shape's items; the key comes by itself.
_IMAGES: dict[str, Callable[[int, random.Random], Item]] = {
    "narrow": _three,
    "staff": _six,
    "wide": wide,
    **OTHER_ITEMS,
}
