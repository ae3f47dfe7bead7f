"""date, and timestamptz from texts with an offset or from epoch times."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.core.model.attributes import AttributeValue, UnrepresentableError, canonical_number
from pipeline.core.types.codec import Codec, Example, Option
from pipeline.core.types.fast.fast_form import as_it_is

if TYPE_CHECKING:
    from pipeline.core.mapping_files.yaml_fields import Field

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
# Hour 24, which some versions of Python read, is refused: a text must mean the same on every machine.
_TIMESTAMP = re.compile(
    r"\d{4}-\d{2}-\d{2}[T ](?:[01]\d|2[0-3]):\d{2}(?::\d{2}(?:\.(\d{1,9}))?)?(?:Z|[+-]\d{2}(?::?\d{2})?)", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# How many digits the point of an epoch time moves to give microseconds.
_EPOCH_DIGITS = {"seconds": 6, "milliseconds": 3}
# Digits of the largest epoch time before the year 10000, in milliseconds, and a few more.
_MOST_EPOCH_DIGITS = 20
_DAY = r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
_FAST_DATE = rf"(?!0000)\d{{4}}-{_DAY}"
_FAST_TIMESTAMP = rf"{_FAST_DATE}T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{{1,6}})?Z"


def _date(value: str) -> str:
    if _DATE.fullmatch(value):
        try:
            return date.fromisoformat(value).isoformat()
        except ValueError:
            pass
    raise UnrepresentableError("is not a date from 0001-01-01 to 9999-12-31 in the form 2026-01-31")


def _timestamp(value: str) -> str:
    match = _TIMESTAMP.fullmatch(value)
    if match and len((match[1] or "").rstrip("0")) <= 6:
        try:
            return datetime.fromisoformat(value).astimezone(UTC).isoformat()
        except (ValueError, OverflowError):
            pass
    raise UnrepresentableError("is not a time with an offset, to the microsecond, in the form 2026-01-31T12:00:00Z")


def _epoch(unit: str) -> Callable[[str], str]:
    digits = _EPOCH_DIGITS[unit]

    def convert(value: str) -> str:
        # By digits, because arithmetic on Decimal rounds to 28 of them, and would accept a time with a finer fraction.
        whole, _, fraction = canonical_number(value).partition(".")
        if len(fraction) > digits:
            raise UnrepresentableError("is an epoch time finer than a microsecond")
        # Cut, because int() refuses texts of thousands of digits; the number stays out of range.
        microseconds = int(whole[:_MOST_EPOCH_DIGITS] + fraction.ljust(digits, "0"))
        try:
            return (_EPOCH + timedelta(microseconds=microseconds)).isoformat()
        except OverflowError:
            raise UnrepresentableError(f"is not an epoch time in {unit} in the years 1 to 9999") from None

    return convert


def _default(field: Field) -> AttributeValue | None:
    # A date without quotes is a timestamp to YAML; its text as written is what was meant.
    text = field.written if field.tag == "timestamp" else field.text()
    return None if text is None else {"S": text}


DATE = Codec(
    name="date",
    tags=frozenset({"S"}),
    key_of=frozenset({"S"}),
    takes_captures=True,
    convert=lambda _: _date,
    fast_form=lambda _column, _is_key: as_it_is("S", _FAST_DATE),
    default=_default,
    examples=(Example(({"S": "2026-01-31"}, {"S": "2026-02-30"}, {"S": "20260131"})),),
)
TIMESTAMPTZ = Codec(
    name="timestamptz",
    aliases=("timestamp with time zone",),
    tags=frozenset({"S", "N"}),
    takes_captures=True,
    convert=lambda use: _timestamp if use.tag == "S" else _epoch(use.column.epoch or "seconds"),
    fast_form=lambda column, _: as_it_is("S", "", _FAST_TIMESTAMP) if column.epoch is None else None,
    default=_default,
    options=(
        Option(
            "epoch",
            tuple(_EPOCH_DIGITS),
            remedy="write seconds or milliseconds",
            refusal="is not a unit of epoch times",
            introduction="the units are",
            elsewhere="is not read from an epoch time; remove epoch, or make the column a timestamptz",
            description="The unit of the numbers that a timestamptz is read from (default seconds).",
        ),
    ),
    examples=(
        Example(
            (
                {"S": "2026-01-31T12:00:00.5+05:30"},
                {"S": "2027-03-04T05:06:07"},
                {"S": "2027-03-04T05:06:07.1234567Z"},
                {"S": "+10000-01-01T00:00:00Z"},
                {"N": "1769860800.000001"},
                {"N": "1769860800.0000001"},
                {"N": "253402300800"},
            )
        ),
        Example(({"N": "1769860800000"}, {"N": "-1"}), options={"epoch": "milliseconds"}),
    ),
)
