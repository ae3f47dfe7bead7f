"""Unmapped: attributes that the replicator puts into the jsonb column are found, measured, and given a mapping line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.sessions.connection import Connection
from pipeline.cli import main
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.services import Services
from pipeline.jobs.unmapped import State, UnmappedAttribute, unmapped, unmapped_of
from tests.jobs.conftest import CREATED, record

Apply = Callable[..., Any]


def found(services: Services, mapping: TableMapping) -> dict[str, UnmappedAttribute]:
    (report,) = unmapped(services, mapping)
    return {attribute.attribute: attribute for attribute in report.attributes}


def test_what_has_landed_is_counted_dated_and_given_its_line(
    services: Services, employees: TableMapping, apply: Apply
) -> None:
    for number in range(30):
        extra: dict[str, Any] = {"hired": {"S": f"2026-01-{number % 28 + 1:02}"}, "level": {"N": str(number - 3)}}
        if number >= 20:
            extra["skills"] = {"SS": ["sql", "python"]}
            extra["badge"] = {"S": "x" * number} if number % 2 else {"N": "1234567.25"}
        apply(record(number, number, at=CREATED + number, empName={"S": "n"}, **extra))
    apply(record(29, 100, "REMOVE", at=CREATED + 100))
    seen = found(services, employees)
    assert {name: (a.rows, a.types, a.line) for name, a in seen.items()} == {
        "hired": (29, {"string": 29}, "hired: {attribute: hired, type: date}"),
        "level": (29, {"number": 29}, "level: {attribute: level, type: bigint}"),
        "badge": (9, {"number": 5, "string": 4}, "badge: {attribute: badge, type: jsonb}"),
        "skills": (9, {"array": 9}, "skills: {attribute: skills, type: jsonb}"),
    }
    assert seen["badge"].remarks == ("mixed types (N in 5, S in 4): jsonb accepts them all",)
    assert seen["badge"].evidence == (
        "in 31.0 % of the items, N and S, up to 27 characters, up to 7 digits before the point and 2 after"
    )
    assert seen["hired"].since == datetime.fromtimestamp(CREATED, UTC)
    assert seen["skills"].since == datetime.fromtimestamp(CREATED + 20, UTC)
    assert all(attribute.state is State.NEW for attribute in seen.values())


def test_a_proposed_line_is_one_that_the_mapping_takes(
    services: Services, employees: TableMapping, apply: Apply
) -> None:
    awkward: dict[str, Any] = {
        "a.b": {"N": "1"},
        "yes": {"BOOL": True},
        'quote"d': {"M": {}},
        "when": {"NULL": True},
        "_as_of": {"N": "1"},
    }
    apply(record(1, 1, **awkward))
    seen = found(services, employees)
    assert seen["when"].line is None
    assert seen["_as_of"].line is None
    lines = "\n".join(f"      {a.line}" for a in seen.values() if a.line)
    mapping = read_mapping(
        "name: e\nsource: {table: Employees, key: {Id: N}}\ntargets:\n  E:\n    primary_key: [Id]\n    columns:\n"
        f"      Id: {{attribute: Id, type: bigint}}\n{lines}\n",
        "e.yaml",
    )
    assert {column.path for column in mapping.targets[0].columns} == {("Id",), ("a.b",), ("yes",), ('quote"d',)}


def with_columns(mapping: TableMapping, *lines: str) -> TableMapping:
    text = Path(mapping.path).read_text()
    body = "".join(f"      {line}\n" for line in lines)
    return read_mapping(text.replace("    unmapped:", f"{body}    unmapped:"), "changed.yaml")


def test_an_attribute_with_a_column_waits_and_one_that_a_path_reaches_into_stays(
    services: Services, employees: TableMapping, apply: Apply
) -> None:
    apply(record(1, 1, city={"S": "Accra"}, address={"M": {"zip": {"S": "1"}}}, other={"N": "1"}))
    grown = with_columns(employees, "City: {attribute: city, type: text}", "Zip: {attribute: address.zip, type: text}")
    seen = found(services, grown)
    assert {name: (a.state, a.line is None) for name, a in seen.items()} == {
        "city": (State.WAITING, True),
        "address": (State.IN_PART, True),
        "other": (State.NEW, False),
    }


def test_a_large_table_is_sampled_and_says_so(employees: TableMapping, connection: Connection) -> None:
    connection.execute(
        """INSERT INTO replica."Employees" ("Id", attributes, _as_of)
           SELECT n, jsonb_build_object('level', n), now() FROM generate_series(1, 60000) n"""
    )
    (whole,) = unmapped_of(connection, employees)
    assert (whole.rows, whole.estimated) == (60_000, False)
    (sampled,) = unmapped_of(connection, employees, sampled_from_bytes=1_000_000)
    assert sampled.estimated
    assert 0.05 < sampled.sampled_fraction < 0.5
    assert 40_000 < sampled.rows < 80_000
    (level,) = sampled.attributes
    assert 40_000 < level.rows < 80_000
    assert level.evidence.startswith("in 100 % of the items")


def test_a_target_without_a_jsonb_column_has_nothing_to_report(services: Services, employees: TableMapping) -> None:
    ignoring = replace(employees, targets=(replace(employees.targets[0], unmapped=None),))
    assert unmapped(services, ignoring) == []


def test_the_verb(
    database: str,
    employees: TableMapping,
    apply: Apply,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    apply(record(1, 1, city={"S": "Accra"}))
    path = tmp_path / "employees.yaml"
    path.write_text(Path(employees.path).read_text())
    environment = {"DATABASE_URL": database, "DYNAURORA_TABLES": str(tmp_path)}
    assert main(["unmapped"], environment) == 0
    assert capsys.readouterr().out == (
        "employees: public.Employees, 1 rows\n"
        "  city  no column takes it: 1 rows, at least since 2026-05-14 10:01:40 UTC,"
        " in 100 % of the items, S, up to 5 characters\n"
        "      city: {attribute: city, type: text}\n"
    )
    path.write_text(
        path.read_text().replace("    unmapped:", "      City: {attribute: city, type: text}\n    unmapped:")
    )
    assert main(["unmapped", "--json"], environment) == 1
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    (attribute,) = table["targets"][0]["attributes"]
    assert (attribute["state"], attribute["since"]) == ("waiting", "2026-05-14T10:01:40+00:00")
