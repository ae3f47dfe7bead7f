"""What takes the place of protected values, in every form of an item; and what it must never show or change."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.decode.protect import Protector, canonical, gone
from pipeline.core.errors import ConfigurationError, TerminalError
from pipeline.core.exports.fast.protected_text import ProtectedText
from pipeline.core.exports.protected_lines import FullProtector, protected_full, protected_incremental
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.core.model.mapping_digest import digests
from pipeline.core.model.protection import entries_of, overlap, privacy_key
from pipeline.core.streams.protected_records import protected_record

KEY = "9c1f0e5a7d3b48269c1f0e5a7d3b48269c1f0e5a7d3b48269c1f0e5a7d3b4826"


def mapping(unmapped: str, key: str | None = KEY) -> TableMapping:
    text = f"""
name: people
source: {{table: People, key: {{Id: S}}}}
targets:
  People:
    primary_key: [id]
    columns:
      id: {{attribute: Id, type: text}}
    unmapped: {{column: rest, {unmapped}}}
"""
    found = read_mapping(text, "people.yaml")
    return replace(found, privacy_key=privacy_key(key, variable="PRIVACY_KEY")) if key else found


def protected(unmapped: str, **item: Any) -> dict[str, Any]:  # noqa: ANN401 - attribute values
    made = Protector(mapping(unmapped)).item({"Id": {"S": "1"}, **item})
    assert made.pop("Id") == {"S": "1"}
    return made


def hashed(text: str | bytes) -> dict[str, str]:
    message = text.encode() if isinstance(text, str) else text
    return {"S": hmac.new(KEY.encode(), message, hashlib.sha256).hexdigest()}


def test_the_hash_is_the_one_that_the_documentation_shows_how_to_compute() -> None:
    page = (Path(__file__).parents[3] / "docs" / "privacy.md").read_text()
    assert KEY in page
    for value in ({"S": "ada@example.com"}, {"N": "42"}):
        assert protected("hash: [a]", a=value)["a"]["S"] in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"S": "é"}, "é"),
        ({"N": "42"}, "42"),
        ({"N": "42.0"}, "42"),
        ({"N": "4.2E1"}, "42"),
        ({"S": "42"}, "42"),
        ({"N": "-0"}, "0"),
        ({"B": "/wA="}, b"\xff\x00"),
        ({"BOOL": True}, "true"),
        ({"SS": ["b", "a"]}, '["a","b"]'),
        ({"NS": ["10", "9.0"]}, "[9,10]"),
        ({"L": [{"S": "a"}, {"NULL": True}, {"BOOL": False}]}, '["a",null,false]'),
        ({"M": {"b": {"N": "1.50"}, "a": {"M": {}}}}, '{"a":{},"b":1.5}'),
        ({"S": "\ud800"}, b"\xed\xa0\x80"),
    ],
)  # fmt: skip
def test_values_that_people_call_equal_have_one_hash(value: dict[str, Any], text: str | bytes) -> None:
    assert protected("hash: [a]", a=value) == {"a": hashed(text)}


def test_a_mask_tells_nothing_and_a_dropped_attribute_is_gone() -> None:
    for value in ({"S": ""}, {"N": "7"}, {"L": [{"S": "x"}]}, {"M": {"a": {"S": "x"}}}):
        assert protected("mask: [a]", a=value, b={"S": "b"}) == {"a": {"S": "***"}, "b": {"S": "b"}}
        assert protected("drop: [a]", a=value, b={"S": "b"}) == {"b": {"S": "b"}}


def test_null_stays_null_and_a_missing_attribute_stays_missing() -> None:
    assert protected("hash: [a], mask: [b]", a={"NULL": True}) == {"a": {"NULL": True}}


def test_paths_go_through_maps_and_lists() -> None:
    cards = {"L": [{"M": {"no": {"S": "1"}, "by": {"S": "x"}}}, {"M": {"no": {"S": "2"}}}]}
    wanted = {"L": [{"M": {"no": {"S": "***"}, "by": {"S": "x"}}}, {"M": {"no": {"S": "***"}}}]}
    for path in ("cards.no", "cards.*.no"):
        assert protected(f'mask: ["{path}"]', cards=cards) == {"cards": wanted}
    people: dict[str, Any] = {"M": {"ada": {"M": {"mail": {"S": "m"}, "x": {"N": "1"}}}, "bob": {"M": {}}}}
    assert protected('drop: ["people.*.mail"]', people=people) == {
        "people": {"M": {"ada": {"M": {"x": {"N": "1"}}}, "bob": {"M": {}}}}
    }
    assert protected('drop: ["card.*"]', card={"M": {"a": {"S": "x"}, "b": {"L": []}}}) == {"card": {"M": {}}}
    assert protected('mask: ["tags.*"]', tags={"SS": ["a", "b"]}) == {"tags": {"SS": ["***"]}}
    assert protected('hash: ["ids.*"]', ids={"NS": ["1.0"]}) == {"ids": {"SS": [hashed("1")["S"]]}}
    assert protected("""mask: ['"a.b"']""", **{"a.b": {"S": "x"}}) == {"a.b": {"S": "***"}}


NOT_MAPS = [{"S": "4111"}, {"N": "4111"}, {"SS": ["4111"]}, {"B": "NDExMQ=="}, {"L": [{"S": "4111"}]}]


@pytest.mark.parametrize("value", NOT_MAPS)
def test_what_is_not_the_map_that_a_path_expects_is_protected_whole(value: dict[str, Any]) -> None:
    for how in ("hash", "mask", "drop"):
        made = json.dumps(protected(f"{how}: [card.number]", card=value))
        assert "4111" not in made
        assert "NDEx" not in made


MALFORMED: list[Any] = [
    None, "4111", ["4111"], {}, {"S": 4111}, {"N": "4111x"}, {"S": "a", "N": "4111"}, {"X": "4111"}, {"L": "4111"},
    {"B": "4111!"}, {"L": [{"S": 4111}]},
]  # fmt: skip


@pytest.mark.parametrize("value", MALFORMED)
@pytest.mark.parametrize("how", ["hash", "mask"])
def test_a_malformed_value_becomes_one_that_every_decoder_refuses(value: Any, how: str) -> None:  # noqa: ANN401
    accepted = how == "mask" and value in ({"N": "4111x"}, {"B": "4111!"})  # nothing of it is left to be refused
    assert protected(f"{how}: [a]", a=value) == {"a": {"S": "***"} if accepted else {}}
    assert "4111" not in json.dumps(protected(f'{how}: ["a.*"]', a=value))


_names = st.sampled_from(["a", "b", "c"])


def _containers(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def a_list(elements: list[dict[str, Any]]) -> dict[str, Any]:
        return {"L": elements}

    def a_map(members: dict[str, dict[str, Any]]) -> dict[str, Any]:
        return {"M": members}

    return st.one_of(
        st.builds(a_list, st.lists(inner, max_size=3)), st.builds(a_map, st.dictionaries(_names, inner, max_size=3))
    )


_scalars: list[dict[str, Any]] = [{"S": "clear"}, {"N": "7"}, {"SS": ["clear"]}, {"NULL": True}]
_values = st.recursive(st.sampled_from(_scalars), _containers, max_leaves=8)


@given(item=st.dictionaries(_names, _values), path=st.lists(st.one_of(_names, st.just("*")), min_size=1, max_size=3))
def test_only_what_the_path_names_changes_and_the_given_item_never(item: dict[str, Any], path: list[str]) -> None:
    root = path[0] if path[0] != "*" else "a"
    spelled = ".".join([root, *path[1:]])
    before = copy.deepcopy(item)
    made = Protector(mapping(f'hash: ["{spelled}"]')).item(item)
    assert item == before
    assert {name: value for name, value in made.items() if name != root} == {
        name: value for name, value in item.items() if name != root
    }
    if len(path) == 1:
        assert "clear" not in json.dumps(made.get(root))


def test_without_a_key_nothing_is_hashed() -> None:
    with pytest.raises(ConfigurationError, match="the privacy key is not set"):
        Protector(mapping("hash: [a]", key=None))
    assert Protector(mapping("mask: [a]", key=None)).item({"a": {"S": "x"}}) == {"a": {"S": "***"}}
    with pytest.raises(ConfigurationError, match="at least 32 characters"):
        privacy_key("too short", variable="PRIVACY_KEY")
    assert privacy_key(json.dumps({"key": KEY}), variable="") == privacy_key(f"{KEY}\n", variable="")
    assert KEY not in repr(mapping("hash: [a]"))


def test_another_key_or_rule_is_another_digest_and_another_record() -> None:
    first, rotated, masked = mapping("hash: [a]"), mapping("hash: [a]", key="x" * 32), mapping("mask: [a]")
    assert len({digests(each)[0] for each in (first, rotated, masked)}) == 3
    assert len({each.protection for each in (first, rotated, masked)}) == 3
    assert KEY not in first.protection
    assert mapping("drop: []").protection == ""


def test_an_image_that_is_protected_already_is_not_protected_twice() -> None:
    before, now = mapping("hash: [a]"), mapping("hash: [a], mask: [b]")
    once = Protector(before).item({"a": {"S": "x"}, "b": {"S": "y"}})
    again = Protector(now, entries_of(before.protection, "public.People")).item(once)
    assert again == Protector(now).item({"a": {"S": "x"}, "b": {"S": "y"}})


def test_a_value_that_is_needed_and_no_longer_there_is_gone() -> None:
    already = entries_of(mapping("hash: [a]").protection, "public.People")
    assert gone(mapping("drop: []"), "public.People", already)
    assert gone(mapping("hash: [a]", key="x" * 32), "public.People", already)
    assert not gone(mapping("mask: [a]"), "public.People", already)
    assert not gone(mapping("hash: [a, b]"), "public.People", already)


def test_a_record_keeps_only_what_dynamodb_documents() -> None:
    secret = {"S": "secret"}
    record: Any = {
        "eventName": "MODIFY",
        "mystery": "secret",
        "dynamodb": {
            "Keys": {"Id": {"S": "1"}, "a": secret},
            "NewImage": {"Id": {"S": "1"}, "a": secret, "b": {"S": "b"}},
            "OldImage": {"Id": {"S": "1"}, "a": secret},
            "SequenceNumber": "1",
            "mystery": "secret",
        },
    }
    protector = Protector(mapping("mask: [a]"))
    made: Any = protected_record(record, protector)
    assert "secret" not in json.dumps(made)
    assert made["dynamodb"] == {
        "Keys": {"Id": {"S": "1"}},
        "NewImage": {"Id": {"S": "1"}, "a": {"S": "***"}, "b": {"S": "b"}},
        "SequenceNumber": "1",
    }
    for broken in ({"dynamodb": "secret"}, {"dynamodb": {"Keys": "secret", "NewImage": ["secret"]}}):
        assert "secret" not in json.dumps(protected_record(broken, protector))  # type: ignore[arg-type]


def test_lines_stay_lines_and_other_attributes_stay_as_they_are() -> None:
    protector = Protector(mapping("mask: [a]"))
    line = '{"Item":{"Id":{"S":"é\\n"},"a":{"S":"secret"},"n":{"N":"1.50"},"s":{"S":"\\ud800"}}}\n'
    made = protected_full(line.encode() * 2, protector, file="f", first_line=1)
    assert made.count(b"\n") == 2
    wanted = json.loads(line)
    wanted["Item"]["a"] = {"S": "***"}
    assert [json.loads(each) for each in made.splitlines()] == [wanted] * 2
    keys = '"Keys":{"Id":{"S":"1"}}'
    image = '{"Id":{"S":"1"},"a":{"S":"secret"}}'
    for metadata in ('{"WriteTimestampMicros":"17"}', '{"WriteTimestampMicros":{"N":"17"}}'):
        change = f'{{"Metadata":{metadata},{keys},"OldImage":{image},"NewImage":{image}}}\n'
        made = protected_incremental(change.encode(), protector, file="f", first_line=1)
        assert json.loads(made) == {
            "Metadata": {"WriteTimestampMicros": {"N": "17"}},
            "Keys": {"Id": {"S": "1"}},
            "NewImage": {"Id": {"S": "1"}, "a": {"S": "***"}},
        }


_texts = st.one_of(st.text(max_size=5), st.sampled_from(["a", "b", '"a":{"S":"x"}', "a\\", ",", "{"]))
_plain: list[dict[str, Any]] = [{"N": "1.0"}, {"N": "x"}, {"B": "AA=="}, {"BOOL": True}, {"NULL": True}, {"SS": ["a"]}]


def _text_value(text: str) -> dict[str, Any]:
    return {"S": text}


_few = st.one_of(st.builds(_text_value, _texts), st.sampled_from(_plain), _values)
_attribute_names = st.sampled_from(["a", "b", "c", "d", "S", "Item"])
_items = st.dictionaries(_attribute_names, _few, max_size=5)


@given(items=st.lists(_items, min_size=1, max_size=4), escaped=st.booleans())
def test_lines_are_protected_alike_whether_they_are_parsed_or_not(
    items: list[dict[str, Any]], *, escaped: bool
) -> None:
    protector = Protector(mapping("hash: [a], mask: [b, S], drop: [c, d]"))
    lines = [json.dumps({"Item": item}, separators=(",", ":"), ensure_ascii=escaped) for item in items]
    block = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")
    try:
        wanted = protected_full(block, protector, file="f", first_line=1)
    except TerminalError:
        return
    found = FullProtector(protector)(block, file="f", first_line=1)
    assert [json.loads(line) for line in found.splitlines()] == [json.loads(line) for line in wanted.splitlines()]


def test_usual_lines_are_protected_without_being_parsed() -> None:
    text = ProtectedText(Protector(mapping("hash: [a], drop: [c]")))
    line = b'{"Item":{"c":{"S":"x"},"a":{"N":"1.0"},"b":{"S":"y"}}}\n'
    assert text.read(line) == b'{"Item":{"a":{"S":"%s"},"b":{"S":"y"}}}\n' % hashed("1")["S"].encode()
    for unsure in (b'{"M":', b"\\", b'{"SS":'):
        assert text.read(line.replace(b'{"N":', unsure)) is None


def test_each_target_protects_its_own_items_and_items_of_none_are_protected_by_all() -> None:
    text = """
name: shop
source: {table: Shop, key: {PK: S}}
targets:
  Customers:
    match: {PK: "C#{id}"}
    primary_key: [id]
    columns: {id: {capture: id, type: text}, name: {attribute: name, type: text, protect: mask}}
  Products:
    match: {PK: "P#{id}"}
    primary_key: [id]
    columns: {id: {capture: id, type: text}, name: {attribute: name, type: text}}
"""
    protector = Protector(read_mapping(text, "shop.yaml"))
    for key, name in (("C#1", "***"), ("P#1", "n"), ("X", "***")):
        assert protector.item({"PK": {"S": key}, "name": {"S": "n"}})["name"] == {"S": name}
    assert protector.item({"PK": "malformed", "name": {"S": "n"}})["name"] == {"S": "***"}  # type: ignore[dict-item]


def test_overlap_finds_equal_and_containing_paths() -> None:
    assert overlap(("a", "*"), ("a", "b"))
    assert overlap(("a",), ("a", "b"))
    assert not overlap(("a", "b"), ("a", "c"))
    assert canonical({"N": "1e2"}) == b"100"
