"""The commands of docs/quick-start.md, run unchanged: the AWS CLI and psql against the playground."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lambda_replicator import package
from pipeline.jobs.catch_up.catch_up import catch_up
from pipeline.local.playground import Playground, emulator_python_version
from pipeline.local.ui import shell_variables

PROJECT = Path(__file__).parents[2]


def commands() -> list[str]:
    """The commands of the walk-through's shell blocks, one entry a command."""
    section = (PROJECT / "docs" / "quick-start.md").read_text().split("## Walk through it by hand")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)
    joined = "".join(blocks).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Generator[Playground]:
    folder = tmp_path_factory.mktemp("walk-through")
    folder.chmod(0o711)
    archive = folder / "lambda_replicator.zip"
    package.build(archive, python_version=emulator_python_version())
    with Playground(folder / "run", archive, tables=PROJECT / "tables", progress=lambda _: None) as running:
        yield running


def shell(playground: Playground, command: str) -> str:
    script = f"{shell_variables(playground)}\nexport PAGER=cat PSQL_PAGER=cat\n{command}"
    clean = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}
    command_line = ["/bin/bash", "-c", script]
    done = subprocess.run(command_line, check=False, capture_output=True, text=True, env=clean, timeout=60, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def select_until(playground: Playground, command: str, expected: list[str]) -> None:
    until = time.monotonic() + 20
    while True:
        printed = shell(playground, f"{command} -At")
        if printed.split("\n")[:-1] == expected:
            return
        assert time.monotonic() < until, printed
        time.sleep(0.2)


def test_the_walk_through_shows_what_it_says(playground: Playground) -> None:
    source, put, select, update, select_again, delete, select_last = commands()
    assert source == ". build/ui/environment", "what `shell_variables` writes"
    assert {select, select_again, select_last} == {select}
    shell(playground, put)
    select_until(playground, select, ["2001|Akua|AnyDept"])
    shell(playground, update)
    select_until(playground, select, ["2001|Akua|ExDept"])
    shell(playground, delete)
    select_until(playground, select, [])


def test_the_hours_of_a_day_can_be_caught_up_though_the_table_is_new(
    playground: Playground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was written then, and the export says so."""
    for name, value in playground.environment().items():
        monkeypatch.setenv(name, value)
    described = playground.dynamodb.describe_continuous_backups(TableName="Employees")
    recovery = described["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    first = end - timedelta(hours=24)
    earliest = recovery.get("EarliestRestorableDateTime")
    assert earliest is not None
    assert earliest <= first
    report = catch_up(playground.services, playground.mapping, first, end, margin=timedelta(seconds=2))
    assert (report.items, report.applied) == (0, 0)
