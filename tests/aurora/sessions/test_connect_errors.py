"""Why a session could not be opened: each reason has its own sentence, and is transient or not."""

from __future__ import annotations

import socket
import traceback
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pipeline.aurora.sessions.connection import connect
from pipeline.core.errors import (
    ConfigurationError,
    LoginRefusedError,
    NotNowError,
    ReplicationError,
    UnreachableError,
)
from pipeline.local.postgres import PostgresServer
from pipeline.local.process import free_port
from tests.aurora.certificates import Authority
from tests.aurora.refusing_server import NO_ENTRY, refusing
from tests.conftest import run_directory

NAMES = ("napoleon", "waterloo", "blücher-1815", "127.0.0.1", "10.1.2.3")
URL = "postgresql://napoleon:blücher-1815@127.0.0.1:{}/waterloo"


def refusal(url: str, **parameters: str | int) -> ReplicationError:
    """The error of connecting, which reveals no name and chains nothing that would."""
    with pytest.raises(ReplicationError) as raised:
        connect(url, application_name="test", connect_timeout_seconds=2, parameters=parameters).close()
    told = "".join(traceback.format_exception(raised.value))
    assert not [name for name in NAMES if name in told]
    return raised.value


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (NO_ENTRY, NotNowError, "resumes from zero capacity"),
        (("53300", "sorry, too many clients already"), NotNowError, "has no connection to spare"),
        (
            ("53300", "remaining connection slots are reserved for roles with the SUPERUSER attribute"),
            NotNowError,
            "has no connection to spare",
        ),
        (
            ("53300", "remaining connection slots are reserved for non-replication superuser connections"),
            NotNowError,
            "has no connection to spare",
        ),
        (("53300", 'too many connections for role "napoleon"'), NotNowError, "has no connection to spare"),
        (("53300", 'too many connections for database "waterloo"'), NotNowError, "has no connection to spare"),
        (("57P03", "the database system is starting up"), NotNowError, "starting, shutting down or recovering"),
        (("57P03", "the database system is in recovery mode"), NotNowError, "starting, shutting down or recovering"),
        (("57P03", "the database system is not accepting connections"), NotNowError, "starting, shutting"),
        (("28P01", 'password authentication failed for user "napoleon"'), LoginRefusedError, "InvalidPassword"),
        (("28P01", 'PAM authentication failed for user "napoleon"'), LoginRefusedError, "InvalidPassword"),
        (("28000", 'role "napoleon" does not exist'), ConfigurationError, "does not let this user log in"),
        (("28000", 'role "napoleon" is not permitted to log in'), ConfigurationError, "does not let this user log in"),
        (("28000", 'pg_hba.conf rejects connection for host "10.1.2.3"'), ConfigurationError, "sslmode=require"),
        (("3D000", 'database "waterloo" does not exist'), ConfigurationError, "create the database"),
        (("55000", 'database "waterloo" is not currently accepting connections'), ConfigurationError, "55000"),
        (("42501", 'permission denied for database "waterloo"'), ConfigurationError, "grant the user CONNECT"),
    ],
)
def test_what_the_server_answers_is_a_sentence_and_a_kind(
    answer: tuple[str, str], kind: type[ReplicationError], sentence: str
) -> None:
    with refusing(*answer) as server:
        error = refusal(URL.format(server.port))
    assert type(error) is kind
    assert sentence in str(error)
    assert server.sessions == 1


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("28P01", LoginRefusedError),
        ("28000", NotNowError),
        ("53300", NotNowError),
        ("53200", NotNowError),
        ("57P03", NotNowError),
        ("3D000", ConfigurationError),
        ("42704", ConfigurationError),
        ("XX000", NotNowError),
    ],
)
def test_a_server_of_another_language_is_understood_by_its_sqlstate(state: str, kind: type[ReplicationError]) -> None:
    with refusing(state, "извините, не сегодня: napoleon", "ВАЖНО") as server:
        error = refusal(URL.format(server.port))
    assert type(error) is kind
    assert state in str(error)


def test_a_refusal_that_cannot_be_read_is_taken_as_passing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.memfd_create")
    with refusing("28P01", "nein", "FATAL") as server:
        assert type(refusal(URL.format(server.port))) is NotNowError


def test_unknown_host_refused_connection_and_silence_are_told_apart() -> None:
    url = "postgresql://napoleon@{}/waterloo"
    unknown = refusal(url.format("nosuch.invalid"))
    refused = refusal(url.format(f"127.0.0.1:{free_port()}"))
    assert [type(unknown), type(refused)] == [UnreachableError, UnreachableError]
    assert "the host name is not known here (DNS); check the host in DATABASE_URL" in str(unknown)
    assert "nothing listens at that host and port (connection refused)" in str(refused)
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # its sessions wait in the kernel's queue
        silent = refusal(url.format(f"127.0.0.1:{deaf.getsockname()[1]}"))
    assert type(silent) is UnreachableError
    assert "did not answer in time; check that the cluster is up, that security group" in str(silent)


@pytest.fixture(scope="module")
def small() -> Iterator[PostgresServer]:
    """A server of four connections, one of them reserved."""
    settings = {"max_connections": "4", "superuser_reserved_connections": "1", "max_wal_senders": "0"}
    with run_directory() as folder, PostgresServer(folder / "pg", durable=False, settings=settings) as server:
        with psycopg.connect(server.url, autocommit=True) as owner:
            owner.execute("CREATE ROLE napoleon LOGIN PASSWORD 'x'")
            owner.execute("CREATE ROLE ney LOGIN PASSWORD 'x' CONNECTION LIMIT 0")
            owner.execute("CREATE ROLE grouchy PASSWORD 'x'")
            owner.execute("CREATE DATABASE waterloo CONNECTION LIMIT 0")
            owner.execute("CREATE DATABASE wavre ALLOW_CONNECTIONS false")
            owner.execute("CREATE DATABASE ligny")
            owner.execute("REVOKE CONNECT ON DATABASE ligny FROM public")
        yield server


@pytest.mark.parametrize(
    ("parameters", "kind", "sentence"),
    [
        ({"user": "ney"}, NotNowError, "no connection to spare"),
        ({"dbname": "waterloo"}, NotNowError, "no connection to spare"),
        ({"dbname": "wavre"}, ConfigurationError, "accepts no connections"),
        ({"dbname": "ligny"}, ConfigurationError, "grant the user CONNECT"),
        ({"dbname": "nowhere"}, ConfigurationError, "create the database"),
        ({"user": "grouchy"}, ConfigurationError, "does not let this user log in"),
        ({"password": "y"}, LoginRefusedError, "check the user and password"),
        ({"user": "nobody"}, LoginRefusedError, "check the user and password"),  # which of the two it does not say
        ({"options": "-c nosuch=1"}, ConfigurationError, "42704"),
    ],
)
def test_a_real_server_is_understood(
    small: PostgresServer, parameters: dict[str, str], kind: type[ReplicationError], sentence: str
) -> None:
    error = refusal(make_conninfo(small.url, **{"user": "napoleon", "password": "x", **parameters}))
    assert type(error) is kind
    assert sentence in str(error)


def test_slots_of_a_real_server_that_are_used_up_are_no_refused_login(small: PostgresServer) -> None:
    held = [psycopg.connect(small.url) for _ in range(3)]
    try:
        reserved = refusal(make_conninfo(small.url, user="napoleon", password="x"))
        held.append(psycopg.connect(small.url))
        full = refusal(small.url)
    finally:
        for connection in held:
            connection.close()
    assert [type(reserved), type(full)] == [NotNowError, NotNowError]
    assert "53300" in str(reserved)
    assert str(full) == str(reserved)


def test_an_urls_missing_password_is_named(small: PostgresServer) -> None:
    error = refusal(f"postgresql://napoleon@127.0.0.1:{small.port}/postgres")
    assert isinstance(error, ConfigurationError)
    assert "there is none; add the password to DATABASE_URL" in str(error)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that signs the server's certificate."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> Iterator[PostgresServer]:
    """A server with TLS, whose certificate is for `localhost`."""
    with run_directory() as folder:
        with PostgresServer(folder / "pg", durable=False) as once:
            settings = authority.server_settings(folder / "pg", "localhost")
            once.stop()
        with PostgresServer(folder / "pg", durable=False, settings=settings) as server:
            yield server


@pytest.fixture(scope="module")
def tls_of_today(authority: Authority) -> Iterator[PostgresServer]:
    """A server that only speaks TLS 1.3."""
    with run_directory() as folder:
        with PostgresServer(folder / "pg", durable=False):
            settings = authority.server_settings(folder / "pg", "localhost") | {"ssl_min_protocol_version": "TLSv1.3"}
        with PostgresServer(folder / "pg", durable=False, settings=settings) as server:
            yield server


def test_verify_full_connects_to_the_right_server_alone(
    tls: PostgresServer, authority: Authority, tmp_path: Path
) -> None:
    good = {"host": "localhost", "hostaddr": "127.0.0.1", "sslrootcert": str(authority.certificate)}
    url = make_conninfo(tls.url, **good)
    with closing(connect(url, application_name="test")) as connection:  # a bundle without a mode means verify-full
        assert connection.info.get_parameters()["sslmode"] == "verify-full"
        assert connection.pgconn.ssl_in_use
    other = Authority(tmp_path)
    for parameters, sentence in (
        ({"sslrootcert": str(other.certificate)}, "not signed by an authority in the given bundle"),
        ({"sslrootcert": "/nosuch.pem"}, "does not exist or cannot be read; set DATABASE_SSLROOTCERT"),
        ({"sslrootcert": __file__}, "does not exist or cannot be read; set DATABASE_SSLROOTCERT"),
        ({"sslrootcert": "system"}, "not signed by an authority in the given bundle"),
        ({"sslrootcert": "system", "sslmode": "require"}, "sslmode contradicts the other TLS settings"),
        ({"host": "127.0.0.1"}, "certificate is for another host name"),
    ):
        error = refusal(make_conninfo(url, **parameters))
        assert isinstance(error, ConfigurationError), sentence
        assert sentence in str(error)


def test_a_server_without_tls_is_told_as_such(database: str) -> None:
    error = refusal(make_conninfo(database, sslmode="require"))
    assert isinstance(error, ConfigurationError)
    assert "TLS is required, and the server offers none" in str(error)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"PGREQUIREAUTH": "md5"}, "the server does not offer the login that the settings demand"),
        ({"PGREQUIREAUTH": "nosuch"}, "a value that libpq refuses"),
        (
            {"PGCHANNELBINDING": "require", "PGSSLMODE": "disable"},
            "the server does not offer the login that the settings demand",
        ),
        ({"PGGSSENCMODE": "require"}, "the server does not offer the login that the settings demand"),
        ({"PGSSLMAXPROTOCOLVERSION": "TLSv1.2"}, "the server does not offer the login that the settings demand"),
        ({"PGSSLMAXPROTOCOLVERSION": "nosuch"}, "a value that libpq refuses"),
        ({"PGSSLMAXPROTOCOLVERSION": "TLSv1.2", "PGSSLMINPROTOCOLVERSION": "TLSv1.3"}, "a value that libpq refuses"),
        ({"PGMINPROTOCOLVERSION": "3.2"}, "the server does not offer the login that the settings demand"),
        ({"PGSSLNEGOTIATION": "direct", "PGSSLMODE": "prefer"}, "require or more with sslnegotiation=direct"),
        ({"PGSSLCERT": __file__}, "a client certificate, or the given one cannot be used"),
        ({"PGSSLCERTMODE": "require"}, "a client certificate, or the given one cannot be used"),
    ],
    ids=str,
)
def test_what_the_environment_demands_in_vain_does_not_pass(
    tls_of_today: PostgresServer, variables: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ({"PGSSLMODE": "require"} | variables).items():
        monkeypatch.setenv(name, value)
    error = refusal(tls_of_today.url)
    assert isinstance(error, ConfigurationError)
    assert sentence in str(error)


def test_what_the_environment_demands_holds(tls: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("PGSSLMODE", "require"),
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGCHANNELBINDING", "require"),
        ("PGSSLNEGOTIATION", "direct"),
    ):
        monkeypatch.setenv(name, value)
    with closing(connect(tls.url, application_name="test")) as connection:
        assert connection.pgconn.ssl_in_use


def test_a_server_that_demands_a_client_certificate_is_told_as_such() -> None:
    with refusing("28000", "connection requires a valid client certificate") as server:
        error = refusal(URL.format(server.port))
    assert isinstance(error, ConfigurationError)
    assert "PGSSLCERT and PGSSLKEY" in str(error)


def test_a_reader_alone_is_told_as_such_and_passes() -> None:
    with run_directory() as folder:
        with PostgresServer(folder / "pg", durable=False):
            pass
        (folder / "pg" / "standby.signal").touch()
        with PostgresServer(folder / "pg", durable=False) as server:
            error = refusal(server.url)
            behind_a_pooler = refusal(server.url, target_session_attrs="any")  # whose greeting may be from before
    assert [type(error), type(behind_a_pooler)] == [NotNowError, NotNowError]
    assert "only a reader can be reached, no writer" in str(error)
    assert str(behind_a_pooler) == str(error)


@pytest.mark.parametrize("of", ["DATABASE", "ROLE"])
def test_a_writer_that_is_set_to_read_only_is_no_reader_and_does_not_pass(database: str, of: str) -> None:
    """It used to be reported as 25006, which is usually transient."""
    with psycopg.connect(database, autocommit=True) as connection:
        role = sql.Identifier(f"{connection.info.dbname}_role")
        name = role if of == "ROLE" else sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x'").format(role))
        alter = sql.SQL("ALTER ROLE {}") if of == "ROLE" else sql.SQL("ALTER DATABASE {}")
        connection.execute(alter.format(name) + sql.SQL(" SET default_transaction_read_only = on"))
        try:
            error = refusal(database, user=f"{connection.info.dbname}_role", password="x")
        finally:
            connection.execute(sql.SQL("DROP ROLE {}").format(role))
    assert isinstance(error, ConfigurationError)
    assert "RESET default_transaction_read_only" in str(error)
    assert "reader" not in str(error)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PGHOSTADDR", "127.0.0.9"),
        ("PGOPTIONS", "-c default_transaction_read_only=on"),
        ("PGTARGETSESSIONATTRS", "read-only"),
        ("PGPORT", "1"),
        ("PGDATABASE", "waterloo"),
        ("PGUSER", "napoleon"),
        ("PGPASSFILE", "/nosuch"),
        ("PGCONNECT_TIMEOUT", "x"),
        ("PGAPPNAME", "other"),
    ],
)
def test_the_environment_does_not_bend_the_connection(
    database: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with closing(connect(database, application_name="test")) as connection:
        row = connection.execute("SELECT current_setting('transaction_read_only'), current_setting('application_name')")
        assert row.fetchone() == ("off", "test")


def test_a_service_of_the_environment_that_does_not_exist_is_named(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSERVICE", "napoleon")
    error = refusal(database)
    assert isinstance(error, ConfigurationError)
    assert "unset PGSERVICE" in str(error)
