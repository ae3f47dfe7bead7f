"""Forms: a wrong value fails when the job is launched, says what to write, and leaves no run behind."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from dagster_project.forms import RepointChoice, full_load_form, reconcile_form
from dagster_project.promotion import promote_form
from dagster_project.replay import ReplayChoice
from tests.dagster_project.conftest import Code

EXPORT = "arn:aws:dynamodb:eu-central-1:111122223333:table/Employees/export/01715685260608-c488b4e1"
SUMMARY = "s3://bucket/AWSDynamoDB/1/manifest-summary.json"

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("employees_full_load", {"margin_seconds": 0}, "margin_seconds"),
    ("employees_full_load", {"margin_seconds": None}, "margin_seconds"),
    ("employees_full_load", {"workers": 0}, "workers"),
    ("employees_full_load", {"workers": 33}, "less than or equal to 32"),
    ("employees_full_load", {"run_workers": 17}, "less than or equal to 16"),
    ("employees_load_files", {"export_id": 1}, "ticket"),
    ("employees_full_load", {"export_arn": "arn:aws:s3:::x"}, "export_arn is not the ARN of an export"),
    ("employees_full_load", {"manifest": "s3://bucket/AWSDynamoDB/1"}, "manifest is not the location"),
    ("employees_full_load", {"manifest": "/tmp/manifest-summary.json"}, "manifest is not the location"),
    ("employees_full_load", {"export_arn": EXPORT, "manifest": SUMMARY}, "are both given"),
    ("employees_full_load", {"scan": True, "manifest": SUMMARY}, "scan and an export are given"),
    ("employees_full_load", {"read_capacity": 0}, "read_capacity"),
    ("employees_purge", {"retention_days": 0}, "retention_days"),
    ("employees_promote", {"attribute": "empNmae"}, "did you mean empName?"),
    ("employees_promote", {"attribute": "Id"}, "no column can be filled from Id"),
    ("employees_replay_rejects", {"limit": -1}, "limit: input should be greater than or equal to 0"),
    ("employees_repoint", {"dry_run": "perhaps"}, "dry_run"),
    ("employees_repoint", {"table": "Staff"}, "table"),
    ("redrive", {"prefix": "bucket/prefix"}, "prefix is not s3://"),
    ("redrive", {"prefix": "s3://b/p", "queue": "https://q"}, "are both given"),
    ("employees_reconcile", {"margin_seconds": 0}, "margin_seconds"),
    ("employees_reconcile", {"export_arn": EXPORT, "manifest": SUMMARY}, "are both given"),
]


@pytest.mark.parametrize(("job", "config", "said"), WRONG)
def test_a_wrong_value_starts_nothing(code: Code, job: str, config: dict[str, Any], said: str) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError) as caught:
        code.run(job, config)
    assert said in str(caught.value)
    assert code.instance.get_runs() == []


@pytest.mark.parametrize("config", [{"margin": 5}, {"repair": True}, {"workers": "two"}, {"ops": {}}])
def test_what_the_form_does_not_know_starts_nothing(code: Code, config: dict[str, Any]) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError):
        code.run("employees_full_load", config)
    assert code.instance.get_runs() == []


def test_every_field_has_a_default_and_a_description(code: Code) -> None:
    load = full_load_form(code.mapping).to_fields_dict()
    reconcile = reconcile_form(code.mapping).to_fields_dict()
    assert {name: field.default_value for name, field in load.items()} == {
        "export_wait": "",
        "new_export": False,
        "accept_other_table": False,
        "export_arn": "",
        "manifest": "",
        "scan": False,
        "read_capacity": 100,
        "margin_seconds": 60,
        "workers": 2,
        "run_workers": 1,
    }
    assert {name: field.default_value for name, field in reconcile.items()} == {
        "export_wait": "",
        "new_export": False,
        "accept_other_table": False,
        "export_arn": "",
        "manifest": "",
        "scan": False,
        "read_capacity": 100,
        "margin_seconds": 60,
        "repair": False,
        "chunk_seconds": 2.0,
        "max_share": 1.0,
    }
    promote, replay = promote_form(code.mapping).to_fields_dict(), ReplayChoice.to_fields_dict()
    assert {name: field.default_value for name, field in promote.items()} == {"attribute": ""}
    assert {name: field.default_value for name, field in replay.items()} == {"limit": 0}
    repoint = RepointChoice.to_fields_dict()
    assert {name: field.default_value for name, field in repoint.items()} == {"dry_run": False}
    fields = [*load.values(), *reconcile.values(), *promote.values(), *replay.values(), *repoint.values()]
    assert all(field.description for field in fields)
