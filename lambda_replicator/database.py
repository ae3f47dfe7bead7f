"""Opens the replicator's connection, with a secret that may rotate at any time.

Invariant: the connection is to a writer and gives up a statement before Lambda gives up the invocation; a password
refused once is read again once; no error from here says a password, a user, a host or a database name. The replicator
keeps the connection between invocations and asks for another when it broke.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from aws_lambda_powertools.utilities.parameters import GetParameterError, SecretsProvider
from botocore.config import Config
from botocore.exceptions import ClientError
from psycopg.conninfo import make_conninfo

from pipeline.aurora.connection import Connection, connect
from pipeline.core.errors import ConfigurationError, LoginRefusedError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONNECT_TIMEOUT_SECONDS = 5
# After a failover the cluster's name may still lead to what is now a reader. And a statement that was sent and never
# acknowledged fails as soon as the keepalives of an idle connection would.
_SESSION = {"target_session_attrs": "read-write", "tcp_user_timeout": 6_000}
# What Secrets Manager answers when trying again cannot help.
_TERMINAL_SECRET_ERRORS = frozenset(
    {
        "AccessDeniedException",
        "DecryptionFailure",
        "InvalidParameterException",
        "InvalidRequestException",
        "ResourceNotFoundException",
        "ValidationException",
    }
)
_SECRET_HINT = "store a JSON object with username, password, host, port and dbname"  # noqa: S105 (says what to store)


def conninfo(secret: Mapping[str, Any], *, sslmode: str) -> str:
    """A libpq connection string from the JSON of a secret: username, password, host, port and dbname.

    The secret of AWS's own example names the database by `engine`: taken where `dbname` is missing. `sslmode` and
    `sslrootcert` in the secret win over the function's. Raises ConfigurationError naming the fields that are missing.
    """
    fields = {**secret, "dbname": secret.get("dbname") or secret.get("engine")}
    if missing := [name for name in ("username", "password", "host", "dbname") if not fields.get(name)]:
        raise ConfigurationError(f"reading the database secret: it lacks {', '.join(missing)}", hint=_SECRET_HINT)
    return make_conninfo(
        user=fields["username"],
        password=fields["password"],
        host=fields["host"],
        port=fields.get("port") or 5432,
        dbname=fields["dbname"],
        sslmode=fields.get("sslmode") or sslmode,
        sslrootcert=fields.get("sslrootcert"),
    )


class DatabaseSecret:
    """The secret by its id, cached for five minutes by Powertools Parameters."""

    def __init__(self, secret_id: str, *, sslmode: str) -> None:
        self._secret_id = secret_id
        self._sslmode = sslmode
        self._provider: SecretsProvider | None = None

    def conninfo(self, *, fresh: bool = False) -> str:
        """The connection string; `fresh` goes past the cache, for a password that was refused."""
        if self._provider is None:
            self._provider = _secrets_provider()
        try:
            # Powertools leaves the type of its **sdk_options open.
            text = cast("str", self._provider.get(self._secret_id, force_fetch=fresh))  # pyright: ignore[reportUnknownMemberType]
        except GetParameterError as error:
            raise _secret_error(error) from None
        try:
            secret: object = json.loads(text)
        except ValueError:
            secret = None
        if not isinstance(secret, dict):
            raise ConfigurationError("reading the database secret: it is not a JSON object", hint=_SECRET_HINT)
        return conninfo(cast("dict[str, Any]", secret), sslmode=self._sslmode)


class DatabaseUrl:
    """A fixed connection string in place of a secret, for a laptop and for tests."""

    def __init__(self, url: str) -> None:
        self._url = url

    def conninfo(self, *, fresh: bool = False) -> str:  # noqa: ARG002 (same call as DatabaseSecret)
        """The URL itself; there is nothing to read again."""
        return self._url


class DatabaseOpener:
    """Call it for a new connection. Raises TransientError and TerminalError, never psycopg's own."""

    def __init__(
        self,
        credentials: DatabaseSecret | DatabaseUrl,
        *,
        statement_timeout_seconds: float,
        prepare: bool = True,
    ) -> None:
        self._credentials = credentials
        self._statement_timeout_seconds = statement_timeout_seconds
        self._prepare = prepare

    def __call__(self) -> Connection:
        """Open a connection; after a refused login once more, with the secret as it is now."""
        try:
            return self._open(self._credentials.conninfo())
        except LoginRefusedError:
            renewed = self._credentials.conninfo(fresh=True)
        return self._open(renewed)

    def _open(self, url: str) -> Connection:
        connection = connect(
            url,
            application_name="dynaurora-replicator",
            statement_timeout_seconds=self._statement_timeout_seconds,
            connect_timeout_seconds=CONNECT_TIMEOUT_SECONDS,
            parameters=_SESSION,
        )
        if not self._prepare:
            # Through RDS Proxy a prepared statement pins the client to one connection, and so does the
            # DEALLOCATE ALL that psycopg sends after a rollback.
            connection.prepare_threshold = None
        return connection


def _secrets_provider() -> SecretsProvider:
    # The SDK waits 60 s by default: in a subnet without a way to Secrets Manager, the whole invocation.
    return SecretsProvider(
        boto_config=Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3})
    )


def _secret_error(error: GetParameterError) -> ConfigurationError | UnreachableError:
    """Powertools wraps whatever the SDK raised: look inside for the service's own code."""
    cause = error.__context__
    if isinstance(cause, ClientError):
        code = cause.response.get("Error", {}).get("Code", "no code")
    else:
        code = type(cause).__name__
    if code in _TERMINAL_SECRET_ERRORS:
        return ConfigurationError(
            f"reading the database secret: Secrets Manager answered {code}",
            hint="check DATABASE_SECRET_ID and the function's permission to read and decrypt that secret",
        )
    return UnreachableError(
        f"reading the database secret: Secrets Manager did not answer ({code})",
        hint="in a VPC the function needs a Secrets Manager endpoint or a NAT gateway",
    )
