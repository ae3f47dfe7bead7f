"""Reads the database secret from Secrets Manager, and gives each error one meaning for every front end.

Invariant: an error that a retry cannot fix is a ConfigurationError, and its hint is about the secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from botocore import exceptions as sdk

from pipeline.core.errors import ConfigurationError, ReplicationError, TerminalError, UnreachableError
from pipeline.dynamodb.errors import error_code, translate

if TYPE_CHECKING:
    from types_boto3_secretsmanager.client import SecretsManagerClient

_DOING = "reading the database secret"
_HINTS = {
    "AccessDeniedException": "grant this process secretsmanager:GetSecretValue on the secret",
    "DecryptionFailure": "grant this process kms:Decrypt on the secret's key, and check that the key is enabled",
    "InvalidRequestException": "the secret is scheduled for deletion or has no value: restore it, or name another in"
    " DATABASE_SECRET_ID",
    "ResourceNotFoundException": "check the name or ARN in DATABASE_SECRET_ID, the account and AWS_REGION",
    "ValidationException": "DATABASE_SECRET_ID must be the name or the ARN of a secret",
}


def read_secret(secrets: SecretsManagerClient, secret_id: str) -> str:
    """Return the secret's text; empty if it is bytes. Raises ConfigurationError, TransientError."""
    try:
        return secrets.get_secret_value(SecretId=secret_id).get("SecretString", "")
    except (sdk.BotoCoreError, sdk.ClientError) as error:
        raise secret_error(error) from None


def secret_error(error: sdk.BotoCoreError | sdk.ClientError) -> ReplicationError:
    """Return our error for the SDK's."""
    translated = translate(error, _DOING)
    if isinstance(translated, UnreachableError):
        return UnreachableError(
            f"{_DOING}: Secrets Manager did not answer ({type(error).__name__})",
            hint="check the network and AWS_ENDPOINT_URL; a VPC needs a Secrets Manager endpoint or a NAT gateway",
        )
    if isinstance(error, sdk.ClientError) and isinstance(translated, TerminalError):
        code = error_code(error)
        return ConfigurationError(
            f"{_DOING}: Secrets Manager answered {code}",
            hint=_HINTS.get(code) or translated.hint or "check DATABASE_SECRET_ID and the permission to read it",
        )
    return (
        ConfigurationError(translated.message, hint=translated.hint)
        if isinstance(translated, TerminalError)
        else translated
    )
