"""A model of the source: a table as a dict, its stream, and every state that each key ever had.

Invariant: it shares no code with the product. The dict is the oracle: at the end the target's view must equal it. The
timeline says when each state was true. Time is logical, in whole microseconds, and moves only on request.

It assumes of AWS what the contract assumes (docs/decisions/0002-ordering.md): the clock behind one key's creation times
differs from the table's by a constant, so it never runs backwards; a record's time is rounded down to the second.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

SECOND = 1_000_000
START = 1_715_685_260 * SECOND
NEVER = -(10**18)
"""Before the key was first written."""

SHARDS = 2
_FIRST_NUMBER = 99 * 10**19  # 21 digits, about to become 22
_REOPENED_NUMBER = 10**20  # a stream that is enabled again numbers from lower
_LARGEST_NUMBER = 10**40 - 1


def moment(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


@dataclass(frozen=True, slots=True)
class Record:
    """One stream record: what the product sees (`event`), and what the model knows of it."""

    key: int
    shard: tuple[str, int]
    created: int
    """Its ApproximateCreationDateTime, in microseconds."""
    event: dict[str, Any]


class SourceTable:
    """A DynamoDB table of integer keys. A state is the text of `Name`, unique to one write; None is absent."""

    def __init__(self, name: str, keys: int, clock_offsets: list[int]) -> None:
        self.name = name
        self.keys = range(keys)
        self.now = START
        self.items: dict[int, str] = {}
        self.timeline: dict[int, list[tuple[int, str | None]]] = {key: [(NEVER, None)] for key in self.keys}
        self.records: list[Record] = []
        self.unrecorded: set[int] = set()
        """Keys with a write that no stream recorded."""
        self._offsets = clock_offsets
        self._writes = 0
        self._label: str | None = None
        self._numbers: dict[int, int] = {}
        self.enable_stream()

    def tick(self, microseconds: int) -> None:
        self.now += microseconds

    def disable_stream(self) -> None:
        self._label = None

    def enable_stream(self) -> None:
        """Begin a new label, with lower sequence numbers than before."""
        if self._label is None:
            self.tick(1_000)
            self._label = moment(self.now).replace(tzinfo=None).isoformat(timespec="milliseconds")
            first = _REOPENED_NUMBER if self.records else _FIRST_NUMBER
            self._numbers = dict.fromkeys(range(SHARDS), first)

    @property
    def streaming(self) -> bool:
        return self._label is not None

    def put(self, key: int, number_step: int) -> None:
        self._writes += 1
        self._write(key, f"w{self._writes}", number_step)

    def delete(self, key: int, number_step: int, *, expired: bool = False) -> None:
        """Delete an item. Deleting what is not there writes no record, as in DynamoDB."""
        if key in self.items:
            self._write(key, None, number_step, expired=expired)

    def state_at(self, key: int, time: int) -> str | None:
        times = self.timeline[key]
        return times[bisect_right(times, time, key=lambda entry: entry[0]) - 1][1]

    def changed_between(self, start: int, end: int) -> dict[int, str | None]:
        """Return the final state of each key written in [start, end), as an incremental export contains it.
        A key that was absent before and after is not in it, whatever happened between.
        """
        changed: dict[int, str | None] = {}
        for key in self.keys:
            if any(start <= time < end for time, _ in self.timeline[key]):
                state = self.state_at(key, end - 1)
                if state is not None or self.state_at(key, start - 1) is not None:
                    changed[key] = state
        return changed

    def _write(self, key: int, state: str | None, number_step: int, *, expired: bool = False) -> None:
        self.tick(1)  # two writes never share a microsecond, so the timeline is unambiguous
        is_new = key not in self.items
        if state is None:
            del self.items[key]
        else:
            self.items[key] = state
        self.timeline[key].append((self.now, state))
        if self._label is None:
            self.unrecorded.add(key)
            return
        shard = key % SHARDS
        number = min(self._numbers[shard] + max(1, number_step), _LARGEST_NUMBER - 10**6 + len(self.records))
        self._numbers[shard] = number
        created = (self.now + self._offsets[key]) // SECOND
        event = self._event(key, state, number, created, is_new=is_new, expired=expired)
        self.records.append(Record(key, (self._label, shard), created * SECOND, event))

    def _event(
        self, key: int, state: str | None, number: int, created: int, *, is_new: bool, expired: bool
    ) -> dict[str, Any]:
        change: dict[str, Any] = {
            "ApproximateCreationDateTime": float(created),
            "Keys": {"Id": {"N": str(key)}},
            "SequenceNumber": str(number),
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        }
        if state is not None:
            change["NewImage"] = {"Id": {"N": str(key)}, "Name": {"S": state}}
        record: dict[str, Any] = {
            "eventID": f"{len(self.records):032x}",
            "eventName": "REMOVE" if state is None else "INSERT" if is_new else "MODIFY",
            "eventSourceARN": f"arn:aws:dynamodb:eu-west-1:111122223333:table/{self.name}/stream/{self._label}",
            "dynamodb": change,
        }
        if expired:
            record["userIdentity"] = {"type": "Service", "principalId": "dynamodb.amazonaws.com"}
        return record
