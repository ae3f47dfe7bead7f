"""Old events go and the newest stay: on a laptop's SQLite, in PostgreSQL, and by the job that the schedule launches."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.test_utils import freeze_time

from dagster_project.event_log import PURGE_EVENTS, Purged, purge_events
from dagster_project.keys import TableKeys
from pipeline.core.errors import ConfigurationError
from tests.dagster_project.conftest import Code
from tests.dagster_project.test_instances import FOLDER

KEYS = TableKeys("employees")
OTHERS = TableKeys("others")
NOW = datetime(2026, 5, 20, tzinfo=UTC)
OURS = [KEYS.replication, KEYS.aurora_table, KEYS.dynamodb_table]


@pytest.fixture(params=["sqlite", "postgresql"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance that keeps its events as the laptop's does, and as production's does."""
    if request.param == "sqlite":
        (tmp_path / "dagster.yaml").write_bytes((FOLDER / "laptop.yaml").read_bytes())
    else:
        storage = {"postgres": {"postgres_url": request.getfixturevalue("database")}}
        (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"storage": storage, "telemetry": {"enabled": False}}))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


def check(keys: TableKeys, name: str, number: int) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=keys.replication, check_name=name, passed=True, metadata={"number": dg.MetadataValue.int(number)}
    )


def tell(instance: dg.DagsterInstance, keys: TableKeys, *, days: int, first: int = 0) -> None:
    """Report on each of the last days, one of them now."""
    for number in range(first, days):
        with freeze_time(NOW - timedelta(days=days - 1 - number)):
            tags = {"dagster/data_version": str(number)}
            instance.report_runless_asset_event(dg.AssetMaterialization(keys.replication, tags=tags))
            instance.report_runless_asset_event(dg.AssetObservation(keys.replication))
            for name in ("lag", "rejects_waiting"):
                instance.report_runless_asset_event(check(keys, name, number))


def results(instance: dg.DagsterInstance, keys: TableKeys, name: str = "lag") -> list[Any]:
    """Numbers of the results of a check that are left, the newest first."""
    records = instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(keys.replication, name), limit=100
    )
    return [record.evaluation.metadata["number"].value for record in records if record.evaluation]


def counted(instance: dg.DagsterInstance, keys: TableKeys) -> tuple[int, int]:
    """How many materializations and observations are left."""
    return (
        len(instance.fetch_materializations(keys.replication, limit=100).records),
        len(instance.fetch_observations(keys.replication, limit=100).records),
    )


def in_log(instance: dg.DagsterInstance) -> tuple[int, int]:
    """How many rows the log has, and the file for events that belong to no run, if there is one."""
    storage = instance.event_log_storage
    assert isinstance(storage, SqlEventLogStorage)
    counts: list[int] = []
    for opened in (storage.index_connection(), storage.run_connection("")):
        with opened as connection:
            counts.append(connection.exec_driver_sql("SELECT count(*) FROM event_logs").scalar_one())
    return counts[0], counts[1]


def test_old_events_go_and_those_of_others_and_of_runs_stay(kept: dg.DagsterInstance) -> None:
    tell(kept, KEYS, days=10)
    tell(kept, OTHERS, days=10)

    @dg.asset(key=KEYS.replication)
    def ran() -> None: ...

    with freeze_time(NOW - timedelta(days=30)):
        dg.materialize([ran], instance=kept)
    before = in_log(kept)
    purged = purge_events(kept.event_log_storage, OURS, NOW - timedelta(days=3, hours=1))
    assert purged == Purged(of_assets=12, of_checks=12)
    assert results(kept, KEYS) == results(kept, KEYS, "rejects_waiting") == [9, 8, 7, 6]
    assert counted(kept, KEYS) == (4 + 1, 4)
    assert results(kept, OTHERS) == list(range(9, -1, -1))
    assert counted(kept, OTHERS) == (10, 10)
    assert in_log(kept) == (before[0] - 24, before[1] - 24)
    assert purge_events(kept.event_log_storage, OURS, NOW - timedelta(days=3, hours=1)) == Purged()


def test_the_newest_of_each_asset_and_check_stays_however_old(kept: dg.DagsterInstance) -> None:
    tell(kept, KEYS, days=5)
    kept.report_runless_asset_event(dg.AssetObservation(KEYS.aurora_table))
    purge_events(kept.event_log_storage, OURS, NOW + timedelta(days=400))
    assert results(kept, KEYS) == results(kept, KEYS, "rejects_waiting") == [4]
    assert counted(kept, KEYS) == (1, 1)
    newest = kept.get_latest_materialization_event(KEYS.replication)
    assert newest is not None
    assert newest.timestamp == NOW.timestamp()
    (record,) = kept.get_asset_records([KEYS.replication])
    assert record.asset_entry.last_materialization_record is not None
    assert len(kept.fetch_observations(KEYS.aurora_table, limit=10).records) == 1
    tell(kept, KEYS, days=7, first=5)
    assert results(kept, KEYS) == [6, 5, 4], "it continues as before"


def test_more_than_a_chunk_goes(kept: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dagster_project.event_log.CHUNK_EVENTS", 3)
    tell(kept, KEYS, days=10)
    assert purge_events(kept.event_log_storage, OURS, NOW) == Purged(of_assets=18, of_checks=18)
    assert counted(kept, KEYS) == (1, 1)


def test_the_schedule_is_on_and_its_job_purges_what_is_older_than_the_form_says(code: Code) -> None:
    repository = code.definitions.get_repository_def()
    schedule = repository.get_schedule_def(f"{PURGE_EVENTS}_schedule")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    today = datetime.now(UTC)
    for days_ago in (20, 15, 13, 0):
        with freeze_time(today - timedelta(days=days_ago)):
            code.instance.report_runless_asset_event(check(KEYS, "lag", days_ago))
    context = dg.build_schedule_context(instance=code.instance, repository_def=repository)
    (request,) = schedule.evaluate_tick(context).run_requests or []
    assert code.run(schedule.job_name, dict(request.run_config)).success
    assert results(code.instance, KEYS) == [0, 13]
    assert code.run(schedule.job_name, {"keep_days": 1}).success
    assert results(code.instance, KEYS) == [0]


def test_an_instance_that_keeps_no_tables_is_told(kept: dg.DagsterInstance) -> None:
    assert kept
    with pytest.raises(ConfigurationError, match="keeps no tables of events; turn this schedule off"):
        purge_events(object(), OURS, NOW)
