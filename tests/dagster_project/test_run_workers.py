"""The runs that share a load's files, as jobs; with real run workers they are in test_crash.py."""

from __future__ import annotations

from tests.dagster_project.conftest import Code
from tests.dagster_project.test_full_load import logged


def test_a_load_without_a_run_launcher_loads_every_file_itself_and_says_so(code: Code) -> None:
    code.migrate()
    result = code.run("employees_full_load", {"manifest": code.export(50).location, "run_workers": 3})
    assert result.success
    assert code.query('SELECT count(*) FROM "Employees"') == [(50,)]
    assert any("it loads every file itself" in line for line in logged(code, result.run_id))
    assert len(code.instance.get_runs()) == 1


def test_a_run_whose_load_has_ended_does_nothing_and_says_so(code: Code) -> None:
    code.migrate()
    code.run("employees_full_load", {"manifest": code.export(5).location})
    late = code.run("employees_load_files", {"export_id": 1, "ticket": 1})
    assert late.success
    assert any("the load had ended" in line and "0 files" in line for line in logged(code, late.run_id))
