"""`dynaurora rejects`: what it prints, what it does not reveal, and its exit codes."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.sessions.connection import connect
from pipeline.cli import main
from pipeline.jobs.replicate import Replicator
from pipeline.mappings import load_mappings
from tests.jobs.conftest import record

TABLES = Path(__file__).parents[1] / "tables"
SECRET = "a-name-that-nobody-may-read-in-a-terminal"


@pytest.fixture
def environment(database: str, tmp_path: Path) -> dict[str, str]:
    """A migrated database with two rejects of one reason."""
    folder = tmp_path / "tables"
    shutil.copytree(TABLES, folder)
    environment = {"DATABASE_URL": database, "DYNAURORA_TABLES": str(folder)}
    assert main(["migrate"], environment) == 0
    replicator = Replicator(load_mappings(folder), lambda: connect(database, application_name="t"), writer="w")
    records = [record(n, n, empName={"S": SECRET}, tags={"L": [{"S": SECRET}]}, n={"N": "12345"}) for n in (1, 2)]
    replicator.replicate({"Records": records}, deadline=time.monotonic() + 60)
    replicator.close()
    return environment


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """Everything printed since the last call, on both outputs."""
    captured = capsys.readouterr()
    return captured.out + captured.err


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def widen(environment: dict[str, str]) -> None:
    path = Path(environment["DYNAURORA_TABLES"]) / "employees.yaml"
    path.write_text(path.read_text().replace("varchar(20)", "varchar(80)"))


def test_list_show_correct_replay(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys)
    assert main(["rejects", "list", "--json"], environment) == 1
    (group,) = document(capsys)["groups"]
    assert (group["table"], group["target"], group["waiting"], group["replayed"], group["sources"]) == (
        "employees",
        "public.Employees",
        2,
        0,
        ["stream"],
    )
    assert group["reason"] == 'column "Name": is longer than 20 characters'
    assert main(["rejects", "show", str(group["id"])], environment) == 0
    assert 'column "Name": is longer than 20 characters' in told(capsys)
    assert main(["rejects", "replay", "employees", "--json"], environment) == 1
    assert document(capsys)["waiting"] == 2
    widen(environment)
    assert main(["migrate"], environment) == 0
    told(capsys)
    assert main(["rejects", "replay", "employees", "--json"], environment) == 0
    report = document(capsys)
    assert (report["replayed"], report["applied"], report["stale"], report["failed"]) == (2, 2, 0, 0)
    assert main(["rejects", "list"], environment) == 0
    assert told(capsys) == "no rejects wait\n"
    assert main(["rejects", "list", "employees", "--all", "--json"], environment) == 0
    assert [g["replayed"] for g in document(capsys)["groups"]] == [2]


def test_a_few_are_replayed_first(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    widen(environment)
    assert main(["migrate"], environment) == 0
    told(capsys)
    assert main(["rejects", "replay", "employees", "--limit", "1", "--json"], environment) == 1
    report = document(capsys)
    assert (report["replayed"], report["waiting"]) == (1, 1)
    assert main(["rejects", "replay", "employees", "--limit", "0"], environment) == 2


def test_people_are_told_what_to_do(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys)
    assert main(["rejects", "list"], environment) == 1
    lines = told(capsys)
    assert 'employees  public.Employees  column "Name": is longer than 20 characters\n' in lines
    assert "2 waiting, from " in lines
    assert "`dynaurora rejects replay NAME`" in lines
    assert main(["rejects", "replay", "employees"], environment) == 1
    assert "2 still wait; `dynaurora rejects list employees` says why" in told(capsys)


def test_values_are_shown_on_request_alone(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys)
    main(["rejects", "list", "--json"], environment)
    number = str(document(capsys)["groups"][0]["id"])
    quiet = ["list"], ["list", "--json"], ["show", number], ["show", number, "--json"], ["replay", "employees"]
    for words in quiet:
        main(["rejects", *words], environment)
        assert SECRET not in told(capsys)
    main(["rejects", "show", number, "--json"], environment)
    assert document(capsys)["record"]["dynamodb"]["NewImage"] == {
        "Id": "N, 1 digits",
        "empName": f"S, {len(SECRET)} characters",
        "tags": "L, 1 elements",
        "n": "N, 5 digits",
    }
    assert main(["rejects", "show", number, "--show-values", "--json"], environment) == 0
    assert document(capsys)["record"]["dynamodb"]["NewImage"]["empName"] == {"S": SECRET}


def test_wrong_use(environment: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys)
    assert main(["rejects", "show", "999"], environment) == 2
    assert "there is no reject 999; `dynaurora rejects list` names them" in told(capsys)
    assert main(["rejects", "replay", "employes"], environment) == 2
    assert "did you mean employees?" in told(capsys)
    assert main(["rejects"], environment) == 2


def test_a_database_that_was_never_migrated(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rejects", "list"], {"DATABASE_URL": database, "DYNAURORA_TABLES": str(TABLES)}) == 2
    assert "run `dynaurora migrate`" in told(capsys)
