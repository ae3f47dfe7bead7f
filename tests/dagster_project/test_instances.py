"""Both dagster.yaml files: Dagster accepts them, and they configure what they should."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config, dagster_instance_config_schema
from psycopg.conninfo import conninfo_to_dict

from pipeline.local.postgres import PostgresServer

FOLDER = Path(__file__).parents[2] / "dagster_project" / "instance"


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.mark.parametrize("name", ["laptop.yaml", "production.yaml"])
def test_dagster_accepts_it_and_nothing_phones_home(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("POSTGRES_HOST", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_DB", "LOGS_BUCKET"):
        monkeypatch.setenv(f"DAGSTER_{variable}", "x")
    dagster_instance_config(str(FOLDER), name)
    config = read(name)
    result = process_config(dagster_instance_config_schema(), config)
    assert result.success, result.errors
    assert config["telemetry"] == config["nux"] == {"enabled": False}
    assert config["concurrency"]["pools"] == {"default_limit": 1, "granularity": "op"}
    assert config["run_monitoring"]["enabled"]


def test_a_laptop_instance_keeps_events_across_restarts(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_bytes((FOLDER / "laptop.yaml").read_bytes())

    with dg.DagsterInstance.from_config(str(tmp_path)) as first:
        first.report_runless_asset_event(dg.AssetMaterialization("somewhere"))
    with dg.DagsterInstance.from_config(str(tmp_path)) as second:
        assert second.get_latest_materialization_event(dg.AssetKey("somewhere")) is not None
        assert not second.telemetry_enabled
        assert not second.nux_enabled
        assert second.get_concurrency_config().pool_config.default_pool_limit == 1


@pytest.mark.parametrize("part", ["run_launcher", "compute_logs"])
def test_the_parts_of_dagster_aws_accept_their_configuration(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_LOGS_BUCKET", "logs")
    chosen = read("production.yaml")[part]
    configurable = getattr(importlib.import_module(chosen["module"]), chosen["class"])
    result = process_config(configurable.config_type(), chosen["config"])
    assert result.success, result.errors


def test_production_storage_keeps_events_in_postgresql(
    postgres: PostgresServer, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = conninfo_to_dict(database)
    for name, key in (("HOST", "host"), ("USER", "user"), ("PASSWORD", "password"), ("DB", "dbname")):
        monkeypatch.setenv(f"DAGSTER_POSTGRES_{name}", str(parts[key]))
    storage = read("production.yaml")["storage"]
    params = storage["postgres"]["postgres_db"]["params"]
    assert (params["sslmode"], params["tcp_user_timeout"]) == ("require", 25_000)
    storage["postgres"]["postgres_db"].update(port=postgres.port, params=params | {"sslmode": "disable"})
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"storage": storage, "telemetry": {"enabled": False}}))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("somewhere"))
        assert instance.get_latest_materialization_event(dg.AssetKey("somewhere")) is not None
