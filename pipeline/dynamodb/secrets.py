"""Reads secrets from Secrets Manager, the database's and the privacy key, and gives each error one meaning.

Invariant: an error that a retry cannot fix is a ConfigurationError, and its hint is about the secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore import exceptions as sdk

from pipeline.core.errors import ConfigurationError, ReplicationError, TerminalError, UnreachableError
from pipeline.dynamodb.errors import error_code, translate

if TYPE_CHECKING:
    from types_boto3_secretsmanager.client import SecretsManagerClient

_HINTS = {
    "AccessDeniedException": "grant this process secretsmanager:GetSecretValue on the secret",
    "DecryptionFailure": "grant this process kms:Decrypt on the secret's key, and check that the key is enabled",
    "InvalidRequestException": "the secret is scheduled for deletion or has no value: restore it, or name another in"
    " {variable}",
    "ResourceNotFoundException": "check the name or ARN in {variable}, the account and AWS_REGION",
    "ValidationException": "{variable} must be the name or the ARN of a secret",
}


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret, for messages."""

    what: str
    variable: str
    """The setting that names it."""

    def error(self, error: sdk.BotoCoreError | sdk.ClientError) -> ReplicationError:
        """Return our error for the SDK's."""
        doing = f"reading {self.what}"
        translated = translate(error, doing)
        if isinstance(translated, UnreachableError):
            return UnreachableError(
                f"{doing}: Secrets Manager did not answer ({type(error).__name__})",
                hint="check the network and AWS_ENDPOINT_URL; a VPC needs a Secrets Manager endpoint or a NAT gateway",
            )
        if isinstance(error, sdk.ClientError) and isinstance(translated, TerminalError):
            code = error_code(error)
            hint = _HINTS.get(code, "").format(variable=self.variable)
            return ConfigurationError(
                f"{doing}: Secrets Manager answered {code}",
                hint=hint or translated.hint or f"check {self.variable} and the permission to read it",
            )
        return (
            ConfigurationError(translated.message, hint=translated.hint)
            if isinstance(translated, TerminalError)
            else translated
        )


DATABASE_SECRET = Secret("the database secret", "DATABASE_SECRET_ID")
PRIVACY_KEY_SECRET = Secret("the secret of the privacy key", "PRIVACY_KEY_SECRET_ID")


def read_secret(secrets: SecretsManagerClient, secret_id: str, secret: Secret = DATABASE_SECRET) -> str:
    """Return the secret's text; empty if it is bytes. Raises ConfigurationError, TransientError."""
    try:
        return secrets.get_secret_value(SecretId=secret_id).get("SecretString", "")
    except (sdk.BotoCoreError, sdk.ClientError) as error:
        raise secret.error(error) from None
