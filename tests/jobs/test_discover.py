"""Discover: profiles of generated items, the mapping file drafted from them, the seed's table on the local stack."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import yaml

from pipeline.aurora.schema.migrate import migrate
from pipeline.cli import main
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.discover.mapping_draft import draft, mapping_name, view_name
from pipeline.core.discover.profile import AttributeProfile, propose
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.discover import Sample, discover
from pipeline.jobs.load.load import load
from pipeline.jobs.services import Services
from pipeline.local.stack import LocalStack
from pipeline.local.writer import employee, put_items
from pipeline.mappings import load_mappings
from pipeline.settings import Settings
from tests.dynamodb.export_fixture import ExportFactory, Layout

Item = dict[str, Any]
Value = Callable[[int], dict[str, Any]] | dict[str, Any]
"""An attribute value, or a function that makes one from the item's number."""


def sample(items: list[Item], key: dict[str, str] | None = None, table: str = "Things") -> Sample:
    return Sample(table, key or {"Id": "N"}, items, True, f"{len(items)} items", 0.0)


def items_with(**attributes: Value) -> list[Item]:
    return [
        {"Id": {"N": str(n)}} | {name: make(n) if callable(make) else make for name, make in attributes.items()}
        for n in range(100)
    ]


def profiles(items: list[Item]) -> dict[str, AttributeProfile]:
    return {profile.path: profile for profile in discover(sample(items)).profiles}


def drafted(found: Sample, presence: float = 0.25) -> tuple[str, TableMapping]:
    text = draft(discover(found), presence=presence)
    return text, read_mapping(text, "drafted.yaml")


def types_of(mapping: TableMapping) -> dict[str, str]:
    return {column.name: column.type.sql for column in mapping.targets[0].columns}


CASES: list[tuple[Value, str]] = [
    (lambda n: {"N": str(n - 50)}, "bigint"),
    (lambda n: {"N": f"{n}.25"}, "numeric"),
    ({"N": "9" * 19}, "numeric"),
    (lambda n: {"S": f"name {n}"}, "text"),
    (lambda n: {"S": str(UUID(int=n))}, "uuid"),
    (lambda n: {"S": str(UUID(int=10**38 + n)).upper()}, "text"),
    (lambda n: {"S": f"2026-01-{n % 28 + 1:02}"}, "date"),
    (lambda n: {"S": f"2026-01-31T12:00:{n % 60:02}.5Z"}, "timestamptz"),
    (lambda n: {"S": f"2026-01-31T12:00:{n % 60:02}"}, "text"),
    (lambda n: {"S": "2026-01-31" if n else "soon"}, "text"),
    (lambda n: {"S": str(n)}, "text"),
    (lambda n: {"BOOL": n % 2 == 0}, "boolean"),
    ({"B": "AAAA"}, "bytea"),
    (lambda n: {"SS": ["a", str(n)]}, "text[]"),
    (lambda n: {"NS": ["1", str(n + 2)]}, "numeric[]"),
    ({"BS": ["AAAA"]}, "bytea[]"),
    (lambda n: {"L": [{"S": "a"}] * n}, "jsonb"),
    ({"M": {"city": {"S": "Accra"}}}, "jsonb"),
    (lambda n: {"N": str(n)} if n % 3 else {"S": ""}, "jsonb"),
    (lambda n: {"N": str(n)} if n % 3 else {"NULL": True}, "bigint"),
]


@pytest.mark.parametrize(("value", "wanted"), CASES)
def test_the_type_that_the_evidence_speaks_for_takes_every_item(value: Value, wanted: str) -> None:
    items = items_with(thing=value)
    text, mapping = drafted(sample(items))
    assert types_of(mapping) == {"Id": "bigint", "thing": wanted}, text
    decoder = RowDecoder(mapping.targets[0])
    for item in items:
        row = decoder.row(item)
        assert row[-1] == "{}", "nothing remains in the jsonb column"
        assert (row[1] is None) == ("NULL" in item["thing"])


def test_numbers_that_are_times_by_range_and_by_name() -> None:
    seconds, milliseconds = {"N": "1767225600"}, {"N": "1767225600123"}
    text, mapping = drafted(sample(items_with(createdAt=seconds, expires_ts=milliseconds, phone=seconds)))
    by_name = {column.name: column for column in mapping.targets[0].columns}
    assert (by_name["createdAt"].type.sql, by_name["createdAt"].epoch) == ("timestamptz", "seconds")
    assert (by_name["expires_ts"].type.sql, by_name["expires_ts"].epoch) == ("timestamptz", "milliseconds")
    assert by_name["phone"].type.sql == "bigint"
    assert "could be epoch seconds: {type: timestamptz, epoch: seconds}" in text.replace("\n      #", "")


def test_few_values_do_not_make_a_number_whole() -> None:
    found = profiles(items_with(price={"N": "10"}))["price"]
    assert propose(found).type == "bigint"
    assert propose(replace(found, tags={"N": 5})).type == "numeric"


def test_a_profile_counts_and_measures_exactly() -> None:
    big = "1234567890123456789012345678901234567.5"
    found = profiles(
        items_with(
            amount=lambda n: {"N": big if n == 7 else str(-n)},
            note=lambda n: {"S": "x" * n} if n % 2 else {"NULL": True},
            address={"M": {"city": {"S": "Accra"}, "a.b": {"N": "1"}}},
        )
    )
    amount = found["amount"]
    assert (amount.smallest, amount.largest) == (Decimal(-99), Decimal(big))
    assert (amount.whole_digits, amount.fraction_digits, amount.presence) == (37, 1, 1.0)
    assert found["note"].tags == {"NULL": 50, "S": 50}
    assert found["note"].longest == 99
    assert found["address.city"].present == 100
    assert 'address."a.b"' in found


def test_the_file_names_what_it_saw_and_never_a_value() -> None:
    items = items_with(
        secret=lambda n: {"S": f"Akua Mensah {n}"},
        salary=lambda n: {"N": f"{53_217 + n}.31"},
        mixed=lambda n: {"N": "71993"} if n % 4 else {"S": "seventeen"},
    )
    for item in items[3:]:
        del item["salary"]
    text, mapping = drafted(sample(items))
    for value in ("Akua", "Mensah", "5321", "71993", "seventeen"):
        assert value not in text
    assert "# in 100 % of the items, S, up to 14 characters, usually 14" in text
    assert "mixed types (N in 75, S in 25): jsonb accepts them all" in text.replace("\n      #", "")
    assert "      # in 3.0 % of the items, N, up to 5 digits before the point and 2 after\n" in text
    assert "      # salary: {attribute: salary, type: numeric}\n" in text
    assert list(types_of(mapping)) == ["Id", "mixed", "secret"]
    assert list(types_of(drafted(sample(items), presence=0.01)[1])) == ["Id", "mixed", "secret", "salary"]


def test_every_commented_line_is_a_column_once_it_is_uncommented() -> None:
    items = items_with(address={"M": {"city": {"S": "Accra"}, "zip code": {"S": "1"}, "no": {"BOOL": True}}})
    items[0] |= {
        "a.b": {"N": "1"},
        "yes": {"S": "x"},
        'quote"d': {"N": "2"},
        "line\nend": {"S": "y"},
        "x" * 70: {"N": "1"},
    }
    text, _ = drafted(sample(items))
    uncommented = [
        line.replace("# ", "", 1) if "{attribute:" in line and line.startswith("      # ") else line
        for line in text.splitlines()
    ]
    mapping = read_mapping("\n".join(uncommented), "uncommented.yaml")
    row = dict(zip(mapping.targets[0].stored_columns, RowDecoder(mapping.targets[0]).row(items[0]), strict=True))
    assert (row["address_city"], row["address_zip code"], row["address_no"]) == ("Accra", "1", "t")
    assert (row["a.b"], row["yes"], row['quote"d']) == ("1", "x", "2")
    assert json.loads(row["attributes"] or "") == {"line\nend": "y", "x" * 70: 1}, "names that no column can have stay"


def test_a_map_of_changing_names_is_no_record() -> None:
    text, _ = drafted(sample(items_with(by_day=lambda n: {"M": {f"day {n}": {"N": "1"}}})))
    assert "day 5" not in text


def test_names_that_the_product_or_yaml_would_take_for_something_else() -> None:
    items = items_with(attributes={"S": "x"}, _deleted={"S": "x"}, on={"S": "x"}, NULL={"S": "x"})
    text, mapping = drafted(sample(items, table="my.Table-v2"))
    assert list(types_of(mapping)) == ["Id", "NULL", "attributes", "on"]
    assert mapping.targets[0].unmapped == "other_attributes"
    assert 'attribute "_deleted"' in text
    assert (mapping.name, mapping.targets[0].name, mapping.table) == ("my_table_v2", "my_Table_v2", "my.Table-v2")
    assert (mapping_name("EmployeeRecords"), view_name("a-b")) == ("employee_records", "a_b")


def shop(orders: int = 60) -> list[Item]:
    items: list[Item] = []
    for n in range(orders):
        customer = f"CUSTOMER#c-{n % 20}"
        items.append(
            {"PK": {"S": customer}, "SK": {"S": f"ORDER#2026-01-{n % 28 + 1:02}#{n}"}, "total": {"N": f"{n}.50"}}
        )
        if n < 20:
            items.append({"PK": {"S": customer}, "SK": {"S": "PROFILE"}, "name": {"S": f"Akua {n}"}})
    return items


def test_kinds_of_items_are_told_apart_by_their_keys() -> None:
    found = discover(sample(shop(), {"PK": "S", "SK": "S"}, "Shop"))
    assert [(kind.patterns, kind.items) for kind in found.kinds] == [
        ({"PK": "CUSTOMER#{}", "SK": "ORDER#{}#{}"}, 60),
        ({"PK": "CUSTOMER#{}", "SK": "PROFILE"}, 20),
    ]
    text = draft(found)
    assert '#     match: {PK: "CUSTOMER#{customer_id}", SK: "ORDER#{order_id}#{sk}"}\n' in text
    assert '#     match: {PK: "CUSTOMER#{customer_id}", SK: "PROFILE"}\n' in text
    assert "#       total: {attribute: total, type: numeric}  # in 100 % of the items" in text
    mapping = read_mapping(text, "shop.yaml")
    assert mapping.targets[0].primary_key == ("PK", "SK")
    assert types_of(mapping)["total"] == "numeric"


def test_words_that_are_values_make_no_kinds() -> None:
    cities = [{"PK": {"S": f"CITY#{chr(65 + n % 26) * 3}{chr(65 + n // 26) * 3}"}} for n in range(100)]
    found = discover(sample(cities, {"PK": "S"}))
    assert [kind.patterns for kind in found.kinds] == [{"PK": "CITY#{}"}]
    names = [{"PK": {"S": f"name {n}"}} for n in range(100)]
    assert discover(sample(names, {"PK": "S"})).kinds == ()


def test_any_items_can_be_read_back_through_what_was_drafted() -> None:
    choose = random.Random(5)
    values: list[Any] = [
        {"S": "x"}, {"S": ""}, {"S": "2026-01-31"}, {"S": str(uuid4())}, {"N": "1.5"}, {"N": "12"}, {"N": "9" * 38},
        {"N": "1767225600"}, {"NULL": True}, {"BOOL": True}, {"B": "AAAA"}, {"SS": ["a"]}, {"L": []}, {"M": {}},
    ]  # fmt: skip
    for _ in range(60):
        pools = {name: choose.sample(values, choose.randint(1, 3)) for name in ("a", "b_at", "c d", "e")}
        items = [
            {"Id": {"N": str(n)}} | {name: choose.choice(pool) for name, pool in pools.items()} for n in range(100)
        ]
        text, mapping = drafted(sample(items), presence=0)
        decoder = RowDecoder(mapping.targets[0])
        for item in items:
            assert decoder.row(item)[-1] is not None, text


@pytest.fixture
def aws(stack: LocalStack, database: str, monkeypatch: pytest.MonkeyPatch) -> Services:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    return Services(Settings.from_environment(dict(os.environ) | {"DATABASE_URL": database}))


@pytest.fixture
def table(aws: Services) -> str:
    name = f"Employees-{uuid4().hex[:8]}"
    aws.dynamodb.create_table(
        TableName=name,
        AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
        KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
    )
    put_items(aws.dynamodb, name, range(1, 401))
    return name


def environment(aws: Services, folder: Path) -> dict[str, str]:
    return {"DYNAURORA_TABLES": str(folder), "AWS_ENDPOINT_URL": aws.settings.endpoint_url or ""}


def test_discovering_the_seeds_table_gives_what_the_seeds_mapping_gives(
    aws: Services,
    table: str,
    employees: TableMapping,
    exports: ExportFactory,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "tables" / "found.yaml"
    assert main(["discover", table, "--output", str(path), "--json"], environment(aws, tmp_path)) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["items"], document["complete"], document["key"]) == (400, True, {"Id": "N"})
    assert document["mapping"] == path.read_text()
    assert document["consumed_capacity"] > 0
    found = read_mapping(path.read_text(), str(path))
    assert types_of(found) == {"Id": "bigint", "empName": "text", "empDepartment": "text"}

    choose = random.Random(3)
    items = [employee(number, choose) for number in range(300)] + [{"Id": {"N": "7000"}, "empName": {"NULL": True}}]
    rows: dict[str, list[Any]] = {}
    for mapping in (found, replace(employees, table=table)):
        with closing(aws.connect("test")) as connection:
            migrate(connection, [mapping])
            location = exports.full(items, Layout(table=table), export_time=datetime.now(UTC)).location
            report = load(aws, mapping, location)
            assert (report.applied, report.rejected) == (301, 0)
            view = mapping.targets[0].name
            query = f'SELECT v.*, s.attributes FROM public."{view}" v JOIN replica."{view}" s USING ("Id") ORDER BY 1'  # noqa: S608
            rows[mapping.name] = connection.execute(query.encode()).fetchall()
    seed, ours = rows.pop("employees"), next(iter(rows.values()))
    absent = {int(item["Id"]["N"]) for item in items if "empDepartment" not in item}
    assert absent
    for theirs, mine in zip(seed, ours, strict=True):
        # The seed's mapping has a default for what is absent; a discovered mapping leaves it NULL.
        wanted = tuple(None if value == "NA" and theirs[0] in absent else value for value in theirs)
        assert mine == wanted


def test_a_file_is_never_overwritten_unless_told(
    aws: Services, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{mapping_name(table)}.yaml"
    path.write_text("mine")
    assert main(["discover", table], environment(aws, tmp_path)) == 2
    assert (
        f"{path} exists; write to another file with --output, or overwrite it with --force" in capsys.readouterr().err
    )
    assert path.read_text() == "mine"
    assert main(["discover", table, "--force", "--items", "30"], environment(aws, tmp_path)) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"30 items of {table} (a scan of 8 places), ")
    assert "\n  Id " in told
    assert f"wrote {path}" in told
    assert yaml.safe_load(path.read_text())["source"]["table"] == table


def test_an_export_is_sampled_from_each_of_its_files(
    exports: ExportFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = exports.full(items_with(name={"S": "x"}), Layout(table="Things")).location
    arguments = ["discover", "Things", "--manifest", location, "--key", "Id:N", "--items", "40", "--json"]
    assert main(arguments, {"DYNAURORA_TABLES": str(tmp_path)}) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["items"], document["complete"], document["consumed_capacity"]) == (40, False, 0.0)
    (name,) = (found for found in document["attributes"] if found["path"] == "name")
    assert (name["present"], name["tags"], name["proposal"]["type"]) == (40, {"S": 40}, "text")


Discover = Callable[..., dict[str, Any]]


@pytest.fixture
def discover_table(exports: ExportFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Discover:
    """Discover a table by the command line; returns the file and the output."""

    def run(table: str, *options: str) -> dict[str, Any]:
        location = exports.full(items_with(), Layout(table=table)).location
        words = ["discover", table, "--manifest", location, "--key", "Id:N", *options]
        code = main(words, {"DYNAURORA_TABLES": str(tmp_path)})
        return {"code": code, "said": "".join(capsys.readouterr())}

    return run


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize(
    ("first", "second"),
    [("Orders.v2", "Orders-v2"), ("o" * 63 + "1", "o" * 63 + "2"), ("Orders", "ORDERS"), ("2024", "2025")],
)
def test_tables_of_like_names_have_files_mappings_and_views_of_their_own(
    discover_table: Discover, tmp_path: Path, first: str, second: str, force: list[str]
) -> None:
    assert discover_table(first)["code"] == 0
    (before,) = tmp_path.glob("*.yaml")
    mine = before.read_text()
    found = discover_table(second, *force)
    assert found["code"] == 0, found["said"]
    assert before.read_text() == mine
    mappings = load_mappings(tmp_path)
    assert {mapping.table for mapping in mappings} == {first, second}
    if len(first) < 63:
        assert f"because {before} is the mapping of table {first}" in found["said"]
    exists = discover_table(second)
    assert exists["code"] == 2
    assert "overwrite it with --force" in exists["said"]
    assert discover_table(second, "--force")["code"] == 0
    assert {mapping.table for mapping in load_mappings(tmp_path)} == {first, second}


def test_a_file_that_is_another_tables_is_not_written_with_output_either(
    discover_table: Discover, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    assert discover_table("Orders", "--output", str(path))["code"] == 0
    before = path.read_text()
    found = discover_table("Things", "--output", str(path), "--force")
    assert found["code"] == 2
    assert f"{path} is the mapping of table Orders; write this table's mapping to another file" in found["said"]
    assert path.read_text() == before


def test_a_file_whose_name_differs_in_case_is_the_same_file_somewhere(discover_table: Discover, tmp_path: Path) -> None:
    discover_table("Staff", "--output", str(tmp_path / "ORDERS.yaml"))
    assert discover_table("Orders")["code"] == 0
    assert not (tmp_path / "orders.yaml").exists()
    assert {mapping.table for mapping in load_mappings(tmp_path)} == {"Orders", "Staff"}


@pytest.mark.parametrize("key", ["", "Id", "Id:X", "a:S,b:S,c:S"])
def test_a_wrong_key_is_refused(
    key: str, exports: ExportFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = exports.full(items_with(), Layout(table="Things")).location
    words = ["discover", "Things", "--manifest", location, f"--key={key or ','}"]
    assert main(words, {"DYNAURORA_TABLES": str(tmp_path)}) == 2
    assert "is not a key" in capsys.readouterr().err
    assert list(tmp_path.glob("*.yaml")) == []


def test_pandas_is_loaded_by_discover_alone() -> None:
    jobs = "pipeline.jobs.load.load, pipeline.jobs.reconcile.reconcile"
    others = f"import pipeline.cli, pipeline.commands.discover, {jobs}, sys"
    code = (
        f"{others}; assert 'pandas' not in sys.modules; import pipeline.jobs.discover; assert 'pandas' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
