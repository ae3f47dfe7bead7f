"""Alerts as a real daemon sends them: healthy, unmigrated and broken tables side by side, and a failing sensor."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.local.dagster_ui import DagsterHome, DagsterWebserver
from tests.dagster_project.conftest import MAPPING, Code
from tests.dagster_project.graphql import wait_until

TELL = """
from pathlib import Path

def tell(alert):
    with Path(__file__).with_name("told").open("a") as file:
        file.write(f"{alert.state}: {alert.subject}: {alert.text}\\n")
"""
EXPECTED = (
    "error: broken_mappings/broken_yaml: readable: ",
    "error: news/replication: lag: the lag is not known: reading the status: the table is not in the database yet",
    # Nothing answers at its bucket's address, so every tick of it fails.
    "error: sensor given_up_batches: its tick failed, so what it watches is not reported: ",
)


@pytest.mark.timeout(300)
def test_each_trouble_is_sent_and_the_healthy_table_is_reported(code: Code, tmp_path: Path) -> None:
    code.migrate()
    (code.folder / "news.yaml").write_text(MAPPING.replace("Employees", "News").replace("employees", "news"))
    (code.folder / "broken.yaml").write_text("name: [")
    module = tmp_path / "company_alerts.py"
    module.write_text(TELL)
    environment = {
        "DATABASE_URL": code.database,
        "DYNAURORA_TABLES": str(code.folder),
        "DYNAURORA_ALERTS": "company_alerts:tell",
        "DYNAURORA_ON_FAILURE": "s3://nowhere/batches",
        "PYTHONPATH": str(tmp_path),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_MAX_ATTEMPTS": "1",
    }

    def told() -> str:
        path = module.with_name("told")
        return path.read_text() if path.exists() else ""

    with DagsterWebserver(DagsterHome(tmp_path, environment)):
        wait_until(lambda: all(line in told() for line in EXPECTED), 200, "every trouble is sent")
    assert told().count("error: news/replication: lag: ") == 1, "once"
    assert "sensor replication_progress" not in told(), "one table's error must not fail the tick for all"
