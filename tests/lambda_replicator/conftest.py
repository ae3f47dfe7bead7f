"""Servers for the replicator's tests: PostgreSQL, the services of the local stack, the packaged zip."""

from __future__ import annotations

import gc
import json
import logging
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from psycopg import sql

from lambda_replicator import package, runtime
from pipeline.aurora.bookkeeping import bookkeeping
from pipeline.aurora.schema import tables
from pipeline.aurora.sessions.connection import connect
from pipeline.local.postgres import PostgresServer
from pipeline.local.stack import LocalStack
from pipeline.mappings import load_mappings
from tests.lambda_replicator.emulator import make_runtime, unpack

STREAM = "arn:aws:dynamodb:us-east-1:000000000000:table/Employees/stream/2026-01-01T00:00:00.000"
MAPPING = """\
name: employees
source: {table: Employees, key: {Id: N}}
targets:
  Employees:
    primary_key: [Id]
    columns:
      Id: {attribute: Id, type: bigint}
      Name: {attribute: empName, type: varchar(20), default: NA}
      Department: {attribute: empDepartment, type: varchar(10), default: NA}
    unmapped: attributes
"""


@pytest.fixture(scope="session")
def mappings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the mapping of Employees."""
    folder = tmp_path_factory.mktemp("mappings")
    (folder / "employees.yaml").write_text(MAPPING)
    return folder


@dataclass
class Database:
    """A database for one test, with its own role, whose password the test may change."""

    server: PostgresServer
    name: str
    role: str
    password: str

    @property
    def url(self) -> str:
        """The URL for that role."""
        return f"postgresql://{self.role}:{self.password}@127.0.0.1:{self.server.port}/{self.name}"

    @property
    def secret(self) -> dict[str, Any]:
        """The secret, in the form of Secrets Manager."""
        return {
            "username": self.role,
            "password": self.password,
            "host": "127.0.0.1",
            "port": self.server.port,
            "dbname": self.name,
        }

    def execute(self, statement: sql.SQL | sql.Composed | str) -> list[tuple[Any, ...]]:
        """Run a statement as the owner of everything, and return its rows."""
        query = sql.SQL(statement) if isinstance(statement, str) else statement  # pyright: ignore[reportArgumentType]
        with psycopg.connect(self.server.url_of(self.name), autocommit=True) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    def change_password(self, password: str) -> None:
        """Change the password on the server, as a rotation does."""
        statement = sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(self.role), sql.Literal(password))
        self.execute(statement)
        self.password = password


@pytest.fixture
def target(postgres: PostgresServer, mappings: Path) -> Iterator[Database]:
    """Bookkeeping, storage table and view of Employees in a new database."""
    name = f"t{uuid.uuid4().hex[:12]}"
    identifier = sql.Identifier(name)
    with psycopg.connect(postgres.url, autocommit=True) as owner:
        owner.execute(sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD 'Slartibartfast-1'").format(identifier))
        owner.execute(sql.SQL("CREATE DATABASE {}").format(identifier))
    with connect(postgres.url_of(name), application_name="test") as connection:
        bookkeeping.install(connection)
        for mapping in load_mappings(mappings):
            bookkeeping.register_table(connection, mapping.name, mapping.table)
            for target in mapping.targets:
                connection.execute(tables.create_storage(target))
                connection.execute(tables.create_view(target))
    yield Database(postgres, name, name, "Slartibartfast-1")
    with psycopg.connect(postgres.url, autocommit=True) as owner:
        owner.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))
        owner.execute(sql.SQL("DROP ROLE {}").format(identifier))


@dataclass
class Cloud:
    """The emulated services at one endpoint."""

    url: str
    secrets: list[str] = field(default_factory=list[str])

    def client(self, service: str) -> Any:
        """A boto3 client."""
        return boto3.client(  # pyright: ignore[reportUnknownMemberType, reportCallIssue, reportArgumentType, reportUnknownVariableType]
            service,  # pyright: ignore[reportArgumentType]
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    def store_secret(self, value: dict[str, Any] | str) -> str:
        """Create a secret and return its ARN."""
        text = value if isinstance(value, str) else json.dumps(value)
        made = self.client("secretsmanager").create_secret(Name=f"db-{uuid.uuid4().hex[:8]}", SecretString=text)
        return str(made["ARN"])

    def replace_secret(self, arn: str, value: dict[str, Any]) -> None:
        """Change the secret in Secrets Manager, as a rotation does."""
        self.client("secretsmanager").put_secret_value(SecretId=arn, SecretString=json.dumps(value))


@pytest.fixture
def cloud(stack: LocalStack) -> Cloud:
    """The services of the session's local stack."""
    return Cloud(stack.endpoint_url)


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory, mappings: Path) -> Path:
    """The zip for the Python that runs the tests."""
    path = tmp_path_factory.mktemp("build") / "lambda_replicator.zip"
    package.build(path, python_version=f"3.{sys.version_info.minor}", tables=mappings)
    return path


@pytest.fixture(scope="session")
def runtime_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of /var/runtime on Lambda."""
    return make_runtime(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="session")
def task_root(tmp_path_factory: pytest.TempPathFactory, archive: Path) -> Path:
    """The zip, unpacked."""
    return unpack(archive, tmp_path_factory.mktemp("task"))


@dataclass
class Context:
    """The parts of Lambda's context that the handler uses."""

    remaining_milliseconds: int = 30_000
    aws_request_id: str = "6f1a0c9e-0000-4000-8000-000000000001"

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds left, as Lambda reports them."""
        return self.remaining_milliseconds


@pytest.fixture
def context() -> Context:
    """A context with 30 seconds left."""
    return Context()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, target: Database, mappings: Path) -> Iterator[pytest.MonkeyPatch]:
    """A new execution environment: the variables set, nothing built yet; its connection is closed at the end."""
    monkeypatch.setattr(runtime, "_runtime", None)
    # Powertools keeps a logger's handler, and with it the standard output of the test before.
    monkeypatch.delitem(logging.Logger.manager.loggerDict, "dynaurora", raising=False)
    monkeypatch.setenv("DATABASE_URL", target.url)
    monkeypatch.setenv("DYNAURORA_TABLES", str(mappings))
    monkeypatch.delenv("DATABASE_SECRET_ID", raising=False)
    usual_collection = gc.get_threshold()
    yield monkeypatch
    gc.unfreeze()
    gc.set_threshold(*usual_collection)
    built = runtime._runtime  # pyright: ignore[reportPrivateUsage] (the one place that ends an environment)
    if built is not None:
        built.replicator.close()


def make_stream_record(
    number: int,
    item_id: int,
    *,
    name: str | None = "Akua",
    event: str = "INSERT",
    seconds: int = 1_767_225_600,
    table: str = "Employees",
) -> dict[str, Any]:
    """A stream record in the form that Lambda delivers; `number` orders it, a REMOVE has only keys."""
    change: dict[str, Any] = {
        "ApproximateCreationDateTime": seconds,
        "Keys": {"Id": {"N": str(item_id)}},
        "SequenceNumber": str(100_000_000_000_000_000_000 + number),
        "SizeBytes": 20,
        "StreamViewType": "NEW_IMAGE",
    }
    if event != "REMOVE":
        change["NewImage"] = {"Id": {"N": str(item_id)}, "empName": {"S": name}}
    return {
        "eventID": f"{number:032x}",
        "eventName": event,
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "dynamodb": change,
        "eventSourceARN": STREAM.replace("Employees", table),
    }


@pytest.fixture
def make_record() -> Callable[..., dict[str, Any]]:
    """The builder above, for tests."""
    return make_stream_record
