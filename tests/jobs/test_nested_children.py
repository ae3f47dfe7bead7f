"""Children of children and of sets: the same rows by load, merge and stream; reconciled, repaired, rejected whole."""

from __future__ import annotations

import json
import random
from base64 import b64decode
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
from psycopg import sql

from pipeline.aurora.schema import tables
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.jobs.load.load import load
from pipeline.jobs.services import Services
from tests.dynamodb.export_fixture import ExportFactory
from tests.jobs.test_shop import MARGIN, Item, Shop, services

__all__ = ["services"]

MAPPING = """
name: nested
source: {table: Nested, key: {PK: S, SK: S}}
targets:
  Orders:
    primary_key: [a, b]
    columns:
      a: {attribute: PK, type: text}
      b: {attribute: SK, type: text}
  Lines:
    parent: Orders
    explode: lines
    element: {line: integer}
    columns: {sku: {attribute: sku, type: text}}
  Parts:
    parent: Lines
    explode: parts
    element: {part: text}
    columns: {weight: {attribute: weight, type: numeric}}
  Colours: {parent: Parts, explode: colours, element: {colour: SS}}
  Sizes: {parent: Orders, explode: sizes, element: {size: NS}}
  Marks: {parent: Lines, explode: marks, element: {mark: BS}}
"""


def for_boto3(item: Item) -> Item:
    """The same with binary as bytes, which botocore encodes."""

    def read(pairs: list[tuple[str, Any]]) -> Item:
        return {name: list(map(b64decode, value)) if name == "BS" else value for name, value in pairs}

    found: Item = json.loads(json.dumps(item), object_pairs_hook=read)
    return found


class NestedShop(Shop):
    """With items that have sets of binary."""

    def put(self, *items: Item) -> list[Item]:
        for one in items:
            self.services.dynamodb.put_item(TableName=self.mapping.table, Item=for_boto3(one))
            self.items[one["PK"]["S"], one["SK"]["S"]] = one
        return [self.record_of(one, one) for one in items]


@pytest.fixture
def shop(services: Services, exports: ExportFactory) -> Generator[Shop]:
    made = NestedShop(services, exports)
    made.mapping = replace(read_mapping(MAPPING, "nested.yaml"), table=made.mapping.table)
    with closing(services.connect("test migrate")) as connection:
        migrate(connection, [made.mapping])
    yield made
    services.dynamodb.delete_table(TableName=made.mapping.table)


@pytest.fixture
def connection(services: Services, shop: Shop) -> Generator[Connection]:
    assert shop.mapping.targets
    with closing(services.connect("test")) as opened:
        yield opened


def item(number: int, chance: random.Random) -> Item:
    found: Item = {
        "PK": {"S": f"k{number}"},
        "SK": {"S": "s"},
        "lines": {"L": [line(chance) for _ in range(number % 4)]},
    }
    if chance.random() < 0.7:
        found["sizes"] = {"NS": chance.sample(["1", "2.5", "10", "-3"], chance.randint(1, 3))}
    return found


def line(chance: random.Random) -> Item:
    members: Item = {"sku": {"S": chance.choice(["pen", "a\tb", 'q"', ""])}}
    if chance.random() < 0.7:
        names = chance.sample(["cap", "body", "ink\\", "é"], chance.randint(0, 3))
        members["parts"] = {"M": {name: part(chance) for name in names}}
    if chance.random() < 0.5:
        members["marks"] = {"BS": ["AP8=", "YQ=="][: chance.randint(1, 2)]}
    return {"M": members}


def part(chance: random.Random) -> Item:
    members: Item = {"weight": {"N": chance.choice(["1.5", "2"])}} if chance.random() < 0.8 else {}
    if chance.random() < 0.6:
        members["colours"] = {"SS": chance.sample(["red", "blue", "x,y"], chance.randint(1, 3))}
    return {"M": members}


def expected(items: list[Item]) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of every table, by code that knows nothing of the decoder."""
    rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in ("Lines", "Parts", "Colours", "Sizes", "Marks")}
    for one in items:
        key = (one["PK"]["S"], one["SK"]["S"])
        rows["Sizes"] += [(*key, float(size)) for size in one.get("sizes", {}).get("NS", ())]
        for number, element in enumerate(one["lines"]["L"]):
            inside = element["M"]
            rows["Lines"].append((*key, number, inside["sku"]["S"]))
            rows["Marks"] += [(*key, number, b64decode(mark)) for mark in inside.get("marks", {}).get("BS", ())]
            for name, piece in inside.get("parts", {}).get("M", {}).items():
                weight = piece["M"].get("weight", {}).get("N")
                rows["Parts"].append((*key, number, name, None if weight is None else float(weight)))
                colours = piece["M"].get("colours", {}).get("SS", ())
                rows["Colours"] += [(*key, number, name, colour) for colour in colours]
    return {name: sorted(found, key=repr) for name, found in rows.items()}


def shown(connection: Connection, shop: Shop) -> dict[str, list[tuple[Any, ...]]]:
    found: dict[str, list[tuple[Any, ...]]] = {}
    for child in shop.mapping.targets[0].children:
        columns = sql.SQL(", ").join(
            sql.SQL("{}::float8" if column.type.name == "numeric" else "{}").format(sql.Identifier(column.name))
            for column in child.columns
        )
        rows = connection.execute(sql.SQL("SELECT {} FROM {}").format(columns, tables.view(child))).fetchall()
        found[child.name] = sorted(rows, key=repr)
    return found


def test_every_way_gives_the_rows_of_every_level(shop: Shop, connection: Connection) -> None:
    chance = random.Random(5)
    shop.put(*[item(number, chance) for number in range(40)])
    report = load(shop.services, shop.mapping, shop.export(60), margin=MARGIN, aside_from=0)
    assert (report.strategy, report.applied, report.rejected) == ("aside", 40, 0)
    assert shown(connection, shop) == expected(list(shop.items.values()))
    # Other states of some items, by the stream; deletes; then a merge of a newer snapshot.
    shop.apply(*shop.put(*[item(number, chance) for number in range(0, 40, 3)]))
    shop.apply(*shop.delete(*[one for one in list(shop.items.values()) if one["PK"]["S"] in {"k1", "k7"}]))
    assert shown(connection, shop) == expected(list(shop.items.values()))
    shop.put(*[item(number, chance) for number in range(1, 40, 4)])
    assert shop.load(minutes_ago=10).strategy == "merge"
    assert shown(connection, shop) == expected(list(shop.items.values()))
    assert shop.reconcile().drift == 0


def test_damage_at_any_level_is_drift_of_the_item_and_repaired(shop: Shop, connection: Connection) -> None:
    chance = random.Random(6)
    full = [item(number, chance) for number in (3, 7, 11, 15, 19, 23)]
    for one in full:
        one["sizes"] = {"NS": ["1", "2.5"]}
        one["lines"]["L"][0]["M"]["parts"] = {"M": {"cap": {"M": {"colours": {"SS": ["red", "blue"]}}}}}
    shop.put(*full)
    load(shop.services, shop.mapping, shop.export(60), margin=MARGIN, aside_from=0)
    before = shown(connection, shop)
    for statement in (
        "UPDATE replica.\"Parts\" SET weight = 77 WHERE a = 'k3' AND line = 0 AND part = 'cap'",
        "DELETE FROM replica.\"Colours\" WHERE a = 'k7' AND line = 0 AND colour = 'red'",
        "UPDATE replica.\"Sizes\" SET size = 3 WHERE a = 'k11' AND size = 1",
        'INSERT INTO replica."Colours" (a, b, line, part, colour, _as_of)'
        " VALUES ('none', 's', 0, 'cap', 'red', now())",
    ):
        connection.execute(statement.encode())
    connection.execute("UPDATE replica.\"Colours\" SET _as_of = now() - interval '1 day'")
    report = shop.reconcile(repair=True)
    assert report.by_column == {"public.Parts": 1, "public.Colours": 1, "public.Sizes": 1}
    assert (report.different, report.extra, report.repaired) == (3, 1, 4)
    assert shown(connection, shop) == before


def test_an_element_of_an_element_that_cannot_be_held_rejects_the_item(shop: Shop, connection: Connection) -> None:
    chance = random.Random(7)
    good, bad = item(3, chance), item(7, chance)
    bad["lines"]["L"][0]["M"]["parts"] = {"M": {"cap": {"M": {"weight": {"S": "heavy"}}}}}
    assert shop.apply(*shop.put(good, bad)).rejected == 1
    assert shown(connection, shop) == expected([good])
    reasons = connection.execute("SELECT reason FROM replication.rejects").fetchall()
    assert reasons == [('column "public.Parts.weight": is not a number',)]
