"""Rejected records decoded again, whichever door they came through.

Invariant: a record stands where it stood when it was rejected. Its position is the one that was kept with it, never
one of today, so that replaying it can bring back nothing that was changed since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pipeline.core.errors import TerminalError
from pipeline.core.model.change import Change
from pipeline.core.streams.stream_records import StreamRecord, decode_record

if TYPE_CHECKING:
    from pipeline.core.decode.row_decoder import RowDecoder
    from pipeline.core.model.attributes import Item
    from pipeline.core.ordering import Position

# What code written for well-formed records raises when it meets others.
_MALFORMED = (AttributeError, KeyError, RecursionError, TypeError)


def decode_again(decoder: RowDecoder, record: dict[str, Any], position: Position) -> Change:
    """Decode a stream record, or a line of a full or an incremental export.

    Raises ConversionError when its target still cannot hold it, TerminalError when it is none of the three.
    """
    try:
        if "dynamodb" in record:
            return decode_record(decoder, cast("StreamRecord", record), position)
        image = _image(record)
        if image is None:
            return Change(decoder.key(record["Keys"]), None, position)
        row = decoder.row(image)
        return Change(decoder.key_of(row), row, position)
    except _MALFORMED:
        raise _unknown() from None


def key_again(decoder: RowDecoder, record: dict[str, Any]) -> tuple[str, ...]:
    """Return the primary key of the record's row. Raises like decode_again, for the key alone."""
    try:
        return decoder.key(keys_again(record))
    except _MALFORMED:
        raise _unknown() from None


def keys_again(record: dict[str, Any]) -> Item:
    """Return the record's key attributes; others may stand beside them. Empty when it has none."""
    if "dynamodb" in record:
        return record["dynamodb"].get("Keys") or {}
    return record.get("Keys") or record.get("Item") or {}


def _image(record: dict[str, Any]) -> Item | None:
    if "Item" in record:
        return record["Item"]
    if "Keys" in record:
        return record.get("NewImage")
    raise _unknown()


def _unknown() -> TerminalError:
    return TerminalError("the record is neither of a stream nor a line of an export")
