"""The command line on a host whose clock is off (`faketime`), against a source and a database that are right."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.sessions.connection import Connection
from tests.jobs.conftest import view
from tests.jobs.reconcile.conftest import Source, execute, item

FAKETIME = shutil.which("faketime")

pytestmark = pytest.mark.skipif(FAKETIME is None, reason="faketime is not installed (apt-get install faketime)")


@dataclass
class Host:
    environment: dict[str, str]

    def run(self, off: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command with this host's clock off by this much, such as +10m."""
        return subprocess.run(
            [str(FAKETIME), "-f", off, sys.executable, "-P", "-m", "pipeline.cli", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture
def host(source: Source, database: str, tmp_path: Path) -> Host:
    folder = tmp_path / "tables"
    folder.mkdir()
    text = Path(source.mapping.path).read_text().replace("table: Employees", f"table: {source.mapping.table}")
    (folder / "employees.yaml").write_text(text)
    settings = {"DATABASE_URL": database, "DYNAURORA_TABLES": str(folder), "PYTHONPATH": str(Path.cwd())}
    return Host({**os.environ, **settings})


@pytest.mark.timeout(180)
def test_the_lag_is_true_on_a_host_that_is_behind(source: Source, host: Host, connection: Connection) -> None:
    execute(connection, "UPDATE replication.tables SET source_arn = NULL")  # learnt from an export of a made-up account
    source.services.dynamodb.update_table(
        TableName=source.mapping.table,
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    source.put(item(3, "not applied"))
    time.sleep(2)
    told = host.run("-10m", "status", "employees", "--probe", "--json")
    assert told.stdout, told.stderr
    (table,) = json.loads(told.stdout)["tables"]
    lag: Any = table["probe"]["lag_seconds"]
    assert 1 <= lag < 120


@pytest.mark.timeout(180)
def test_a_host_that_is_ahead_repairs_nothing_and_one_that_is_right_does(
    source: Source, host: Host, connection: Connection
) -> None:
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'by hand' WHERE "Id" = 3""")
    words = ["reconcile", "employees", "--manifest", source.export(6), "--repair", "--patience-seconds", "20"]
    words.append("--accept-other-table")  # the export is of a made-up account
    refused = host.run("+10m", *words)
    assert refused.returncode == 2, refused.stderr
    assert "repairing: this host's clock is 600 s ahead of DynamoDB's" in refused.stderr.replace("599", "600")
    assert "chronyc" in refused.stderr
    assert view(connection)[3][0] == "by hand"
    repaired = host.run("+4m", *words)
    assert repaired.returncode == 0, repaired.stderr
    assert view(connection)[3][0] == "name 3"
    row = connection.execute("""SELECT now() - _as_of FROM replica."Employees" WHERE "Id" = 3""").fetchone()
    assert row is not None
    assert timedelta(minutes=5) - timedelta(seconds=2) < row[0] < timedelta(minutes=7)


@pytest.mark.timeout(180)
def test_a_catch_up_up_to_now_is_refused_by_a_host_that_is_ahead(source: Source, host: Host) -> None:
    source.services.dynamodb.update_continuous_backups(
        TableName=source.mapping.table, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
    )
    refused = host.run("+10m", "catch-up", "employees", "--last", "1m")
    assert refused.returncode == 2, refused.stderr
    assert "s ahead of DynamoDB's" in refused.stderr


@pytest.mark.timeout(180)
def test_status_holds_the_host_s_clock_against_the_database_s_too(source: Source, host: Host) -> None:
    """When nothing was probed, or DynamoDB's answers had no time, it used to report nothing about a clock."""
    assert source.mapping.margin == timedelta(minutes=5)
    right = host.run("+0", "status", "employees")
    assert "clock" not in right.stdout, right.stdout
    off = host.run("-10m", "status", "employees")
    assert "clock           of this host: 600 s behind the database's; purge, and the check for" in _rounded(off.stdout)
    assert "! this host's clock is 600 s behind the database's: `--repair`" in _rounded(off.stdout)
    assert off.returncode == 1
    little = host.run("+1m", "status", "employees", "--json")
    assert abs(json.loads(little.stdout)["host_ahead_of_database_seconds"] - 60) < 10
    assert "clock" not in str(json.loads(little.stdout)["tables"][0]["attention"])


def _rounded(text: str) -> str:
    return text.replace("599 s", "600 s").replace("601 s", "600 s")
