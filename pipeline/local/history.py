"""What a stream's records say about a table's past. Pure: records in, states out.

Invariant: a state is returned only if the records prove it. The state of a key at time T is

- the new image of its last record before T, if there is one (none after a REMOVE);
- otherwise what its first record at or after T says was there before: nothing for an INSERT, else that
  record's old image;
- otherwise, with no record at all, what the table holds now.

One case stays open: an item older than the stream whose first change carries no old image (view type NEW_IMAGE).

Items are JSON text; keys are a text that is equal for equal keys.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

# DynamoDB numbers have up to 38 digits; equal numbers may be written differently (1, 1.0).
NUMBERS = Context(prec=60)
# The sequence numbers of ministack: epoch milliseconds in 20 digits, then a counter in 10.
MILLISECOND_DIGITS = 20
SEQUENCE_DIGITS = 30


class UnprovableError(Exception):
    """The stream does not carry what is needed to reconstruct a past state."""


@dataclass(frozen=True)
class PastChange:
    """One stream record. `at_ms` is when it was written, `old` and `new` are images as JSON where the record
    has them.
    """

    key: str
    keys: str
    at_ms: int
    event: str
    old: str | None
    new: str | None


@dataclass(frozen=True)
class WindowChange:
    """What happened to one key over a window: its state before and after it, None where there was no item."""

    keys: str
    at_ms: int
    old: str | None
    new: str | None


def to_json(value: object) -> str:
    """Compact JSON, characters as they are."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def key_text(attributes: Mapping[str, Any], key_names: Iterable[str]) -> str:
    """The key as a text that is equal if and only if DynamoDB takes the keys for equal."""
    parts: list[str] = []
    for name in key_names:
        ((kind, value),) = attributes[name].items()
        parts.append(str(NUMBERS.normalize(Decimal(value))) if kind == "N" else value)
    return to_json(parts)


def past_change(record: Mapping[str, Any], key_names: Iterable[str]) -> PastChange:
    """One record as GetRecords gives it."""
    change = record["dynamodb"]
    old, new = change.get("OldImage"), change.get("NewImage")
    return PastChange(
        key=key_text(change["Keys"], key_names),
        keys=to_json(change["Keys"]),
        at_ms=_written_at_ms(change["SequenceNumber"], change["ApproximateCreationDateTime"]),
        event=record["eventName"],
        old=None if old is None else to_json(old),
        new=None if new is None else to_json(new),
    )


def _written_at_ms(sequence_number: str, created_seconds: float) -> int:
    """When a record was written: ministack's sequence number has the millisecond, others the whole second."""
    if len(sequence_number) == SEQUENCE_DIGITS and sequence_number.startswith("0"):
        return int(sequence_number[:MILLISECOND_DIGITS])
    return int(created_seconds) * 1000


def roll_forward(items: dict[str, str], later: Iterable[PastChange]) -> None:
    """Bring items read at some time to the state after `later`, which must hold every change since before
    that read.
    """
    for change in later:
        if change.event == "REMOVE":
            items.pop(change.key, None)
        elif change.new is None:
            raise UnprovableError("the stream carries no new images")
        else:
            items[change.key] = change.new


def state_at(now: Mapping[str, str], history: Iterable[PastChange], time_ms: int) -> dict[str, str]:
    """The items at `time_ms`, given the items now and every record the stream still has, in order."""
    state = dict(now)
    settled: set[str] = set()
    for change in history:
        if change.at_ms < time_ms:
            _set(state, change.key, _after(change))
            settled.add(change.key)
        elif change.key not in settled:
            _set(state, change.key, _before(change))
            settled.add(change.key)
    return state


def changes_between(history: Iterable[PastChange], from_ms: int, to_ms: int, *, with_old: bool) -> list[WindowChange]:
    """One change a key over [from_ms, to_ms), in the order of their last write; a key that came and went is
    left out.

    Without `with_old` only the existence of the state before is proven, and `old` is an empty text where
    there was one.
    """
    before: dict[str, str | None] = {}
    last: dict[str, PastChange] = {}
    known: dict[str, str | None] = {}
    for change in history:
        if change.at_ms < from_ms:
            known[change.key] = _after(change)
        elif change.at_ms < to_ms:
            if change.key not in before:
                before[change.key] = _state_before(change, known, with_old=with_old)
            last.pop(change.key, None)
            last[change.key] = change
    changes = (WindowChange(change.keys, change.at_ms, before[key], _after(change)) for key, change in last.items())
    return [change for change in changes if change.old is not None or change.new is not None]


def _state_before(change: PastChange, known: Mapping[str, str | None], *, with_old: bool) -> str | None:
    if change.key in known:
        return known[change.key]
    if not with_old:
        return None if change.event == "INSERT" else ""
    return _before(change)


def _after(change: PastChange) -> str | None:
    if change.event == "REMOVE":
        return None
    if change.new is None:
        raise UnprovableError("the stream carries no new images")
    return change.new


def _before(change: PastChange) -> str | None:
    if change.event == "INSERT":
        return None
    if change.old is None:
        raise UnprovableError("an item older than the stream was changed, and the stream carries no old images")
    return change.old


def _set(state: dict[str, str], key: str, image: str | None) -> None:
    if image is None:
        state.pop(key, None)
    else:
        state[key] = image
