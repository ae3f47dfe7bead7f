"""From a stream's records, as Lambda delivers them, to changes for each target, and rejects.

Invariant: every record becomes a change of each of its targets, or a reject that keeps it whole, or is counted as
ignored if no target matches it and the mapping says so. None is dropped. If every record of a batch has the same fault
(no position, no new image, another source), the batch stops instead: the source is not what we expect, and every later
record would fail too. A malformed attribute value is that record's own problem, and always a reject.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from pipeline.core.decode.routing import MATCHES_NO_TARGET, NO_TARGET, Router
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import ConfigurationError, ConversionError, TerminalError, key_digest
from pipeline.core.model.attribute_form import MALFORMED, NOT_OF_THE_FORM, is_item
from pipeline.core.model.attributes import Item
from pipeline.core.model.change import Change
from pipeline.core.model.mapping import TableMapping, Target
from pipeline.core.model.reject import Reject
from pipeline.core.ordering import Position
from pipeline.core.streams.positions import stream_version, streamed_position
from pipeline.core.streams.record_code import PUTS, expired, record_function


class ImageChange(TypedDict, total=False):
    """The `dynamodb` part of a record (botocore: dynamodbstreams.StreamRecord)."""

    ApproximateCreationDateTime: float | str | None
    Keys: Item
    NewImage: Item
    OldImage: Item
    SequenceNumber: str
    StreamViewType: str


class StreamRecord(TypedDict, total=False):
    """One record of an event, in Lambda's JSON: numbers as strings, binary as base64."""

    eventID: str
    eventName: str
    eventSource: str
    eventSourceARN: str
    userIdentity: dict[str, str] | None
    dynamodb: ImageChange


_NO_KEYS: Item = {}
_WITHOUT_NEW_IMAGE = frozenset({"KEYS_ONLY", "OLD_IMAGE"})


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
    """Records that match no target, if the mapping says to ignore those."""


@dataclass(frozen=True, slots=True)
class StreamSource:
    """What an event source ARN names: `arn:…:table/Employees/stream/2024-05-14T11:14:20.608`."""

    table: str
    stream_label: str
    arn: str


def stream_source(arn: str) -> StreamSource:
    """Parse a record's eventSourceARN. Raises TerminalError if it does not name a table's stream."""
    head, _, rest = arn.partition(":table/")
    table, _, label = rest.partition("/stream/")
    if not (head.startswith("arn:") and table and label):
        raise TerminalError(
            "reading a stream record: its eventSourceARN names no DynamoDB table stream",
            hint="the replicator accepts only events of DynamoDB streams; check its event source mapping",
        )
    stream_version(label, "0")  # a label that is no time would fail every record alike: the batch must stop here
    return StreamSource(table, label, arn)


class StreamDecoder:
    """Decodes the records of one table's stream. Build it once for each mapping."""

    def __init__(self, mapping: TableMapping) -> None:
        self.mapping = mapping
        self._settled: list[Counter[str]] = [Counter() for _ in mapping.targets]
        # By identity, because a target's hash is a call, which is too much for each record.
        self._decoders = {
            id(target): RowDecoder(target, settled)
            for target, settled in zip(mapping.targets, self._settled, strict=True)
        }
        self.usual = {each: record_function(decoder) for each, decoder in self._decoders.items()}
        """The generated functions, by the target's identity; a target without one takes the general path."""
        self._router = Router(mapping)

    def decode(self, records: Sequence[StreamRecord], stream_label: str) -> DecodedBatch:
        """Decode records of one stream in order. Raises TerminalError for what is wrong with all of them."""
        if records and _view_type(records[0]) in _WITHOUT_NEW_IMAGE:  # removals too, which carry no image anyway
            raise self._view_type_refused(records[0])
        batch = DecodedBatch({target: [] for target in self.mapping.targets})
        faults: list[TerminalError] = []
        newest, last, route, usual = None, None, self._router.route, self.usual
        sinks = {id(target): changes.append for target, changes in batch.changes.items()}
        only = id(self.mapping.targets[0]) if self._router.trivial and len(sinks) == 1 else None
        for origin, record in enumerate(records):
            # As few calls as possible: every record comes here.
            try:
                target = only or id(*route(record["dynamodb"]["Keys"]))  # type: ignore[typeddict-item]  # raises unless it is one
                change: Change = usual[target](record, origin, stream_label)  # type: ignore[misc]  # None raises, as intended
                position: Position | None = change.position
                sinks[target](change)
            except Exception:  # noqa: BLE001  the general path raises the right one
                position = self._decode_one(record, origin, stream_label, batch, faults)
            if position is not None:
                last = record
                if newest is None or position.as_of >= newest.as_of:
                    newest = position
        if faults and _wrong_alike(records, len(faults)):
            self._forget_settled()
            raise _alike(faults[0], len(records), self.mapping.name)
        batch.newest = newest
        batch.last_sequence_number = None if last is None else str(_image_change(last).get("SequenceNumber"))
        for target, settled in zip(self.mapping.targets, self._settled, strict=True):
            if settled:
                batch.settled[target.view_name] = Counter(settled)
        self._forget_settled()
        return batch

    def _decode_one(
        self,
        record: StreamRecord,
        origin: int,
        stream_label: str,
        batch: DecodedBatch,
        faults: list[TerminalError],
    ) -> Position | None:
        """Decode any record. Returns its position; None if it is rejected for all targets, because of its own form."""
        change = _image_change(record)
        keys = change.get("Keys", _NO_KEYS)
        position, targets = None, ()
        try:
            targets = self._router.route(keys)
            position = _position(change, stream_label)
            is_put = record.get("eventName") in PUTS and "NewImage" in change
            if not is_put:
                _check_removal(record, change)
        except MALFORMED:
            if is_item(keys):
                raise
            self._reject_whole(batch, targets, record, position or _position(change, stream_label))
            return None
        except TerminalError as error:
            faults.append(error)
            self._reject_whole(batch, targets, record, position, error.message)
            return None
        for target in targets:
            decoder = self._decoders[id(target)]
            try:
                batch.changes[target].append(
                    _put(decoder, keys, change["NewImage"], position, origin)  # type: ignore[typeddict-item]
                    if is_put
                    else _removal(decoder, keys, record, position, origin)
                )
            except ConversionError as error:
                batch.rejects.append(_reject(target, error.message, record, position))
            except MALFORMED:
                if is_item(change.get("NewImage", _NO_KEYS)) and is_item(change.get("Keys")):
                    raise
                batch.rejects.append(_reject(target, NOT_OF_THE_FORM, record, position))
        if not targets:
            self._set_aside(record, position, batch)
        return position

    def _forget_settled(self) -> None:
        for settled in self._settled:
            settled.clear()

    def _reject_whole(
        self,
        batch: DecodedBatch,
        targets: tuple[Target, ...],
        record: StreamRecord,
        position: Position | None,
        reason: str = NOT_OF_THE_FORM,
    ) -> None:
        """Reject a record for all its targets, as far as they are known."""
        names = [target.view_name for target in targets] or [NO_TARGET]
        digest = keys_digest(_image_change(record).get("Keys", _NO_KEYS))
        batch.rejects.extend(Reject(name, reason, record, position, digest) for name in names)

    def _set_aside(self, record: StreamRecord, position: Position, batch: DecodedBatch) -> None:
        """Reject or count a record that matches no target."""
        if self._router.rejects_unmatched:
            digest = keys_digest(_image_change(record).get("Keys", {}))
            batch.rejects.append(Reject(NO_TARGET, MATCHES_NO_TARGET, record, position, digest))
        else:
            batch.ignored += 1

    def _view_type_refused(self, record: StreamRecord) -> ConfigurationError:
        return ConfigurationError(
            f"reading the stream of {self.mapping.table}: its records carry no new image"
            f" (view type {_view_type(record)})",
            table=self.mapping.name,
            hint="enable the stream with view type NEW_IMAGE or NEW_AND_OLD_IMAGES; a stream's view type"
            " cannot be altered, so disable it, enable it again, and catch up over the gap",
        )


_NOT_A_STREAM = "the records did not come from a DynamoDB stream; check what invokes the replicator"


def _lacking(keys: Item) -> TerminalError:
    lacking = "SequenceNumber" if keys else "Keys"
    return TerminalError(f"reading a stream record: it lacks its {lacking}", hint=_NOT_A_STREAM)


def _position(change: ImageChange, stream_label: str) -> Position:
    """Return the position of a record with malformed keys. Raises TerminalError if it has no keys or number."""
    number = change.get("SequenceNumber")
    if not change.get("Keys") or number is None:
        raise _lacking(change.get("Keys", _NO_KEYS))
    return streamed_position(stream_label, str(number), change.get("ApproximateCreationDateTime"))


def _view_type(record: StreamRecord) -> object:
    return _image_change(record).get("StreamViewType")


def _check_removal(record: StreamRecord, change: ImageChange) -> None:
    """Raise TerminalError for a record that is neither a removal nor has a new image to put."""
    name: object = record.get("eventName")
    if name == "REMOVE":
        return
    if name not in PUTS:
        raise TerminalError(
            "reading a stream record: its eventName is none of INSERT, MODIFY and REMOVE", hint=_NOT_A_STREAM
        )
    if change.get("StreamViewType") in ("NEW_IMAGE", "NEW_AND_OLD_IMAGES"):
        hint = "the stream includes new images, so the record was damaged on its way; " + _NOT_A_STREAM
    else:
        hint = (
            "the record does not state its view type: check that the stream's is NEW_IMAGE or NEW_AND_OLD_IMAGES, and"
            " what invokes the replicator"
        )
    raise TerminalError("reading a stream record: its NewImage is missing", hint=hint)


def _wrong_alike(records: Sequence[StreamRecord], faults: int) -> bool:
    """Whether every record is wrong, or every one that puts an item: removals need no image."""
    if faults == len(records):
        return True
    puts = [record for record in records if record.get("eventName") != "REMOVE"]
    return bool(puts) and not any("NewImage" in _image_change(record) for record in puts)


def _alike(error: TerminalError, records: int, table: str) -> TerminalError:
    return TerminalError(
        f"{error.message}; no record of the {records} can be applied",
        table=table,
        sequence_number=error.sequence_number,
        hint=f"none of them is stored. {error.hint or _NOT_A_STREAM}",
    )


def _reject(target: Target, reason: str, record: StreamRecord, position: Position) -> Reject:
    digest = keys_digest(_image_change(record).get("Keys", _NO_KEYS))
    return Reject(target.view_name, reason, record, position, digest)


def decode_record(decoder: RowDecoder, record: StreamRecord, position: Position, origin: int = 0) -> Change:
    """Decode one record, whose position is known, for one target. Raises ConversionError."""
    change = _image_change(record)
    keys = change.get("Keys", _NO_KEYS)
    if record.get("eventName") == "REMOVE":
        return _removal(decoder, keys, record, position, origin)
    return _put(decoder, keys, change.get("NewImage", _NO_KEYS), position, origin)


def _removal(decoder: RowDecoder, keys: Item, record: StreamRecord, position: Position, origin: int) -> Change:
    return Change(decoder.key(keys), None, position, expired(record), origin)


def _put(decoder: RowDecoder, keys: Item, image: Item, position: Position, origin: int) -> Change:
    row = decoder.row(image)
    key = decoder.key_of(row)
    # Equal attributes give equal keys; others may be the same key in another spelling.
    if not (keys and keys.items() <= image.items()) and decoder.key(keys) != key:
        raise ConversionError(
            ", ".join(decoder.target.primary_key), "the key attributes of the NewImage are not those of Keys"
        )
    return Change(key, row, position, False, origin)  # noqa: FBT003  by name it takes longer


def _image_change(record: StreamRecord) -> ImageChange:
    change: Any = record.get("dynamodb")
    return change if change.__class__ is dict else {}


def keys_digest(keys: Item) -> str:
    """Return the name of an item from its key attributes, as rejects of the stream use it."""
    if type(keys) is not dict:  # a malformed record's
        return key_digest([])
    return key_digest(f"{name}={keys[name]!r}" for name in sorted(keys))
