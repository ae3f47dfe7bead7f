"""Items of every attribute type, as Hypothesis makes them, and what their columns must read back as.

Invariant: `expected` knows nothing of the codec. It states the equivalence of docs/types.md in Python's own types.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.attributes import Item

MAPPING = read_mapping(
    """
name: values
source: {table: Values, key: {K: S, R: N}}
targets:
  Values:
    primary_key: [key, range]
    columns:
      key: {attribute: K, type: text}
      range: {attribute: R, type: numeric}
      number: {attribute: number, type: numeric}
      whole: {attribute: whole, type: bigint}
      rounded: {attribute: number, type: double precision}
      words: {attribute: words, type: text}
      short: {attribute: short, type: varchar(5), default: none}
      cut: {attribute: words, type: varchar(5), on_error: truncate}
      blob: {attribute: blob, type: bytea}
      flag: {attribute: flag, type: boolean}
      id: {attribute: id, type: uuid}
      day: {attribute: day, type: date}
      at: {attribute: at, type: timestamptz}
      epoch: {attribute: epoch, type: timestamptz}
      millis: {attribute: millis, type: timestamptz, epoch: milliseconds}
      names: {attribute: names, type: "text[]"}
      sizes: {attribute: sizes, type: "numeric[]"}
      blobs: {attribute: blobs, type: "bytea[]"}
      anything: {attribute: anything, type: jsonb}
      parsed: {attribute: parsed, type: jsonb, json: parse}
      city: {attribute: place.city, type: text}
      second: {attribute: 'places[1]."a.b"', type: jsonb}
    unmapped: rest
""",
    "values.yaml",
)
TARGET = MAPPING.targets[0]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _number(sign: int, digits: int, exponent: int) -> str:
    """A number in DynamoDB's plain notation, its first digit at 10**exponent."""
    text = str(digits).rstrip("0")
    value = Decimal((sign, tuple(map(int, text)), exponent - len(text) + 1))
    return f"{value:f}"


NUMBERS = st.just("0") | st.builds(_number, st.integers(0, 1), st.integers(1, 10**38 - 1), st.integers(-130, 125))
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
BINARY = st.binary(max_size=8).map(lambda value: b64encode(value).decode())
_ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
_FIRST, _LAST = datetime(1, 1, 3), datetime(9999, 12, 29)  # noqa: DTZ001 - the strategy adds the zone
_MOMENTS = st.datetimes(_FIRST, _LAST, timezones=_ZONES)


def _tagged(tag: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return values.map(lambda value: {tag: value})


def _set(values: st.SearchStrategy[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(values, min_size=1, max_size=4, unique=True)


SCALARS: st.SearchStrategy[Any] = st.one_of(
    _tagged("S", TEXTS),
    _tagged("N", NUMBERS),
    _tagged("B", BINARY),
    _tagged("BOOL", st.booleans()),
    st.just({"NULL": True}),
    _tagged("SS", _set(TEXTS)),
    _tagged("NS", _set(NUMBERS)),
    _tagged("BS", _set(BINARY)),
)
ANYTHING: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: (
        _tagged("L", st.lists(inner, max_size=3)) | _tagged("M", st.dictionaries(TEXTS.filter(bool), inner, max_size=3))
    ),
    max_leaves=6,
)
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
_JSON_STRINGS = _tagged("S", st.builds(json.dumps, _JSON, ensure_ascii=st.booleans()))
_ATTRIBUTES: dict[str, st.SearchStrategy[Any]] = {
    "number": _tagged("N", NUMBERS),
    "whole": _tagged("N", st.integers(-(2**63), 2**63 - 1).map(str)),
    "words": _tagged("S", TEXTS),
    "short": _tagged("S", TEXTS.map(lambda value: value[:5])),
    "blob": _tagged("B", BINARY),
    "flag": _tagged("BOOL", st.booleans()),
    "id": _tagged("S", st.uuids().map(str) | st.uuids().map(lambda value: str(value).upper())),
    "day": _tagged("S", st.dates().map(date.isoformat)),
    "at": _tagged("S", _MOMENTS.map(datetime.isoformat)),
    "epoch": _tagged("N", st.decimals(-62_000_000_000, 253_000_000_000, places=6).map(lambda value: f"{value:f}")),
    "millis": _tagged("N", st.integers(-(10**12), 2 * 10**14).map(str)),
    "names": _tagged("SS", _set(TEXTS)),
    "sizes": _tagged("NS", _set(NUMBERS)),
    "blobs": _tagged("BS", _set(BINARY)),
    "anything": ANYTHING,
    "parsed": _JSON_STRINGS | ANYTHING.filter(lambda attribute: "S" not in attribute),
    "place": _tagged("M", st.fixed_dictionaries({}, optional={"city": _tagged("S", TEXTS)})),
    "places": _tagged("L", st.lists(_tagged("M", st.fixed_dictionaries({}, optional={"a.b": SCALARS})), max_size=3)),
    "a name of more than sixty-three bytes, which no column of PostgreSQL could have": SCALARS,
    "Words": SCALARS,
}  # fmt: skip
ITEMS: st.SearchStrategy[list[Item]] = st.lists(
    st.fixed_dictionaries(
        {"K": _tagged("S", TEXTS.filter(bool)), "R": _tagged("N", NUMBERS)},
        optional={name: values | st.just({"NULL": True}) for name, values in _ATTRIBUTES.items()},
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda item: (item["K"]["S"], Decimal(item["R"]["N"])),
)  # fmt: skip


def typed(value: Any) -> Any:  # noqa: ANN401 - JSON
    """JSON with true told from 1, and every number by its value."""
    if isinstance(value, dict):
        return {name: typed(member) for name, member in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list):
        return [typed(element) for element in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, bool):
        return ("true or false", value)
    return Decimal(value) if isinstance(value, int | Decimal) else value


def as_json(attribute: Any) -> Any:  # noqa: ANN401 - JSON
    """What jsonb must hold of an attribute value."""
    ((tag, value),) = attribute.items()
    plain: dict[str, Callable[[], Any]] = {
        "N": lambda: Decimal(value),
        "NULL": lambda: None,
        "SS": lambda: sorted(value, key=str.encode),
        "NS": lambda: sorted(map(Decimal, value)),
        "BS": lambda: sorted(value),
        "L": lambda: [as_json(element) for element in value],
        "M": lambda: {name: as_json(member) for name, member in value.items()},
    }
    return plain[tag]() if tag in plain else value


def load_json(text: str) -> Any:  # noqa: ANN401 - JSON
    """Read JSON with every digit."""
    return typed(json.loads(text, parse_float=Decimal, parse_int=Decimal))


_TYPED: dict[str, Callable[[Any], Any]] = {
    "key": str,
    "range": Decimal,
    "number": Decimal,
    "whole": int,
    "rounded": float,
    "words": str,
    "short": str,
    "cut": lambda value: value[:5],
    "blob": b64decode,
    "flag": bool,
    "id": UUID,
    "day": date.fromisoformat,
    "at": datetime.fromisoformat,
    "epoch": lambda value: _EPOCH + timedelta(microseconds=int(Decimal(value) * 10**6)),
    "millis": lambda value: _EPOCH + timedelta(milliseconds=int(value)),
    "names": lambda value: sorted(value, key=str.encode),
    "sizes": lambda value: sorted(map(Decimal, value)),
    "blobs": lambda value: sorted(map(b64decode, value)),
}


def expected(item: Item) -> dict[str, Any]:
    """What a row's columns must read back as."""
    row = {column.name: _expected(column.name, item.get(column.attribute)) for column in TARGET.columns[:-2]}
    if "short" not in item:
        row["short"] = "none"
    place: Any = item.get("place", {})
    row["city"] = place.get("M", {}).get("city", {}).get("S")
    places: Any = item.get("places", {}).get("L", [])
    second = places[1]["M"].get("a.b") if len(places) > 1 else None
    taken = {column.attribute for column in TARGET.columns[:-2]}
    row["rest"] = typed({name: as_json(value) for name, value in item.items() if name not in taken})
    row["second"] = JSON_NULL if second == {"NULL": True} else None if second is None else typed(as_json(second))
    return row


JSON_NULL = "JSON's null"


def _expected(name: str, attribute: Any) -> Any:  # noqa: ANN401 - whatever a column holds
    if attribute is None:
        return None
    if name in {"anything", "parsed"}:
        if attribute == {"NULL": True}:
            return JSON_NULL
        if name == "parsed" and "S" in attribute:
            return _null_named(load_json(attribute["S"]))
        return typed(as_json(attribute))
    ((tag, value),) = attribute.items()
    return None if tag == "NULL" else _TYPED[name](value)


def _null_named(value: Any) -> Any:  # noqa: ANN401 - JSON
    return JSON_NULL if value is None else value


def read_json(text: str | bytes) -> Any:  # noqa: ANN401 - JSON
    """For the driver: a jsonb column's value, with JSON's null told from NULL."""
    return _null_named(load_json(text.decode() if isinstance(text, bytes) else text))
