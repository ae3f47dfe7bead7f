"""Indexes in mapping files: wrong ones name line, field and remedy; none can refuse a row because of another row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.mapping_files.yaml_fields import MappingError
from pipeline.core.model.mapping_digest import digests
from pipeline.core.types.fast.fast_form import fast_forms
from pipeline.core.types.sql_types import TYPES
from tests.core.mapping_files.test_mapping_file import schema_errors

HEAD = """\
name: employees
source: {table: Employees, key: {Id: N}}
targets:
  Employees:
    primary_key: [Id]
    columns:
      Id: {attribute: Id, type: bigint}
      Name: {attribute: empName, type: varchar(20)}
      paid: {attribute: paid, type: boolean}
      tags: {attribute: tags, type: "text[]"}
"""
RIGHT = HEAD + "    indexes:\n      - {columns: [Name]}\n"
FIELD = "11: targets.Employees.indexes"
AT = "12: targets.Employees.indexes"
WRONG = {
    "no list": (
        "\n      - {columns: [Name]}",
        " Name",
        f"{FIELD}: must be a list, such as [{{columns: [Name]}}]",
        True,
    ),
    "names alone": (
        "{columns: [Name]}",
        "[Name]",
        f"{AT}: must be a mapping, such as {{columns: [Department, Name]}}",
        True,
    ),
    "misspelled key": (
        "[Name]}",
        "[Name], methd: gin}",
        f'{AT}.methd: "methd" is not a key here; did you mean method?',
        True,
    ),
    "misspelled column": (
        "[Name]",
        "[Nmae]",
        f'{AT}.columns: "Nmae" is not a column of public.Employees; did you mean Name?',
        False,
    ),
    "column of ours": (
        "[Name]",
        "[_as_of]",
        f'{AT}.columns: "_as_of" is not a column of public.Employees; the columns are Id, Name, paid, tags, attributes',
        True,
    ),
    "no column": ("[Name]", "[]", f"{AT}.columns: has 0 columns; an index has 1 to 32", True),
    "column twice": (
        "[Name]",
        "[Name, {column: Name, order: desc}]",
        f'{AT}.columns: "Name desc" is named twice; remove one',
        False,
    ),
    "unknown method": (
        "[Name]}",
        "[Name], method: hash}",
        f'{AT}.method: "hash" is not a method; the methods are btree, gin, brin',
        True,
    ),
    "array in a btree": (
        "[Name]",
        "[tags]",
        f'{AT}.columns: "tags" is text[], which btree cannot index; use method:'
        ' gin, or index a value inside a jsonb column, such as {path: "attributes.city"}',
        False,
    ),
    "text in a gin": (
        "[Name]}",
        "[Name], method: gin}",
        f'{AT}.columns: "Name" is varchar(20), which gin cannot index; use btree; gin is for jsonb columns and arrays',
        False,
    ),
    "boolean in a brin": (
        "[Name]}",
        "[paid], method: brin}",
        f'{AT}.columns: "paid" is boolean, which brin cannot index; use btree',
        False,
    ),
    "unknown order": (
        "[Name]",
        "[{column: Name, order: down}]",
        f'{AT}.columns.order: "down" is not an order; write asc, desc',
        True,
    ),
    "order of a gin": (
        "[Name]}",
        "[{column: tags, order: desc}], method: gin}",
        f"{AT}.columns.order: has no meaning with gin, which keeps no order; remove it",
        False,
    ),
    "path into text": (
        "[Name]",
        "[{path: Name.a}]",
        f'{AT}.columns.path: "Name" is varchar(20); a path looks inside a jsonb column',
        False,
    ),
    "path to nowhere": (
        "[Name]",
        "[{path: attributes}]",
        f'{AT}.columns.path: "attributes" is a whole column; write it as a column, or go on, such as attributes.city',
        False,
    ),
    "no path": (
        "[Name]",
        "[{path: a..b}]",
        f'{AT}.columns.path: "a..b" is not an attribute path such as name, address.city, lines[0].sku or "a.b".c',
        False,
    ),
    "unique without the key": (
        "[Name]}",
        "[Name], unique: true}",
        f"{AT}.unique: DynamoDB promises that an item's key"
        " is unique, and nothing else: two items that are equal here would stop replication; add"
        " the rest of the primary key (Id) to the columns, or remove unique",
        False,
    ),
    "unique brin": (
        "[Name]}",
        "[Id], method: brin, unique: true}",
        f"{AT}.unique: brin indexes are never unique; remove it, or use btree",
        False,
    ),
    "unique in words": ("[Name]}", "[Name, Id], unique: certainly}", f"{AT}.unique: must be true or false", True),
    "the primary key": (
        "[Name]",
        "[Id]",
        f"{AT}: is over the primary key, which has an index already; remove it",
        False,
    ),
    "the same twice": (
        "      - {columns: [Name]}",
        "      - {columns: [Name]}\n      - {columns: [{column: Name}]}",
        "13: targets.Employees.indexes: is the index of line 12 once more; remove one",
        False,
    ),
    "value of another type": (
        "[Name]}",
        "[Name], where: {Id: x}}",
        f"{AT}.where.Id: is not a number in plain notation; give a value that bigint can hold",
        False,
    ),
    "no value": (
        "[Name]}",
        "[Name], where: {Name: []}}",
        f"{AT}.where.Name: has no value; name those that the index covers",
        True,
    ),
    "array compared": (
        "[Name]}",
        "[Name], where: {tags: [a]}}",
        f'{AT}.where.tags: "tags" is text[], which cannot be compared with a value; write null or {{not: null}}',
        False,
    ),
    "not a value": (
        "[Name]}",
        "[Name], where: {Name: {not: a}}}",
        f"{AT}.where.Name.not: covers the rows that have a value if it is null; write {{not: null}}",
        True,
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_index_says_what_where_and_the_remedy(what: str) -> None:
    old, new, message, structural = WRONG[what]
    text = RIGHT.replace(old, new, 1)
    assert text != RIGHT
    with pytest.raises(MappingError) as raised:
        read_mapping(text, "e.yaml")
    assert [str(problem) for problem in raised.value.problems] == [f"e.yaml:{message}"]
    assert bool(schema_errors(text)) == structural


def test_a_childs_index_may_name_its_parents_key_and_its_place() -> None:
    child = "  Lines:\n    parent: Employees\n    explode: lines\n    element: {line: integer}\n    columns:\n"
    child += "      sku: {attribute: sku, type: text}\n"
    child += "    indexes: [{columns: [sku, Id, line], unique: true}, {columns: [%s]}]\n"
    mapping = read_mapping(RIGHT + child % "Id", "e.yaml")
    assert [str(index) for index in mapping.tables[1].indexes] == ["unique (sku, Id, line)", "(Id)"]
    assert schema_errors(RIGHT + child % "Id") == []
    with pytest.raises(MappingError, match=r"is not a column of public\.Lines; the columns are Id, line, sku"):
        read_mapping(RIGHT + child % "Name", "e.yaml")


def test_an_index_changes_neither_the_digest_nor_the_fast_way() -> None:
    mapping, without = read_mapping(RIGHT, "e.yaml"), read_mapping(HEAD, "e.yaml")
    assert mapping.targets[0].indexes
    assert digests(mapping) == digests(without)
    assert len(digests(mapping)) == 2, "an export that an older version loaded stays loaded"
    assert fast_forms(mapping.targets[0]) is not None


def test_the_name_stays_and_another_definition_has_another() -> None:
    """Never edit these: databases hold them."""
    (index,) = read_mapping(RIGHT, "e.yaml").targets[0].indexes
    assert index.name("Employees") == "Employees_Name_cea606cc"
    others = [
        replace(index, method="brin"),
        replace(index, unique=True),
        replace(index, parts=(replace(index.parts[0], descending=True),)),
        replace(index, parts=(replace(index.parts[0], nulls_first=True),)),
        replace(index, parts=(replace(index.parts[0], path=("Name",)),)),
    ]
    names = {one.name("Employees") for one in (index, *others)} | {index.name("employees")}
    assert len(names) == 7
    assert all(len(name.encode()) <= 63 for name in (*names, index.name("é" * 31)))


def test_every_type_says_how_it_is_indexed() -> None:
    assert all(codec.index_methods <= {"btree", "gin", "brin"} and codec.index_methods for codec in TYPES.values())
