"""Records and attribute values that do not have DynamoDB's form: a reject, or a stopped batch; never a guess."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.core.errors import ConfigurationError, TerminalError
from pipeline.core.exports.fast.block_decode import BlockDecoder
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.streams.event_kinds import records_of
from pipeline.core.streams.stream_records import DecodedBatch, StreamDecoder

LABEL = "2026-05-14T10:00:00.000"
SECOND = 1_778_752_900
MAPPING = read_mapping(
    """\
name: people
source: {table: People, key: {Id: N}}
targets:
  People:
    primary_key: [Id]
    columns:
      Id: {attribute: Id, type: bigint}
      Name: {attribute: name, type: varchar(20)}
      Age: {attribute: age, type: numeric}
      City: {attribute: address.city, type: text}
      Tags: {attribute: tags, type: "text[]"}
      Marks: {attribute: marks, type: "numeric[]"}
      Photo: {attribute: photo, type: bytea}
      Doc: {attribute: doc, type: jsonb}
    unmapped: attributes
""",
    "people.yaml",
)


def record(number: int, event: str | None = "MODIFY", **image: Any) -> dict[str, Any]:
    keys = {"Id": {"N": str(number)}}
    change: dict[str, Any] = {
        "ApproximateCreationDateTime": SECOND,
        "Keys": keys,
        "SequenceNumber": str(10**20 + number),
        "StreamViewType": "NEW_IMAGE",
    }
    if event != "REMOVE":
        change["NewImage"] = {**keys, **image}
    return {"eventName": event, "dynamodb": change}


def decode(*records: dict[str, Any]) -> DecodedBatch:
    return StreamDecoder(MAPPING).decode(records, LABEL)  # type: ignore[arg-type]


def nested(levels: int) -> Any:
    value: Any = {"S": "x"}
    for _ in range(levels):
        value = {"L": [value]}
    return value


MALFORMED: list[tuple[str, Any]] = [
    ("name", {"S": None}),
    ("name", "SECRET"),
    ("name", ["SECRET"]),
    ("name", None),
    ("name", {}),
    ("name", {"S": "SECRET", "N": "1"}),
    ("name", {"N": "1", "S": "SECRET"}),
    ("name", {"NULL": True, "S": "SECRET"}),
    ("name", {"SECRET": "x"}),
    ("name", {"S": ["SECRET"]}),
    ("age", {"N": 5}),
    ("age", {"N": True}),
    ("address", {"M": []}),
    ("address", {"M": {"city": {"S": "SECRET", "N": "1"}}}),
    ("address", {"M": {"city": {"S": "SECRET"}}, "S": "x"}),
    ("tags", {"SS": "SECRET"}),
    ("tags", {"SS": [1, 2]}),
    ("marks", {"NS": "12"}),
    ("marks", {"NS": [1]}),
    ("photo", {"B": "not base64"}),
    ("photo", {"B": 7}),
    ("doc", {"S": "SECRET", "N": "1"}),
    ("doc", {"L": {}}),
    ("doc", {"L": "SECRET"}),
    ("doc", {"L": ["SECRET"]}),
    ("doc", {"M": {"SECRET": "x"}}),
    ("doc", {"M": {"SECRET": {"SECRET": "x"}}}),
    ("doc", {"BOOL": "SECRET"}),
    ("doc", {"SS": "SECRET"}),
    ("doc", {"M": {"a": {"S": "SECRET", "N": "1"}}}),
    ("doc", nested(3_000)),
    ("other", "SECRET"),
    ("other", {"N": 5}),
    ("other", {"S": "SECRET", "N": "1"}),
    ("other", {"SECRET": "x"}),
]


@pytest.mark.parametrize(("name", "value"), MALFORMED)
def test_a_malformed_attribute_value_is_one_reject_that_quotes_nothing(name: str, value: Any) -> None:
    bad = record(1, **{name: value})
    batch = decode(bad, record(2))
    (reject,) = batch.rejects
    (changes,) = batch.changes.values()
    assert (reject.record, [change.key for change in changes]) == (bad, [("2",)])
    assert reject.position is not None
    assert "SECRET" not in reject.reason
    assert [len(alone.rejects) for alone in [decode(bad)]] == [1]


@pytest.mark.parametrize("value", [{"S": "a", "N": "1"}, {"N": "1", "S": "a"}])
@pytest.mark.parametrize("name", ["name", "doc", "other"])
@pytest.mark.parametrize("ways", ["pattern", "escape"])
def test_an_attribute_with_two_tags_in_an_export_is_a_failure_whatever_way_reads_it(
    name: str,
    value: Any,
    ways: str,
) -> None:
    note = {"S": "plain" if ways == "pattern" else 'a "quote"\u0001'}
    good = [{"Item": {"Id": {"N": str(n)}, name: {"S": "a"}, "note": note}} for n in range(100)]
    lines = [*good, {"Item": {"Id": {"N": "100"}, name: value, "note": note}}]
    block = b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)
    decoded = BlockDecoder(MAPPING.targets[0]).decode(block, file="f")
    assert decoded.rows == 100
    assert [json.loads(line) for line, _ in decoded.failures] == [lines[-1]]


@pytest.mark.parametrize(
    "time", [SECOND * 1000 + 999, str(SECOND * 1000 + 999), SECOND * 1_000_000 + 999_999, SECOND + 0.9, str(SECOND)]
)
def test_a_time_in_a_unit_that_can_be_told_is_taken_in_whole_seconds_rounded_down(time: Any) -> None:
    one = record(1)
    one["dynamodb"]["ApproximateCreationDateTime"] = time
    batch = decode(one)
    assert batch.newest
    assert batch.newest.as_of.timestamp() == SECOND
    assert batch.rejects == []


def without(member: str, value: Any = ...) -> Any:
    def change(one: dict[str, Any]) -> None:
        at = one if member in one else one["dynamodb"]
        at.pop(member, None)
        if value is not ...:
            at[member] = value

    return change


ALIKE: list[tuple[Any, str]] = [
    (without("ApproximateCreationDateTime"), "ApproximateCreationDateTime is missing or null"),
    (without("ApproximateCreationDateTime", None), "ApproximateCreationDateTime is missing or null"),
    (without("ApproximateCreationDateTime", "SECRET"), "ApproximateCreationDateTime is a text that is not a number"),
    (without("ApproximateCreationDateTime", "2026-05-14T10:00:00Z"), "is a text that is not a number"),
    (without("ApproximateCreationDateTime", 1.7e18), "is a number that is not a time"),
    (without("ApproximateCreationDateTime", "nan"), "is a number that is not a time"),
    (without("ApproximateCreationDateTime", [1]), "is neither a number nor a text"),
    (without("SequenceNumber"), "lacks its SequenceNumber"),
    (without("SequenceNumber", None), "lacks its SequenceNumber"),
    (without("SequenceNumber", "SECRET"), "SequenceNumber is not a number"),
    (without("Keys"), "lacks its Keys"),
    (without("eventName"), "eventName is none of"),
    (without("eventName", "SECRET"), "eventName is none of"),
    (without("NewImage"), "NewImage is missing"),
    (without("dynamodb"), "lacks its Keys"),
    (without("dynamodb", "SECRET"), "lacks its Keys"),
]


@pytest.mark.parametrize(("change", "reason"), ALIKE)
def test_what_is_wrong_with_every_record_alike_stops_the_batch(change: Any, reason: str) -> None:
    records = [record(n) for n in range(100)]
    for one in records:
        change(one)
    with pytest.raises(TerminalError, match=reason) as raised:
        decode(*records)
    assert "SECRET" not in str(raised.value)
    assert raised.value.hint
    assert "enable" not in raised.value.hint


@pytest.mark.parametrize(("change", "reason"), ALIKE)
def test_what_is_wrong_with_some_records_is_a_reject_of_each(change: Any, reason: str) -> None:
    records = [record(n) for n in range(3)]
    change(records[1])
    batch = decode(*records)
    (reject,) = batch.rejects
    assert reason in reject.reason
    assert reject.record is records[1]
    assert "SECRET" not in reject.reason
    assert [len(changes) for changes in batch.changes.values()] == [2]


@pytest.mark.parametrize("view_type", ["KEYS_ONLY", "OLD_IMAGE"])
def test_removals_of_a_stream_without_new_images_are_refused_as_its_puts_are(view_type: str) -> None:
    removal = record(1, "REMOVE")
    removal["dynamodb"]["StreamViewType"] = view_type
    with pytest.raises(ConfigurationError, match=f"view type {view_type}.*disable it, enable it again"):
        decode(removal)


def test_removals_do_not_hide_that_no_put_has_an_image() -> None:
    put = record(1)
    del put["dynamodb"]["NewImage"], put["dynamodb"]["StreamViewType"]
    with pytest.raises(TerminalError, match="NewImage is missing"):
        decode(record(2, "REMOVE"), put)


@pytest.mark.parametrize("keys", [{"Id": {"N": "2"}}, {}, {"Id": {"S": "1"}}, {"Other": {"N": "1"}}, {"Id": "1"}, "x"])
def test_keys_that_are_not_the_image_s_are_never_stored_under_the_image_s(keys: Any) -> None:
    one = record(1)
    one["dynamodb"]["Keys"] = keys
    batch = decode(one, record(3))
    assert [[change.key for change in changes] for changes in batch.changes.values()] == [[("3",)]]
    assert len(batch.rejects) == 1


def test_keys_that_spell_the_same_number_otherwise_are_the_same() -> None:
    one = record(1)
    one["dynamodb"]["Keys"] = {"Id": {"N": "1.0"}}
    assert decode(one).rejects == []


STREAM_RECORD = record(1)
NO_BATCHES: list[tuple[Any, str]] = [
    ({}, "an empty object"),
    ({"key1": "SECRET", "key2": "b", "key3": "c"}, "console's test event"),
    ({"invocationId": "x", "deliveryStreamArn": "SECRET", "records": []}, "Data Firehose"),
    (STREAM_RECORD, "one bare stream record"),
    ({"Records": None}, "whose `Records` is null"),
    ({"Records": {"SECRET": 1}}, "whose `Records` is an object"),
    ({"Records": "SECRET"}, "whose `Records` is a text"),
    ({"Records": ["SECRET"]}, "a list with a text instead of a record"),
    ([None], "a list with null instead of a record"),
    ({"detail-type": "SECRET", "detail": {}, "source": "x"}, "an EventBridge event"),
    ({"SECRET": 1}, "an object of an unknown form"),
    ("SECRET", "a text"),
    (None, "null"),
]


@pytest.mark.parametrize(("event", "came"), NO_BATCHES)
def test_an_event_that_is_no_batch_is_named_and_raises(event: Any, came: str) -> None:
    with pytest.raises(TerminalError, match="expected a batch of DynamoDB stream records") as raised:
        records_of(event)
    assert came in str(raised.value)
    assert "SECRET" not in str(raised.value)


def test_a_bare_list_of_records_and_a_batch_of_none_are_batches() -> None:
    assert records_of([STREAM_RECORD]) == records_of({"Records": [STREAM_RECORD]}) == [STREAM_RECORD]
    assert records_of({"Records": []}) == []
