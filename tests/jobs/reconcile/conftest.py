"""A DynamoDB table of the local stack, exports of it and its replica, and a probe that reports what a test wants."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.load.load import load
from pipeline.jobs.reconcile.reconcile import Bounds, ReconcileReport, reconcile
from pipeline.jobs.replicate import ReplicationReport, Replicator
from pipeline.jobs.services import Services
from pipeline.local.stack import LocalStack
from pipeline.settings import Settings
from tests.dynamodb.export_fixture import ExportFactory, Layout

MARGIN = timedelta(minutes=5)
# No wait: a row that the second look does not decide stays undecided.
IMPATIENT = Bounds(patience=timedelta(0))


def item(number: int, name: str = "") -> dict[str, Any]:
    return {"Id": {"N": str(number)}, "empName": {"S": name or f"name {number}"}}


@pytest.fixture
def services(stack: LocalStack, database: str, monkeypatch: pytest.MonkeyPatch) -> Services:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    return Services(Settings.from_environment(dict(os.environ) | {"DATABASE_URL": database}))


class Source:
    """A DynamoDB table for one test, exports of it, and its replica."""

    def __init__(self, services: Services, mapping: TableMapping, exports: ExportFactory) -> None:
        self.services, self.exports = services, exports
        self.mapping = replace(mapping, table=f"Employees-{uuid4().hex}")
        services.dynamodb.create_table(
            TableName=self.mapping.table,
            AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
            KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
        )
        self.items: dict[int, dict[str, Any]] = {}
        self.now = datetime.now(UTC)
        self.files = 4
        self.margin = MARGIN

    def put(self, *items: dict[str, Any]) -> None:
        for each in items:
            self.services.dynamodb.put_item(TableName=self.mapping.table, Item=each)
            self.items[int(each["Id"]["N"])] = each

    def delete(self, number: int) -> None:
        self.services.dynamodb.delete_item(TableName=self.mapping.table, Key={"Id": {"N": str(number)}})
        del self.items[number]

    def export(self, minutes_ago: float) -> str:
        """An export of the current items that claims to be `minutes_ago` old."""
        return self.exports.full(
            self.items.values(),
            Layout(table=self.mapping.table, files=self.files),
            export_time=self.now - timedelta(minutes=minutes_ago),
        ).location

    def load(self, minutes_ago: float) -> None:
        load(self.services, self.mapping, self.export(minutes_ago), margin=self.margin)

    def reconcile(self, minutes_ago: float = 6, **more: Any) -> ReconcileReport:  # noqa: ANN401 - passed on
        return self.reconcile_with(self.export(minutes_ago), **more)

    def reconcile_with(self, location: str, **more: Any) -> ReconcileReport:  # noqa: ANN401 - passed on
        asked: dict[str, Any] = {"margin": self.margin, "bounds": IMPATIENT} | more
        return reconcile(self.services, self.mapping, location, **asked)

    def when_unlocked(self, connection: Connection, run: Callable[[], ReconcileReport]) -> ReconcileReport:
        """Run once the sessions of a killed process are gone: the server notices within a second or two."""
        while connection.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'").fetchone():
            time.sleep(0.1)
        return run()


@pytest.fixture
def source(services: Services, employees: TableMapping, exports: ExportFactory) -> Generator[Source]:
    """Ten items, loaded from an export an hour old."""
    made = Source(services, employees, exports)
    with closing(services.connect("test migrate")) as connection:
        migrate(connection, [made.mapping])
    made.put(*[item(number) for number in range(10)])
    made.load(60)
    yield made
    services.dynamodb.delete_table(TableName=made.mapping.table)


def execute(connection: Connection, statement: str) -> int:
    return connection.execute(statement.encode()).rowcount


def found(report: ReconcileReport) -> tuple[int, int, int]:
    return (report.missing, report.extra, report.different)


def replicated(source: Source, *records: dict[str, Any], writer: str = "test") -> ReplicationReport:
    """Apply records as the stream of the source would bring them, or as another writer brings them late."""
    stream = f"arn:aws:dynamodb:eu-central-1:111122223333:table/{source.mapping.table}/stream/2026-05-14T10:00:00.000"
    event = {"Records": [each | {"eventSourceARN": stream} for each in records]}
    replicator = Replicator([source.mapping], lambda: source.services.connect("test"), writer=writer)
    with closing(replicator):
        (report,) = replicator.replicate(event, deadline=time.monotonic() + 60)
    return report


@dataclass
class Probe:
    """What the probe has proven: decided through `through`, or through `behind` before now."""

    through: datetime | None = None
    behind: timedelta | None = timedelta(0)

    def settled_through(self, *_: object) -> datetime | None:
        if self.through is not None:
            return self.through
        return None if self.behind is None else datetime.now(UTC) - self.behind


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """A probe that finds everything applied, unless a test says otherwise."""
    made = Probe()
    monkeypatch.setattr("pipeline.aurora.bookkeeping.applied_through.settled_through", made.settled_through)
    return made
