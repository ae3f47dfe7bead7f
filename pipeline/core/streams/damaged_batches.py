"""The records that can still be read from a damaged document of a failed batch: cut short, or incomplete.

Invariant: a record is returned whole or not at all, and all of them belong to one stream. How many there were before is
only known if the document still says so.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.streams.event_kinds import check_source
from pipeline.core.streams.failed_batches import foreign, inflated
from pipeline.core.streams.stream_records import stream_source

if TYPE_CHECKING:
    from pipeline.core.streams.stream_records import StreamRecord

_DECODER = json.JSONDecoder()
# What `surrogateescape` makes of a byte that is not UTF-8.
_DAMAGED_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class SalvagedBatch:
    """What is left of a batch."""

    table: str
    records: tuple[StreamRecord, ...]
    stated: int | None
    """How many records the document says there were; None if it no longer does."""


def salvage(content: bytes) -> SalvagedBatch:
    """Read what is there. Raises TerminalError if that is not at least one whole record of a DynamoDB stream."""
    text = inflated(content, whole=False).decode("utf-8", "surrogateescape")
    records = _records(_payload(text))
    if not records:
        raise foreign("not one whole record can be read of it")
    for record in records:
        check_source(record)
    arns = {str(record.get("eventSourceARN")) for record in records}
    if len(arns) > 1:
        raise foreign("its records are of several streams")
    return SalvagedBatch(stream_source(arns.pop()).table, tuple(records), _stated(text))


def _payload(text: str) -> str:
    """Return the payload's text as far as it goes."""
    _, found, rest = text.partition('"payload"')
    start = rest.find('"') + 1
    if not found or not start:
        raise foreign("it has no payload")
    end = start
    while end < len(rest) and rest[end] != '"':
        end += 2 if rest[end] == "\\" else 1
    for cut in range(7):  # an escape that was cut has six characters at most
        try:
            return str(json.loads(f'"{rest[start : end - cut]}"', strict=False))
        except ValueError:
            continue
    raise foreign("its payload cannot be read")


def _records(payload: str) -> list[StreamRecord]:
    _, _, rest = payload.partition('"Records"')
    at = rest.find("[") + 1
    records: list[Any] = []
    while at:
        at += len(rest[at:]) - len(rest[at:].lstrip(" \t\r\n,"))
        start = at
        try:
            record, at = _DECODER.raw_decode(rest, start)
        except (RecursionError, ValueError):
            break
        if not isinstance(record, dict):
            break
        if not _DAMAGED_BYTE.search(rest, start, at):  # otherwise one of its values has changed
            records.append(record)
    return cast("list[StreamRecord]", records)


def _stated(text: str) -> int | None:
    _, found, rest = text.partition('"batchSize"')
    digits = rest.lstrip(" :").split(",")[0].split("}")[0].strip()
    return int(digits) if found and digits.isascii() and digits.isdigit() and len(digits) < 9 else None
