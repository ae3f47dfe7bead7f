"""Catch up through the command line and the local stack's export service, killed at random moments and run again.

The outage is real and short: writes continue for a moment while nothing is delivered. `CATCH_UP_KILLS` sets how many
runs are killed (3 unless set).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.mapping import TableMapping
from pipeline.dynamodb.client import client
from pipeline.jobs.load.load import load
from pipeline.jobs.services import Services
from pipeline.jobs.snapshots.snapshot import take_snapshot
from pipeline.local.stack import LocalStack
from pipeline.settings import Settings
from tests.jobs.conftest import view
from tests.jobs.past_table import item

KILLS = int(os.environ.get("CATCH_UP_KILLS", "3"))
MARGIN = timedelta(seconds=1)


@pytest.fixture
def environment(
    stack: LocalStack, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, employees: TableMapping
) -> dict[str, str]:
    """The command's environment: a table of its own, its mapping, a bucket."""
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    table, bucket = f"Employees-{uuid4().hex[:8]}", f"exports-{uuid4().hex[:8]}"
    dynamodb = client("dynamodb", stack.endpoint_url)
    client("s3", stack.endpoint_url).create_bucket(Bucket=bucket)
    dynamodb.create_table(
        TableName=table,
        AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
        KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    dynamodb.update_continuous_backups(
        TableName=table, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
    )
    (tmp_path / "tables").mkdir()
    text = Path(employees.path).read_text().replace("table: Employees", f"table: {table}")
    (tmp_path / "tables" / "employees.yaml").write_text(text)
    settings = {"DYNAURORA_TABLES": str(tmp_path / "tables"), "DYNAURORA_EXPORT_BUCKET": bucket, "TABLE": table}
    return {**os.environ, "DATABASE_URL": database, **settings}


@pytest.fixture
def source(environment: dict[str, str], connection: Connection, employees: TableMapping) -> TableMapping:
    connection.execute("UPDATE replication.tables SET source_table = %s", [environment["TABLE"]])
    return replace(employees, table=environment["TABLE"])


def command(environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pipeline.cli", *words],
        env={**environment, "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(300)
def test_an_outage_is_healed_however_often_the_catch_up_is_killed(
    services: Services, environment: dict[str, str], source: TableMapping, connection: Connection
) -> None:
    assert services  # migrated
    real = Services(Settings.from_environment(environment))
    dynamodb = real.dynamodb
    time.sleep(1.1)
    begin = datetime.now(UTC).replace(microsecond=0)  # not before the table could be restored
    state: dict[int, str] = {}

    def put(number: int, name: str) -> None:
        dynamodb.put_item(TableName=source.table, Item=item(number, name))
        state[number] = name

    for number in range(60):
        put(number, "loaded")
    load(real, source, take_snapshot(real, source).location, margin=MARGIN)
    time.sleep(1.1)  # exports begin and end at whole seconds
    for number in range(30, 90):
        put(number, "lost")
    for number in range(0, 90, 4):
        dynamodb.delete_item(TableName=source.table, Key={"Id": {"N": str(number)}})
        del state[number]
    time.sleep(2.5)  # so that the next step is later than the margin
    end = datetime.now(UTC).replace(microsecond=0)
    words = ["catch-up", "employees", "--from", begin.isoformat(), "--to", end.isoformat(), "--margin-seconds", "1"]
    chance = random.Random()
    for _ in range(KILLS):
        process = command(environment, *words, "--json")
        time.sleep(chance.uniform(0.3, 3))
        process.kill()
        process.communicate()
    report = run_until_free(environment, *words, "--json")
    assert {number: name for number, (name, _) in view(connection).items()} == state
    assert report["items"] == report["applied"] + report["stale"] > 60
    again = run_until_free(environment, *words, "--json")
    assert all(window["already_applied"] for window in again["windows"])
    assert {number: name for number, (name, _) in view(connection).items()} == state


def run_until_free(environment: dict[str, str], *words: str) -> dict[str, Any]:
    """Run the command; the server takes a moment to notice that a killed one is gone."""
    for _ in range(100):
        process = command(environment, *words)
        out, err = process.communicate()
        if process.returncode == 0:
            return json.loads(out)
        assert "another load" in err, err
        time.sleep(0.1)
    raise AssertionError("the killed catch-up kept its lock")


def test_wrong_use_is_said_with_exit_code_2(environment: dict[str, str], services: Services) -> None:
    assert services  # migrated
    for words, said in (
        (["--from", "2026-05-01"], "is not a time with an offset"),
        (["--last", "3 weeks"], "is not a duration"),
        (["--export-arn", "arn", "--to", "2026-05-01T00:00:00Z"], "an export has a window of its own"),
    ):
        process = command(environment, "catch-up", "employees", *words)
        _, err = process.communicate()
        assert process.returncode == 2
        assert said in err
