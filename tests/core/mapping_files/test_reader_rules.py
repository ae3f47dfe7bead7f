"""`readers` of a file, of a target and of a child: whose list counts."""

from __future__ import annotations

from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping_digest import digests

TEXT = """
name: shop
source: {table: Shop, key: {PK: S}}
readers: [reporting, "Big Team"]
targets:
  Orders:
    primary_key: [PK]
    columns: {PK: {attribute: PK, type: text}}
  Lines:
    parent: Orders
    explode: lines
    element: {line: integer}
    columns: {sku: {attribute: sku, type: text}}
"""


def readers(text: str) -> dict[str, tuple[str, ...] | None]:
    return {target.name: target.readers for target in read_mapping(text, "shop.yaml").tables}


def test_the_files_readers_are_those_of_every_target() -> None:
    assert readers(TEXT) == {"Orders": ("reporting", "Big Team"), "Lines": ("reporting", "Big Team")}
    assert readers(TEXT.replace('readers: [reporting, "Big Team"]\n', "")) == {"Orders": (), "Lines": ()}


def test_a_targets_own_readers_replace_them_and_are_its_childrens() -> None:
    own = TEXT.replace("  Orders:\n", "  Orders:\n    readers: [payroll]\n")
    assert readers(own) == {"Orders": ("payroll",), "Lines": ("payroll",)}
    child = own.replace("  Lines:\n", "  Lines:\n    readers: []\n")
    assert readers(child) == {"Orders": ("payroll",), "Lines": ()}


def test_readers_change_no_row_so_what_was_loaded_still_counts() -> None:
    other = TEXT.replace("[reporting", "[somebody")
    assert digests(read_mapping(TEXT, "a")) == digests(read_mapping(other, "a"))
