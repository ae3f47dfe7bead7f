"""What the jobs need from outside, built once from the settings: the database, DynamoDB, and where exports lie.

Invariant: nothing is connected until it is asked for, and no secret is kept longer than it takes to connect.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING

from pipeline.aurora.connection import Connection, connect
from pipeline.core.errors import ConfigurationError
from pipeline.dynamodb.client import client
from pipeline.dynamodb.errors import translating
from pipeline.dynamodb.objects import FolderObjects, S3Objects
from pipeline.jobs.export_destination import write_options

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient
    from types_boto3_dynamodbstreams.client import DynamoDBStreamsClient
    from types_boto3_lambda.client import LambdaClient
    from types_boto3_s3.client import S3Client
    from types_boto3_sqs.client import SQSClient

    from pipeline.dynamodb.objects import ObjectStore
    from pipeline.settings import Settings

_SECRET_FIELDS = {"username": "user", "password": "password", "host": "host", "port": "port", "dbname": "dbname"}


class Services:
    """The outside world of one process, as its settings name it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __reduce__(self) -> tuple[type[Services], tuple[Settings]]:
        """Pickle as the settings alone: clients and what they hold are each process's own."""
        return type(self), (self.settings,)

    def connect(self, application_name: str, *, statement_timeout_seconds: float | None = None) -> Connection:
        """Open a connection to Aurora. Raises UnreachableError, TerminalError, ConfigurationError."""
        if self.settings.database_url:
            return connect(
                self.settings.database_url,
                application_name=application_name,
                statement_timeout_seconds=statement_timeout_seconds,
            )
        return connect(
            parameters=self._secret_parameters(),
            application_name=application_name,
            statement_timeout_seconds=statement_timeout_seconds,
        )

    @cached_property
    def dynamodb(self) -> DynamoDBClient:
        """Client of DynamoDB."""
        return client("dynamodb", endpoint_url=self.settings.endpoint_url)

    @cached_property
    def streams(self) -> DynamoDBStreamsClient:
        """Client of DynamoDB Streams."""
        return client("dynamodbstreams", endpoint_url=self.settings.endpoint_url)

    @cached_property
    def functions(self) -> LambdaClient:
        """Client of Lambda."""
        return client("lambda", endpoint_url=self.settings.endpoint_url)

    @cached_property
    def queues(self) -> SQSClient:
        """Client of SQS."""
        return client("sqs", endpoint_url=self.settings.endpoint_url)

    def store(self, location: str) -> ObjectStore:
        """Where a location's objects lie: a folder for file://, S3 otherwise."""
        return FolderObjects() if location.startswith("file:") else self._s3

    @cached_property
    def s3(self) -> S3Client:
        """Client of S3."""
        return client("s3", endpoint_url=self.settings.endpoint_url)

    @cached_property
    def _s3(self) -> ObjectStore:
        return S3Objects(self.s3, write_options(self.settings))

    def _secret_parameters(self) -> dict[str, str | int]:
        secret_id = self.settings.database_secret_id
        if secret_id is None:  # pragma: no cover - Settings has one of the two
            raise ConfigurationError("connecting: no database is configured")
        secrets = client("secretsmanager", endpoint_url=self.settings.endpoint_url)
        with translating(f"reading the secret {secret_id}"):
            text = secrets.get_secret_value(SecretId=secret_id).get("SecretString", "")
        try:
            fields = json.loads(text)
            return {ours: fields[theirs] for theirs, ours in _SECRET_FIELDS.items()}
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(
                f"reading the secret {secret_id}: it is not a JSON object with {', '.join(_SECRET_FIELDS)}",
                hint="give the secret these fields",
            ) from None
