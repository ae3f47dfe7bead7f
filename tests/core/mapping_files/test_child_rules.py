"""Child targets in mapping files: wrong ones name line, field and remedy; elements become rows, all of them or none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import ConversionError
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.mapping_files.yaml_fields import MappingError
from pipeline.core.model.mapping import TableMapping
from tests.core.mapping_files.test_mapping_file import schema_errors

RIGHT = """\
name: shop
source: {table: Shop, key: {PK: S}}
targets:
  Orders:
    primary_key: [order]
    columns:
      order: {attribute: PK, type: text}
  Lines:
    parent: Orders
    explode: lines
    element: {line: integer}
    columns:
      sku: {attribute: sku, type: text}
      city: {attribute: from.city, type: varchar(5), default: "?"}
  sales.Prices:
    parent: Orders
    explode: more.prices
    element: {currency: text}
    columns:
      amount: {attribute: amount, type: "numeric(9,2)"}
"""
LINES = "targets.Lines"


@pytest.mark.parametrize(
    ("old", "new", "messages", "structural"),
    [
        ("parent: Orders", "parent: Order", (f'9: {LINES}.parent: "Order" is not a target of this file that can have'
         " children; did you mean Orders?",), False),
        ("parent: Orders", "parent: Lines", (f'9: {LINES}.parent: "Lines" is not a target of this file that can have'
         " children; the targets are Orders, sales.Prices",), False),
        ("    parent: Orders\n", "", (f"8: {LINES}.parent: is missing; add it, such as parent: Orders",), True),
        ("    explode: lines\n", "", (f"8: {LINES}.explode: is missing; add it, such as explode: lines",), True),
        ("    element: {line: integer}\n", "", (f"8: {LINES}.element: is missing; add it, such as element:"
         " {line: integer}",), True),
        ("explode: lines", "explode: PK", (f'10: {LINES}.explode: "PK" is the key attribute "PK", which is never a list'
         " or a map",), False),
        ("explode: lines", 'explode: "a..b"', (f'10: {LINES}.explode: "a..b" is not an attribute path such as name,'
         ' address.city, lines[0].sku or "a.b".c',), False),
        ("{line: integer}", "{line: bigint}", (f'11: {LINES}.element.line: "bigint" is not a type for a place; write'
         " integer for the elements of a list, text for those of a map, and SS, NS or BS for those of a set",), True),
        ("{line: integer}", "{}", (f"11: {LINES}.element: must name one column for an element's place: "
         "{line: integer} in a list, {name: text} in a map, {tag: SS} (or NS, BS) in a set",), True),
        ("{line: integer}", "{line: SS}", (f"12: {LINES}.columns: a set's members have no attributes; remove columns,"
         " the element's place is the value",), True),
        ("{line: integer}", "{order: integer}", (f"11: {LINES}.element: \"order\" is already a column of the parent's"
         " key; rename it",), False),
        ("      sku:", "      line:", (f'13: {LINES}.columns.line: "line" is already a column of the child, through its'
         " parent's key and its place; rename it",), False),
        ("      sku:", "      _children_0:", (f'13: {LINES}.columns._children_0: "_children_0" is the name of one of'
         " Dynaurora's own columns; rename it",), False),
        ("    explode: lines", "    unmapped: ignore\n    explode: lines", (f'10: {LINES}.unmapped: "unmapped" is not a'
         " key here; the keys are parent, explode, element, columns, indexes, readers",), True),
        ("{attribute: sku, type: text}", "{capture: sku, type: text}", (f'13: {LINES}.columns.sku.capture: "sku" is not'
         " captured by the target's match; add a pattern to the target, such as match: {PK: \"CUSTOMER#{sku}\"}",),
         False),
        ("sales.Prices", "public.Orders", ("15: targets.public.Orders: is the view public.Orders, as is another target"
         " of this file; remove or rename one",), False),
    ],
)  # fmt: skip
def test_a_wrong_child_says_what_where_and_the_remedy(
    old: str, new: str, messages: tuple[str, ...], *, structural: bool
) -> None:
    text = RIGHT.replace(old, new, 1)
    with pytest.raises(MappingError) as raised:
        read_mapping(text, "shop.yaml")
    assert [str(problem) for problem in raised.value.problems] == [f"shop.yaml:{message}" for message in messages]
    assert bool(schema_errors(text)) == structural


def test_children_without_a_parent_target_are_refused() -> None:
    text = RIGHT[: RIGHT.index("  Orders:")] + RIGHT[RIGHT.index("  Lines:") : RIGHT.index("  sales")]
    with pytest.raises(MappingError) as raised:
        read_mapping(text, "shop.yaml")
    assert '"Orders" is not a target of this file that can have children' in str(raised.value)


@pytest.fixture
def shop() -> TableMapping:
    assert schema_errors(RIGHT) == []
    return read_mapping(RIGHT, "shop.yaml")


def test_a_child_has_its_parents_key_and_its_place(shop: TableMapping) -> None:
    (orders,) = shop.targets
    lines, prices = orders.children
    assert [table.view_name for table in shop.tables] == ["public.Orders", "public.Lines", "sales.Prices"]
    assert (lines.primary_key, prices.primary_key) == (("order", "line"), ("order", "currency"))
    assert [(column.name, column.type.sql) for column in lines.columns] == [
        ("order", "text"),
        ("line", "integer"),
        ("sku", "text"),
        ("city", "varchar(5)"),
    ]


def carried(shop: TableMapping, **attributes: Any) -> list[Any]:  # noqa: ANN401  attribute values
    row = RowDecoder(shop.targets[0]).row({"PK": {"S": "o"}, **attributes})
    return [json.loads(text or "") for text in row[-2:]]


def test_elements_become_rows(shop: TableMapping) -> None:
    lines = {
        "L": [{"M": {"sku": {"S": 'a"é'}, "from": {"M": {"city": {"S": "Accra"}}}}}, {"M": {"sku": {"NULL": True}}}]
    }
    prices = {"M": {"prices": {"M": {"EUR": {"M": {"amount": {"N": "1.50"}}}}}}}
    assert carried(shop, lines=lines, more=prices) == [
        [["0", 'a"é', "Accra"], ["1", None, "?"]],
        [["EUR", "1.50"]],
    ]
    assert carried(shop) == [[], []]
    assert carried(shop, lines={"NULL": True}, more={"M": {}}) == [[], []]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ({"M": {}}, 'column "public.Lines.line": the elements are not in a list'),
        ({"L": [{"S": "secret"}]}, 'column "public.Lines.line": an element is not a map'),
        ({"L": [{"M": {"sku": {"N": "1"}}}]}, 'column "public.Lines.sku": accepts S, and the attribute is of type N'),
    ],
)
def test_an_element_that_cannot_be_held_fails_its_whole_item(
    shop: TableMapping, lines: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConversionError) as raised:
        carried(shop, lines=lines)
    assert str(raised.value).startswith(reason)


NESTED = """
name: shop
source: {table: Shop, key: {PK: S}}
targets:
  Tags: {parent: Parts, explode: tags, element: {tag: SS}}
  Parts:
    parent: Lines
    explode: made.of
    element: {part: text}
    columns: {weight: {attribute: weight, type: numeric}}
  Orders: {primary_key: [order], columns: {order: {attribute: PK, type: text}}}
  Lines:
    readers: [stock]
    parent: Orders
    explode: lines
    element: {line: integer}
    columns: {sku: {attribute: sku, type: text}}
  Sizes: {parent: Orders, explode: sizes, element: {size: NS}, readers: [sales]}
"""


def test_children_of_children_and_of_sets_follow_their_parents_in_any_order_of_the_file() -> None:
    (orders,) = read_mapping(NESTED, "shop.yaml").targets
    assert {child.name: child.primary_key for child in orders.children} == {
        "Lines": ("order", "line"),
        "Parts": ("order", "line", "part"),
        "Tags": ("order", "line", "part", "tag"),
        "Sizes": ("order", "size"),
    }
    names = [child.name for child in orders.children]
    assert names.index("Lines") < names.index("Parts") < names.index("Tags")
    assert [child.places[-1].attribute for child in orders.children if child.name in {"Parts", "Tags"}] == [
        "lines[].made.of",
        "lines[].made.of[].tags",
    ]
    assert {child.name: child.readers for child in orders.children} == {
        "Lines": ("stock",), "Parts": ("stock",), "Tags": ("stock",), "Sizes": ("sales",)
    }  # fmt: skip
    assert not schema_errors(NESTED)


def test_elements_of_elements_and_members_of_sets_become_rows() -> None:
    (orders,) = read_mapping(NESTED, "shop.yaml").targets
    parts: dict[str, Any] = {
        "a": {"M": {"weight": {"N": "1.5"}, "tags": {"SS": ["y", "x"]}}},
        "b": {"M": {"tags": {"NULL": True}}},
    }
    lines: list[Any] = [{"M": {"made": {"M": {"of": {"M": parts}}}}}, {"M": {"sku": {"S": "s"}}}]
    item: Any = {"PK": {"S": "o"}, "lines": {"L": lines}, "sizes": {"NS": ["1", "1.0", "1E+1"]}}
    carried = RowDecoder(orders).row(item)[-4:]
    found = {child.name: json.loads(rows or "") for child, rows in zip(orders.children, carried, strict=True)}
    assert found == {
        "Lines": [["0", None], ["1", "s"]],
        "Parts": [["0", "a", "1.5"], ["0", "b", None]],
        "Tags": [["0", "a", "y"], ["0", "a", "x"]],
        "Sizes": [["1"], ["10"]],
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("parent: Lines", "parent: Tags", '"Tags" is not a target of this file that can have children'),
        ("parent: Parts", "parent: Sizes", '"Sizes" has the members of a set, which contain nothing'),
        ("{size: NS}", "{order: NS}", '"order" is already a column of the parent\'s key; rename it'),
    ],
)
def test_a_wrong_child_of_a_child_says_what_to_do(old: str, new: str, message: str) -> None:
    with pytest.raises(MappingError) as raised:
        read_mapping(NESTED.replace(old, new), "shop.yaml")
    assert message in str(raised.value)


def test_a_list_too_deep_is_kept_as_jsonb() -> None:
    deep = "".join(
        f"  L{n}: {{parent: {f'L{n - 1}' if n else 'Orders'}, explode: l, element: {{p{n}: integer}},"
        f" columns: {{c: {{attribute: c, type: text}}}}}}\n"
        for n in range(9)
    )
    with pytest.raises(MappingError, match="is 9 lists or maps deep, and at most 8 become tables; keep it as jsonb"):
        read_mapping(NESTED + deep, "shop.yaml")


def test_a_member_too_long_for_the_key_refuses_its_item() -> None:
    (orders,) = read_mapping(NESTED, "shop.yaml").targets
    parts: Any = {"x" * 2_700: {"M": {}}}
    item: Any = {"PK": {"S": "o"}, "lines": {"L": [{"M": {"made": {"M": {"of": {"M": parts}}}}}]}}
    with pytest.raises(ConversionError, match="the key has 2701 bytes"):
        RowDecoder(orders).row(item)
