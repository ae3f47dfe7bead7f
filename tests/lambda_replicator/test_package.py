"""The zip: its contents, its size, and that the same inputs give the same bytes."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lambda_replicator import package

OURS = {"lambda_replicator", "pipeline"}


@pytest.fixture(scope="module")
def names(archive: Path) -> set[str]:
    """Paths in the zip."""
    with zipfile.ZipFile(archive) as zipped:
        return set(zipped.namelist())


def test_it_is_under_the_limit(archive: Path) -> None:
    assert 1_000_000 < archive.stat().st_size < package.LIMIT_BYTES


def test_it_holds_exactly_the_modules_of_ours_that_the_handler_loads(names: set[str]) -> None:
    """Neither the package builder, nor the load, nor anything for Dagster."""
    program = "import json, sys, lambda_replicator.handler; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    loaded = {name for name in json.loads(done.stdout) if name.partition(".")[0] in OURS}
    held = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in names
        if name.partition("/")[0] in OURS
    }
    assert held == loaded
    assert "lambda_replicator.package" not in held
    source = {name for name in held if name.startswith("pipeline.dynamodb")}
    assert source == {
        "pipeline.dynamodb",
        "pipeline.dynamodb.clock",
        "pipeline.dynamodb.errors",
        "pipeline.dynamodb.secrets",
    }
    assert not any(name.startswith(("pipeline.local", "pipeline.jobs.load")) for name in held)


def test_it_holds_the_mappings(names: set[str]) -> None:
    assert {name for name in names if name.startswith("tables/")} == {"tables/employees.yaml"}


def test_a_change_to_any_file_in_it_makes_the_local_one_again() -> None:
    """Otherwise `make demo` and `make ui` would run yesterday's code."""
    zipped = "build/local/lambda_replicator.zip"
    done = subprocess.run(
        ["make", "--print-data-base", "--question", zipped],  # noqa: S607  whichever make a person has
        check=False,
        capture_output=True,
        text=True,
        cwd=package.PROJECT,
    )
    (rule,) = [line for line in done.stdout.splitlines() if line.startswith(f"{zipped}: ")]
    made_from = set(rule.split())
    needed = {*package.own_files(package.loaded_modules()), "tables/employees.yaml", "requirements/lambda.txt"}
    assert needed <= made_from
    assert not [name for name in made_from if name.startswith("pipeline/local/")]


def test_it_holds_no_dependency_that_nothing_imports(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == OURS | {
        "tables",
        "aws_lambda_powertools",
        "jmespath",
        "psycopg",
        "psycopg_binary",
        "psycopg_binary.libs",
        "typing_extensions.py",
        "yaml",
    }
    assert not any(name.startswith("aws_lambda_powertools/event_handler/") for name in names)
    assert not any("__pycache__" in name or name.endswith((".pyc", ".pyi")) for name in names)


def test_it_carries_versions_and_licences(names: set[str]) -> None:
    metadata = {name.rpartition("-")[0] for name in names if name.endswith(".dist-info/METADATA")}
    parts = {name.split("-", 1)[0] for name in names if name.endswith(".dist-info/METADATA")}
    assert metadata
    assert {"aws_lambda_powertools", "psycopg", "psycopg_binary", "pyyaml"} <= parts
    assert any(name.startswith("psycopg-") and "LICENSE" in name for name in names)


def test_its_driver_is_compiled_for_the_python_it_was_built_for(
    names: set[str], tmp_path: Path, mappings: Path
) -> None:
    here = f"cpython-3{sys.version_info.minor}-x86_64"
    assert any(here in name and name.startswith("psycopg_binary/_psycopg") for name in names)
    other = 12 if sys.version_info.minor == 13 else 13
    path = tmp_path / "other.zip"
    package.build(path, python_version=f"3.{other}", tables=mappings)
    with zipfile.ZipFile(path) as zipped:
        drivers = [name for name in zipped.namelist() if name.startswith("psycopg_binary/_psycopg")]
    assert drivers == [f"psycopg_binary/_psycopg.cpython-3{other}-x86_64-linux-gnu.so"]


def test_the_same_inputs_give_the_same_bytes(archive: Path, tmp_path: Path, mappings: Path) -> None:
    again = tmp_path / "again.zip"
    package.build(again, python_version=f"3.{sys.version_info.minor}", tables=mappings)
    assert again.read_bytes() == archive.read_bytes()


def test_the_shares_add_up(archive: Path) -> None:
    sizes = package.shares(archive)
    with zipfile.ZipFile(archive) as zipped:
        assert sum(sizes.values()) == sum(entry.compress_size for entry in zipped.infolist())
    assert next(iter(sizes)) == "psycopg_binary"
