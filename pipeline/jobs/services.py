"""The outside services that the jobs use, built once from the settings: the database, DynamoDB, the exports' bucket.

Invariant: nothing is connected until it is used, and no secret is kept longer than it takes to connect.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from pipeline.aurora.sessions.address import Address, from_secret, from_url
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.errors import ConfigurationError, NotNowError
from pipeline.core.model.protection import PrivacyKey, privacy_key
from pipeline.dynamodb.client import client
from pipeline.dynamodb.clock import SourceClock
from pipeline.dynamodb.exports.objects import FolderObjects, S3Objects
from pipeline.dynamodb.secrets import PRIVACY_KEY_SECRET, read_secret
from pipeline.jobs.snapshots.export_destination import write_options

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient
    from types_boto3_dynamodbstreams.client import DynamoDBStreamsClient
    from types_boto3_lambda.client import LambdaClient
    from types_boto3_s3.client import S3Client
    from types_boto3_sqs.client import SQSClient

    from pipeline.core.model.mapping import TableMapping
    from pipeline.dynamodb.exports.objects import ObjectStore
    from pipeline.settings import Settings

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.2, 5.0


class Services:
    """The outside services of one process, as its settings name them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = SourceClock()
        """The source's clock, as the AWS calls so far have shown it: one for all threads."""

    def __reduce__(self) -> tuple[type[Services], tuple[Settings]]:
        """Pickle only the settings: each process has its own clients."""
        return type(self), (self.settings,)

    def connect(
        self, application_name: str, *, statement_timeout_seconds: float | None = None, needs_session: bool = True
    ) -> Connection:
        """Open a connection to Aurora; wait a while if the server accepts no session yet.

        `needs_session=False` is for the replicator, which also works through a transaction pooler. Raises
        UnreachableError, LoginRefusedError, ConfigurationError.
        """
        address = self._address()
        deadline, wait = time.monotonic() + self.settings.database_wait_seconds, _FIRST_WAIT_SECONDS
        while True:
            try:
                return connect(
                    address,
                    application_name=application_name,
                    statement_timeout_seconds=statement_timeout_seconds,
                    through=self.settings.pooler,
                    needs_session=needs_session,
                )
            except NotNowError:
                if time.monotonic() + wait > deadline:
                    raise
            time.sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT_SECONDS)

    def with_key(self, mapping: TableMapping) -> TableMapping:
        """Return the mapping with the privacy key, if it hashes and a key is set; every job begins with this.

        Raises what reading the secret raises, and ConfigurationError for a key that is too short.
        """
        if not mapping.hashes or mapping.privacy_key or self._privacy_key is None:
            return mapping
        return replace(mapping, privacy_key=self._privacy_key)

    @cached_property
    def _privacy_key(self) -> PrivacyKey | None:
        settings = self.settings
        if settings.privacy_key:
            return privacy_key(settings.privacy_key, variable="PRIVACY_KEY")
        if settings.privacy_key_secret_id is None:
            return None
        secrets = client("secretsmanager", endpoint_url=settings.endpoint_url)
        text = read_secret(secrets, settings.privacy_key_secret_id, PRIVACY_KEY_SECRET)
        return privacy_key(text, variable=PRIVACY_KEY_SECRET.variable)

    @cached_property
    def dynamodb(self) -> DynamoDBClient:
        """Client of DynamoDB."""
        return client("dynamodb", endpoint_url=self.settings.endpoint_url)

    @cached_property
    def streams(self) -> DynamoDBStreamsClient:
        """Client of DynamoDB Streams."""
        return client("dynamodbstreams", endpoint_url=self.settings.endpoint_url)

    @cached_property
    def shard_pages(self) -> DynamoDBStreamsClient:
        """Client of DynamoDB Streams that does not retry: the reader of the shards sets the pace."""
        return client("dynamodbstreams", endpoint_url=self.settings.endpoint_url, attempts=1)

    @cached_property
    def functions(self) -> LambdaClient:
        """Client of Lambda."""
        return client("lambda", endpoint_url=self.settings.endpoint_url)

    @cached_property
    def queues(self) -> SQSClient:
        """Client of SQS."""
        return client("sqs", endpoint_url=self.settings.endpoint_url)

    def store(self, location: str) -> ObjectStore:
        """Return the store that holds a location's objects: a folder for file://, S3 otherwise."""
        return FolderObjects() if location.startswith("file:") else self._s3

    @cached_property
    def s3(self) -> S3Client:
        """Client of S3."""
        return client("s3", endpoint_url=self.settings.endpoint_url)

    @cached_property
    def _s3(self) -> ObjectStore:
        return S3Objects(self.s3, write_options(self.settings))

    def _address(self) -> Address:
        settings = self.settings
        if settings.database_url:
            return from_url(settings.database_url, settings.database_defaults)
        if settings.database_secret_id is None:  # pragma: no cover - Settings has one of the two
            raise ConfigurationError("connecting to the database: the settings name none")
        secrets = client("secretsmanager", endpoint_url=settings.endpoint_url)
        return from_secret(read_secret(secrets, settings.database_secret_id), settings.database_defaults)
