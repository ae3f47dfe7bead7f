"""The cost of watching a table: `python -m tests.bench.watching`, a minute; build/watching.json.

A day of ticks of both sensors over an idle, caught-up table goes through the sensors' own code into Dagster's own event
log, once in PostgreSQL (production.yaml) and once in SQLite (laptop.yaml). The result is the bytes by which the storage
grew, with the former time between two reports and with today's; `keep_days` of such days are kept. AWS calls are
counted in one steady look of each sensor at a scripted table of one shard, and multiplied.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import yaml
from dagster._core.test_utils import freeze_time
from psycopg import sql

from dagster_project import history_sensor, sensors
from dagster_project.forms import EventsChoice
from dagster_project.freshness import DEFAULT_FAIL, DEFAULT_WARN, Freshness
from dagster_project.history_checks import judge_history
from dagster_project.keys import TableKeys
from dagster_project.progress import Memory, report
from dagster_project.replication_checks import Look, look
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import connect
from pipeline.jobs.probe.lost_history import lost_history_report
from pipeline.jobs.status import status
from pipeline.local.postgres import PostgresServer
from pipeline.mappings import load_mappings
from pipeline.settings import Settings
from tests.bench.contestant import ROOT
from tests.dynamodb.scripted_stream import ScriptedServices, ScriptedShard, ScriptedStream

START = datetime(2026, 5, 1, tzinfo=UTC)
DAY_SECONDS = 86_400
# The former time between two reports, with the default windows.
BEFORE = timedelta(minutes=3)


@dataclass(frozen=True)
class Watched:
    """The sensors' view of an idle, caught-up table, and the AWS calls that they make for it."""

    keys: TableKeys
    seen: Look
    judged: list[dg.AssetCheckResult]
    calls_a_day: int

    @classmethod
    def look(cls, url: str) -> Watched:
        """Look at a table of one shard, over a database of its own."""
        (mapping,) = load_mappings(ROOT / "tables")
        stream = ScriptedStream(label=f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%M:%S.000}")
        stream.shards["s"] = ScriptedShard()
        services = ScriptedServices(Settings.from_environment({"DATABASE_URL": url}), stream)
        services.lambdas.add(stream.arn)
        with closing(connect(url, application_name="watching")) as connection:
            migrate(connection, [mapping])
        (found,) = status(services, [mapping])
        for _ in range(2):  # the first ones open the shard
            look(services, mapping, found)
        stream.calls.clear()
        seen = look(services, mapping, found)
        probed = len(stream.calls)
        stream.calls.clear()
        judged = judge_history(TableKeys(mapping.name), lost_history_report(services, mapping))
        looked = len(stream.calls) + 2  # ListEventSourceMappings and ListObjectsV2 are scripted elsewhere
        calls = probed * _times(sensors.INTERVAL_SECONDS) + looked * _times(history_sensor.INTERVAL_SECONDS)
        return cls(TableKeys(mapping.name), seen, judged, calls)

    def report(self, instance: dg.DagsterInstance, freshness: Freshness, days: int) -> int:
        """Report days of ticks as the sensors do; returns the events."""
        memory, told, count = Memory(), dict[str, Any](), 0
        for second in range(0, days * DAY_SECONDS, sensors.INTERVAL_SECONDS):
            now = START.timestamp() + second
            events: list[Any] = []
            if second % history_sensor.INTERVAL_SECONDS == 0:
                events += history_sensor.news(told, self.judged, now)
            new, memory = report(self.keys, freshness, self.seen, memory, now)
            if events or new:
                with freeze_time(now):
                    for event in events + new:
                        instance.report_runless_asset_event(event)
                        count += 1
        return count


def _times(every_seconds: int) -> int:
    return DAY_SECONDS // every_seconds


class Before(Freshness):
    """The default windows, with the former time between reports."""

    @property
    def report_every(self) -> timedelta:
        """Within `warn`."""
        return BEFORE


@contextmanager
def postgresql(server: PostgresServer, folder: Path) -> Generator[tuple[dg.DagsterInstance, Callable[[], int]]]:
    """An instance with its events in PostgreSQL, and the space they take."""
    name = f"dagster_{folder.name}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    storage = {"postgres": {"postgres_url": server.url_of(name)}}
    (folder / "dagster.yaml").write_text(yaml.safe_dump({"storage": storage, "telemetry": {"enabled": False}}))

    def size() -> int:
        with psycopg.connect(server.url_of(name), autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")
            row = connection.execute(
                "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class WHERE relname = ANY (%s)",
                [["event_logs", "asset_check_executions", "asset_event_tags", "asset_keys"]],
            ).fetchone()
        return int(row[0]) if row else 0

    with dg.DagsterInstance.from_config(str(folder)) as instance:
        yield instance, size


@contextmanager
def sqlite(_: PostgresServer, folder: Path) -> Generator[tuple[dg.DagsterInstance, Callable[[], int]]]:
    """An instance with its events in files, and the space they take."""
    (folder / "dagster.yaml").write_bytes((ROOT / "dagster_project" / "instance" / "laptop.yaml").read_bytes())
    files = folder / "history" / "runs"

    def size() -> int:
        return sum(path.stat().st_size for path in files.glob("*.db*"))

    with dg.DagsterInstance.from_config(str(folder)) as instance:
        yield instance, size


def growth(server: PostgresServer, watched: Watched, freshness: Freshness) -> dict[str, int]:
    """Return events and bytes of one day."""
    found: dict[str, int] = {}
    for name, storage in (("postgresql", postgresql), ("sqlite", sqlite)):
        with tempfile.TemporaryDirectory() as folder, storage(server, Path(folder)) as (instance, size):
            before = size()
            found["events_a_day"] = watched.report(instance, freshness, 1)
            found[f"{name}_bytes_a_day"] = size() - before
    return found


def main() -> int:
    """Measure, print and keep."""
    with tempfile.TemporaryDirectory(prefix="dynaurora-watching-") as name:
        Path(name).chmod(0o711)
        with PostgresServer(Path(name) / "postgres", durable=False) as server:
            watched = Watched.look(server.url)
            now = Freshness(DEFAULT_WARN, DEFAULT_FAIL)
            found = {
                "before": growth(server, watched, Before(DEFAULT_WARN, DEFAULT_FAIL)),
                "now": growth(server, watched, now),
                "keep_days": EventsChoice().keep_days,
                "aws_calls_a_day": watched.calls_a_day,
            }
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "watching.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
