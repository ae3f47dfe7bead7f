"""Local AWS for the tests of the source edge: ministack with the export service in front of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from types_boto3_dynamodb.client import DynamoDBClient
from types_boto3_s3.client import S3Client

from pipeline.dynamodb.client import client
from pipeline.local.export_server import ExportServer
from pipeline.local.ministack import REGION, Ministack
from tests.dynamodb.export_fixture import ExportFactory

_numbers = count(1)


@pytest.fixture(scope="session")
def aws_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run_dir = tmp_path_factory.mktemp("aws")
    with (
        Ministack(run_dir) as ministack,
        ExportServer(run_dir, ministack.port, minimum_window_seconds=0.0) as exports,
    ):
        yield exports.url


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that nobody checks, instead of any of this machine's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


@pytest.fixture
def dynamodb(aws_endpoint: str) -> Iterator[DynamoDBClient]:
    made = client("dynamodb", aws_endpoint)
    yield made
    made.close()


@pytest.fixture
def s3(aws_endpoint: str) -> Iterator[S3Client]:
    made = client("s3", aws_endpoint)
    yield made
    made.close()


@pytest.fixture
def bucket(s3: S3Client) -> str:
    name = f"exports-{next(_numbers)}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def s3_exports(s3: S3Client, bucket: str) -> ExportFactory:
    return ExportFactory.in_s3(s3, bucket)


@pytest.fixture
def make_table(dynamodb: DynamoDBClient) -> Callable[..., str]:
    """Create a table for one test; key types by attribute, partition key first."""

    def make(key: dict[str, str] | None = None, **options: Any) -> str:  # noqa: ANN401  what create_table takes
        key = key or {"Id": "N"}
        name = f"Employees-{next(_numbers)}"
        definitions: Any = [{"AttributeName": attribute, "AttributeType": kind} for attribute, kind in key.items()]
        schema: Any = [
            {"AttributeName": attribute, "KeyType": kind}
            for attribute, kind in zip(key, ("HASH", "RANGE"), strict=False)
        ]
        dynamodb.create_table(
            TableName=name,
            AttributeDefinitions=definitions,
            KeySchema=schema,
            BillingMode="PAY_PER_REQUEST",
            **options,
        )
        return name

    return make


def enable_recovery(dynamodb: DynamoDBClient, table: str) -> None:
    dynamodb.update_continuous_backups(
        TableName=table, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
    )


def put(dynamodb: DynamoDBClient, table: str, items: list[dict[str, Any]]) -> None:
    for start in range(0, len(items), 25):
        requests: Any = [{"PutRequest": {"Item": item}} for item in items[start : start + 25]]
        dynamodb.batch_write_item(RequestItems={table: requests})


def send_times(dynamodb: DynamoDBClient) -> list[datetime]:
    """A list that gets the time of each request that leaves the client from now on."""
    times: list[datetime] = []

    def note(**_: object) -> None:
        times.append(datetime.now(UTC))

    dynamodb.meta.events.register("before-send", note)
    return times
