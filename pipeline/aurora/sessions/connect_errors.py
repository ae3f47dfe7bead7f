"""Explains why a session could not be opened: one sentence per reason, with the class that says what to do about it.

Invariant: no sentence quotes libpq's or the server's text, which names host, user and database. A condition that may
pass by itself is an UnreachableError (a NotNowError if the server itself answered); one that a person must change is a
ConfigurationError; only a refused password is a LoginRefusedError.

libpq reports no SQLSTATE for a session that never began, so we look at its English texts and the server's. If the
server speaks another language, `connect_state` finds out the SQLSTATE. An unknown reason counts as passing: a retry
costs a delay; stopping would cost a batch or a load.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import psycopg
from psycopg import errors

from pipeline.aurora.sessions.connect_state import refused_with
from pipeline.core.errors import (
    ConfigurationError,
    LoginRefusedError,
    NotNowError,
    ReplicationError,
    TerminalError,
    UnreachableError,
)

_DOING = "connecting to the database"


class _Reason(NamedTuple):
    kind: type[ReplicationError]
    sentence: str
    hint: str  # {source} names the source of host and login


_SLOTS = _Reason(
    NotNowError,
    "the server has no connection to spare: the limit of the cluster, role or database is reached (53300)",
    "it passes when others disconnect; if it stays, raise the limit, or lower the replicators' reserved concurrency",
)
_ROLE = _Reason(
    ConfigurationError,
    "the server does not let this user log in (28000)",
    "create the role with LOGIN, or correct the user in {source}",
)
_NO_TLS = _Reason(
    ConfigurationError,
    "TLS is required, and the server offers none",
    "turn TLS on at the server or pooler; or, if the network can be trusted, set sslmode=disable (DATABASE_SSLMODE)",
)
_WRONG_CA = _Reason(
    ConfigurationError,
    "the server's certificate is not signed by an authority in the given bundle",
    "set DATABASE_SSLROOTCERT to the right bundle: Amazon's for RDS from"
    " https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem, or `system` for an RDS Proxy",
)
_NO_CA_FILE = _Reason(
    ConfigurationError,
    "the file of root certificates does not exist or cannot be read",
    "set DATABASE_SSLROOTCERT to the path of the bundle from"
    " https://truststore.pki.rds.amazonaws.com/global/global-bundle.pem, or to `system`",
)
_REASONS = {
    "28P01": _Reason(
        LoginRefusedError,
        "the server refused the session, InvalidPassword (28P01)",
        "check the user and password in {source}",
    ),
    "53300": _SLOTS,
    "57P03": _Reason(
        NotNowError,
        "the server is starting, shutting down or recovering (57P03)",
        "try again; after a failover or restart it usually passes within a minute",
    ),
    "28000": _Reason(
        NotNowError,
        "the server has no pg_hba.conf entry for this session (28000)",
        "a cluster that resumes from zero capacity answers like this for a while, so try again; if it stays, the server"
        " does not admit this user, database, address or TLS mode",
    ),
    "reader": _Reason(
        NotNowError,
        "only a reader can be reached, no writer",
        "during a failover try again; if it stays, use the cluster's writer endpoint in {source}",
    ),
    "read-only": _Reason(
        ConfigurationError,
        "the server is a writer, but its sessions begin read-only (default_transaction_read_only)",
        "reset it (ALTER ROLE … or ALTER DATABASE … RESET default_transaction_read_only); if it protects a copy from"
        " writes, correct {source}",
    ),
    "role": _ROLE,
    "rejected": _Reason(
        ConfigurationError,
        "the server's pg_hba.conf rejects this session (28000)",
        "a server that requires TLS answers like this without it: set sslmode=require (DATABASE_SSLMODE)",
    ),
    "3D000": _Reason(
        ConfigurationError,
        "the server refused the session, InvalidCatalogName (3D000)",
        "create the database, or correct its name in {source}",
    ),
    "55000": _Reason(
        ConfigurationError,
        "the database accepts no connections (55000)",
        "allow them (ALTER DATABASE … ALLOW_CONNECTIONS true), or correct the database's name in {source}",
    ),
    "42501": _Reason(
        ConfigurationError,
        "the server refused the session, InsufficientPrivilege (42501)",
        "grant the user CONNECT on the database",
    ),
    "no password": _Reason(
        ConfigurationError, "the server asks for a password, but there is none", "add the password to {source}"
    ),
    "no tls": _NO_TLS,
    "wrong ca": _WRONG_CA,
    "wrong host": _Reason(
        ConfigurationError,
        "the server's certificate is for another host name",
        "connect with the name in the certificate (the cluster's endpoint, not an alias or address); correct it in"
        " {source}",
    ),
    "no ca file": _NO_CA_FILE,
    "sslmode": _Reason(
        ConfigurationError,
        "sslmode contradicts the other TLS settings",
        "use verify-full with sslrootcert=system, and require or more with sslnegotiation=direct",
    ),
    "demand": _Reason(
        ConfigurationError,
        "the server does not offer the login that the settings demand (authentication method, channel binding, GSSAPI,"
        " protocol or TLS version)",
        "remove what demands it: PGREQUIREAUTH, PGCHANNELBINDING, PGGSSENCMODE, PGMINPROTOCOLVERSION,"
        " PGSSLMINPROTOCOLVERSION or PGSSLMAXPROTOCOLVERSION in the environment, or the same in {source}",
    ),
    "client certificate": _Reason(
        ConfigurationError,
        "the server requires a client certificate, or the given one cannot be used",
        "set PGSSLCERT and PGSSLKEY to certificate and key, or let the server ask only for a password",
    ),
    "service": _Reason(
        ConfigurationError, "PGSERVICE names a service that is not defined", "unset PGSERVICE; {source} is enough"
    ),
    "parameter": _Reason(
        ConfigurationError,
        "a connection parameter has a value that libpq refuses",
        "check the port and options in {source}",
    ),
    "unknown host": _Reason(
        UnreachableError,
        "the host name is not known here (DNS)",
        "check the host in {source}, and that this machine's DNS can resolve it",
    ),
    "refused": _Reason(
        UnreachableError,
        "nothing listens at that host and port (connection refused)",
        "check that the cluster is up, and host and port in {source}",
    ),
    "timeout": _Reason(
        UnreachableError,
        "the database did not answer in time",
        "check that the cluster is up, that security group and subnets let this machine through,"
        " and the host in {source}",
    ),
    "closed": _Reason(
        UnreachableError,
        "the database did not answer or closed the connection",
        "check that the cluster is up and reachable from here, then run it again",
    ),
}

# The first match counts: an answer from one server is more useful than another address being unreachable.
_TEXTS = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"FATAL:  .*authentication failed", "28P01"),
        (r"FATAL:  .*(?:too many clients|too many connections|connection slots are|no more connections)", "53300"),
        (r"FATAL:  the database system is ", "57P03"),
        (r"FATAL:  no pg_hba.conf entry", "28000"),
        (r"FATAL:  pg_hba.conf rejects", "rejected"),
        (r'FATAL:  role ".*" (?:does not exist|is not permitted to log in)', "role"),
        (r'FATAL:  database ".*" does not exist', "3D000"),
        (r'FATAL:  database ".*" is not currently accepting connections', "55000"),
        (r"FATAL:  permission denied for database", "42501"),
        (r"FATAL:  connection requires a valid client certificate|alert certificate required", "client certificate"),
        (r"session is read-only|server is in hot standby mode", "reader"),
        (r"no password supplied", "no password"),
        (r"server does not support SSL, but SSL was required", "no tls"),
        (r"root certificate file .* does not exist|could not (?:read|load) (?:system )?root certificate", "no ca file"),
        (r"certificate verify failed", "wrong ca"),
        (r"server certificate for .* does not match|could not get server's host name", "wrong host"),
        (r"weak sslmode|invalid sslmode value|sslmode value .* invalid", "sslmode"),
        (r"authentication method requirement|channel binding (?:is )?required|GSSAPI|Kerberos", "demand"),
        (
            r"only supports protocol version|alert protocol version|unsupported protocol|no protocols available",
            "demand",
        ),
        (r"private key file|could not (?:read|load) certificate file", "client certificate"),
        (r"server (?:did not request an|accepted connection without a valid) SSL certificate", "client certificate"),
        (r"definition of service|service file", "service"),
        (r"invalid (?:port number|integer value|\S+ value)|invalid SSL protocol version range", "parameter"),
        (r"failed to resolve host|could not translate host name", "unknown host"),
        (r"timeout expired|timed out", "timeout"),
        (r"Connection refused|No such file or directory", "refused"),
    )
)
_SERVER_SPOKE = re.compile(r"(?:^|: )[^\s:][^:\n]{0,40}:  \S")
# SQLSTATE classes that pass by themselves: connection, rollback, resources, operator, system, internal.
_PASSING_CLASSES = ("08", "40", "53", "57", "58", "XX")


def translate_connecting(error: psycopg.Error, conninfo: str, source: str) -> ReplicationError:
    """Return our error for one that psycopg raised while opening a session with `conninfo`, read from `source`."""
    if not isinstance(error, psycopg.OperationalError):
        return TerminalError(f"{_DOING}: the driver refused ({type(error).__name__})")
    text = str(error)
    if isinstance(error, errors.ConnectionTimeout):
        reason = _REASONS["timeout"]
    elif found := next((reason for pattern, reason in _TEXTS if pattern.search(text)), None):
        reason = _REASONS[found]
    elif _SERVER_SPOKE.search(text):
        reason = _by_state(refused_with(conninfo))
    else:
        reason = _REASONS["closed"]
    return reason.kind(f"{_DOING}: {reason.sentence}", hint=reason.hint.format(source=source))


def not_writable(source: str, *, in_recovery: bool) -> ReplicationError:
    """Return the refusal of a session that was opened but cannot write."""
    reason = _REASONS["reader" if in_recovery else "read-only"]
    return reason.kind(f"{_DOING}: {reason.sentence}", hint=reason.hint.format(source=source))


def _by_state(state: str | None) -> _Reason:
    if state in _REASONS:
        return _REASONS[state]
    if state is None or state.startswith(_PASSING_CLASSES):
        return _Reason(
            NotNowError,
            f"the server refused the session ({state or 'for an unknown reason'})",
            "try again; if it stays, look for the reason in the server's log",
        )
    return _Reason(
        ConfigurationError,
        f"the server refused the session ({state})",
        "look for the reason in the server's log, and check {source}",
    )
