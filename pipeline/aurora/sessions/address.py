"""Where Aurora is and how to log in: read from a secret or a URL, with one meaning for every front end.

Invariant: the secret or the URL wins, the settings fill in what it leaves out, and TLS is required unless one of them
says otherwise or the server is on this machine. No error from here quotes a value.

The front end fetches the secret: the Lambda function caches it, the others fetch it for each connection.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pipeline.core.errors import ConfigurationError
from pipeline.settings import DatabaseDefaults

if TYPE_CHECKING:
    from collections.abc import Mapping

Parameters = dict[str, Any]

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# RDS puts the kind of database here. The secret of AWS's own example puts the database's name here, without `dbname`.
_ENGINES = ("postgres", "aurora-postgresql")
_OTHER_ENGINES = ("mysql", "mariadb", "aurora", "sqlserver", "oracle", "db2", "docdb", "mongo", "redshift")
_SECRET_FIELDS = {"username": "user", "password": "password", "host": "host", "port": "port", "dbname": "dbname"}
_SETTING_FOR = {"host": "DATABASE_HOST", "dbname": "DATABASE_NAME"}
# Both could override the secret or URL: libpq takes them from PGHOSTADDR and PGOPTIONS.
_NOT_FROM_THE_ENVIRONMENT = {"hostaddr": "", "options": ""}


@dataclass(frozen=True, slots=True)
class Address:
    """libpq's parameters, and what messages call their source."""

    parameters: Mapping[str, Any] = field(repr=False)
    source: str


def from_url(url: str, defaults: DatabaseDefaults | None = None) -> Address:
    """Read a PostgreSQL URL or `key=value` string. Raises ConfigurationError.

    libpq takes a missing user or password from PGUSER, PGPASSWORD and PGPASSFILE, as for every tool.
    """
    try:
        given: Parameters = {**conninfo_to_dict(url)}
    except psycopg.ProgrammingError:
        raise ConfigurationError(
            "connecting to the database: DATABASE_URL is not a PostgreSQL URL",
            hint="write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, special characters as %XX",
        ) from None
    if "service" in given:
        raise ConfigurationError(
            "connecting to the database: DATABASE_URL names a service file's entry, whose TLS mode is not known here",
            hint="write host, port, database and user into the URL itself",
        )
    return Address(_complete(given, defaults or DatabaseDefaults()), "DATABASE_URL")


def from_secret(text: str, defaults: DatabaseDefaults | None = None) -> Address:
    """Read the JSON text of a secret. Raises ConfigurationError naming the fields that neither it nor a setting gives.

    Fields: username and password; host, port (5432) and dbname, or the settings DATABASE_HOST, DATABASE_PORT and
    DATABASE_NAME; sslmode and sslrootcert. `engine` counts as the database's name only if it is not the name of an
    engine and nothing else names the database.
    """
    defaults = defaults or DatabaseDefaults()
    secret = _json_object(text)
    given = {ours: str(secret[theirs]) for theirs, ours in _SECRET_FIELDS.items() if secret.get(theirs)}
    given |= {name: str(secret[name]) for name in ("sslmode", "sslrootcert") if secret.get(name)}
    engine = str(secret.get("engine") or "postgres")
    if engine.startswith(_OTHER_ENGINES) and engine not in _ENGINES:
        raise ConfigurationError(
            "reading the database secret: its engine is not PostgreSQL",
            hint="give DATABASE_SECRET_ID the secret of the Aurora PostgreSQL cluster",
        )
    complete = _complete(given, defaults)
    if engine not in _ENGINES:
        complete.setdefault("dbname", engine)
    _require(complete)
    return Address({"port": 5432, **complete}, "the database secret, or DATABASE_HOST, DATABASE_PORT, DATABASE_NAME")


def _json_object(text: str) -> dict[str, Any]:
    try:
        secret: object = json.loads(text)
    except ValueError:
        secret = None
    if not isinstance(secret, dict):
        raise ConfigurationError(
            "reading the database secret: it is not a JSON object",
            hint="store a JSON object with username, password, host, port and dbname",
        )
    return cast("dict[str, Any]", secret)


def _require(parameters: Parameters) -> None:
    missing = [theirs for theirs, ours in _SECRET_FIELDS.items() if theirs != "port" and not parameters.get(ours)]
    if not missing:
        return
    settings = [_SETTING_FOR[name] for name in missing if name in _SETTING_FOR]
    in_the_secret = [name for name in missing if name not in _SETTING_FOR]
    hints = [
        *([f"add {', '.join(in_the_secret)} to the secret"] if in_the_secret else ()),
        *([f"set {' and '.join(settings)}; a secret that RDS manages has only username and password"] * bool(settings)),
    ]
    raise ConfigurationError(f"reading the database secret: it lacks {', '.join(missing)}", hint="; ".join(hints))


def _complete(given: Parameters, defaults: DatabaseDefaults) -> Parameters:
    filled = {name: value for name, value in defaults.parameters.items() if value}
    complete = {**_NOT_FROM_THE_ENVIRONMENT, **filled, **{name: value for name, value in given.items() if value}}
    if "sslmode" not in complete:
        if complete.get("sslrootcert"):
            complete["sslmode"] = "verify-full"  # naming a bundle means that it should be used, including the host name
        elif not _on_this_machine(complete):
            complete["sslmode"] = "require"
    elif complete["sslmode"] not in _SSL_MODES:
        raise ConfigurationError(
            "connecting to the database: PostgreSQL does not know this sslmode",
            hint=f"write one of {', '.join(_SSL_MODES)} in DATABASE_URL, the secret or DATABASE_SSLMODE",
        )
    return complete


def _on_this_machine(parameters: Parameters) -> bool:
    """Whether every host is loopback or a Unix socket. A host that is left out is libpq's: PGHOST, or the socket."""
    named = parameters.get("hostaddr") or parameters.get("host") or _libpq_host()
    return all(_is_local(host) for host in str(named).split(","))


def _libpq_host() -> str:
    found = next(option.val for option in psycopg.pq.Conninfo.get_defaults() if option.keyword == b"host")
    return (found or b"").decode()


def _is_local(host: str) -> bool:
    if host in ("", "localhost") or host.startswith(("/", "@")):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
