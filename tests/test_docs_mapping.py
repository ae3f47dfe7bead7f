"""docs/mapping.md is true: its examples can be read, and its tables name every type."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.types.sql_types import KEY_TYPES, TYPES

PAGE = (Path(__file__).parents[1] / "docs" / "mapping.md").read_text()


def test_every_example_is_a_mapping() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 6
    smallest, larger, shop, exploded, indexed, read = (read_mapping(example, "docs/mapping.md") for example in examples)
    assert (smallest.targets[0].view_name, smallest.targets[0].unmapped) == ("public.Employees", "attributes")
    assert [child.name for child in exploded.targets[0].children] == ["OrderLines", "OrderTags", "LineParts"]
    assert [len(target.match) for target in shop.targets] == [2, 2]
    assert [index.method for index in indexed.targets[0].indexes] == ["btree", "btree", "gin", "btree"]
    assert [target.readers for target in read.targets] == [("reporting", "analysts"), ("payroll",)]
    assert [column.name for column in larger.targets[0].columns][-1] == "paid"


def test_the_table_of_types_is_the_codes() -> None:
    section = PAGE[PAGE.index("| Attribute |") : PAGE.index("A default is written")]
    documented = {
        (tag, name)
        for tags, types in re.findall(r"^\| (`.*?`) \| (.*?) \|$", section, re.MULTILINE)
        for tag in re.findall(r"`([A-Z]+)`", tags)
        for name in re.findall(r"`([a-z ]+(?:\[\])?)(?:\([a-z,]+\))?`", types)
    }
    assert documented == {(tag, name) for name, codec in TYPES.items() for tag in codec.tags}


def test_the_key_types_are_those_of_the_code() -> None:
    section = PAGE[PAGE.index("| Key attribute |") : PAGE.index("## A column")]
    for tag, types in KEY_TYPES.items():
        (row,) = re.findall(rf"^\| `{tag}` \| (.*) \|$", section, re.MULTILINE)
        assert set(re.findall(r"`([a-z]+)(?:\(n\))?`", row)) == types
