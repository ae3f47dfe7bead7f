"""The probe on the local stack: the table of all states, and the command line that shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.jobs.services import Services
from pipeline.local.stack import LocalStack
from pipeline.settings import Settings
from tests.probe_truth import Table, mapping_of, measure, right


@pytest.fixture
def environment(stack: LocalStack, database: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    made = {**stack.environment(), "DATABASE_URL": database}
    for name, value in made.items():
        monkeypatch.setenv(name, value)
    return made


@pytest.mark.usefixtures("environment")
def test_the_probe_is_true_in_every_state(stack: LocalStack, database: str) -> None:
    rows = {row.state: row for row in measure(stack, database, seconds=2.0)}
    assert [state for state, row in rows.items() if not right(row)] == []
    assert {state for state, row in rows.items() if row.behind_seconds} == {
        "Lambda dead",
        "mapping disabled",
        "one shard of 8 stuck",
    }


def test_status_with_probe_measures_and_names_what_waits(
    stack: LocalStack,
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = Table(stack, Services(Settings.from_environment(environment)))
    (tmp_path / "people.yaml").write_text(mapping_of(table.name))
    environment["DYNAURORA_TABLES"] = str(tmp_path)
    assert main(["status", "--probe", "--json"], environment) == 0
    (told,) = json.loads(capsys.readouterr().out)["tables"]
    assert (told["probe"]["lag_seconds"], told["probe"]["waiting"]) == (0.0, 0)
    other = "Gone" + table.name
    (tmp_path / "gone.yaml").write_text(mapping_of(other))
    assert main(["migrate"], environment) == 0
    capsys.readouterr()
    assert main(["status", "--probe"], environment) == 1
    assert "  ! the lag could not be measured: describing the table Gone" in capsys.readouterr().out
    (tmp_path / "gone.yaml").unlink()
    table.write(1)
    assert main(["status", "--json"], environment) == 0
    assert json.loads(capsys.readouterr().out)["tables"][0]["probe"]["waiting"] == 0, "the last look is shown"
    assert main(["status", "--probe", "--json"], environment) == 0
    (told,) = json.loads(capsys.readouterr().out)["tables"]
    assert told["probe"]["waiting"] == 1
    assert told["probe"]["lag_seconds"] >= 0
