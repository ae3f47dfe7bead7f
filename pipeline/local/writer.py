"""A writer of `Employees`: what an application does to the table while it is loaded and replicated.

Invariant: it never looks at the copy. It keeps only counts of what it wrote and, for a sample of its writes, the token
and the time, from which the lag is measured at the other end.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient

FIRST_NAMES = ("Akua", "Zoë", "José", "Li", "Мария", "Sam", "Nils", "Ana", "Kwame", "Bjørn", "太郎", "Priya")
DEPARTMENTS = ("Sales", "Finance", "Legal", "Research", "Support")
_BATCH_ITEMS = 25  # BatchWriteItem's limit
_THREADS = 2
SENTINEL_ID = 2_000_000_000


@dataclass(slots=True)
class Written:
    """How many writes went out, by kind."""

    inserted: int = 0
    updated: int = 0
    deleted: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.inserted + self.updated + self.deleted


def employee(identifier: int, choose: random.Random) -> dict[str, Any]:
    """Return an item as applications write it: now and then with attributes that no column takes."""
    item: dict[str, Any] = {
        "Id": {"N": str(identifier)},
        "empName": {"S": f"{choose.choice(FIRST_NAMES)} {identifier}"},
    }
    if choose.random() < 0.95:
        item["empDepartment"] = {"S": choose.choice(DEPARTMENTS)}
    if choose.random() < 0.2:
        item["skills"] = {"SS": choose.sample(["sql", "python", "dynamodb", "dagster"], 2)}
        item["salary"] = {"N": f"{choose.randint(30_000, 90_000)}.{choose.randint(0, 99):02d}"}
    return item


def put_items(client: DynamoDBClient, table: str, identifiers: range) -> None:
    """Put a new item for each Id."""
    choose = random.Random(2001)  # noqa: S311 - sample data
    for start in range(0, len(identifiers), _BATCH_ITEMS):
        requests: list[Any] = [
            {"PutRequest": {"Item": employee(identifier, choose)}}
            for identifier in identifiers[start : start + _BATCH_ITEMS]
        ]
        while requests:
            answer = client.batch_write_item(RequestItems={table: requests})
            requests = answer["UnprocessedItems"].get(table, [])


@dataclass
class Writer:
    """Inserts, updates and deletes at a steady rate in threads of its own, until stopped."""

    client: DynamoDBClient
    table: str
    identifiers: range
    """The Ids that the table already holds."""
    writes_per_second: float = 150.0
    sample_every: int = 5
    written: Written = field(default_factory=Written)
    samples: deque[tuple[int, str, float]] = field(default_factory=deque[tuple[int, str, float]])
    """(Id, the name just written, monotonic time) of sampled writes, for measuring the lag."""

    def __post_init__(self) -> None:
        self._next_id = count(self.identifiers.stop)
        self._stop = threading.Event()
        self._failures: list[BaseException] = []
        self._started = 0.0
        # Each thread has its own share of the items, so that the order of one item's writes is one thread's.
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"writer {number}", daemon=True)
            for number in range(_THREADS)
        ]
        self.seconds = 0.0

    def start(self) -> None:
        """Begin to write."""
        self._started = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop, wait for the writes under way, and raise the error that the writer met, if any."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        if self._failures:
            raise self._failures[0]

    def write_sentinel(self) -> None:
        """Write one last item; `sentinel_id` is its Id."""
        item = {"Id": {"N": str(self.sentinel_id)}, "empName": {"S": "sentinel"}}
        self.client.put_item(TableName=self.table, Item=item)

    @property
    def sentinel_id(self) -> int:
        """An Id that the writer uses for nothing else."""
        return SENTINEL_ID

    @property
    def rate(self) -> float:
        """Writes a second so far."""
        return self.written.total / self.seconds if self.seconds else 0.0

    def _run(self, number: int) -> None:
        choose = random.Random(7 + number)  # noqa: S311 - sample data
        live = list(self.identifiers[number::_THREADS])
        try:
            while not self._stop.is_set():
                self._write_one(choose, live)
                self.seconds = time.monotonic() - self._started
                ahead = self.written.total / self.writes_per_second - self.seconds
                if ahead > 0:
                    self._stop.wait(ahead)
        except BaseException as error:  # noqa: BLE001 - handed to whoever stops the writer
            self._failures.append(error)

    def _write_one(self, choose: random.Random, live: list[int]) -> None:
        kind = choose.random()
        if kind < 0.35 or len(live) < 10:
            identifier = next(self._next_id)
            self.client.put_item(TableName=self.table, Item=employee(identifier, choose))
            live.append(identifier)
            self.written.inserted += 1
        elif kind < 0.8:
            self._update(choose.choice(live))
            self.written.updated += 1
        else:
            position = choose.randrange(len(live))
            live[position], live[-1] = live[-1], live[position]
            self.client.delete_item(TableName=self.table, Key={"Id": {"N": str(live.pop())}})
            self.written.deleted += 1

    def _update(self, identifier: int) -> None:
        name = f"v{self.written.total} {identifier}"[:20]
        self.client.update_item(
            TableName=self.table,
            Key={"Id": {"N": str(identifier)}},
            UpdateExpression="SET empName = :name",
            ExpressionAttributeValues={":name": {"S": name}},
        )
        if self.written.updated % self.sample_every == 0:
            self.samples.append((identifier, name, time.monotonic()))
