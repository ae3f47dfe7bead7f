"""Re-pointing from Dagster: a table restored under another name takes the place of the old one."""

from __future__ import annotations

from datetime import UTC, datetime

from dagster_project.definitions import build
from tests.dagster_project.conftest import Code
from tests.dagster_project.test_full_load import failure, logged
from tests.dagster_project.test_promote_job import output, person, rows

JOB = "employees_repoint"
RECORD = "SELECT source_table FROM replication.tables"


def restored(code: Code) -> None:
    """The table is restored under another name, and the mapping file names that one."""
    code.migrate()
    code.replicate(person(1, empName={"S": "Ama"}))
    stream = code.services.stream
    stream.table, stream.label = "Employees-restored", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.000}"
    path = code.folder / "employees.yaml"
    path.write_text(path.read_text().replace("table: Employees", "table: Employees-restored"))
    code.definitions = build(code.folder, code.resource)


def test_a_table_restored_under_another_name_is_switched_to_and_the_next_steps_are_in_the_run(code: Code) -> None:
    restored(code)
    result = code.run(JOB)
    assert result.success
    assert code.query(RECORD) == [("Employees-restored",)]
    found = output(result)
    assert "is the source of record since" in found["result"]
    assert (found["before"], found["source of record"]) == ("Employees", code.services.stream.arn.partition("/str")[0])
    steps = [step["what to do"] for step in rows(found["next steps"])]
    assert "dynaurora load employees" in steps
    assert steps[-1].startswith("dynaurora reconcile employees --repair, at ")
    assert any("changes of Employees are refused from then on" in line for line in logged(code, result.run_id))
    assert "nothing to do" in output(code.run(JOB))["result"]


def test_a_dry_run_switches_nothing(code: Code) -> None:
    restored(code)
    found = output(code.run(JOB, {"dry_run": True}))
    assert found["result"] == "would switch from Employees to Employees-restored; nothing was switched"
    assert found["source of record"] == "Employees"
    assert code.query(RECORD) == [("Employees",)]


def test_a_table_that_is_not_fit_fails_the_run_with_the_reason(code: Code) -> None:
    restored(code)
    code.services.stream.enabled = False
    result = code.run(JOB)
    assert not result.success
    description, _ = failure(result)
    assert "re-pointing to Employees-restored" in description
    assert code.query(RECORD) == [("Employees",)]
