"""Rejected records decoded again, whatever they came from.

Invariant: a record keeps its position. It is the one that was stored with it, never today's, so replaying it cannot
undo anything that was changed since.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pipeline.core.errors import TerminalError
from pipeline.core.model.change import Change
from pipeline.core.streams.protected_records import protected_record
from pipeline.core.streams.stream_records import StreamRecord, decode_record

if TYPE_CHECKING:
    from pipeline.core.decode.protect import Protector
    from pipeline.core.decode.row_decoder import RowDecoder
    from pipeline.core.model.attributes import Item
    from pipeline.core.ordering import Position

# What code for well-formed records raises when it meets others.
_MALFORMED = (AttributeError, KeyError, RecursionError, TypeError)


def decode_again(decoder: RowDecoder, record: dict[str, Any], position: Position) -> Change:
    """Decode a stream record, or a line of a full or an incremental export.

    Raises ConversionError if its target still cannot hold it, TerminalError if it is none of the three.
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
    """Return the primary key of the record's row. Raises like decode_again, but for the key alone."""
    try:
        return decoder.key(keys_again(record))
    except _MALFORMED:
        raise _unknown() from None


def keys_again(record: dict[str, Any]) -> Item:
    """Return the record's key attributes, possibly with others; empty if it has none."""
    if "dynamodb" in record:
        return record["dynamodb"].get("Keys") or {}
    return record.get("Keys") or record.get("Item") or {}


def attributes_of(record: dict[str, Any]) -> list[Any]:
    """Return every part of a record, or of a line of an export, that may have key attributes, as it is."""
    inside: Any = record.get("dynamodb", record)
    if not isinstance(inside, dict):
        return []
    found = cast("dict[str, Any]", inside)
    return [found[name] for name in ("Keys", "NewImage", "OldImage", "Item") if found.get(name)]


def protected_again(record: dict[str, Any], protector: Protector) -> dict[str, Any]:
    """Return the record, protected. Raises TerminalError if it is neither a stream record nor a line."""
    if "dynamodb" in record:
        return cast("dict[str, Any]", protected_record(cast("StreamRecord", record), protector))
    try:
        return _protected_line(record, protector)
    except _MALFORMED:
        raise _unknown() from None


def _protected_line(line: dict[str, Any], protector: Protector) -> dict[str, Any]:
    """Return one parsed line of either kind, protected."""
    if "Item" in line:
        return {"Item": protector.item(line["Item"])}
    keys = line["Keys"]
    found: dict[str, Any] = {"Keys": protector.keys(keys)}
    if "Metadata" in line:
        found["Metadata"] = line["Metadata"]
    if line.get("NewImage") is not None:
        found["NewImage"] = protector.image(keys, line["NewImage"])
    return found


def _image(record: dict[str, Any]) -> Item | None:
    if "Item" in record:
        return record["Item"]
    if "Keys" in record:
        return record.get("NewImage")
    raise _unknown()


def _unknown() -> TerminalError:
    return TerminalError("the record is neither a stream record nor a line of an export")
