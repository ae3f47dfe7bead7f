"""Makes AWS clients, all with the same settings.

Region, credentials and profile come from the AWS SDK's own variables. The SDK retries throttling and lost connections
(standard mode, with backoff and jitter) before an error reaches us.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from pipeline import driver_logs
from pipeline.dynamodb.errors import translating

if TYPE_CHECKING:
    from types_boto3_dynamodb.client import DynamoDBClient
    from types_boto3_dynamodbstreams.client import DynamoDBStreamsClient
    from types_boto3_lambda.client import LambdaClient
    from types_boto3_s3.client import S3Client
    from types_boto3_secretsmanager.client import SecretsManagerClient
    from types_boto3_sqs.client import SQSClient

# The most connections kept open to one service: this many threads may share a client.
CONNECTIONS = 128
_ATTEMPTS = 6

Service = Literal["dynamodb", "dynamodbstreams", "lambda", "s3", "secretsmanager", "sqs"]


@overload
def client(service: Literal["dynamodb"], endpoint_url: str | None = None) -> DynamoDBClient: ...
@overload
def client(
    service: Literal["dynamodbstreams"], endpoint_url: str | None = None, *, attempts: int = ...
) -> DynamoDBStreamsClient: ...
@overload
def client(service: Literal["lambda"], endpoint_url: str | None = None) -> LambdaClient: ...
@overload
def client(service: Literal["s3"], endpoint_url: str | None = None) -> S3Client: ...
@overload
def client(service: Literal["secretsmanager"], endpoint_url: str | None = None) -> SecretsManagerClient: ...
@overload
def client(service: Literal["sqs"], endpoint_url: str | None = None) -> SQSClient: ...
def client(
    service: Service, endpoint_url: str | None = None, *, attempts: int = _ATTEMPTS
) -> DynamoDBClient | DynamoDBStreamsClient | LambdaClient | S3Client | SecretsManagerClient | SQSClient:
    """Make a client that `CONNECTIONS` threads may share.

    `attempts` is how often the SDK makes a call before its error reaches us. Raises ConfigurationError if the SDK finds
    no Region.
    """
    driver_logs.hold()
    # Imported here and not above: the SDK costs half a second, which a load's workers that read a folder do not need.
    import boto3.session  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    config = Config(
        connect_timeout=5,
        read_timeout=30,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=CONNECTIONS,
        # Every file of an export is checked against its manifest's MD5; a second checksum only costs time.
        response_checksum_validation="when_required",
        # A stand-in for AWS answers under one host name, so the bucket goes into the path.
        s3={"addressing_style": "path"} if endpoint_url else None,
    )
    # A separate session, because boto3's default session is not safe to share between threads that make clients.
    with translating(f"making a client for {service}"):
        session: Any = boto3.session.Session()  # typed for every AWS service at once, of which we have five
        return session.client(service, endpoint_url=endpoint_url, config=config)
