"""Protected attributes in mapping files: what is read, and every place where one would be stored in clear."""

from __future__ import annotations

import pytest

from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.mapping_files.yaml_fields import MappingError
from pipeline.core.model.protection import Protect, Rule, overlap, remainders
from tests.core.mapping_files.test_mapping_file import schema_errors

RIGHT = """name: people
source: {table: People, key: {Id: S}}
targets:
  People:
    primary_key: [id]
    columns:
      id: {attribute: Id, type: text}
      email: {attribute: email, type: text, protect: hash}
      born: {attribute: birthday, type: date, protect: drop}
      card: {attribute: card, type: jsonb}
      EXTRA
    unmapped: {column: rest, drop: [ssn, "card.*"], mask: ["notes.text"]}
  Cards:
    parent: People
    explode: cards
    element: {place: integer}
    columns:
      number: {attribute: number, type: varchar(64), protect: hash}
"""


def text(extra: str = "", *replacements: tuple[str, str]) -> str:
    made = RIGHT.replace("      EXTRA\n", f"      {extra}\n" if extra else "")
    for old, new in replacements:
        assert old in made
        made = made.replace(old, new)
    return made


def test_what_is_protected_is_read_from_columns_children_and_unmapped() -> None:
    mapping = read_mapping(text(), "people.yaml")
    assert mapping.rules == {
        "": (
            Rule(("birthday",), Protect.DROP),
            Rule(("card", "*"), Protect.DROP),
            Rule(("cards", "*", "number"), Protect.HASH),
            Rule(("email",), Protect.HASH),
            Rule(("notes", "text"), Protect.MASK),
            Rule(("ssn",), Protect.DROP),
        )
    }
    assert schema_errors(text()) == []
    assert read_mapping(text("", ("column: rest, ", "")), "p").targets[0].unmapped == "attributes"
    assert read_mapping(text("", ("column: rest", "column: ignore")), "p").targets[0].unmapped is None


def test_a_child_of_a_child_is_protected_by_its_path_in_the_item_and_a_set_that_is_protected_has_no_child() -> None:
    below = """  Holders:
    parent: Cards
    explode: holders
    element: {holder: integer}
    columns:
      name: {attribute: name, type: text, protect: mask}
"""
    rules = read_mapping(text() + below, "people.yaml").rules[""]
    assert Rule(("cards", "*", "holders", "*", "name"), Protect.MASK) in rules
    of_set = """  Tags:
    parent: People
    explode: tags
    element: {tag: SS}
"""
    read_mapping(text() + of_set, "people.yaml")
    for path in ("tags", "tags.*"):
        with pytest.raises(MappingError, match="the members of a set are keys"):
            read_mapping(text("", ("[ssn,", f'["{path}",')) + of_set, "people.yaml")


def test_the_same_protection_in_two_places_is_right() -> None:
    mapping = read_mapping(text("mail: {attribute: email, type: text, protect: hash}"), "people.yaml")
    assert mapping.rules == read_mapping(text(), "people.yaml").rules


COLUMNS, UNMAPPED = "targets.People.columns", "targets.People.unmapped"


@pytest.mark.parametrize(
    ("wrong", "place", "what"),
    [
        (text("mail: {attribute: email, type: text}"), f"11: {COLUMNS}.mail",
         'takes "email", which column "email" of public.People protects (hash); add protect: hash here too'),
        (text("mail: {attribute: email, type: text, protect: mask}"), f"11: {COLUMNS}.mail",
         'protects "email" (mask), and column "email" of public.People protects "email" (hash): the same value in two'),
        (text("number: {attribute: card.number, type: text}"), f"11: {COLUMNS}.number",
         'takes "card.number", which unmapped of public.People protects (drop); protect "card.number" instead of'),
        (text("first: {attribute: 'cards[0].number', type: text}"), f"11: {COLUMNS}.first",
         'takes "cards.*.number", which column "number" of public.Cards protects (hash); add protect: hash here too'),
        (text("notes: {attribute: notes, type: text}"), f"11: {COLUMNS}.notes",
         'holds "notes.text", which unmapped of public.People protects (mask); use type jsonb or text[]'),
        (text("x: {attribute: x, type: bigint, protect: hash}"), f"11: {COLUMNS}.x.protect",
         "bigint cannot hold what is stored with hash, a text of 64 characters; use text, or varchar(64) or longer"),
        (text("x: {attribute: x, type: varchar(2), protect: mask}"), f"11: {COLUMNS}.x.protect",
         "varchar(2) cannot hold what is stored with mask, a text of 3 characters; use text"),
        (text("x: {attribute: x, type: text, protect: concealed}"), f"11: {COLUMNS}.x.protect",
         '"concealed" is not a protection; write one of hash, mask, drop'),
        (text("x: {attribute: x, type: text, protect: mask, default: a}"), f"11: {COLUMNS}.x.default",
         "would stand beside protected values as a value in clear; remove it"),
        (text("", ("Id, type: text", "Id, type: text, protect: hash")), f"7: {COLUMNS}.id.protect",
         "Id is a key attribute, which must stay readable"),
        (text("", ("[ssn,", "[Id,")), f"11: {UNMAPPED}.drop", "Id is a key attribute, which must stay readable"),
        (text("", ("[ssn,", '["*",')), f"11: {UNMAPPED}.drop", '"*" at the beginning names every attribute; name them'),
        (text("", ("[ssn,", '["a[0]",')), f"11: {UNMAPPED}.drop",
         '"a[0]" names one element of a list, whose place may change; write * for all: lines.*.card'),
        (text("", ("[ssn,", '["card.number",')), f"11: {UNMAPPED}.drop",
         'protects "card.*" (drop), and unmapped of public.People protects "card.number" (drop)'),
        (text("", ("[ssn,", "[cards,")), "12: targets.Cards",
         'takes "cards", which unmapped of public.People protects (drop); protect the columns of the child instead'),
    ],
)  # fmt: skip
def test_a_place_that_would_show_a_protected_value_is_refused_with_its_line(wrong: str, place: str, what: str) -> None:
    with pytest.raises(MappingError) as raised:
        read_mapping(wrong, "people.yaml")
    found = [str(problem) for problem in raised.value.problems]
    assert any(problem.startswith(f"people.yaml:{place}: {what}") for problem in found), found


def test_targets_of_the_same_items_protect_together_and_of_different_items_apart() -> None:
    other = """  Other:
    primary_key: [id]
    columns:
      id: {attribute: Id, type: text}
      email: {attribute: email, type: text}
"""
    with pytest.raises(MappingError, match=r"people.yaml:22: .*add protect: hash here too"):
        read_mapping(text() + other, "people.yaml")
    matched = text("", ("  People:\n", '  People:\n    match: {Id: "P#{rest}"}\n'))
    read_mapping(matched + other.replace("  Other:\n", '  Other:\n    match: {Id: "O#{rest}"}\n'), "people.yaml")


def test_a_name_reaches_through_lists() -> None:
    in_list, through = ("orders", "*", "card", "number"), ("orders", "card", "number")
    assert overlap(in_list, through)
    assert overlap(through, in_list)
    assert not overlap(in_list, ("orders", "card", "holder"))
    assert remainders(through, ("orders", "*")) == {("card", "number"), ("number",)}
    assert remainders(in_list, ("orders", "*")) == {("card", "number")}
    assert remainders(through, ("orders", "*", "card", "bank")) == set()


@pytest.mark.parametrize(
    "clear",
    ['first: {attribute: "orders[0].card.number", type: text}', 'all: {attribute: "orders[0].card", type: text}'],
)
def test_a_column_below_a_list_that_a_name_reaches_through_is_refused(clear: str) -> None:
    with pytest.raises(MappingError, match=r"orders\.card\.number|orders\.\*\.card"):
        read_mapping(text(clear, ('"notes.text"', '"notes.text", "orders.card.number"')), "people.yaml")
