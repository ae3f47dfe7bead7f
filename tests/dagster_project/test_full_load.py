"""The full load as a run: real PostgreSQL, real exports in a folder, and what the run reports to the person on duty."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from dagster_project import failures
from dagster_project.definitions import build
from dagster_project.progress_log import ProgressLog
from dagster_project.resources import ServicesResource
from pipeline.jobs.load.load import LoadProgress
from tests.dagster_project.conftest import Code
from tests.dynamodb.export_fixture import Layout

AURORA, EXPORT = dg.AssetKey(["employees", "aurora_table"]), dg.AssetKey(["employees", "s3_export"])
REPLICATION = dg.AssetKey(["employees", "replication"])


def metadata(result: dg.ExecuteInProcessResult, key: dg.AssetKey) -> dict[str, object]:
    (event,) = [e for e in result.get_asset_materialization_events() if e.asset_key == key]
    return {name: value.value for name, value in event.materialization.metadata.items()}


def failure(result: dg.ExecuteInProcessResult) -> tuple[str, dict[str, object]]:
    (event,) = [e for e in result.all_events if e.is_step_failure]
    user = event.step_failure_data.user_failure_data
    assert user is not None
    return user.description or "", {name: value.value for name, value in user.metadata.items()}


def logged(code: Code, run_id: str) -> list[str]:
    return [entry.user_message for entry in code.instance.all_logs(run_id) if entry.dagster_event is None]


def test_a_load_fills_the_view_and_says_what_it_did(code: Code) -> None:
    code.migrate()
    code.replicate({"Id": {"N": "3"}, "empName": {"S": "newer"}})
    at = datetime.now(UTC)
    export = code.export(1000, at=at)
    result = code.run("employees_full_load", {"manifest": export.location, "margin_seconds": 90, "workers": 3})
    assert result.success
    assert code.query('SELECT count(*), count(*) FILTER (WHERE "Name" = \'newer\') FROM "Employees"') == [(1000, 1)]
    taken, loaded = metadata(result, EXPORT), metadata(result, AURORA)
    assert (taken["location"], taken["dagster/row_count"], taken["files"]) == (export.location, 1000, 4)
    assert taken["export_arn"] == export.export_arn
    region = export.export_arn.split(":")[3]
    assert taken["console"] == (f"https://{region}.console.aws.amazon.com/dynamodbv2/home?region={region}#exports")
    assert (loaded["dagster/row_count"], loaded["applied"], loaded["stale"], loaded["rejected"]) == (1000, 999, 1, 0)
    assert (loaded["files"], loaded["files_resumed"], loaded["already_loaded"]) == (4, 0, False)
    assert float(str(loaded["rows_per_second"])) > 0
    assert float(str(loaded["snapshot_time"])) - float(str(loaded["as_of"])) == pytest.approx(90)
    assert float(str(loaded["snapshot_time"])) == pytest.approx(at.timestamp(), abs=0.001)
    assert any("4 of 4 files, 1,000 of 1,000 rows" in line for line in logged(code, result.run_id))
    again = code.run("employees_full_load", {"manifest": export.location, "margin_seconds": 90})
    assert metadata(again, AURORA)["already_loaded"] is True


def test_rejected_items_are_not_counted_as_rows(code: Code) -> None:
    code.migrate()
    too_long = {"Id": {"N": "77"}, "empName": {"S": "x" * 21}}
    export = code.exports.full([too_long, {"Id": {"N": "78"}}], export_time=datetime.now(UTC))
    loaded = metadata(code.run("employees_full_load", {"manifest": export.location}), AURORA)
    assert (loaded["items"], loaded["rejected"], loaded["dagster/row_count"]) == (2, 1, 1)


def test_the_rows_of_several_targets_are_those_of_their_items(code: Code, folder: Path) -> None:
    shop = (Path(__file__).parents[2] / "examples" / "shop" / "tables" / "shop.yaml").read_text()
    (folder / "shop.yaml").write_text(shop)
    code.definitions = build(folder, code.resource)
    code.migrate()
    keys = ("CUSTOMER#1", "PROFILE"), ("CUSTOMER#2", "PROFILE"), ("CUSTOMER#1", "ORDER#2026-05-01#a"), ("STORE#1", "X")
    export = code.exports.full(
        [{"PK": {"S": partition}, "SK": {"S": sort}} for partition, sort in keys],
        Layout(table="Shop"),
        export_time=datetime.now(UTC),
    )
    result = code.run("shop_full_load", {"manifest": export.location})
    loaded = metadata(result, dg.AssetKey(["shop", "aurora_table"]))
    assert (loaded["items"], loaded["rejected"], loaded["dagster/row_count"]) == (4, 1, 3)
    assert code.query('SELECT (SELECT count(*) FROM shop."Customers"), (SELECT count(*) FROM shop."Orders")') == [
        (2, 1)
    ]


def schema_check(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    (found,) = [check for check in result.get_asset_check_evaluations() if check.check_name == "schema_matches_mapping"]
    return found


def test_a_load_into_a_database_that_is_not_migrated_starts_nothing_and_tells_to_migrate(code: Code) -> None:
    result = code.run("employees_full_load")
    description, found = failure(result)
    assert not result.success
    assert "create or complete schema replication" in description
    assert "run `dynaurora migrate employees`" in str(found["next step"])
    assert not [e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]
    assert not result.get_asset_materialization_events()
    check = schema_check(result)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "run `dynaurora migrate employees`" in (check.description or "")


def test_a_mapping_that_has_gained_a_column_stops_the_next_load_until_it_is_migrated(code: Code, folder: Path) -> None:
    code.migrate()
    export = code.export(3)
    loaded = code.run("employees_full_load", {"manifest": export.location})
    assert schema_check(loaded).passed
    text = (folder / "employees.yaml").read_text()
    (folder / "employees.yaml").write_text(
        text.replace("    indexes:", "      Room: {attribute: room, type: text}\n    indexes:")
    )
    code.definitions = build(folder, code.resource)
    refused = code.run("employees_full_load", {"manifest": code.export(4).location})
    assert not schema_check(refused).passed
    assert "Room" in failure(refused)[0]
    code.migrate()
    assert code.run("employees_full_load", {"manifest": code.export(5).location}).success


def test_a_change_that_migrate_refuses_stops_the_load_with_its_way_out(code: Code, folder: Path) -> None:
    code.migrate()
    text = (folder / "employees.yaml").read_text()
    (folder / "employees.yaml").write_text(text.replace("varchar(20)", "varchar(5)"))
    code.definitions = build(folder, code.resource)
    description, found = failure(code.run("employees_full_load", {"manifest": code.export(3).location}))
    assert "Name" in description
    assert found["next step"]


def test_the_schema_can_be_checked_without_a_load(code: Code) -> None:
    key = dg.AssetCheckKey(AURORA, "schema_matches_mapping")
    job = code.definitions.resolve_implicit_global_asset_job_def()
    alone = job.get_subset(asset_selection=set(), asset_check_selection={key})
    assert not schema_check(alone.execute_in_process(instance=code.instance)).passed
    code.migrate()
    result = alone.execute_in_process(instance=code.instance)
    assert schema_check(result).passed
    assert not result.get_asset_materialization_events()


def test_a_damaged_file_fails_with_its_name_and_is_not_tried_again(code: Code, tmp_path: Path) -> None:
    code.migrate()
    export = code.export(30)
    damaged = tmp_path / "s3" / export.data_keys[1]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    result = code.run("employees_full_load", {"manifest": export.location})
    description, _ = failure(result)
    assert damaged.name in description
    assert not [e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]


def test_a_database_that_is_away_is_tried_again_and_then_explained(
    code: Code, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "FIRST_WAIT_SECONDS", 0.01)
    export = code.export(5)
    code.definitions = build(folder, ServicesResource(database_url="postgresql://nobody@127.0.0.1:1/none"))
    result = code.run("employees_full_load", {"manifest": export.location})
    description, found = failure(result)
    assert len([e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]) == failures.RETRIES
    assert "connection refused" in description
    assert "cluster is up" in str(found["next step"])


def test_a_retried_run_loads_its_own_export_and_not_a_later_one(code: Code, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    first, second = code.export(10, at=now), code.export(20, at=now + timedelta(seconds=1))
    code.migrate()
    damaged = tmp_path / "s3" / first.data_keys[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(b"")
    failed = code.run("employees_full_load", {"manifest": first.location})
    assert not failed.success
    damaged.write_bytes(whole)
    exports = code.definitions.resolve_implicit_global_asset_job_def().get_subset(asset_selection={EXPORT})
    choice = {"ops": {"employees__full_load": {"config": {"manifest": second.location}}}}
    assert exports.execute_in_process(instance=code.instance, run_config=choice).success
    job = code.definitions.resolve_job_def("employees_full_load")
    tags = {"dagster/parent_run_id": failed.run_id, "dagster/root_run_id": failed.run_id}
    ways = [
        (job, "dagster/is_resume_retry"),
        (job.get_subset(asset_selection={AURORA}), "dagster/is_asset_resume_retry"),
    ]
    for again, tag in ways:  # the UI's "from failure" and "from asset failure"
        resumed = again.execute_in_process(
            instance=code.instance, tags={**tags, tag: "true"}, run_config={"workers": 1}
        )
        assert metadata(resumed, AURORA)["location"] == first.location
        assert not [e for e in resumed.get_asset_materialization_events() if e.asset_key == EXPORT]
    anew = job.execute_in_process(instance=code.instance, tags=tags, run_config={"manifest": second.location})
    assert metadata(anew, AURORA)["location"] == second.location


def test_the_table_on_its_own_loads_the_latest_export(code: Code) -> None:
    code.migrate()
    table = code.definitions.resolve_implicit_global_asset_job_def().get_subset(asset_selection={AURORA})
    nothing = table.execute_in_process(instance=code.instance, raise_on_error=False)
    assert "no export has been taken" in failure(nothing)[0]
    latest = code.export(7)
    exports = code.definitions.resolve_implicit_global_asset_job_def().get_subset(asset_selection={EXPORT})
    choice = {"ops": {"employees__full_load": {"config": {"manifest": latest.location}}}}
    assert exports.execute_in_process(instance=code.instance, run_config=choice).success
    loaded = table.execute_in_process(instance=code.instance)
    assert metadata(loaded, AURORA)["location"] == latest.location


def test_reports_of_replication_do_not_make_the_table_look_out_of_date(code: Code) -> None:
    code.migrate()
    code.run("employees_full_load", {"manifest": code.export(3).location})
    graph = code.definitions.resolve_asset_graph()

    def stale() -> StaleStatus:
        return CachingStaleStatusResolver(code.instance, graph, LoadingContextForTest(code.instance)).get_status(AURORA)

    assert stale() == StaleStatus.FRESH
    code.instance.report_runless_asset_event(dg.AssetMaterialization(REPLICATION))
    code.instance.report_runless_asset_event(dg.AssetMaterialization(REPLICATION))
    assert stale() == StaleStatus.FRESH
    exports = code.definitions.resolve_implicit_global_asset_job_def().get_subset(asset_selection={EXPORT})
    choice = {"ops": {"employees__full_load": {"config": {"manifest": code.export(4).location}}}}
    exports.execute_in_process(instance=code.instance, run_config=choice)
    assert stale() == StaleStatus.STALE


def test_a_missing_export_says_so(code: Code, tmp_path: Path) -> None:
    code.migrate()
    export = code.export(3)
    shutil.rmtree(tmp_path / "s3")
    description, _ = failure(code.run("employees_full_load", {"manifest": export.location}))
    assert "there is no such object" in description


def test_progress_is_logged_every_two_seconds_and_at_the_end() -> None:
    lines: list[str] = []
    clock = iter([0.0, 0.5, 1.9, 2.1, 3.0, 3.1])
    log = ProgressLog(lines.append, monotonic=lambda: next(clock))
    for done in range(6):
        log(LoadProgress(done, 5, done * 100, 500, 0, 1.0, 1234.5, None if done == 0 else 5.0 - done))
    assert lines == [
        "0 of 5 files, 0 of 500 rows, 1,234 rows/s",
        "3 of 5 files, 300 of 500 rows, 1,234 rows/s, about 2 s left",
        "5 of 5 files, 500 of 500 rows, 1,234 rows/s",
    ]
