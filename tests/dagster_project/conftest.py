"""What the tests of the code location share: a migrated database, exports in a folder, an instance that forgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from dagster_project.definitions import build
from dagster_project.resources import ServicesResource
from pipeline.aurora.migrate import migrate
from pipeline.core.attributes import Item
from pipeline.core.mapping import TableMapping
from pipeline.jobs.replicate import Replicator
from pipeline.mappings import load_mappings
from tests.dynamodb.export_fixture import ExportFactory, WrittenExport

MAPPING = """
name: employees
source: {table: Employees, key: {Id: N}}
margin: 1m
freshness: {warn: 4m, fail: 20m}
schedule: {reconcile: "0 3 * * *", timezone: Europe/Berlin}
targets:
  Employees:
    primary_key: [Id]
    columns:
      Id:   {attribute: Id, type: bigint}
      Name: {attribute: empName, type: varchar(20), default: NA}
      City: {attribute: address.city, type: text, description: where the desk is}
    unmapped: attributes
"""
LABEL = "2024-05-14T11:14:20.608"


def items(count: int) -> list[Item]:
    return [{"Id": {"N": str(n)}, "empName": {"S": f"name {n}"}} for n in range(count)]


@dataclass
class Code:
    """A code location over a folder of mappings and a database of its own."""

    folder: Path
    database: str
    instance: dg.DagsterInstance
    exports: ExportFactory
    definitions: dg.Definitions
    resource: ServicesResource
    sequence: int = field(default=10**20)

    @property
    def mapping(self) -> TableMapping:
        return load_mappings(self.folder)[0]

    def run(self, job: str, config: dict[str, Any] | None = None) -> dg.ExecuteInProcessResult:
        return self.definitions.resolve_job_def(job).execute_in_process(
            run_config=config or {}, instance=self.instance, raise_on_error=False
        )

    def export(self, count: int, *, at: datetime | None = None) -> WrittenExport:
        return self.exports.full(items(count), export_time=at or datetime.now(UTC))

    def query(self, text: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database) as connection:
            return connection.execute(text.encode()).fetchall()

    def migrate(self) -> None:
        with psycopg.connect(self.database, autocommit=True) as connection:
            migrate(connection, load_mappings(self.folder))

    def replicate(self, *images: Item, age: timedelta = timedelta(0)) -> None:
        """Apply changes as the Lambda does, made `age` ago."""
        made = int((datetime.now(UTC) - age).timestamp())
        records: list[dict[str, Any]] = []
        for image in images:
            self.sequence += 1
            change = {
                "ApproximateCreationDateTime": made,
                "Keys": {"Id": image["Id"]},
                "NewImage": image,
                "SequenceNumber": str(self.sequence),
            }
            arn = f"arn:aws:dynamodb:eu-central-1:111122223333:table/Employees/stream/{LABEL}"
            records.append({"eventName": "MODIFY", "eventSourceARN": arn, "dynamodb": change})
        replicator = Replicator([self.mapping], lambda: psycopg.connect(self.database, autocommit=True), writer="test")
        replicator.replicate({"Records": records}, deadline=1e12)
        replicator.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one mapping file."""
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "employees.yaml").write_text(MAPPING)
    return tables


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:  # pyright: ignore[reportUnknownMemberType]  # dagster leaves a parameter of dict out
        yield ephemeral


@pytest.fixture
def code(folder: Path, database: str, instance: dg.DagsterInstance, tmp_path: Path) -> Code:
    """The code location, its database empty: no table, no bookkeeping."""
    resource = ServicesResource(database_url=database)
    return Code(folder, database, instance, ExportFactory.in_folder(tmp_path / "s3"), build(folder, resource), resource)
