"""Replay of rejects from Dagster: a corrected mapping accepts them, and the check that reported them turns green."""

from __future__ import annotations

import dagster as dg

from dagster_project.definitions import build
from tests.dagster_project.conftest import Code
from tests.dagster_project.test_full_load import failure, logged
from tests.dagster_project.test_promote_job import output, person, rows

JOB = "employees_replay_rejects"
TOO_LONG = [person(n, empName={"S": f"a name of more than twenty characters {n}"}) for n in range(3)]


def mend(code: Code) -> None:
    """Widen the column, as a person does, and reload the definitions."""
    path = code.folder / "employees.yaml"
    path.write_text(path.read_text().replace("varchar(20)", "varchar(60)"))
    code.definitions = build(code.folder, code.resource)


def rejects_check(code: Code) -> dg.AssetCheckEvaluation:
    replication = dg.AssetKey(["employees", "replication"])
    both = {dg.AssetCheckKey(replication, name) for name in ("lag", "rejects_waiting")}
    job = code.definitions.resolve_implicit_global_asset_job_def()
    result = job.get_subset(asset_selection=set(), asset_check_selection=both).execute_in_process(
        instance=code.instance
    )
    (found,) = [check for check in result.get_asset_check_evaluations() if check.check_name == "rejects_waiting"]
    return found


def test_rejects_are_replayed_under_the_corrected_mapping_and_the_check_turns_green(code: Code) -> None:
    code.migrate()
    code.replicate(*TOO_LONG)
    told = rejects_check(code)
    assert (told.passed, told.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "launch `employees_replay_rejects` or run `dynaurora rejects replay employees`" in (told.description or "")
    mend(code)
    code.migrate()
    first = code.run(JOB, {"limit": 1})
    assert first.success
    assert (output(first)["replayed"], output(first)["waiting"]) == (1, 2)
    assert code.query('SELECT count(*) FROM "Employees"') == [(1,)]
    result = code.run(JOB)
    found = output(result)
    assert (found["replayed"], found["applied"], found["stale"], found["failed"], found["waiting"]) == (2, 2, 0, 0, 0)
    assert rows(found["left"]) == []
    assert any("2 rejects replayed: 2 applied, 0 stale" in line for line in logged(code, result.run_id))
    assert code.query('SELECT count(*) FROM "Employees"') == [(3,)]
    assert rejects_check(code).passed


def test_what_still_cannot_be_converted_fails_the_run_by_its_reason_and_not_by_its_value(code: Code) -> None:
    code.migrate()
    code.replicate(*TOO_LONG)
    result = code.run(JOB)
    description, found = failure(result)
    assert not result.success
    assert "3 still cannot be converted" in description
    assert 'column "Name": is longer than 20 characters' in description
    assert "launch employees_replay_rejects again" in str(found["next step"])
    (left,) = rows(found["left"])
    assert (left["view"], left["waiting"]) == ("public.Employees", 3)
    assert "more than twenty" not in f"{description} {found}"


def test_a_corrected_mapping_that_is_not_in_the_database_yet_starts_nothing(code: Code) -> None:
    code.migrate()
    code.replicate(*TOO_LONG)
    mend(code)
    description, found = failure(code.run(JOB))
    assert "nothing was started" in description
    assert "run `dynaurora migrate employees`" in str(found["next step"])
    assert code.query("SELECT count(*) FROM replication.rejects WHERE replayed_at IS NULL") == [(3,)]
