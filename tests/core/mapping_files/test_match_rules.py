"""Mapping files of single-table designs: wrong ones name line, field and remedy; right ones say what was meant."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pipeline.core.decode.keys import key_attributes
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import ConversionError
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.mapping_files.yaml_fields import MappingError
from pipeline.core.model.mapping import TableMapping, Unmatched
from tests.core.mapping_files.test_mapping_file import schema_errors

RIGHT = """\
name: shop
source: {table: Shop, key: {PK: S, SK: S}}
targets:
  Customers:
    match: {PK: "CUSTOMER#{customer}", SK: PROFILE}
    primary_key: [customer]
    columns:
      customer: {capture: customer, type: bigint}
      email: {attribute: email, type: text}
  Orders:
    match: {PK: "CUSTOMER#{customer}", SK: "ORDER#{day}#{order}"}
    primary_key: [customer, day, order]
    columns:
      customer: {capture: customer, type: bigint}
      day: {capture: day, type: date}
      order: {capture: order, type: text}
      key: {attribute: SK, type: text}
"""
CUSTOMERS, ORDERS = "targets.Customers", "targets.Orders"


@dataclass(frozen=True)
class Wrong:
    """`old` of RIGHT becomes `new`; the problems, without the file's name, are `messages`."""

    what: str
    old: str
    new: str
    messages: tuple[str, ...]
    structural: bool = False


WRONG = (
    Wrong("pattern over another attribute", "SK: PROFILE", "type: PROFILE", (
        f'5: {CUSTOMERS}.match.type: "type" is not a key attribute, and the record of a delete carries only those, so'
        " it could not be routed; the key attributes are PK, SK",
    )),
    Wrong("misspelled key attribute", "SK: PROFILE", "Sk: PROFILE", (
        f'5: {CUSTOMERS}.match.Sk: "Sk" is not a key attribute, and the record of a delete carries only those, so it'
        " could not be routed; did you mean SK?",
    )),
    Wrong("no pattern", '{PK: "CUSTOMER#{customer}", SK: PROFILE}', "{}", (
        f'5: {CUSTOMERS}.match: has no pattern; add one, such as match: {{PK: "CUSTOMER#{{customer_id}}", SK:'
        ' "ORDER#{order_id}"}, or remove it to accept every item',
    ), structural=True),
    Wrong("match that is text", '{PK: "CUSTOMER#{customer}", SK: PROFILE}', "CUSTOMER", (
        f'5: {CUSTOMERS}.match: must be a mapping, such as {{PK: "CUSTOMER#{{customer_id}}", SK:'
        f' "ORDER#{{order_id}}"}}',
    ), structural=True),
    Wrong("empty pattern", "SK: PROFILE", 'SK: ""', (
        f"5: {CUSTOMERS}.match.SK: is empty, but a key never is; write a pattern such as ORDER#{{order_id}}",
    ), structural=True),
    Wrong("nothing for a pattern", "SK: PROFILE", "SK: null", (
        f"5: {CUSTOMERS}.match.SK: is empty; write a pattern such as ORDER#{{order_id}}",
    ), structural=True),
    Wrong("brace without its partner", "SK: PROFILE", 'SK: "PROFILE}"', (
        f'5: {CUSTOMERS}.match.SK: "PROFILE}}" has a "}}" without its partner; write {{{{ or }}}} for the character',
    )),
    Wrong("part without a name", "SK: PROFILE", 'SK: "PROFILE#{}"', (
        f'5: {CUSTOMERS}.match.SK: "PROFILE#{{}}" names a part ""; name it with letters, digits and "_", such as'
        " {order_id}, and write {{ for the character {",
    )),
    Wrong("parts side by side", "ORDER#{day}#{order}", "ORDER#{day}{order}", (
        f'11: {ORDERS}.match.SK: "ORDER#{{day}}{{order}}" has nothing between {{day}} and {{order}}, so nobody can tell'
        " where the first ends; put the character that separates them between them",
    )),
    Wrong("a part twice in a pattern", "ORDER#{day}#{order}", "ORDER#{day}#{day}", (
        f'11: {ORDERS}.match.SK: "ORDER#{{day}}#{{day}}" captures "day" twice; give the parts different names',
    )),
    Wrong("a part twice in a target", "ORDER#{day}#{order}", "ORDER#{day}#{customer}", (
        f'11: {ORDERS}.match.SK: captures "customer", as the pattern of PK does; give the parts different names',
        f'16: {ORDERS}.columns.order.capture: "order" is not captured by the target\'s match; it captures'
        ' customer, day',
    )),
    Wrong("text for a number key", "key: {PK: S, SK: S}", "key: {PK: S, SK: N}", (
        f'5: {CUSTOMERS}.match.SK: "PROFILE" is not a number, and the attribute is of type N; write a number, or'
        f" {{value}} alone",
        f'11: {ORDERS}.match.SK: "ORDER#{{day}}#{{order}}" splits an attribute of type N; write {{day}} alone, for'
        " all of it",
    )),
    Wrong("capture that is none", "{capture: day,", "{capture: dya,", (
        f'15: {ORDERS}.columns.day.capture: "dya" is not captured by the target\'s match; did you mean day?',
    )),
    Wrong("capture without match", '    match: {PK: "CUSTOMER#{customer}", SK: PROFILE}\n', "", (
        f'7: {CUSTOMERS}.columns.customer.capture: "customer" is not captured by the target\'s match; add a pattern to'
        ' the target, such as match: {PK: "CUSTOMER#{customer}"}',
        f'9: {ORDERS}: accepts items that public.Customers accepts too, such as PK "CUSTOMER#x", SK "ORDER#x#x"; give'
        " public.Customers a match of its own",
    )),
    Wrong("two sources", "{capture: day,", "{capture: day, attribute: day,", (
        f"15: {ORDERS}.columns.day.attribute: is given together with capture, and a column has one source; remove one"
        " of them",
    ), structural=True),
    Wrong("default of a captured part", "{capture: order, type: text}", "{capture: order, type: text, default: x}", (
        f"16: {ORDERS}.columns.order.default: is never used, because a captured part is never missing; remove it",
    ), structural=True),
    Wrong("captured part as jsonb", "{capture: order, type: text}", "{capture: order, type: jsonb}", (
        f"16: {ORDERS}.columns.order.type: jsonb cannot hold a captured part, which is text; use bigint, date, integer,"
        " numeric, smallint, text, timestamptz, uuid, varchar",
        f"16: {ORDERS}.columns.order: is in the primary key, and jsonb does not keep all captured parts distinct; use"
        " bigint or date or integer or numeric or smallint or text or uuid or varchar",
    )),
    Wrong("captured time in the key", "{capture: day, type: date}", "{capture: day, type: timestamptz}", (
        f"15: {ORDERS}.columns.day: is in the primary key, and timestamptz does not keep all captured parts distinct;"
        " use bigint or date or integer or numeric or smallint or text or uuid or varchar",
    )),
    Wrong("epoch of a captured part", "      key: {attribute: SK, type: text}",
        "      key: {capture: day, type: timestamptz, epoch: seconds}", (
        f"17: {ORDERS}.columns.key.epoch: is for numbers, and a captured part is text; remove it, or capture it"
        " as bigint",
    )),
    Wrong("lenient key", "{capture: order, type: text}", "{capture: order, type: varchar(5), on_error: truncate}", (
        f"16: {ORDERS}.columns.order: is in the primary key and must reject what it cannot hold; remove on_error",
    )),
    Wrong("captured part left out of the key", "[customer, day, order]", "[customer, order]", (
        f'12: {ORDERS}.primary_key: lacks "day", captured from the key attribute "SK", without which two items could'
        " share a row; add its column day",
    )),
    Wrong("captured part without a column", "      day: {capture: day, type: date}\n", "", (
        f'12: {ORDERS}.primary_key: "day" is not a column of this target; the columns are customer, order, key',
    )),
    Wrong("key attribute without a pattern", ', SK: "ORDER#{day}#{order}"', "", (
        f'15: {ORDERS}.columns.day.capture: "day" is not captured by the target\'s match; it captures customer',
        f'16: {ORDERS}.columns.order.capture: "order" is not captured by the target\'s match; it captures customer',
        f'10: {ORDERS}: accepts items that public.Customers accepts too, such as PK "CUSTOMER#x", SK "PROFILE"; change'
        " the patterns so that they don't overlap",
    )),
    Wrong("part twice in the key", "[customer, day, order]", "[customer, day, order, key2]", (
        f'12: {ORDERS}.primary_key: "key2" is not a column of this target; did you mean key?',
    )),
    Wrong("a part in two columns of the key", "[customer, day, order]\n    columns:",
        "[customer, day, order, again]\n    columns:\n      again: {capture: order, type: text}", (
        f'14: {ORDERS}.columns.again: is in the primary key together with "order" of the same captured part; keep one'
        " of them",
    )),
    Wrong("primary key without a column", "primary_key: [customer]", "primary_key: []", (
        f'6: {CUSTOMERS}.primary_key: lacks "customer", captured from the key attribute "PK", without which two items'
        " could share a row; add its column customer",
    ), structural=True),
    Wrong("primary key of a single item", RIGHT[RIGHT.index("CUSTOMER#{customer}"):RIGHT.index("  Orders")],
        """CUSTOMERS", SK: PROFILE}
    primary_key: []
    columns:
      email: {attribute: email, type: text}
""", (
        f"6: {CUSTOMERS}.primary_key: has no column; add one of a key attribute or of a captured part",
    ), structural=True),
    Wrong("patterns with a key in common", "SK: PROFILE", 'SK: "{kind}#{rest}"', (
        f'6: {CUSTOMERS}.primary_key: lacks "kind", captured from the key attribute "SK", without which two items could'
        " share a row; add a column with that capture to columns and here",
        f'6: {CUSTOMERS}.primary_key: lacks "rest", captured from the key attribute "SK", without which two items could'
        " share a row; add a column with that capture to columns and here",
        f'10: {ORDERS}: accepts items that public.Customers accepts too, such as PK "CUSTOMER#x", SK "ORDER#x#x";'
        " change the patterns so that they don't overlap",
    )),
    Wrong("a literal that another pattern takes", "SK: PROFILE", 'SK: "ORDER#x#1"', (
        f'10: {ORDERS}: accepts items that public.Customers accepts too, such as PK "CUSTOMER#x", SK "ORDER#x#1";'
        " change the patterns so that they don't overlap",
    )),
    Wrong("unknown policy for unmatched items", "targets:", "unmatched: drop\ntargets:", (
        '3: unmatched: "drop" is not a policy; the policies are reject, ignore',
    ), structural=True),
    Wrong("a number for text in a pattern", "SK: PROFILE", "SK: 2026", (
        f'5: {CUSTOMERS}.match.SK: 2026 without quotes is a number in YAML; write "2026"',
    )),
)  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.what)
def test_a_wrong_match_says_what_where_and_the_remedy(case: Wrong) -> None:
    text = RIGHT.replace(case.old, case.new, 1)
    assert text != RIGHT
    with pytest.raises(MappingError) as raised:
        read_mapping(text, "shop.yaml")
    assert {str(problem) for problem in raised.value.problems} == {f"shop.yaml:{m}" for m in case.messages}
    assert bool(schema_errors(text)) == case.structural


def test_unmatched_without_any_pattern_has_no_effect() -> None:
    text = """\
name: shop
source: {table: Shop, key: {PK: S}}
unmatched: ignore
targets: {Shop: {primary_key: [PK], columns: {PK: {attribute: PK, type: text}}}}
"""
    with pytest.raises(MappingError, match="3: unmatched: has no effect, because no target has a match"):
        read_mapping(text, "shop.yaml")


@pytest.fixture
def shop() -> TableMapping:
    assert schema_errors(RIGHT) == []
    return read_mapping(RIGHT.replace("targets:", "unmatched: ignore\ntargets:", 1), "shop.yaml")


def test_a_mapping_with_patterns(shop: TableMapping) -> None:
    customers, orders = shop.targets
    assert shop.unmatched is Unmatched.IGNORE
    assert (customers.primary_key, orders.primary_key) == (("customer",), ("customer", "day", "order"))
    assert [(column.name, column.attribute, column.capture) for column in orders.columns] == [
        ("customer", "PK", "customer"),
        ("day", "SK", "day"),
        ("order", "SK", "order"),
        ("key", "SK", None),
    ]


def test_rows_keys_and_the_way_back(shop: TableMapping) -> None:
    orders = shop.targets[1]
    decoder = RowDecoder(orders)
    keys = {"PK": {"S": "CUSTOMER#12"}, "SK": {"S": "ORDER#2026-05-01#a#b"}}
    row = decoder.row({**keys, "x": {"N": "1"}})
    assert row == ("12", "2026-05-01", "a#b", "ORDER#2026-05-01#a#b", '{"x":1}')
    assert decoder.key_of(row) == decoder.key(keys) == ("12", "2026-05-01", "a#b")
    assert key_attributes(shop, orders, decoder.key(keys)) == keys


@pytest.mark.parametrize("customer", ["007", "-1", "+1", "1.0", "１", "9223372036854775808"])
def test_a_captured_number_has_one_spelling(shop: TableMapping, customer: str) -> None:
    decoder = RowDecoder(shop.targets[0])
    with pytest.raises(ConversionError) as raised:
        decoder.key({"PK": {"S": f"CUSTOMER#{customer}"}, "SK": {"S": "PROFILE"}})
    assert customer not in str(raised.value)


def test_an_item_of_another_target_is_not_decoded(shop: TableMapping) -> None:
    with pytest.raises(ConversionError, match=r"does not match the pattern of public\.Orders"):
        RowDecoder(shop.targets[1]).row({"PK": {"S": "CUSTOMER#1"}, "SK": {"S": "PROFILE"}})


def test_a_sort_key_that_is_a_number() -> None:
    text = """\
name: series
source: {table: Series, key: {PK: S, at: N}}
targets:
  Heads:
    match: {PK: "SENSOR#{sensor}", at: 0}
    primary_key: [sensor]
    columns: {sensor: {capture: sensor, type: text}}
  Sites:
    match: {PK: "SITE#{site}", at: "{at}"}
    primary_key: [site, at]
    columns: {site: {capture: site, type: text}, at: {capture: at, type: "numeric(20,3)"}}
"""
    assert schema_errors(text) == []
    mapping = read_mapping(text, "series.yaml")
    heads, sites = mapping.targets
    head = {"PK": {"S": "SENSOR#a"}, "at": {"N": "0"}}
    assert RowDecoder(heads).row(head) == ("a", "{}")
    assert key_attributes(mapping, heads, ["a"]) == head
    assert RowDecoder(sites).row({"PK": {"S": "SITE#a"}, "at": {"N": "1.50"}})[:2] == ("a", "1.5")
    assert key_attributes(mapping, sites, ["a", "1.500"]) == {"PK": {"S": "SITE#a"}, "at": {"N": "1.5"}}
