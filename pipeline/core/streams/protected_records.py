"""Stream records as they may be stored: protected, with the members that DynamoDB documents and no others.

Invariant: an old image is left out, because nothing needs it. A member of an unexpected form is left out too: the
record is then refused like any malformed one, and nothing of the member is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.decode.protect import Protector
    from pipeline.core.model.attributes import Item
    from pipeline.core.streams.stream_records import StreamRecord

# botocore: dynamodbstreams.Record, StreamRecord.
_RECORD = frozenset(
    {"eventID", "eventName", "eventVersion", "eventSource", "eventSourceARN", "awsRegion", "userIdentity"}
)
_CHANGE = frozenset({"ApproximateCreationDateTime", "SequenceNumber", "SizeBytes", "StreamViewType"})


def protected_records(records: Sequence[StreamRecord], protector: Protector) -> list[StreamRecord]:
    """Return the records with protected images."""
    return [protected_record(record, protector) for record in records]


def protected_record(record: StreamRecord, protector: Protector) -> StreamRecord:
    """Return the record with a protected image; the given one does not change."""
    found: dict[str, Any] = {name: value for name, value in record.items() if name in _RECORD}
    change: Any = record.get("dynamodb")
    if not isinstance(change, dict):
        return cast("StreamRecord", found)
    given = cast("dict[str, Any]", change)
    kept = {name: value for name, value in given.items() if name in _CHANGE}
    keys: Any = given.get("Keys")
    routed: Item = cast("Item", keys) if isinstance(keys, dict) else {}
    if "Keys" in given:
        kept["Keys"] = protector.keys(routed) if isinstance(keys, dict) else None
    if "NewImage" in given:
        image: Any = given["NewImage"]
        kept["NewImage"] = protector.image(routed, cast("Item", image)) if isinstance(image, dict) else None
    found["dynamodb"] = kept
    return cast("StreamRecord", found)
