"""The scale run itself, at sizes that end in seconds: every step, its checks, and what it leaves."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipeline.dynamodb.exports.manifest import read_manifest
from pipeline.dynamodb.exports.objects import FolderObjects
from pipeline.local.postgres import PostgresServer
from tests.bench.scale import exports, rows
from tests.bench.scale import run as scale_run
from tests.bench.scale.__main__ import main
from tests.bench.scale.footprint import Footprint
from tests.bench.scale.report import compared
from tests.bench.server import BenchServer

ITEMS = 2_000


@pytest.mark.timeout(600)  # some twenty commands, each of which starts an interpreter
def test_the_run_takes_every_step_at_three_sizes_and_keeps_no_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--items", "100000", "--root", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "build" / "scale.json").read_text())
    assert [size["items"] for size in found["sizes"]] == [1_000, 10_000, 100_000]
    for size in found["sizes"]:
        assert {name: step["verdict"] for name, step in size["steps"].items()} == dict.fromkeys(
            scale_run.STEPS, "exact"
        )
        thousands = size["items"] // 1_000
        assert [step["items"] for step in size["steps"].values()] == [
            size["items"],
            10 * thousands,
            size["items"],
            2 * thousands,
        ]
        assert size["steps"]["reconcile"]["drift"] == 10 * thousands
        for step in size["steps"].values():
            assert step["client_mb"] > 20
            assert 0 < step["server_processes_mb"]["client"] <= step["server_mb"]
            assert step["wal_mb"] >= 16
    assert found["sizes"][2]["steps"]["load"]["strategy"] == "aside"
    assert list((tmp_path / "build" / "scale").iterdir()) == []
    page = (tmp_path / "docs" / "scale.md").read_text()
    assert page.count("| exact |") == 12
    assert "| purge | 10,000 |" in page

    capsys.readouterr()
    assert main(["--items", "100000", "--root", str(tmp_path), "--resume"]) == 0
    assert "exports of" not in capsys.readouterr().out
    assert json.loads((tmp_path / "build" / "scale.json").read_text())["sizes"] == found["sizes"]


def test_a_wrong_row_is_told(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute('CREATE TABLE public."Employees" ("Id" bigint, "Name" text, "Department" text)')
        for number in range(1, ITEMS + 1):
            made = json.loads(rows.item(number, 0))
            values = [number, made["empName"]["S"], made["empDepartment"]["S"]]
            connection.execute('INSERT INTO public."Employees" VALUES (%s, %s, %s)', values)
        check = rows.check(ITEMS, second=False).encode()
        assert connection.execute(check).fetchone() == (ITEMS, ITEMS)
        connection.execute("""UPDATE public."Employees" SET "Name" = 'x' WHERE "Id" = 7""")
        connection.execute("""INSERT INTO public."Employees" VALUES (%s, 'x', 'y')""", [ITEMS + 1])
        assert connection.execute(check).fetchone() == (ITEMS + 1, ITEMS - 1)
        # In the second state row 7 is deleted, and 1 to 5 have other values.
        assert connection.execute(rows.check(ITEMS, second=True).encode()).fetchone() == (ITEMS + 1, ITEMS - 16)


def test_each_export_holds_what_its_state_has(tmp_path: Path) -> None:
    counts: dict[str, int] = {}
    for export in exports.exports(datetime.now(UTC)):
        manifest = read_manifest(FolderObjects(), exports.write(tmp_path, export, ITEMS), expected_table="Employees")
        counts[export.state] = manifest.item_count
        assert len(manifest.files) == exports.FILES
    numbers = {number for number in range(1, 2 * ITEMS) if rows.second_state(number, ITEMS) is not None}
    assert counts == {"first": ITEMS, "changes": ITEMS // 100, "second": len(numbers), "later": 998}
    assert len(numbers) == ITEMS
    assert max(rows.changed(ITEMS)) == max(numbers)


def test_a_disk_too_small_is_told_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--items", "100000000000", "--root", str(tmp_path)]) == 2
    told = capsys.readouterr().out
    assert "100,000,000,000 items need" in told
    assert "not enough" in told
    assert list((tmp_path / "build").iterdir()) == []


def test_a_failed_step_is_recorded_with_the_steps_before_it(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise scale_run.ScaleError("as the test wants")

    monkeypatch.setattr(scale_run.Size, "_catch_up", fail)
    recorded: list[list[str]] = []
    size = scale_run.Size(BenchServer(postgres), tmp_path / "scale", 1_000, lambda _: None)
    found = size.measure(lambda so_far: recorded.append(list(so_far["steps"])))
    assert found["failure"] == "as the test wants"
    assert recorded == [["load"]] == [list(found["steps"])]
    assert not (tmp_path / "scale").exists()


def test_memory_of_a_process_is_seen() -> None:
    held = bytearray(64 << 20)
    with Footprint(os.getpid(), os.getpid(), Path("/nowhere")) as watch:
        held[::4096] = b"x" * (len(held) // 4096)
    assert watch.figures()["client_mb"] > 64
    assert watch.figures()["server_mb"] > 64


def test_ratios_are_of_the_time_for_each_row() -> None:
    small = {"items": 10, "steps": {"load": {"items": 10, "seconds": 1.0, "client_mb": 50.0, "server_mb": 4.0}}}
    large = {"items": 100, "steps": {"load": {"items": 100, "seconds": 12.0, "client_mb": 55.0, "server_mb": 4.0}}}
    assert compared(large, small, "load") == {"time_per_row": 1.2, "client_memory": 1.1, "server_memory": 1.0}
    assert compared(large, small, "purge") is None
