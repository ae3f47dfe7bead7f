"""One connection to Aurora, kept between invocations, opened with a secret that may rotate at any time.

Invariant: whoever calls gets a connection that is idle, writable and, as far as can be told without
risking the batch, alive; and no error that leaves this module says a password, a user, a host or a
database name.
"""

from __future__ import annotations

import json
import re
import select
import time
from typing import TYPE_CHECKING, Any, cast

import psycopg
from aws_lambda_powertools.utilities.parameters import GetParameterError, SecretsProvider
from botocore.config import Config
from botocore.exceptions import ClientError
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.pq import TransactionStatus

from pipeline.core.errors import ConfigurationError, TransientError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PostgresConnection = psycopg.Connection[tuple[Any, ...]]

CONNECT_TIMEOUT_SECONDS = 5
IDLE_PROBE_SECONDS = 20.0
# A dead peer is noticed in seconds: AWS advises idle 1, interval 1, count 5 for Aurora failover
# (Aurora user guide, "Fast failover"). tcp_user_timeout bounds a statement that was sent and never
# acknowledged.
LIVENESS = {
    "keepalives": 1,
    "keepalives_idle": 1,
    "keepalives_interval": 1,
    "keepalives_count": 5,
    "tcp_user_timeout": 6_000,
}
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


def conninfo(secret: Mapping[str, Any], *, sslmode: str) -> str:
    """A libpq connection string from the JSON of a secret: username, password, host, port and dbname.

    RDS's own secrets carry `engine` and, when made for a cluster, no database name; the widely copied
    example names the database by `engine`. `dbname` wins, `engine` is taken where it is missing. `sslmode`
    and `sslrootcert` in the secret win over what the function is set to. Raises ConfigurationError naming
    the fields that are missing.
    """
    fields = {**secret, "dbname": secret.get("dbname") or secret.get("engine")}
    if missing := [name for name in ("username", "password", "host", "dbname") if not fields.get(name)]:
        raise ConfigurationError(
            f"reading the database secret: it lacks {', '.join(missing)}",
            hint="store a JSON object with username, password, host, port and dbname",
        )
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

    def __init__(self, secret_id: str, *, sslmode: str, provider: SecretsProvider | None = None) -> None:
        self._secret_id = secret_id
        self._sslmode = sslmode
        self._provider = provider

    def conninfo(self, *, fresh: bool = False) -> str:
        """The connection string; `fresh` goes past the cache, for a password that was refused."""
        try:
            # Powertools leaves the type of its **sdk_options open.
            text = cast("str", self._client().get(self._secret_id, force_fetch=fresh))  # pyright: ignore[reportUnknownMemberType]
        except GetParameterError as error:
            raise _secret_error(error) from None
        try:
            secret: object = json.loads(text)
        except ValueError:
            secret = None
        if not isinstance(secret, dict):
            raise ConfigurationError(
                "reading the database secret: it is not a JSON object",
                hint="store a JSON object with username, password, host, port and dbname",
            )
        return conninfo(cast("dict[str, Any]", secret), sslmode=self._sslmode)

    def _client(self) -> SecretsProvider:
        if self._provider is None:
            # The SDK waits 60 s by default: in a subnet without a way to Secrets Manager that is the whole
            # invocation.
            config = Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3})
            self._provider = SecretsProvider(boto_config=config)
        return self._provider


class DatabaseUrl:
    """A fixed connection string in place of a secret, for a laptop and for tests."""

    def __init__(self, url: str) -> None:
        self._url = url

    def conninfo(self, *, fresh: bool = False) -> str:  # noqa: ARG002 (same call as DatabaseSecret)
        """The URL itself; there is nothing to read again."""
        return self._url


class ReusedConnection:
    """Call it for the connection: the same one as long as it lives, a new one when it does not."""

    def __init__(
        self,
        credentials: DatabaseSecret | DatabaseUrl,
        *,
        statement_timeout_seconds: float,
        prepare: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credentials = credentials
        self._statement_timeout_ms = max(1, int(statement_timeout_seconds * 1000))
        # Through RDS Proxy a prepared statement pins the client to one connection, and so does the
        # DEALLOCATE ALL that psycopg sends after a rollback; without the proxy, planning once saves most
        # of the server's time.
        self._prepare_threshold = 5 if prepare else None
        self._clock = clock
        self._connection: PostgresConnection | None = None
        self._handed_out_at = 0.0

    def __call__(self) -> PostgresConnection:
        """An idle connection in autocommit mode. Raises TransientError or TerminalError, not psycopg's."""
        connection = self._connection
        if connection is not None and not self._usable(connection):
            self.discard()
            connection = None
        if connection is None:
            connection = self._connection = self._open()
        self._handed_out_at = self._clock()
        return connection

    def discard(self) -> None:
        """Close the connection, if there is one; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _usable(self, connection: PostgresConnection) -> bool:
        if connection.closed or connection.info.transaction_status is not TransactionStatus.IDLE:
            return False
        if self._clock() - self._handed_out_at < IDLE_PROBE_SECONDS:
            # Nothing is due on an idle connection: if the socket has something, it is the server's goodbye
            # (or a parameter change, after which a new connection is as good). Costs no round trip.
            return not select.select([connection.fileno()], [], [], 0)[0]
        # Longer than that and the environment may have been frozen, the server replaced, and the socket
        # none the wiser.
        try:
            connection.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True

    def _open(self) -> PostgresConnection:
        cached = self._credentials.conninfo()
        try:
            return self._connect(cached)
        except psycopg.Error as error:
            if not _login_refused(error):
                raise _connect_error(error) from None
        # SQLSTATE 28P01: the secret was rotated after it was cached. Once, or a wrong secret would lock
        # the account.
        renewed = self._credentials.conninfo(fresh=True)
        try:
            return self._connect(renewed)
        except psycopg.Error as error:
            raise _connect_error(error) from None

    def _connect(self, conninfo: str) -> PostgresConnection:
        connection = psycopg.connect(
            make_conninfo(
                conninfo,
                **LIVENESS,
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                application_name="dynaurora-replicator",
                # After a failover the cluster's name may still lead to what is now a reader.
                target_session_attrs="read-write",
            ),
            autocommit=True,
            prepare_threshold=self._prepare_threshold,
        )
        try:
            # A statement of its own, not a start-up option: RDS Proxy refuses those.
            connection.execute(sql.SQL("SET statement_timeout = {}").format(self._statement_timeout_ms))
        except psycopg.Error:
            connection.close()
            raise
        return connection


def _login_refused(error: psycopg.Error) -> bool:
    """Whether the server asked for the password and then turned us away.

    libpq reports no SQLSTATE for a connection that never came up (28P01 is to be read in the server's log
    only), and the text is in the server's language. That a password was sent is what both have in common.
    """
    return error.sqlstate in {"28P01", "28000"} or (error.pgconn is not None and bool(error.pgconn.used_password))


def _connect_error(error: psycopg.Error) -> TransientError:
    """Transient whatever the reason: a failover, a full server and a password not yet rotated all pass."""
    if _login_refused(error):
        return TransientError(
            f"connecting to the target database: the server refused the session ({_reason(error)})",
            hint="the secret was read again; compare its username, password and dbname with the server",
        )
    return UnreachableError(
        f"connecting to the target database: no session ({_reason(error)})",
        hint="check that the function's security group reaches the cluster's port, and the TLS mode",
    )


def _reason(error: psycopg.Error) -> str:
    """The last clause of libpq's message, without the names it quotes (user, database, host)."""
    lines = str(error).strip().splitlines() or [""]
    clause = re.split(r" failed: |FATAL: +|ERROR: +", lines[-1])[-1].strip()
    if clause == lines[-1].strip() and clause:
        # Not the form we know: the kind of error alone, since the rest could hold a name.
        return type(error).__name__
    return re.sub(r"""(["'«]).*?(["'»])""", "…", clause) or type(error).__name__


def _secret_error(error: GetParameterError) -> ConfigurationError | TransientError:
    """Powertools wraps whatever the SDK raised: look inside for the service's own code."""
    cause = error.__context__
    code = cause.response.get("Error", {}).get("Code", "") if isinstance(cause, ClientError) else type(cause).__name__
    if code in _TERMINAL_SECRET_ERRORS:
        return ConfigurationError(
            f"reading the database secret: Secrets Manager answered {code}",
            hint="check DATABASE_SECRET_ID and the function's permission to read and decrypt that secret",
        )
    return UnreachableError(
        f"reading the database secret: Secrets Manager did not answer ({code})",
        hint="in a VPC the function needs a Secrets Manager endpoint or a NAT gateway",
    )
