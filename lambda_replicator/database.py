"""Opens the replicator's connection, with a secret that may rotate at any time.

Invariant: the connection is to a writer, and a statement times out before Lambda ends the invocation. After a refused
password the secret is read again once. No error from here contains a password, a user, a host or a database name. The
replicator keeps the connection between invocations and asks for another one if it broke.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from aws_lambda_powertools.utilities.parameters import GetParameterError, SecretsProvider
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from pipeline import driver_logs
from pipeline.aurora.sessions.address import Address, from_secret, from_url
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.errors import LoginRefusedError, UnreachableError
from pipeline.dynamodb.secrets import DATABASE_SECRET, Secret
from pipeline.settings import Pooler

if TYPE_CHECKING:
    from pipeline.settings import DatabaseDefaults

CONNECT_TIMEOUT_SECONDS = 5
# A statement that is sent and never acknowledged fails as soon as an idle connection's keepalives would.
_SESSION = {"tcp_user_timeout": 6_000}
# PostgreSQL would plan the statement of a small batch anew each time, which takes twice as long as executing it.
_SETTINGS = {"plan_cache_mode": "force_generic_plan"}


class DatabaseSecret:
    """The secret by its id, cached for five minutes by Powertools Parameters."""

    def __init__(self, secret_id: str, defaults: DatabaseDefaults | None = None) -> None:
        self._secret_id = secret_id
        self._defaults = defaults
        self._provider: SecretsProvider | None = None

    def address(self, *, fresh: bool = False) -> Address:
        """Return where to connect; `fresh` bypasses the cache, for a password that was refused."""
        driver_logs.hold()
        if self._provider is None:
            self._provider = secrets_provider()
        return from_secret(read(self._provider, self._secret_id, DATABASE_SECRET, fresh=fresh), self._defaults)


class DatabaseUrl:
    """A fixed connection string instead of a secret, for a laptop and for tests."""

    def __init__(self, url: str, defaults: DatabaseDefaults | None = None) -> None:
        self._url = url
        self._defaults = defaults

    def address(self, *, fresh: bool = False) -> Address:  # noqa: ARG002 (same call as DatabaseSecret)
        """Return the URL's address; there is nothing to read again."""
        return from_url(self._url, self._defaults)


class DatabaseOpener:
    """Call it for a new connection. Raises TransientError and TerminalError, never psycopg's own."""

    def __init__(
        self,
        credentials: DatabaseSecret | DatabaseUrl,
        *,
        statement_timeout_seconds: float,
        through: Pooler = Pooler.DETECT,
    ) -> None:
        self._credentials = credentials
        self._statement_timeout_seconds = statement_timeout_seconds
        self._through = through

    def __call__(self) -> Connection:
        """Open a connection; after a refused password try once more, if the secret has a new one."""
        used = self._credentials.address()
        try:
            return self._open(used)
        except LoginRefusedError:
            renewed = self._credentials.address(fresh=True)
            if renewed == used:
                raise
        return self._open(renewed)

    def _open(self, address: Address) -> Connection:
        return connect(
            address,
            application_name="dynaurora-replicator",
            statement_timeout_seconds=self._statement_timeout_seconds,
            connect_timeout_seconds=CONNECT_TIMEOUT_SECONDS,
            parameters=_SESSION,
            settings=_SETTINGS,
            through=self._through,
            needs_session=False,
        )


def read(provider: SecretsProvider, secret_id: str, secret: Secret, *, fresh: bool) -> str:
    """Return a secret's text. Raises ConfigurationError, TransientError."""
    try:
        # Powertools leaves the type of its **sdk_options open.
        return cast("str", provider.get(secret_id, force_fetch=fresh))  # pyright: ignore[reportUnknownMemberType]
    except GetParameterError as error:
        cause = error.__context__  # Powertools wraps whatever the SDK raised
        if isinstance(cause, (BotoCoreError, ClientError)):
            raise secret.error(cause) from None
        raise UnreachableError(
            f"reading {secret.what}: Secrets Manager did not answer ({type(cause).__name__})",
            hint="in a VPC the function needs a Secrets Manager endpoint or a NAT gateway",
        ) from None


def secrets_provider() -> SecretsProvider:
    # The SDK waits 60 s by default. In a subnet without a way to Secrets Manager, that would be the whole invocation.
    return SecretsProvider(
        boto_config=Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3})
    )
