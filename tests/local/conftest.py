"""AWS clients and tables for the tests of the local stack."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
import pytest
from botocore.config import Config

from pipeline.local.stack import LocalStack

if TYPE_CHECKING:
    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_dynamodb.literals import StreamViewTypeType
    from types_boto3_s3 import S3Client

MakeTable = Callable[..., str]


def session_of(stack: LocalStack) -> Any:  # noqa: ANN401  # see its text
    """A boto3 session, untyped: its type lists every service at once, and the stubs know only a few."""
    environment = stack.environment()
    return boto3.Session(
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
    )


@pytest.fixture
def dynamodb(stack: LocalStack) -> "DynamoDBClient":
    config = Config(max_pool_connections=20)
    return session_of(stack).client("dynamodb", endpoint_url=stack.endpoint_url, config=config)


@pytest.fixture
def s3(stack: LocalStack) -> "S3Client":
    return session_of(stack).client("s3", endpoint_url=stack.endpoint_url)


@pytest.fixture
def bucket(s3: "S3Client") -> str:
    name = f"exports-{uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def make_table(dynamodb: "DynamoDBClient") -> MakeTable:
    """Creates a table with a numeric key `Id`; returns its name."""

    def make(view: "StreamViewTypeType | None" = "NEW_IMAGE", *, recovery: bool = True) -> str:
        name = f"Table{uuid4().hex[:12]}"
        dynamodb.create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
            BillingMode="PAY_PER_REQUEST",
        )
        if view is not None:
            dynamodb.update_table(TableName=name, StreamSpecification={"StreamEnabled": True, "StreamViewType": view})
        if recovery:
            dynamodb.update_continuous_backups(
                TableName=name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
            )
        return name

    return make
