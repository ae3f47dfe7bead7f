"""Mapping files: wrong ones name their line, field and remedy; right ones say what was meant; the schema agrees."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.mapping_files.yaml_fields import MappingError
from pipeline.core.model.mapping import OnError, TableMapping
from pipeline.core.types.sql_types import TYPES, SqlType

RIGHT = """\
name: employees
source: {table: Employees, key: {Id: N}}
targets:
  Employees:
    primary_key: [Id]
    columns:
      Id:         {attribute: Id, type: bigint}
      Name:       {attribute: empName, type: varchar(20), default: NA}
      Department: {attribute: empDepartment, type: varchar(10), default: NA}
    unmapped: attributes
"""
COLUMN = "targets.Employees.columns.Name"
ALL_TYPES = ", ".join(TYPES)
SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "mapping.schema.json").read_text())


@dataclass(frozen=True)
class Wrong:
    """Replace `old` in RIGHT with `new`; `messages` are the problems, without the file's name.

    `structural`: the JSON Schema refuses it too. A schema cannot express the other rules, and must accept those files.
    """

    what: str
    old: str
    new: str
    messages: tuple[str, ...]
    structural: bool = False


def name_column(text: str) -> tuple[str, str]:
    return "Name:       {attribute: empName, type: varchar(20), default: NA}", f"Name: {text}"


LONG = "n" * 64
WRONG = (
    Wrong("misspelled key at the root", "targets:", "targts:", (
        '3: targts: "targts" is not a key here; did you mean targets?',
        "1: targets: is missing; add it, such as"
        " targets: {Employees: {primary_key: [Id], columns: {Id: {attribute: Id, type: bigint}}}}",
    ), structural=True),
    Wrong("unlike any key", "unmapped: attributes", "rest: attributes", (
        '10: targets.Employees.rest: "rest" is not a key here; the keys are primary_key, columns, match, unmapped,'
        " unmapped_on_error, indexes, readers, history",
    ), structural=True),
    Wrong("misspelled key of a column", *name_column("{attribute: empName, type: text, defualt: NA}"), (
        f'8: {COLUMN}.defualt: "defualt" is not a key here; did you mean default?',
    ), structural=True),
    Wrong("merge key", *name_column("{<<: {type: text}, attribute: empName, type: text}"), (
        f"8: {COLUMN}.<<: merge keys are not supported; write the keys out",
    )),
    Wrong("no attribute", *name_column("{type: text}"), (
        f"8: {COLUMN}.attribute: is missing; add it, such as attribute: empName",
    ), structural=True),
    Wrong("no type", *name_column("{attribute: empName}"), (
        f"8: {COLUMN}.type: is missing; add it, such as type: text",
    ), structural=True),
    Wrong("column that is no mapping", *name_column("text"), (
        f"8: {COLUMN}: must be a mapping, such as {{attribute: empName, type: text}}",
    ), structural=True),
    Wrong("primary key that is no list", "primary_key: [Id]", "primary_key: Id", (
        "5: targets.Employees.primary_key: must be a list, such as [Id]",
        '5: targets.Employees.primary_key: lacks the key attribute "Id", without which two items could share a row;'
        " add its column Id",
    ), structural=True),
    Wrong("attribute that is a list", *name_column("{attribute: [empName], type: text}"), (
        f"8: {COLUMN}.attribute: must be text, and is a list",
    ), structural=True),
    Wrong("unknown type", *name_column("{attribute: empName, type: varchr(20)}"), (
        f'8: {COLUMN}.type: "varchr(20)" is not one of the column types: {ALL_TYPES}; did you mean varchar(20)?',
    ), structural=True),
    Wrong("type unlike any", *name_column("{attribute: empName, type: money}"), (
        f'8: {COLUMN}.type: "money" is not one of the column types: {ALL_TYPES}',
    ), structural=True),
    Wrong("varchar without a length", *name_column("{attribute: empName, type: varchar}"), (
        f'8: {COLUMN}.type: "varchar" needs a length, such as varchar(20); use text for any length',
    ), structural=True),
    Wrong("comma without quotes", *name_column("{attribute: empName, type: numeric(12,2)}"), (
        f'8: {COLUMN}.type: "numeric(12" lacks its ")": inside {{ }} a comma ends a value; write it in quotes,'
        ' as "numeric(12,2)"',
        f'8: {COLUMN}.2): "2)" is not a key here; the keys are attribute, type, capture, default, on_error, epoch,'
        " json, description, protect",
    ), structural=True),
    Wrong("length of none", *name_column("{attribute: empName, type: varchar(0)}"), (
        f"8: {COLUMN}.type: varchar needs one length from 1 to 10485760",
    )),
    Wrong("type of a key that cannot take it", "Id, type: bigint", "Id, type: uuid", (
        "7: targets.Employees.columns.Id.type: uuid cannot hold the key attribute Id, which is of type N;"
        " use smallint, integer, bigint, numeric, double precision, timestamptz, jsonb",
        "7: targets.Employees.columns.Id: is in the primary key, and uuid does not keep all keys of type N distinct;"
        " use bigint or integer or numeric or smallint",
    )),
    Wrong("type that makes different keys equal", "Id, type: bigint", "Id, type: double precision", (
        "7: targets.Employees.columns.Id: is in the primary key, and double precision does not keep all keys of type N"
        " distinct; use bigint or integer or numeric or smallint",
    )),
    Wrong("two columns of one name", "Department:", "Name:      ", (
        '9: targets.Employees.columns.Name: "Name" is written twice, first on line 8; remove or rename one',
    )),
    Wrong("two targets of one name", RIGHT, RIGHT + RIGHT[RIGHT.index("  Employees:"):], (
        '11: targets.Employees: "Employees" is written twice, first on line 4; remove or rename one',
    )),
    Wrong("one view under two names", RIGHT, RIGHT + RIGHT[RIGHT.index("  Employees:"):].replace(
        "Employees:", "public.Employees:"), (
        "11: targets.public.Employees: is the view public.Employees, as is another target of this file;"
        " remove or rename one",
    )),
    Wrong("column name over 63 bytes", "Department:", f"{LONG}:", (
        f'9: targets.Employees.columns.{LONG}: "{LONG}" has 64 bytes and PostgreSQL keeps 63 of a name; shorten it',
    ), structural=True),
    Wrong("column name over 63 bytes in fewer characters", "Department:", f"{'é' * 32}:", (
        f'9: targets.Employees.columns.{"é" * 32}: "{"é" * 32}" has 64 bytes and PostgreSQL keeps 63 of a name; shorten'
        " it",
    )),
    Wrong("column of ours", "Department:", "_version:", (
        '9: targets.Employees.columns._version: "_version" is the name of one of Dynaurora\'s own columns; rename it',
    ), structural=True),
    Wrong("system column", "Department:", "ctid:", (
        '9: targets.Employees.columns.ctid: "ctid" is the name of a system column of PostgreSQL; rename it',
    ), structural=True),
    Wrong("percent sign", "Department:", '"%":', (
        '9: targets.Employees.columns.%: "%" contains "%" or a control character, which names cannot contain; rename'
        " it",
    ), structural=True),
    Wrong("line end in a column name", "Department:", '"a\\nb":', (
        '9: targets.Employees.columns.a\nb: "a\nb" contains "%" or a control character, which names cannot contain;'
        " rename it",
    ), structural=True),
    Wrong("empty column name", "Department:", '"":', (
        '9: targets.Employees.columns.: "" is empty; give it a name',
    ), structural=True),
    Wrong("column named as the unmapped one", "Department:", "attributes:", (
        '9: targets.Employees.columns.attributes: "attributes" is also the column of unmapped attributes;'
        " rename this column, or name that one with `unmapped`",
    )),
    Wrong("attribute that is no path", *name_column('{attribute: "a..b", type: text}'), (
        f'8: {COLUMN}.attribute: "a..b" is not an attribute path such as name, address.city, lines[0].sku or "a.b".c;'
        " put a name with other characters into double quotes inside single ones: '\"a.b\"'",
    )),
    Wrong("path into a key", *name_column("{attribute: Id.part, type: text}"), (
        f'8: {COLUMN}.attribute: "Id.part" looks inside the key attribute "Id", which is never a map or a list',
    )),
    Wrong("primary key of no column", "primary_key: [Id]", "primary_key: [ID]", (
        '5: targets.Employees.primary_key: "ID" is not a column of this target; did you mean Id?',
    )),
    Wrong("column twice in the primary key", "primary_key: [Id]", "primary_key: [Id, Id]", (
        '5: targets.Employees.primary_key: "Id" is named twice; remove one',
    ), structural=True),
    Wrong("unmapped key attribute", "Id:         {attribute: Id,", "Id:         {attribute: id,", (
        '7: targets.Employees.columns.Id: is in the primary key, but its attribute "id" is not a key attribute, so a'
        " delete could not find its row; build the key from the columns of Id",
        '5: targets.Employees.primary_key: lacks the key attribute "Id", without which two items could share a row;'
        " add a column with that attribute to columns and here",
    )),
    Wrong("sort key left out", "key: {Id: N}", "key: {Id: N, empName: S}", (
        '5: targets.Employees.primary_key: lacks the key attribute "empName", without which two items could share a'
        " row; add its column Name",
    )),
    Wrong("default of a key", "type: bigint}", "type: bigint, default: 0}", (
        "7: targets.Employees.columns.Id: is in the primary key and has a default; remove it, because every item has"
        " its key",
    )),
    Wrong("lenient key", "type: bigint}", "type: bigint, on_error: null}", (
        "7: targets.Employees.columns.Id: is in the primary key and must reject what it cannot hold; remove on_error",
    )),
    Wrong("default too long", "varchar(10), default: NA", "varchar(10), default: not available", (
        '9: targets.Employees.columns.Department.default: "not available" is longer than 10 characters;'
        " give a value that varchar(10) can hold",
    )),
    Wrong("default out of range", *name_column("{attribute: n, type: smallint, default: 40000}"), (
        f'8: {COLUMN}.default: "40000" is out of the range of a 16-bit integer; give a value that smallint can hold',
    )),
    Wrong("default beyond a double", *name_column("{attribute: n, type: double precision, default: 1.0e+400}"), (
        f'8: {COLUMN}.default: "1.0e+400" is out of the range of double precision;'
        " give a value that double precision can hold",
    )),
    Wrong("octal default", *name_column("{attribute: n, type: bigint, default: 017}"), (
        f'8: {COLUMN}.default: "017" is not a number in plain notation; give a value that bigint can hold',
    )),
    Wrong("default that is no date", *name_column("{attribute: d, type: date, default: 2026-02-30}"), (
        f'8: {COLUMN}.default: "2026-02-30" is not a date from 0001-01-01 to 9999-12-31 in the form 2026-01-31;'
        " give a value that date can hold",
    )),
    Wrong("default that is no truth", *name_column("{attribute: b, type: boolean, default: maybe}"), (
        f'8: {COLUMN}.default: "maybe" is not true or false; give a value that boolean can hold',
    )),
    Wrong("null default", *name_column("{attribute: n, type: text, default: null}"), (
        f"8: {COLUMN}.default: is null; remove it: a column without a default is NULL if the attribute is missing",
    )),
    Wrong("Norway as a default", *name_column("{attribute: country, type: text, default: NO}"), (
        f'8: {COLUMN}.default: NO without quotes is true or false in YAML; write "NO"',
    )),
    Wrong("number as the default of text", *name_column("{attribute: code, type: text, default: 20}"), (
        f'8: {COLUMN}.default: 20 without quotes is a number in YAML; write "20"',
    )),
    Wrong("Norway as a column", "Department:", "No:", (
        '9: targets.Employees.columns.No: No without quotes is true or false in YAML; write "No"',
    )),
    Wrong("number as an attribute", *name_column("{attribute: 2026, type: text}"), (
        f'8: {COLUMN}.attribute: 2026 without quotes is a number in YAML; write "2026"',
    ), structural=True),
    Wrong("empty type", *name_column("{attribute: empName, type: }"), (
        f"8: {COLUMN}.type: is empty; give the column's type, such as text or bigint",
    ), structural=True),
    Wrong("unknown policy", *name_column("{attribute: empName, type: text, on_error: ignore}"), (
        f'8: {COLUMN}.on_error: "ignore" is not a policy; the policies are reject, null, truncate',
    ), structural=True),
    Wrong("cutting a number", *name_column("{attribute: empName, type: bigint, on_error: truncate}"), (
        f"8: {COLUMN}.on_error: bigint has no length to cut to; use null, or reject",
    )),
    Wrong("unknown epoch", *name_column("{attribute: at, type: timestamptz, epoch: ms}"), (
        f'8: {COLUMN}.epoch: "ms" is not a unit of epoch times; the units are seconds, milliseconds',
    ), structural=True),
    Wrong("epoch of text", *name_column("{attribute: at, type: text, epoch: seconds}"), (
        f"8: {COLUMN}.epoch: text is not read from an epoch time; remove epoch, or make the column a timestamptz",
    )),
    Wrong("unknown way to take a string", *name_column("{attribute: at, type: jsonb, json: yaml}"), (
        f'8: {COLUMN}.json: "yaml" is not a way to read a string; the ways are parse, text',
    ), structural=True),
    Wrong("text parsed as JSON", *name_column("{attribute: at, type: text, json: parse}"), (
        f"8: {COLUMN}.json: text does not hold JSON; remove json, or make the column a jsonb",
    )),
    Wrong("nothing to settle", "unmapped: attributes", "unmapped: ignore\n    unmapped_on_error: null", (
        "11: targets.Employees.unmapped_on_error: has no effect if unmapped attributes are ignored;"
        " remove it",
    )),
    Wrong("unmapped cut", "unmapped: attributes", "unmapped: rest\n    unmapped_on_error: truncate", (
        "11: targets.Employees.unmapped_on_error: jsonb has no length to cut to; use null, or reject",
    ), structural=True),
    Wrong("unmapped: no", "unmapped: attributes", "unmapped: no", (
        "10: targets.Employees.unmapped: is no; write `ignore` to drop unmapped attributes, or the name of a jsonb"
        " column",
    ), structural=True),
    Wrong("name of no identifier", "name: employees", "name: Employees-2", (
        '1: name: "Employees-2" must be lower-case letters, digits and "_", starting with a letter, at most 63;'
        " write employees_2",
    ), structural=True),
    Wrong("ARN for the table", "table: Employees", "table: 'arn:aws:dynamodb:eu-west-1:1:table/Employees'", (
        '2: source.table: "arn:aws:dynamodb:eu-west-1:1:table/Employees" is not a DynamoDB table name: 3 to 255'
        ' letters, digits, "_", "." and "-"; give the name, not the ARN',
    ), structural=True),
    Wrong("three key attributes", "key: {Id: N}", "key: {Id: N, a: S, b: S}", (
        "2: source.key: a DynamoDB key has one attribute or two and this has 3;"
        " give the partition key, then the sort key if there is one, such as {PK: S, SK: S}",
    ), structural=True),
    Wrong("type of no key", "key: {Id: N}", "key: {Id: BOOL}", (
        '2: source.key.Id: "BOOL" is not a key attribute type; the types are S (string), N (number) and B (binary)',
    ), structural=True),
    Wrong("table of a load", "Employees:", "_load_3_0:", (
        '4: targets._load_3_0: "_load_3_0" is a name of tables that Dynaurora creates and drops for its work;'
        " choose another",
    )),
    Wrong("our own schema", "  Employees:", "  replica.Employees:", (
        '4: targets.replica.Employees: schema "replica" is Dynaurora\'s own; put the view into another schema',
    ), structural=True),
    Wrong("PostgreSQL's own schema", "  Employees:", "  pg_catalog.Employees:", (
        '4: targets.pg_catalog.Employees: schema "pg_catalog" is reserved by PostgreSQL;'
        " put the view into another schema",
    ), structural=True),
    Wrong("two points in a target", "  Employees:", "  a.b.c:", (
        '4: targets.a.b.c: "a.b.c" has more than one "."; write Name, or schema.Name',
    ), structural=True),
    Wrong("target too long with its schema", "  Employees:", f"  hr.{'e' * 61}:", (
        f'4: targets.hr.{"e" * 61}: "hr.{"e" * 61}" has 64 bytes with its schema and PostgreSQL keeps 63; shorten it',
    )),
    Wrong("no target", RIGHT[RIGHT.index("targets:"):], "targets: {}", (
        "3: targets: has no target; add one, such as"
        " {Employees: {primary_key: [Id], columns: {Id: {attribute: Id, type: bigint}}}}",
    ), structural=True),
    Wrong("margin without a unit", "targets:", "margin: 300\ntargets:", (
        '3: margin: "300" is not a duration; write a number and its unit, such as 90s, 5m, 2h or 1d',
    ), structural=True),
    Wrong("no margin", "targets:", "margin: 0s\ntargets:", (
        "3: margin: must be at least 1s, the resolution of a stream record's time; the default is 5m",
    ), structural=True),
    Wrong("warning after failure", "targets:", "freshness: {warn: 1h, fail: 30m}\ntargets:", (
        "3: freshness.warn: must be below fail, which is 30m; warn earlier or fail later",
    )),
    Wrong("an owner that is none", "targets:", "owners: [team:people, Ama]\ntargets:", (
        '3: owners: "Ama" is not an owner; write an e-mail address, or team: and a name, such as team:people',
    ), structural=True),
    Wrong("owners that are no list", "targets:", "owners: team:people\ntargets:", (
        "3: owners: must be a list, such as [team:people, ama@example.com]",
    ), structural=True),
    Wrong("readers that are no list", "targets:", "readers: reporting\ntargets:", (
        "3: readers: must be a list, such as [reporting]",
    ), structural=True),
    Wrong("everyone as a reader", "targets:", "readers:\n  - reporting\n  - public\ntargets:", (
        '5: readers: "public" is not a role: PostgreSQL takes it for everyone; name the role that may read',
    ), structural=True),
    Wrong("a reader twice", "targets:", "readers: [reporting, reporting]\ntargets:", (
        '3: readers: "reporting" is named twice; remove one',
    ), structural=True),
    Wrong("a reader whose name is too long", "targets:", f"readers: [{'r' * 64}]\ntargets:", (
        f'3: readers: "{"r" * 64}" cannot be a role\'s name, which has 1 to 63 bytes; name the role as \\du shows it',
    ), structural=True),
    Wrong("a reader without quotes", "targets:", "readers: [on]\ntargets:", (
        '3: readers: on without quotes is true or false in YAML; write "on"',
    ), structural=True),
    Wrong("four fields of cron", "targets:", 'schedule: {reconcile: "0 3 * *"}\ntargets:', (
        '3: schedule.reconcile: "0 3 * *" is not a cron expression; write minute, hour, day, month and weekday,'
        ' such as "0 3 * * *"',
    ), structural=True),
    Wrong("unquoted cron", "targets:", "schedule:\n  reconcile: * 3 * * *\ntargets:", (
        "4: is not YAML: while scanning an alias, did not find expected alphabetic or numeric character",
    )),
    Wrong("time zone by offset", "targets:", 'schedule: {timezone: "+02:00"}\ntargets:', (
        '3: schedule.timezone: "+02:00" is not the name of a time zone, such as UTC or Europe/Berlin',
    ), structural=True),
    Wrong("tab", "    primary_key", "\tprimary_key", (
        "5: is not YAML: while scanning for the next token, found character that cannot start any token",
    )),
    Wrong("two documents", RIGHT, RIGHT + "---\n" + RIGHT, (
        "11: is not YAML: expected a single document in the stream, but found another document",
    )),
    Wrong("nothing", RIGHT, "# to be written\n", (
        "1: is empty; a mapping file starts with name, source and targets",
    )),
    Wrong("control character", "Department:", "\x07:", (
        "1: is not YAML: it contains a character that YAML forbids, or is nested too deeply",
    )),
    Wrong("endless default", *name_column("{attribute: a, type: jsonb, default: &a [*a]}"), (
        f"8: {COLUMN}.default: the value is nested deeper than 32 levels; give a value that jsonb can hold",
    )),
)  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.what)
def test_a_wrong_file_says_what_where_and_the_remedy(case: Wrong) -> None:
    text = RIGHT.replace(case.old, case.new, 1)
    assert text != RIGHT
    with pytest.raises(MappingError) as raised:
        read_mapping(text, "tables/employees.yaml")
    assert {str(problem) for problem in raised.value.problems} == {f"tables/employees.yaml:{m}" for m in case.messages}
    assert len(raised.value.problems) == len(case.messages)


@pytest.mark.parametrize("case", [case for case in WRONG if case.structural], ids=lambda case: case.what)
def test_the_schema_refuses_what_is_wrong_in_structure(case: Wrong) -> None:
    assert schema_errors(RIGHT.replace(case.old, case.new, 1))


@pytest.mark.parametrize("case", [case for case in WRONG if not case.structural], ids=lambda case: case.what)
def test_the_schema_leaves_the_rest_to_the_validator(case: Wrong) -> None:
    """Otherwise the case belongs to the structural ones, and the two would drift apart unseen."""
    try:
        instance = yaml.safe_load(RIGHT.replace(case.old, case.new, 1))
        json.dumps(instance, default=str)
    except (yaml.YAMLError, ValueError):
        return  # not YAML, or it never ends: no schema gets to see it
    if isinstance(instance, dict):
        assert not schema_errors(RIGHT.replace(case.old, case.new, 1))


def test_every_problem_is_reported_at_once_in_the_order_of_lines() -> None:
    text = RIGHT.replace("bigint", "bigit").replace("empName", "a..b").replace("name: employees", "name: E")
    with pytest.raises(MappingError) as raised:
        read_mapping(text, "e.yaml")
    assert [problem.line for problem in raised.value.problems] == [1, 7, 8]
    assert str(raised.value).startswith("reading the mapping files: 3 problems\ne.yaml:1: name:")


def test_more_columns_than_a_row_can_hold_are_refused() -> None:
    many = "".join(f"      c{n}: {{attribute: a{n}, type: text}}\n" for n in range(497))
    read_mapping(RIGHT.replace("    unmapped", many + "    unmapped"), "e.yaml")
    one_more = RIGHT.replace("    unmapped", many + "      c: {attribute: a, type: text}\n    unmapped")
    with pytest.raises(MappingError, match="has 501 columns, and rows of more than 500 do not fit PostgreSQL's 8 kB"):
        read_mapping(one_more, "e.yaml")
    assert schema_errors(one_more)


FULL = """\
# Everything a mapping can say.
name: shop_orders
source:
  table: Shop.Orders-2
  key: {PK: S, SK: B}
margin: 90s
freshness: {warn: 5m, fail: 30m}
owners: [team:sales, ama.o+shop@example.com]
schedule: {reconcile: "0 3 * * *", catch_up: "@hourly", timezone: Europe/Berlin}
targets:
  Orders:
    primary_key: [customer, order]
    columns:
      customer: {attribute: PK, type: text, description: "the customer's number"}
      order: {attribute: SK, type: bytea}
      customer_uuid: {attribute: PK, type: uuid, on_error: null}
      City: {attribute: address.city, type: VARCHAR(40), on_error: truncate, default: "NO"}
      city: {attribute: 'lines[0]."sku.old"', type: text, on_error: "null"}
      at: {attribute: at, type: timestamp with time zone, epoch: milliseconds, default: 2026-01-31T12:00:00Z}
      day: {attribute: day, type: date, default: 2026-01-31}
      total: {attribute: total, type: "numeric(38, 2)", default: 0.10}
      big: {attribute: big, type: numeric, default: 12345678901234567890123456789012345678}
      ratio: {attribute: ratio, type: double precision, default: 0.5}
      paid: {attribute: paid, type: boolean, default: no}
      tags: {attribute: tags, type: "text[]", default: [b, a]}
      sizes: {attribute: sizes, type: "numeric[]", default: [10, 9.5]}
      blob: {attribute: blob, type: bytea, default: AP8=}
      extra: {attribute: extra, type: jsonb, default: {a: [1.50, x, no, null]}}
      notes: {attribute: notes, type: jsonb, json: parse}
    unmapped: rest
    unmapped_on_error: null
    indexes:
      - columns: [City, {column: at, order: desc, nulls: last}]
        where: {paid: yes, day: [2026-01-31], tags: {not: null}}
      - {columns: [{path: "rest.card.kind"}, order, customer], unique: true}
      - {columns: [tags, {path: extra.a}], method: gin}
  hr.Staff:
    primary_key: [SK, PK]
    columns:
      PK: {attribute: PK, type: varchar(100)}
      SK: {attribute: SK, type: bytea}
    unmapped: ignore
"""


def test_a_mapping_that_uses_everything() -> None:
    mapping = read_mapping(FULL, "tables/shop.yaml")
    assert (mapping.name, mapping.table, mapping.key) == ("shop_orders", "Shop.Orders-2", {"PK": "S", "SK": "B"})
    assert mapping.margin == timedelta(seconds=90)
    assert mapping.freshness == {"warn": timedelta(minutes=5), "fail": timedelta(minutes=30)}
    assert mapping.owners == ("team:sales", "ama.o+shop@example.com")
    assert mapping.schedule == {"reconcile": "0 3 * * *", "catch_up": "@hourly", "timezone": "Europe/Berlin"}
    orders, staff = mapping.targets
    assert (orders.view_name, orders.storage_name, orders.unmapped) == ("public.Orders", "Orders", "rest")
    assert (orders.unmapped_on_error, staff.unmapped_on_error) == (OnError.NULL, OnError.REJECT)
    assert [column.name for column in orders.columns if column.json == "parse"] == ["notes"]
    assert (staff.view_name, staff.storage_name, staff.unmapped) == ("hr.Staff", "hr.Staff", None)
    assert staff.primary_key == ("SK", "PK")
    assert staff.indexes == ()
    assert [str(index) for index in orders.indexes] == [
        "(City, at desc nulls last) where day in (2026-01-31) and paid in (t) and tags is not null",
        "unique (rest.card.kind, order, customer)",
        "gin (tags, extra.a)",
    ]
    columns = {column.name: column for column in orders.columns}
    assert columns["city"].path == ("lines", 0, "sku.old")
    assert columns["City"].type == SqlType("varchar", (40,))
    assert columns["customer"].description == "the customer's number"
    assert {name: c.on_error for name, c in columns.items() if c.on_error is not OnError.REJECT} == {
        "customer_uuid": OnError.NULL,
        "City": OnError.TRUNCATE,
        "city": OnError.NULL,
    }
    assert {name: column.default for name, column in columns.items() if column.default is not None} == {
        "City": "NO",
        "at": "2026-01-31T12:00:00+00:00",
        "day": "2026-01-31",
        "total": "0.10",
        "big": "12345678901234567890123456789012345678",
        "ratio": "0.5",
        "paid": "f",
        "tags": '{"a","b"}',
        "sizes": '{"9.5","10"}',
        "blob": "\\x00ff",
        "extra": '{"a":[1.50,"x",false,null]}',
    }


def test_the_shipped_mapping_is_the_seeds_table() -> None:
    path = Path(__file__).parents[3] / "tables" / "employees.yaml"
    mapping: TableMapping = read_mapping(path.read_text(), str(path))
    (target,) = mapping.targets
    assert (mapping.table, target.view_name, target.primary_key) == ("Employees", "public.Employees", ("Id",))
    assert [(c.name, c.attribute, c.type.sql, c.default) for c in target.columns] == [
        ("Id", "Id", "bigint", None),
        ("Name", "empName", "varchar(20)", "NA"),
        ("Department", "empDepartment", "varchar(10)", "NA"),
    ]


@pytest.mark.parametrize(
    "text", [RIGHT, FULL, *(RIGHT.replace("type: bigint", f"type: {t}") for t in ("INT8", "Decimal(9)"))]
)
def test_the_schema_accepts_what_the_validator_accepts(text: str) -> None:
    read_mapping(text, "right.yaml")
    assert schema_errors(text) == []


def test_the_schema_offers_every_type_and_is_itself_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for name in TYPES:
        spelled = f"{name}(20)" if name == "varchar" else name
        column = f'{{attribute: empName, type: "{spelled}"}}'
        assert schema_errors(RIGHT.replace(*name_column(column))) == [], name


def schema_errors(text: str) -> list[str]:
    instance: Any = yaml.safe_load(text)
    instance = json.loads(json.dumps(instance, default=str))  # what an editor's YAML 1.2 parser gives to the schema
    return [error.message for error in jsonschema.Draft202012Validator(SCHEMA).iter_errors(instance)]  # type: ignore[reportUnknownMemberType]
