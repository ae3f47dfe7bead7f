"""The position in time of a DynamoDB stream's record: the stream's label, the sequence number, the creation time.

Specific to DynamoDB Streams. Another kind of stream would define here how its records become a `Position`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache

from pipeline.core.errors import TerminalError
from pipeline.core.ordering import Position

# A sequence number has at most 40 digits (botocore: SequenceNumber, max 40).
_MOST_DIGITS = 40
_SEQUENCE_NUMBER_SPACE = 10**_MOST_DIGITS


def streamed_position(
    stream_label: str, sequence_number: str, approximate_creation_time: float | str | None
) -> Position:
    """Return the position of a stream record.

    `stream_label` is the last part of the stream's ARN (its creation time, `2024-05-14T11:14:20.608`). It comes first,
    so that a stream that was disabled and enabled again cannot make new changes look old. `sequence_number` has up to
    40 digits of varying length and compares as a number. The time is in epoch seconds, a number or a quoted number.
    Milliseconds and microseconds are accepted too: as seconds, numbers of that size would be tens of thousands of years
    away. Raises TerminalError if a part is missing or malformed.
    """
    try:
        as_of = _whole_second(approximate_creation_time)
    except (TypeError, ValueError, OverflowError, OSError):
        raise TerminalError(
            f"reading a stream record: its ApproximateCreationDateTime is {_not_a_time(approximate_creation_time)}",
            sequence_number=sequence_number if is_sequence_number(sequence_number) else None,
            hint="the record did not come from a DynamoDB stream; check what invokes the replicator",
        ) from None
    return Position(as_of, stream_version(stream_label, sequence_number))


def stream_version(stream_label: str, sequence_number: str) -> int:
    """Return (stream label, sequence number) as one integer that sorts like the pair."""
    # The same check as `is_sequence_number`, inline: a call costs time, and every record comes here.
    if not (sequence_number.isascii() and sequence_number.isdigit() and len(sequence_number) <= _MOST_DIGITS):
        raise TerminalError(
            "reading a stream record: its SequenceNumber is not a number of at most 40 digits",
            hint="the record did not come from a DynamoDB stream; check what invokes the replicator",
        )
    return _label_part(stream_label) + int(sequence_number)


def same_stream(one: int, other: int) -> bool:
    """Whether two versions belong to one stream."""
    return one // _SEQUENCE_NUMBER_SPACE == other // _SEQUENCE_NUMBER_SPACE


def is_sequence_number(text: str) -> bool:
    """Whether a text is a sequence number: up to 40 digits."""
    return text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS


def label_time(stream_label: str) -> datetime:
    """Return when the stream was created, to the millisecond. Raises TerminalError if the label is not a time."""
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=_label_milliseconds(stream_label))


@lru_cache(maxsize=4_096)  # a batch's records share their seconds
def _whole_second(seconds: float | str | None) -> datetime:
    value = float(seconds)  # type: ignore[arg-type]  # None raises TypeError, as intended
    for unit in _SMALLER_UNITS:
        if _FIRST_IN_DOUBT * unit <= value < _FIRST_IN_DOUBT * unit * 10:
            value //= unit
    return datetime.fromtimestamp(int(value // 1), UTC)


# As milliseconds these are 2001 to 2286, as seconds beyond the year 33000; likewise for microseconds.
_FIRST_IN_DOUBT, _SMALLER_UNITS = 10**9, (10**3, 10**6)


def _not_a_time(found: object) -> str:
    """Say what kind of creation time cannot be read, never its value."""
    if found is None:
        return "missing or null"
    if isinstance(found, str):
        try:
            float(found)
        except ValueError:
            return "a text that is not a number"
    if isinstance(found, int | float | str):
        return "a number that is not a time in epoch seconds, milliseconds or microseconds"
    return "neither a number nor a text"


def stream_and_sequence(version: int) -> tuple[datetime, str]:
    """Return when a version's stream was created, and the sequence number: the inverse of `stream_version`."""
    milliseconds, sequence_number = divmod(version, _SEQUENCE_NUMBER_SPACE)
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds), str(sequence_number)


@lru_cache(maxsize=64)  # all records of a stream have one label
def _label_part(stream_label: str) -> int:
    return _label_milliseconds(stream_label) * _SEQUENCE_NUMBER_SPACE


def _label_milliseconds(stream_label: str) -> int:
    try:
        created = datetime.fromisoformat(stream_label)
    except ValueError:
        raise TerminalError(
            "reading a stream ARN: its last part is not the stream's creation time",
            hint="expected …:table/NAME/stream/2024-05-14T11:14:20.608",
        ) from None
    created = created.replace(tzinfo=UTC) if created.tzinfo is None else created.astimezone(UTC)
    return (created - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1)
