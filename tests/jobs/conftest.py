"""For the tests of the jobs: a migrated database with the seed's mapping, and the records of its stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.replicate import ReplicationReport, Replicator
from pipeline.jobs.services import Services
from pipeline.mappings import load_mappings
from pipeline.settings import Settings
from tests.dynamodb.export_fixture import ExportFactory

STREAM = "arn:aws:dynamodb:eu-central-1:111122223333:table/Employees/stream/2026-05-14T10:00:00.000"
CREATED = 1_778_752_900  # an hour or so before the export fixture's time


def record(number: int, sequence: int, event: str = "INSERT", *, at: float = CREATED, **image: Any) -> dict[str, Any]:  # noqa: ANN401 - attribute values
    """A stream record in the form that Lambda delivers."""
    change: dict[str, Any] = {
        "ApproximateCreationDateTime": at,
        "Keys": {"Id": {"N": str(number)}},
        "SequenceNumber": str(10**20 + sequence),
        "StreamViewType": "NEW_IMAGE",
    }
    if event != "REMOVE":
        change["NewImage"] = {"Id": {"N": str(number)}, **image}
    return {"eventID": f"{sequence:032x}", "eventName": event, "eventSourceARN": STREAM, "dynamodb": change}


def named(number: int, sequence: int, name: str, event: str = "MODIFY", at: float = CREATED) -> dict[str, Any]:
    """A record whose new image has one name."""
    return record(number, sequence, event, at=at, empName={"S": name})


@pytest.fixture
def employees() -> TableMapping:
    (mapping,) = (m for m in load_mappings(Path(__file__).parents[2] / "tables") if m.name == "employees")
    return mapping


@pytest.fixture
def services(database: str, employees: TableMapping) -> Services:
    """Services over a fresh database, migrated to the seed's mapping."""
    made = Services(Settings.from_environment({"DATABASE_URL": database}))
    with closing(made.connect("test migrate")) as connection:
        migrate(connection, [employees])
    return made


@pytest.fixture
def connection(services: Services) -> Generator[Connection]:
    with closing(services.connect("test")) as opened:
        yield opened


@pytest.fixture
def replicator(services: Services, employees: TableMapping) -> Generator[Replicator]:
    made = Replicator([employees], lambda: services.connect("test replicator"), writer="test")
    yield made
    made.close()


@pytest.fixture
def apply(replicator: Replicator) -> Callable[..., ReplicationReport]:
    """Apply records as one event."""

    def run(*records: dict[str, Any]) -> ReplicationReport:
        (report,) = replicator.replicate({"Records": list(records)}, deadline=time.monotonic() + 60)
        return report

    return run


@pytest.fixture
def exports(tmp_path: Path) -> ExportFactory:
    return ExportFactory.in_folder(tmp_path / "bucket")


def view(connection: Connection) -> dict[int, tuple[str, str]]:
    """The view's rows by Id."""
    return {row[0]: row[1:] for row in connection.execute('SELECT "Id", "Name", "Department" FROM public."Employees"')}
