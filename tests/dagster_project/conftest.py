"""Shared by the tests of the code location: a migrated database, exports in a folder, an ephemeral instance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from dagster_project.definitions import build
from dagster_project.resources import ServicesResource
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import connect
from pipeline.core.model.attributes import Item
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.replicate import Replicator
from pipeline.mappings import load_mappings
from pipeline.settings import Settings
from tests.dynamodb.export_fixture import ExportFactory, WrittenExport
from tests.dynamodb.scripted_stream import ScriptedServices, ScriptedShard, ScriptedStream

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
    indexes: [{columns: [City, {column: Name, order: desc}]}]
    unmapped: attributes
"""


class ScriptedResource(ServicesResource):
    """The services of a test: a real database, a scripted AWS. Dagster copies resources, so these are found by name."""

    @property
    def services(self) -> ScriptedServices:
        return SERVICES[self.database_url or ""]


SERVICES: dict[str, ScriptedServices] = {}


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

    @property
    def services(self) -> ScriptedServices:
        return SERVICES[self.database]

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

    def execute(self, text: str) -> None:
        with psycopg.connect(self.database) as connection:
            connection.execute(text.encode())

    def migrate(self) -> None:
        with connect(self.database, application_name="test migrate") as connection:
            migrate(connection, load_mappings(self.folder))

    def replicate(self, *images: Item, age: timedelta = timedelta(0), dead: bool = False) -> None:
        """Write changes made `age` ago, and apply them as the Lambda function does, unless `dead`."""
        made = int((datetime.now(UTC) - age).timestamp())
        stream = self.services.stream
        records = [stream.write("s", int(str(image["Id"]["N"])), made, "MODIFY", **image) for image in images]
        if dead:
            return
        replicator = Replicator([self.mapping], lambda: connect(self.database, application_name="t"), writer="test")
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
    stream = ScriptedStream(label=f"{datetime.now(UTC) - timedelta(hours=1):%Y-%m-%dT%H:%M:%S.000}")
    stream.shards["s"] = ScriptedShard()
    SERVICES[database] = services = ScriptedServices(Settings.from_environment({"DATABASE_URL": database}), stream)
    services.lambdas.add(stream.arn)
    resource = ScriptedResource(database_url=database)
    return Code(folder, database, instance, ExportFactory.in_folder(tmp_path / "s3"), build(folder, resource), resource)
