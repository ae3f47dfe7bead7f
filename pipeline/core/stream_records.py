"""From a stream's records, as Lambda hands them over, to changes for each target, and rejects.

Invariant: every record ends as a change of each of its targets, or as a reject that holds it whole, or is counted as
ignored when no target matches it and the mapping says so; none is dropped. A record that cannot come from a fit
stream (no new image, no such table) stops the batch instead, because every record after it would fail the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from pipeline.core.attributes import Item
from pipeline.core.change import Change
from pipeline.core.decode import RowDecoder
from pipeline.core.errors import ConfigurationError, ConversionError, TerminalError, key_digest
from pipeline.core.mapping import TableMapping, Target
from pipeline.core.ordering import Position, stream_version, streamed_position
from pipeline.core.routing import MATCHES_NO_TARGET, NO_TARGET, Router
from pipeline.core.row_code import row_function


class ImageChange(TypedDict, total=False):
    """The `dynamodb` part of a record (botocore: dynamodbstreams.StreamRecord)."""

    ApproximateCreationDateTime: float | str
    Keys: Item
    NewImage: Item
    OldImage: Item
    SequenceNumber: str
    StreamViewType: str


class StreamRecord(TypedDict, total=False):
    """One record of an event, in Lambda's JSON: numbers as strings, binary as base64."""

    eventID: str
    eventName: str
    eventSourceARN: str
    userIdentity: dict[str, str] | None
    dynamodb: ImageChange


_TTL_SERVICE = "dynamodb.amazonaws.com"
_NO_KEYS: Item = {}


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that could not be converted, whole, with the reason."""

    target: str
    """The target's view; empty for a record that matches no target."""
    reason: str
    record: StreamRecord
    position: Position | None
    key_digest: str | None = None


@dataclass(slots=True)
class DecodedBatch:
    """`changes` by target in arrival order; `newest` is the latest position seen, for the watermark."""

    changes: dict[Target, list[Change]] = field(default_factory=dict[Target, list[Change]])
    rejects: list[Reject] = field(default_factory=list[Reject])
    newest: Position | None = None
    last_sequence_number: str | None = None
    settled: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    """By target and column, how many values a column's `on_error` made NULL or cut."""
    ignored: int = 0
    """Records that match no target, where the mapping says to leave those out."""


@dataclass(frozen=True, slots=True)
class StreamSource:
    """What an event source ARN names: `arn:…:table/Employees/stream/2024-05-14T11:14:20.608`."""

    table: str
    stream_label: str


def stream_source(arn: str) -> StreamSource:
    """Parse a record's eventSourceARN. Raises TerminalError when it names no table stream."""
    head, _, rest = arn.partition(":table/")
    table, _, label = rest.partition("/stream/")
    if not (head.startswith("arn:") and table and label):
        raise TerminalError(
            "reading a stream record: its eventSourceARN names no DynamoDB table stream",
            hint="the replicator takes events of DynamoDB streams only; check its event source mapping",
        )
    stream_version(label, "0")  # a label that is no time would fail every record alike: the batch must stop here
    return StreamSource(table, label)


class StreamDecoder:
    """Decodes the records of one table's stream. Build it once for each mapping."""

    def __init__(self, mapping: TableMapping) -> None:
        self.mapping = mapping
        self._settled: list[Counter[str]] = [Counter() for _ in mapping.targets]
        self._decoders = {
            id(target): _WrittenDecoder(RowDecoder(target, settled))
            for target, settled in zip(mapping.targets, self._settled, strict=True)
        }
        self._router = Router(mapping)

    def decode(self, records: Sequence[StreamRecord], stream_label: str) -> DecodedBatch:
        """Decode records of one stream in order. Raises ConfigurationError when they lack new images."""
        batch = DecodedBatch({target: [] for target in self.mapping.targets})
        # By identity, for a target is hashed by all that it holds: too much for each record.
        sinks = {id(target): changes.append for target, changes in batch.changes.items()}
        route, newest = self._router.route, None
        decoders = self._decoders
        for origin, record in enumerate(records):
            change = _image_change(record)
            targets = route(change.get("Keys", _NO_KEYS))
            try:
                position = self._position(change, stream_label)
            except TerminalError as error:
                names = [target.view_name for target in targets] or [NO_TARGET]
                batch.rejects.extend(Reject(name, error.message, record, None) for name in names)
                continue
            if "NewImage" not in change and record.get("eventName") != "REMOVE":
                raise self._no_image(change)
            batch.last_sequence_number = change.get("SequenceNumber")
            if newest is None or position.as_of >= newest.as_of:
                newest = position
            for target in targets:
                try:
                    sinks[id(target)](_decoded(decoders[id(target)], record, change, position, origin))
                except ConversionError as error:
                    batch.rejects.append(_reject(target, error, record, position))
            if not targets:
                self._set_aside(record, position, batch)
        batch.newest = newest
        for target, settled in zip(self.mapping.targets, self._settled, strict=True):
            if settled:
                batch.settled[target.view_name] = Counter(settled)
                settled.clear()
        return batch

    def _set_aside(self, record: StreamRecord, position: Position, batch: DecodedBatch) -> None:
        """Reject or count a record that matches no target."""
        if self._router.rejects_unmatched:
            digest = keys_digest(_image_change(record).get("Keys", {}))
            batch.rejects.append(Reject(NO_TARGET, MATCHES_NO_TARGET, record, position, digest))
        else:
            batch.ignored += 1

    def _position(self, change: ImageChange, stream_label: str) -> Position:
        if "Keys" not in change or "SequenceNumber" not in change:
            raise TerminalError("the record lacks its keys or its sequence number")
        return streamed_position(
            stream_label, str(change["SequenceNumber"]), change.get("ApproximateCreationDateTime", "")
        )

    def _no_image(self, change: ImageChange) -> ConfigurationError:
        return ConfigurationError(
            f"reading the stream of {self.mapping.table}: its records carry no new image"
            f" (view type {change.get('StreamViewType', 'not stated')})",
            table=self.mapping.name,
            sequence_number=change.get("SequenceNumber"),
            hint="enable the stream with view type NEW_IMAGE or NEW_AND_OLD_IMAGES; a stream's view type"
            " cannot be altered, so disable it, enable it again, and catch up over the gap",
        )


def _reject(target: Target, error: ConversionError, record: StreamRecord, position: Position) -> Reject:
    digest = keys_digest(_image_change(record).get("Keys", _NO_KEYS))
    return Reject(target.view_name, error.message, record, position, digest)


def decode_record(decoder: RowDecoder, record: StreamRecord, position: Position, origin: int = 0) -> Change:
    """Decode one record, of known position, for one target. Raises ConversionError."""
    return _decoded(decoder, record, _image_change(record), position, origin)


class _WrittenDecoder:
    """Decodes as a RowDecoder does, rows by a function written for the target."""

    def __init__(self, decoder: RowDecoder) -> None:
        self.key, self.key_of = decoder.key, decoder.key_of
        self.row = row_function(decoder)


def _decoded(
    decoder: RowDecoder | _WrittenDecoder, record: StreamRecord, change: ImageChange, position: Position, origin: int
) -> Change:
    if record.get("eventName") == "REMOVE":
        return Change(decoder.key(change.get("Keys", _NO_KEYS)), None, position, _expired(record), origin)
    row = decoder.row(change.get("NewImage", _NO_KEYS))
    return Change(decoder.key_of(row), row, position, False, origin)  # noqa: FBT003  by name it takes longer


def _image_change(record: StreamRecord) -> ImageChange:
    return record.get("dynamodb") or {}


def keys_digest(keys: Item) -> str:
    """Name an item by its key attributes, as rejects of the stream name it."""
    return key_digest(f"{name}={keys[name]!r}" for name in sorted(keys))


def _expired(record: StreamRecord) -> bool:
    """Whether time to live removed the item (DynamoDB guide, time-to-live-ttl-streams)."""
    identity = record.get("userIdentity")
    if not identity:
        return False
    who = {name.lower(): value for name, value in identity.items()}
    return who.get("type") == "Service" and who.get("principalid") == _TTL_SERVICE
