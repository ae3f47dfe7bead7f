"""The only resource: the pipeline's services, created when an asset first needs them.

Invariant: loading definitions reads none of its settings and connects to nothing. What is left empty here comes from
the environment variables of the public interface, read in the process that does the work.
"""

from __future__ import annotations

import os

import dagster as dg
from pydantic import Field, PrivateAttr

from pipeline.jobs.services import Services
from pipeline.settings import Settings

_VARIABLES = {
    "database_url": "DATABASE_URL",
    "database_secret_id": "DATABASE_SECRET_ID",
    "endpoint_url": "AWS_ENDPOINT_URL",
    "export_bucket": "DYNAURORA_EXPORT_BUCKET",
    "export_prefix": "DYNAURORA_EXPORT_PREFIX",
    "export_sse": "DYNAURORA_EXPORT_SSE",
    "export_kms_key": "DYNAURORA_EXPORT_KMS_KEY",
    "export_bucket_owner": "DYNAURORA_EXPORT_BUCKET_OWNER",
    "export_wait": "DYNAURORA_EXPORT_WAIT",
    "on_failure": "DYNAURORA_ON_FAILURE",
}


class ServicesResource(dg.ConfigurableResource[Services]):
    """Where Aurora, DynamoDB and the exports are. Use `dg.EnvVar("NAME")` for what the UI must not show."""

    database_url: str | None = Field(default=None, description="PostgreSQL URL; else DATABASE_URL.")
    database_secret_id: str | None = Field(
        default=None,
        description="Secrets Manager secret with username, password, host, port, dbname; else DATABASE_SECRET_ID.",
    )
    endpoint_url: str | None = Field(default=None, description="Endpoint of local AWS; else AWS_ENDPOINT_URL.")
    export_bucket: str | None = Field(
        default=None, description="Bucket that exports are written to; else DYNAURORA_EXPORT_BUCKET."
    )
    export_prefix: str | None = Field(
        default=None, description="Prefix of exports in the bucket; else DYNAURORA_EXPORT_PREFIX, else dynaurora."
    )
    export_sse: str | None = Field(
        default=None,
        description="How objects written to S3 are encrypted, AES256 or KMS; else DYNAURORA_EXPORT_SSE, else as the"
        " bucket says.",
    )
    export_kms_key: str | None = Field(default=None, description="KMS key for that; else DYNAURORA_EXPORT_KMS_KEY.")
    export_bucket_owner: str | None = Field(
        default=None, description="Account of the export bucket; else DYNAURORA_EXPORT_BUCKET_OWNER, else this one."
    )
    export_wait: str | None = Field(
        default=None, description="How long to wait for an export, such as 90m; else DYNAURORA_EXPORT_WAIT, else 6h."
    )
    on_failure: str | None = Field(
        default=None,
        description="Where Lambda puts the batches that it discards, s3://BUCKET/PREFIX; else DYNAURORA_ON_FAILURE.",
    )
    _services: Services | None = PrivateAttr(default=None)

    @property
    def services(self) -> Services:
        """The services. Raises ConfigurationError naming the variable that is missing."""
        if self._services is None:
            given = {variable: getattr(self, field) for field, variable in _VARIABLES.items() if getattr(self, field)}
            if "DATABASE_SECRET_ID" in given and "DATABASE_URL" not in given:
                given["DATABASE_URL"] = ""  # the secret was asked for by name, whatever the environment holds
            self._services = Services(Settings.from_environment({**os.environ, **given}))
        return self._services
