"""Modules that importing the handler loads, and those that it does not: every cold start pays for each."""

from __future__ import annotations

import json
import subprocess
import sys

FORBIDDEN = {"dagster", "dagster_aws", "pandas", "numpy", "pyarrow", "pydantic", "rich", "sqlalchemy", "jsonschema"}
# Our own modules, by package: adding one here is a decision, because every cold start pays for it.
ALLOWED = {
    "pipeline",
    "pipeline.settings",
    "pipeline.driver_logs",
    "pipeline.dynamodb",
    "pipeline.dynamodb.clock",
    "pipeline.dynamodb.errors",
    "pipeline.dynamodb.secrets",
    "pipeline.mappings",
    "pipeline.jobs",
    "pipeline.jobs.memory",
    "pipeline.jobs.replicate",
}
ALLOWED_PREFIXES = ("pipeline.core", "pipeline.aurora", "lambda_replicator")
# Required: the SDK, the driver, the YAML reader, and Powertools, which the seed uses to log and to read secrets.
NEEDED = "boto3, psycopg, psycopg_binary, yaml, aws_lambda_powertools.logging"


def python(program: str) -> str:
    """Run a program in a fresh interpreter and return what it prints."""
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


def packages(imports: str) -> set[str]:
    """Return the top-level packages that are loaded by some imports."""
    loaded = json.loads(python(f"import json, sys, {imports}; print(json.dumps(list(sys.modules)))"))
    return {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)


def test_it_loads_nothing_of_the_orchestration_and_no_data_frames() -> None:
    loaded = set(
        json.loads(python("import json, sys, lambda_replicator.handler; print(json.dumps(list(sys.modules)))"))
    )
    assert not FORBIDDEN & {name.partition(".")[0] for name in loaded}
    ours = {name for name in loaded if name.partition(".")[0] in {"pipeline", "lambda_replicator", "dagster_project"}}
    assert "lambda_replicator.handler" in ours
    assert not {name for name in ours if name not in ALLOWED and not name.startswith(ALLOWED_PREFIXES)}
    assert "lambda_replicator.package" not in ours


def test_it_reads_no_environment_and_opens_nothing_when_imported() -> None:
    """Any read of this environment would fail, and opening sockets or our files is refused."""
    program = """
import os, socket, sys
os.environ["DATABASE_SECRET_ID"] = "x"
read = []
real = type(os.environ).__getitem__
def watched(self, key):
    if key.startswith(("DATABASE", "DYNAURORA", "POWERTOOLS")):
        read.append(key)
    return real(self, key)
type(os.environ).__getitem__ = watched
socket.socket.connect = lambda *a: read.append("socket")
import lambda_replicator.handler
import lambda_replicator.runtime
assert lambda_replicator.runtime._runtime is None
print([key for key in read if not key.startswith("POWERTOOLS")])
"""
    assert python(program).strip() == "[]"


def test_it_loads_no_package_but_those_it_cannot_do_without() -> None:
    assert packages("lambda_replicator.handler") - packages(NEEDED) == {"lambda_replicator", "pipeline"}
