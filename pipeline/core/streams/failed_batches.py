"""What Lambda keeps of a discarded batch: the document of the event source mapping's on-failure destination.

In S3 it has the whole event in `payload`; in SQS and SNS only the records' positions (Lambda developer guide,
services-dynamodb-errors). Invariant: a document returned here is whole: it has the records that it states, all of one
stream. Nothing else in it is trusted.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.errors import TerminalError
from pipeline.core.streams.stream_records import stream_source

if TYPE_CHECKING:
    from pipeline.core.streams.stream_records import StreamRecord


# An event has at most 6 MB, and escaping makes it larger.
_MOST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FailedBatch:
    """One discarded batch. `records` is None if only their positions were kept."""

    table: str
    """The DynamoDB table's name."""
    stream_arn: str
    shard_id: str
    first_sequence_number: str
    last_sequence_number: str
    size: int
    first_arrived: datetime | None
    """Approximately when its first record was written."""
    last_arrived: datetime | None
    records: tuple[StreamRecord, ...] | None


def parse_failed_batch(content: bytes) -> FailedBatch:
    """Parse a document, gzip or not. Raises TerminalError with the reason, which quotes nothing."""
    document = _object(inflated(content), "it is not a JSON object")
    info = document.get("DDBStreamBatchInfo")
    if not isinstance(info, dict):
        raise foreign("it has no DDBStreamBatchInfo, so no event source mapping of a DynamoDB stream wrote it")
    info = cast("dict[str, Any]", info)
    names = ("streamArn", "shardId", "startSequenceNumber", "endSequenceNumber")
    arn, shard_id, first, last = (_text(info, name) for name in names)
    if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        raise foreign("its sequence numbers are not numbers")
    size = info.get("batchSize")
    if type(size) is not int or size < 1:
        raise foreign("its batchSize is missing or not a number above 0")
    return FailedBatch(
        table=stream_source(arn).table,
        stream_arn=arn,
        shard_id=shard_id,
        first_sequence_number=first,
        last_sequence_number=last,
        size=size,
        first_arrived=_time(info.get("approximateArrivalOfFirstRecord")),
        last_arrived=_time(info.get("approximateArrivalOfLastRecord")),
        records=_records(document["payload"], arn, size) if "payload" in document else None,
    )


def _records(payload: object, arn: str, size: int) -> tuple[StreamRecord, ...]:
    if not isinstance(payload, str):
        raise foreign("its payload is not a text")
    records = _object(payload.encode("utf-8", "surrogatepass"), "its payload is not a JSON object").get("Records")
    if not isinstance(records, list):
        raise foreign("its payload is not an event: it has no Records")
    found = cast("list[Any]", records)
    if len(found) != size:
        raise foreign(f"its payload has {len(found)} records, but it states {size}")
    for record in found:
        if not isinstance(record, dict) or not isinstance(cast("dict[str, Any]", record).get("dynamodb"), dict):
            raise foreign("a record of its payload is not one of a DynamoDB stream")
        if cast("dict[str, Any]", record).get("eventSourceARN") != arn:
            raise foreign("a record of its payload is of another stream than the one it states")
    return tuple(cast("list[StreamRecord]", found))


def inflated(content: bytes, *, whole: bool = True) -> bytes:
    """Return the document inflated, if it is gzip; with `whole`, raise TerminalError if it is cut short."""
    if not content.startswith(b"\x1f\x8b"):
        return content
    inflater = zlib.decompressobj(wbits=31)
    try:
        text = inflater.decompress(content, _MOST_BYTES)
    except zlib.error:
        raise foreign("it is compressed with gzip, and damaged") from None
    if whole and not inflater.eof:
        raise foreign("it is compressed with gzip, and cut short or larger than any batch")
    return text


def _object(content: bytes, otherwise: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (RecursionError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise foreign(otherwise)
    return cast("dict[str, Any]", value)


def _text(info: dict[str, Any], name: str) -> str:
    value = info.get(name)
    if not isinstance(value, str) or not value:
        raise foreign(f"its {name} is missing")
    return value


def _time(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return found if found is not None and found.tzinfo is not None else None


def foreign(reason: str) -> TerminalError:
    """Return the error for a document that no event source mapping would write; `reason` quotes nothing from it."""
    return TerminalError(
        f"reading a discarded batch: {reason}",
        hint="if it is a batch's damaged document, apply the records that can be read with `dynaurora redrive NAME"
        " --object LOCATION --accept-partial`; otherwise move it elsewhere",
    )
