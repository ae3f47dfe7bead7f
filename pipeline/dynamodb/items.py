"""Re-reads items by key with consistent reads: the source's current state.

Invariant: `read_at` is never later than the moment when the state was read. A snapshot's position claims that the state
has every older change, so too early is safe and too late is not: with a time too early, a stream change that the state
already has wins without harm; with a time too late, an older state could undo a newer change. The clock is read before
each request, and corrected by the source's answers (`pipeline.dynamodb.clock`). The margin covers the remaining error.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import TransientError
from pipeline.core.model.attributes import canonical_number
from pipeline.dynamodb.clock import SourceClock
from pipeline.dynamodb.errors import translating
from pipeline.dynamodb.wire import from_wire, to_wire

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from types_boto3_dynamodb.client import DynamoDBClient

    from pipeline.core.model.attributes import Item

_KEYS_A_REQUEST = 100  # BatchGetItem's limit; it answers with at most 16 MB and leaves the rest unprocessed
_ATTEMPTS_WITHOUT_PROGRESS = 8
_LONGEST_PAUSE_SECONDS = 5.0

_Identity = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ItemRead:
    """`item` is None if there was none with this key."""

    key: Item
    item: Item | None
    read_at: datetime


def read_items(
    client: DynamoDBClient, table_name: str, keys: Sequence[Item], clock: SourceClock | None = None
) -> Iterator[ItemRead]:
    """Read the items of `keys` (wire form, only key attributes), each key once, in any order.

    `clock` holds what we know about the source's clock; each answer adds to it. Raises TransientError if DynamoDB
    leaves keys unprocessed several times in a row.
    """
    remaining = iter({_identity(key, list(key)): key for key in keys}.values())
    clock = clock or SourceClock()
    while batch := list(islice(remaining, _KEYS_A_REQUEST)):
        yield from _read_batch(client, table_name, batch, clock)


def _read_batch(client: DynamoDBClient, table_name: str, batch: list[Item], clock: SourceClock) -> Iterator[ItemRead]:
    names = list(batch[0])
    waiting = {_identity(key, names): key for key in batch}
    doing = f"reading {len(batch)} items of {table_name} by key"
    attempts = 0
    while waiting:
        request: Any = {"Keys": [from_wire(key) for key in waiting.values()], "ConsistentRead": True}
        with translating(doing):
            answer, read_at = clock.ask(client.batch_get_item, RequestItems={table_name: request})
        # The request names one table, so there is at most one entry, under the table's name or ARN.
        unprocessed = [key for part in answer.get("UnprocessedKeys", {}).values() for key in part["Keys"]]
        items = [to_wire(item) for part in answer["Responses"].values() for item in part]
        left = {_identity(to_wire(key), names) for key in unprocessed}
        found = {_identity(item, names): item for item in items}
        answered = [identity for identity in waiting if identity not in left]
        for identity in answered:
            yield ItemRead(waiting.pop(identity), found.get(identity), read_at)
        attempts = 0 if answered else attempts + 1
        if waiting:
            _pause(doing, attempts)


def _pause(doing: str, attempts: int) -> None:
    if attempts == _ATTEMPTS_WITHOUT_PROGRESS:
        raise TransientError(
            f"{doing}: DynamoDB left them unprocessed {attempts} times in a row",
            hint="the table's read capacity is used up; try again later or raise it",
        )
    longest = min(_LONGEST_PAUSE_SECONDS, 0.05 * 2**attempts)
    time.sleep(random.uniform(0, longest))  # noqa: S311  jitter, no secret


def _identity(item: Item, names: list[str]) -> _Identity:
    """Return a key's identity: DynamoDB answers `{"N": "1"}` to a request for `{"N": "1.0"}`."""
    return tuple(sorted((name, _plain(item[name])) for name in names))


def _plain(attribute: dict[str, str]) -> str:
    tag, value = next(iter(attribute.items()))
    return tag + (canonical_number(value) if tag == "N" else value)
