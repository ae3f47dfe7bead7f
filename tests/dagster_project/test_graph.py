"""The graph as a person sees it, pinned, because changing it changes the product."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.freshness import TimeWindowFreshnessPolicy

from dagster_project.definitions import build
from dagster_project.freshness import Freshness
from pipeline.core.model.mapping import TableMapping
from pipeline.mappings import load_mappings
from tests.dagster_project.conftest import MAPPING

DYNAMODB = "https://console.aws.amazon.com/dynamodbv2/home"
PINNED: dict[str, dict[str, object]] = {
    "employees/catch_up": {
        "parents": ["employees/dynamodb_table"],
        "kinds": ["aws", "postgres", "s3"],
        "external": False,
        "checks": [],
        "links": {},
    },
    "employees/dynamodb_table": {
        "parents": [],
        "kinds": ["aws", "dynamodb"],
        "external": True,
        "checks": ["lost_history", "on_failure_waiting", "source_configuration"],
        "links": {"console": f"{DYNAMODB}#table?name=Employees"},
    },
    "employees/s3_export": {
        "parents": ["employees/dynamodb_table"],
        "kinds": ["aws", "s3"],
        "external": False,
        "checks": [],
        "links": {"console": f"{DYNAMODB}#exports"},
    },
    "employees/replication": {
        "parents": ["employees/dynamodb_table"],
        "kinds": ["aws", "lambda"],
        "external": True,
        "checks": ["lag", "rejects_waiting"],
        "links": {},
    },
    "employees/aurora_table": {
        "parents": ["employees/replication", "employees/s3_export"],
        "kinds": ["aurora", "postgres"],
        "external": False,
        "checks": ["schema_matches_mapping"],
        "links": {},
    },
    "employees/reconciliation": {
        "parents": ["employees/aurora_table"],
        "kinds": ["postgres"],
        "external": False,
        "checks": ["parity", "unmapped_attributes"],
        "links": {},
    },
}


def nodes(definitions: dg.Definitions) -> dict[str, dict[str, object]]:
    graph = definitions.resolve_asset_graph()
    return {
        key.to_user_string(): {
            "parents": sorted(parent.to_user_string() for parent in graph.get(key).parent_keys),
            "kinds": sorted(graph.get(key).kinds),
            "external": graph.get(key).is_external,
            "checks": sorted(check.name for check in graph.get(key).check_keys),
            "links": {
                name: value.value
                for name, value in graph.get(key).metadata.items()
                if isinstance(value, dg.UrlMetadataValue)
            },
        }
        for key in graph.get_all_asset_keys()
    }


def test_the_graph_of_a_table_is_pinned(folder: Path) -> None:
    definitions = build(folder)
    dg.Definitions.validate_loadable(definitions)
    assert nodes(definitions) == PINNED
    repository = definitions.get_repository_def()
    graph = definitions.resolve_asset_graph()
    assert {graph.get(key).group_name for key in graph.get_all_asset_keys()} == {"employees"}
    assert {job.name for job in repository.get_all_jobs()} == {
        "__ASSET_JOB",
        "employees_catch_up",
        "employees_full_load",
        "employees_load_files",
        "employees_promote",
        "employees_purge",
        "employees_reconcile",
        "employees_replay_rejects",
        "employees_repoint",
        "purge_events",
        "redrive",
    }
    assert [(s.name, s.cron_schedule, s.execution_timezone) for s in repository.schedule_defs] == [
        ("employees_purge_schedule", "30 4 * * *", "Europe/Berlin"),
        ("employees_reconcile_schedule", "0 3 * * *", "Europe/Berlin"),
        ("purge_events_schedule", "50 4 * * *", None),
    ]
    assert [s.default_status for s in repository.schedule_defs] == [
        dg.DefaultScheduleStatus.STOPPED,
        dg.DefaultScheduleStatus.RUNNING,
        dg.DefaultScheduleStatus.RUNNING,
    ]
    assert [s.name for s in repository.sensor_defs] == [
        "alerts",
        "given_up_batches",
        "lost_history",
        "replication_progress",
    ]
    assert all(graph.get(key).description for key in graph.get_all_asset_keys())
    for job in ("employees_full_load", "employees_load_files"):
        assert definitions.resolve_job_def(job).tags["dagster/max_runtime"] == str(3 * 24 * 3600)


def test_what_takes_a_table_for_itself_waits_in_one_pool(folder: Path) -> None:
    definitions = build(folder)
    for verb in ("full_load", "catch_up", "promote", "purge", "reconcile", "replay_rejects", "repoint"):
        node = definitions.resolve_job_def(f"employees_{verb}").get_node_named(f"employees__{verb}")
        assert node.definition.pools == {"employees_load"}, verb
    sharing = definitions.resolve_job_def("employees_load_files").get_node_named("employees__load_files")
    assert sharing.definition.pools == set()  # the load that launches it holds the pool while it waits for the files


def test_columns_have_types_origins_and_a_lineage_with_two_ends(folder: Path) -> None:
    graph = build(folder).resolve_asset_graph()
    source = graph.get(dg.AssetKey(["employees", "dynamodb_table"])).metadata
    target = graph.get(dg.AssetKey(["employees", "aurora_table"])).metadata
    attributes = {column.name: column for column in source["dagster/column_schema"].value.columns}
    columns = {column.name: column for column in target["dagster/column_schema"].value.columns}
    lineage = target["dagster/column_lineage"].value.deps_by_column
    assert source["dagster/table_name"] == "Employees"
    assert target["dagster/table_name"] == "public.Employees"
    assert {name: column.type for name, column in columns.items()} == {
        "Id": "bigint",
        "Name": "varchar(20)",
        "City": "text",
    }
    assert columns["Name"].description == "from attribute `empName`, 'NA' if it is missing"
    assert columns["City"].description == "where the desk is; from attribute `address.city`"
    assert columns["Id"].constraints.other == ["primary key"]
    assert columns["City"].constraints.other == ["index (City, Name desc)"]
    assert {column: dep.column_name for column, (dep,) in lineage.items()} == {
        "Id": "Id",
        "Name": "empName",
        "City": "address.city",
    }
    assert {dep.column_name for deps in lineage.values() for dep in deps} <= set(attributes)
    assert {dep.asset_key for deps in lineage.values() for dep in deps} == {
        dg.AssetKey(["employees", "dynamodb_table"])
    }
    assert attributes["Id"].type == "N"


def test_every_asset_of_a_table_has_its_owners(folder: Path) -> None:
    owners = ["team:people", "ama@example.com"]
    (folder / "employees.yaml").write_text(f"{MAPPING}owners: [{', '.join(owners)}]\n")
    graph = build(folder).resolve_asset_graph()
    assert all(graph.get(key).owners == owners for key in graph.get_all_asset_keys())


def test_the_aurora_table_shows_who_may_read_it(folder: Path) -> None:
    key = dg.AssetKey(["employees", "aurora_table"])
    assert "readers" not in build(folder).resolve_asset_graph().get(key).metadata
    (folder / "employees.yaml").write_text(f"{MAPPING}readers: [reporting, analysts]\n")
    assert build(folder).resolve_asset_graph().get(key).metadata["readers"] == "public.Employees: reporting, analysts"


def test_the_aurora_table_shows_the_history_that_is_kept(folder: Path) -> None:
    key = dg.AssetKey(["employees", "aurora_table"])
    assert "history" not in build(folder).resolve_asset_graph().get(key).metadata
    kept = MAPPING.replace("    primary_key:", "    history: {keep: 400d}\n    primary_key:", 1)
    (folder / "employees.yaml").write_text(kept)
    shown = build(folder).resolve_asset_graph().get(key).metadata["history"]
    assert shown == "public.Employees_history: every version for 400 days"


SHOP = Path(__file__).parents[2] / "examples" / "shop" / "tables"


def test_columns_of_several_targets_and_of_children_come_from_where_they_come() -> None:
    definitions = build(SHOP)
    dg.Definitions.validate_loadable(definitions)
    graph = definitions.resolve_asset_graph()
    source = graph.get(dg.AssetKey(["shop", "dynamodb_table"])).metadata
    target = graph.get(dg.AssetKey(["shop", "aurora_table"])).metadata
    attributes = {column.name: column.type for column in source["dagster/column_schema"].value.columns}
    descriptions = {column.name: column.description for column in target["dagster/column_schema"].value.columns}
    lineage = {
        column: dep.column_name for column, (dep,) in target["dagster/column_lineage"].value.deps_by_column.items()
    }
    assert target["dagster/table_name"] == "shop.Customers, shop.Orders, shop.OrderLines"
    assert lineage == {
        "shop.Customers.customer_id": "PK",
        "shop.Customers.name": "name",
        "shop.Customers.city": "address.city",
        "shop.Customers.since": "since",
        "shop.Orders.customer_id": "PK",
        "shop.Orders.placed_on": "SK",
        "shop.Orders.order_id": "SK",
        "shop.Orders.status": "status",
        "shop.Orders.total": "total",
        "shop.OrderLines.customer_id": "PK",
        "shop.OrderLines.placed_on": "SK",
        "shop.OrderLines.order_id": "SK",
        "shop.OrderLines.line": "lines",
        "shop.OrderLines.sku": "lines[].sku",
        "shop.OrderLines.quantity": "lines[].quantity",
    }
    assert set(lineage.values()) == set(attributes)
    assert (attributes["PK"], attributes["lines"], attributes["lines[].quantity"]) == ("S", "L", "N")
    assert descriptions["shop.Orders.placed_on"] == "from the part `placed_on` of attribute `SK`"
    assert descriptions["shop.OrderLines.line"] == "the element's place in `lines`"
    assert descriptions["shop.OrderLines.sku"] == "from attribute `lines[].sku`"


def test_a_broken_mapping_shows_beside_the_good_one(folder: Path) -> None:
    (folder / "orders-2.yaml").write_text(
        MAPPING.replace("name: employees", "name: Orders!").replace("bigint", "bigit")
    )
    definitions = build(folder)
    dg.Definitions.validate_loadable(definitions)
    found = nodes(definitions)
    broken = dg.AssetKey(["broken_mappings", "orders_2_yaml"])
    assert {key: found[key] for key in PINNED} == PINNED
    assert found[broken.to_user_string()]["checks"] == ["readable"]
    description = definitions.resolve_asset_graph().get(broken).description or ""
    assert f"{folder}/orders-2.yaml:" in description
    assert "bigit" in description
    everything = definitions.resolve_implicit_global_asset_job_def()
    check = everything.get_subset(asset_selection=set(), asset_check_selection={dg.AssetCheckKey(broken, "readable")})
    (result,) = check.execute_in_process().get_asset_check_evaluations()
    assert not result.passed
    assert "bigit" in (result.description or "")


def test_a_schedule_that_only_dagster_finds_wrong_breaks_its_table_alone(folder: Path) -> None:
    wrong = MAPPING.replace("name: employees", "name: orders").replace("table: Employees", "table: Orders")
    wrong = wrong.replace("  Employees:", "  Orders:").replace('"0 3 * * *"', '"0 99 * * *"')
    (folder / "orders.yaml").write_text(wrong)
    found = nodes(build(folder))
    assert set(found) == {*PINNED, "broken_mappings/orders_yaml"}


def test_a_new_file_appears_with_the_next_load_of_the_definitions(folder: Path) -> None:
    before = set(nodes(build(folder)))
    new = MAPPING.replace("name: employees", "name: orders").replace("table: Employees", "table: Orders")
    (folder / "orders.yaml").write_text(new.replace("  Employees:", "  Orders:"))
    after = set(nodes(build(folder)))
    assert after - before == {key.replace("employees", "orders") for key in before}


def test_a_folder_without_mappings_loads_and_is_shown_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nothing", "empty"):
        definitions = build(tmp_path / name)
        (node,) = nodes(definitions)
        assert node.startswith("broken_mappings")
        repository = definitions.get_repository_def()
        assert {sensor.name for sensor in repository.sensor_defs} >= {"alerts", "replication_progress"}
        (spec,) = repository.asset_graph.asset_check_keys
        assert spec.name == "readable"
        text = repository.asset_graph.get(spec.asset_key).description or ""
        assert "DYNAURORA_TABLES" in text


def test_importing_reads_nothing_and_loading_needs_no_database(folder: Path) -> None:
    script = """
import sys, warnings
warnings.simplefilter("error")
from dagster_project import definitions
import json, os
os.environ["DYNAURORA_TABLES"] = sys.argv[1]
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.reconstruct import repository_def_from_target_def
repository = repository_def_from_target_def(definitions.defs)
heavy = ("dagster_aws", "dagster_postgres", "pandas", "pyarrow")
print(json.dumps([sorted(j.name for j in repository.get_all_jobs()), [m for m in heavy if m in sys.modules]]))
"""
    environment = {"PATH": os.environ["PATH"], "DYNAURORA_TABLES": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    jobs, heavy = json.loads(done.stdout)
    assert "employees_full_load" in jobs
    assert heavy == []


@pytest.mark.parametrize(
    ("said", "windows"),
    [
        ({}, (300, 1800, 900, 1350)),
        ({"fail": timedelta(minutes=10)}, (600, 600, 360, 0)),
        ({"warn": timedelta(minutes=25)}, (1500, 1800, 900, 1500)),
        ({"warn": timedelta(seconds=5), "fail": timedelta(seconds=20)}, (5, 20, 36, 0)),
    ],
)
def test_freshness_follows_the_mapping(
    folder: Path, said: dict[str, timedelta], windows: tuple[float, float, float, float]
) -> None:
    mapping = load_mappings(folder)[0]
    freshness = Freshness.of(TableMapping(mapping.name, mapping.table, mapping.key, mapping.targets, freshness=said))
    policy = freshness.policy
    assert isinstance(policy, TimeWindowFreshnessPolicy)
    warns = policy.warn_window.to_timedelta() if policy.warn_window else timedelta(0)
    spans = (freshness.warn, freshness.fail, freshness.report_every, warns)
    assert tuple(span.total_seconds() for span in spans) == pytest.approx(windows)
    assert policy.fail_window.to_timedelta() == max(freshness.fail, timedelta(minutes=1))
