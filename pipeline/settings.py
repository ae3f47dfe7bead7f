"""Settings: one frozen object, validated once at entry from an explicit mapping of environment variables.

Invariant: nothing reads the environment at import, and a secret never shows in a repr.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_TABLES_FOLDER = "tables"
# A Serverless v2 cluster resumes from zero capacity in about 15 s, longer after a day of rest (Aurora user guide).
DEFAULT_WAIT_SECONDS = 40.0


@dataclass(frozen=True, slots=True)
class DatabaseDefaults:
    """What a secret or URL may leave out about how to reach the database (`DATABASE_HOST` and so on)."""

    host: str | None = None
    port: str | None = None
    name: str | None = None
    sslmode: str | None = None
    sslrootcert: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> DatabaseDefaults:
        """Read the variables. libpq's own names for the TLS settings are used if ours are not set."""
        return cls(
            host=environment.get("DATABASE_HOST") or None,
            port=environment.get("DATABASE_PORT") or None,
            name=environment.get("DATABASE_NAME") or None,
            sslmode=environment.get("DATABASE_SSLMODE") or environment.get("PGSSLMODE") or None,
            sslrootcert=environment.get("DATABASE_SSLROOTCERT") or environment.get("PGSSLROOTCERT") or None,
        )

    @property
    def parameters(self) -> dict[str, str | None]:
        """By libpq's names."""
        return {
            "host": self.host,
            "port": self.port,
            "dbname": self.name,
            "sslmode": self.sslmode,
            "sslrootcert": self.sslrootcert,
        }


class Pooler(Enum):
    """What is known about poolers on the way to the database (`DATABASE_POOLER`)."""

    DETECT = ""
    """Detected when connecting."""
    TRANSACTION = "transaction"
    """Assume a pooler in transaction mode, whatever is detected."""
    SESSION = "session"
    """A pooler, if there is one, gives each client a server connection of its own."""

    @classmethod
    def from_text(cls, text: str) -> Pooler:
        """Read the setting. Raises ConfigurationError."""
        try:
            return cls(text)
        except ValueError:
            raise ConfigurationError(
                "reading the settings: DATABASE_POOLER is neither `session` nor `transaction`",
                hint="leave it unset: a pooler is detected; `session` says that one pools whole sessions",
            ) from None


@dataclass(frozen=True, slots=True)
class Settings:
    """`database_url` or `database_secret_id` says where Aurora is; only the first of them that is set is used."""

    tables_folder: Path
    database_url: str | None = field(default=None, repr=False)
    database_secret_id: str | None = None
    database_defaults: DatabaseDefaults = field(default_factory=DatabaseDefaults)
    database_wait_seconds: float = DEFAULT_WAIT_SECONDS
    """How long to retry while the server answers that it accepts no session now (`DATABASE_WAIT_SECONDS`)."""
    pooler: Pooler = Pooler.DETECT
    endpoint_url: str | None = None
    export_bucket: str | None = None
    """Bucket that exports are written to (`DYNAURORA_EXPORT_BUCKET`)."""
    export_prefix: str = "dynaurora"
    export_sse: str | None = None
    """How objects in S3 are encrypted: AES256 or KMS (`DYNAURORA_EXPORT_SSE`); otherwise as the bucket says."""
    export_kms_key: str | None = None
    """Id or ARN of the KMS key for that (`DYNAURORA_EXPORT_KMS_KEY`)."""
    export_bucket_owner: str | None = None
    """Account of the export bucket, if it is not this one (`DYNAURORA_EXPORT_BUCKET_OWNER`)."""
    export_wait: str | None = None
    """How long to wait for an export, such as 90m or 6h (`DYNAURORA_EXPORT_WAIT`)."""
    on_failure: str | None = None
    """Where Lambda puts the batches that it discards: `s3://bucket/prefix` (`DYNAURORA_ON_FAILURE`)."""
    privacy_key: str | None = field(default=None, repr=False)
    """The key of hashed attributes (`PRIVACY_KEY`), for local use."""
    privacy_key_secret_id: str | None = None
    """Secrets Manager secret that holds it (`PRIVACY_KEY_SECRET_ID`)."""
    function: str | None = None
    """Name or ARN of the replicator's function (`DYNAURORA_FUNCTION`); otherwise those that have written."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, database: bool = True) -> Settings:
        """Read the variables of the public interface. Raises ConfigurationError naming what is missing.

        `database=False` is for work that needs no database.
        """
        url = environment.get("DATABASE_URL") or None
        secret = environment.get("DATABASE_SECRET_ID") or None
        if database and not url and not secret:
            raise ConfigurationError(
                "reading the settings: neither DATABASE_URL nor DATABASE_SECRET_ID is set",
                hint="set DATABASE_SECRET_ID to a Secrets Manager secret (username, password, host, port, dbname),"
                " or DATABASE_URL to a PostgreSQL URL",
            )
        return cls(
            tables_folder=Path(environment.get("DYNAURORA_TABLES") or DEFAULT_TABLES_FOLDER),
            database_url=url,
            database_secret_id=secret,
            database_defaults=DatabaseDefaults.from_environment(environment),
            database_wait_seconds=_seconds(environment, "DATABASE_WAIT_SECONDS", DEFAULT_WAIT_SECONDS),
            pooler=Pooler.from_text(environment.get("DATABASE_POOLER") or ""),
            endpoint_url=environment.get("AWS_ENDPOINT_URL") or None,
            export_bucket=environment.get("DYNAURORA_EXPORT_BUCKET") or None,
            export_prefix=environment.get("DYNAURORA_EXPORT_PREFIX") or "dynaurora",
            export_sse=environment.get("DYNAURORA_EXPORT_SSE") or None,
            export_kms_key=environment.get("DYNAURORA_EXPORT_KMS_KEY") or None,
            export_bucket_owner=environment.get("DYNAURORA_EXPORT_BUCKET_OWNER") or None,
            export_wait=environment.get("DYNAURORA_EXPORT_WAIT") or None,
            on_failure=environment.get("DYNAURORA_ON_FAILURE") or None,
            function=environment.get("DYNAURORA_FUNCTION") or None,
            privacy_key=environment.get("PRIVACY_KEY") or None,
            privacy_key_secret_id=environment.get("PRIVACY_KEY_SECRET_ID") or None,
        )


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name)
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise ConfigurationError(f"reading the settings: {name} is not a number of seconds", hint="write 0, 40 or 2.5")
    return seconds
