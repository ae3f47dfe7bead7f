"""The function generated for a target's records against the general path: the same batch, whatever the records are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import TerminalError
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping, Target
from pipeline.core.streams.stream_records import DecodedBatch, StreamDecoder
from tests.core.exports.test_block_decode import items, strange_items, targets

LABEL = "2026-05-14T10:00:00.000"
TTL = {"type": "Service", "principalId": "dynamodb.amazonaws.com"}

names = st.sampled_from(["INSERT", "MODIFY", "MODIFY", "REMOVE", "OTHER", None])
times = st.sampled_from([1_778_752_900, 1_778_752_901.5, "1778752902", 1_778_752_903_000, None, "x"])
numbers = st.sampled_from(["100", "2", "00000000000000000000003", 4, None, "-5", "9" * 41])


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    """A record: mostly usual, with the key of the image or another one, and whatever else may be wrong."""
    image = draw(items | strange_items)
    keys = {"a": image.get("a", {"S": "x"})} if draw(st.integers(0, 9)) else draw(items)
    if draw(st.booleans()):
        keys = dict(keys)  # equal, not the same
    change = {
        "ApproximateCreationDateTime": draw(times) if not draw(st.integers(0, 4)) else 1_778_752_900,
        "Keys": keys,
        "NewImage": image,
        "SequenceNumber": draw(numbers) if not draw(st.integers(0, 4)) else str(draw(st.integers(1, 99))),
        "StreamViewType": "NEW_IMAGE",
    }
    for name in draw(st.lists(st.sampled_from(sorted(change)), max_size=1)) if not draw(st.integers(0, 5)) else ():
        del change[name]
    record: dict[str, Any] = {"eventName": draw(names), "dynamodb": change}
    if draw(st.booleans()):
        record["userIdentity"] = draw(st.sampled_from([TTL, None, {"type": "Service"}]))
    return record


def outcome(mapping: TableMapping, some: list[dict[str, Any]], *, usual: bool) -> DecodedBatch | tuple[object, ...]:
    decoder = StreamDecoder(mapping)
    if not usual:
        decoder.usual.clear()
    try:
        return decoder.decode(some, LABEL)  # type: ignore[arg-type]
    except TerminalError as error:
        return type(error), str(error)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return type(error), error.args


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=300)
@given(targets(), st.lists(records(), max_size=6))
def test_a_record_is_decoded_as_the_general_path_decodes_it(target: Target, some: list[dict[str, Any]]) -> None:
    mapping = TableMapping("t", "T", {"a": "S"}, (target,))
    assert outcome(mapping, some, usual=True) == outcome(mapping, some, usual=False)


SHOP = read_mapping(
    """\
name: shop
source: {table: Shop, key: {PK: S, SK: S}}
targets:
  Customers:
    match: {PK: PROFILE, SK: "{customer}"}
    primary_key: [customer]
    columns:
      customer: {capture: customer, type: bigint}
      name: {attribute: name, type: text}
  Orders:
    match: {PK: "CUSTOMER#{customer}"}
    primary_key: [customer, SK]
    columns:
      customer: {capture: customer, type: bigint}
      SK: {attribute: SK, type: text}
      map: {attribute: map, type: jsonb}
    unmapped: rest
""",
    "shop.yaml",
)
EMPLOYEES = read_mapping(
    """\
name: people
source: {table: People, key: {Id: N}}
targets:
  People:
    primary_key: [Id]
    columns:
      Id: {attribute: Id, type: bigint}
      Name: {attribute: name, type: varchar(20)}
      Tags: {attribute: tags, type: "text[]"}
      Doc: {attribute: doc, type: jsonb}
    unmapped: attributes
""",
    "people.yaml",
)


def put(keys: dict[str, Any], **image: dict[str, Any]) -> dict[str, Any]:
    dynamodb = {
        "ApproximateCreationDateTime": 1_778_752_900,
        "Keys": keys,
        "NewImage": {**keys, **image},
        "SequenceNumber": "7",
    }
    return {"eventName": "MODIFY", "dynamodb": dynamodb}


@pytest.mark.parametrize(
    ("mapping", "record"),
    [
        (EMPLOYEES, put({"Id": {"N": "1"}}, name={"S": "Zoë"}, doc={"M": {"x": {"N": "1"}}}, tags={"SS": ["a"]})),
        (SHOP, put({"PK": {"S": "CUSTOMER#5"}, "SK": {"S": "ORDER#1"}}, map={"L": []}, more={"BOOL": True})),
        (SHOP, put({"PK": {"S": "PROFILE"}, "SK": {"S": "5"}}, name={"S": "x"})),
    ],
    ids=["a table", "an order", "a customer"],
)
def test_a_usual_record_never_takes_the_general_path(
    mapping: TableMapping, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamodb = {name: value for name, value in record["dynamodb"].items() if name != "NewImage"}
    removal = {**record, "eventName": "REMOVE", "dynamodb": dynamodb}
    expected = outcome(mapping, [record, removal], usual=False)
    monkeypatch.delattr(StreamDecoder, "_decode_one")
    assert outcome(mapping, [record, removal], usual=True) == expected
