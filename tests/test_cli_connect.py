"""The command itself, as a process, connecting to the database: poolers, TLS, servers that refuse sessions, the secret.

Each verb runs against a server that refuses it and against one that accepts it; then the test asks what is left.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import connect
from pipeline.local.mapping_delivery import Discard
from pipeline.local.mapping_documents import failure_document
from pipeline.local.postgres import PostgresServer
from pipeline.mappings import load_mappings
from tests.aurora.certificates import Authority
from tests.aurora.refusing_server import NO_ENTRY, refusing
from tests.conftest import run_directory
from tests.dynamodb.export_fixture import ExportFactory
from tests.jobs.conftest import STREAM, named
from tests.pgbouncer import PgBouncer, assert_untouched, locks_left
from tests.secrets_endpoint import secrets_endpoint

TABLES = Path(__file__).parents[1] / "tables"
VERBS = ("plan", "migrate", "load", "reconcile", "catch-up", "redrive", "rejects", "promote", "purge", "status")
Run = Callable[..., subprocess.CompletedProcess[str]]


def migrate_tables(url: str) -> None:
    """As `dynaurora migrate` does."""
    with connect(url, application_name="test migrate") as connection:
        migrate(connection, load_mappings(TABLES))


@pytest.fixture
def migrated(database: str) -> str:
    """The URL of a migrated database."""
    migrate_tables(database)
    return database


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a verb on employees with only these variables, over an export or a failed batch if it needs one."""
    exports = ExportFactory.in_folder(tmp_path / "bucket")
    full = exports.full([{"Id": {"N": str(number)}, "empName": {"S": f"name {number}"}} for number in range(5)])
    failed = tmp_path / "on-failure" / "aws" / "lambda" / "1.json"
    failed.parent.mkdir(parents=True)
    discard = Discard([named(1, 1, "Ney")], "RetryAttemptsExhausted", 4, function_error=True)
    failed.write_bytes(failure_document("shardId-0001", STREAM, discard, datetime.now(UTC)))
    words = {
        "load": ["--manifest", full.location],
        "reconcile": ["--manifest", full.location],
        "catch-up": ["--manifest", exports.incremental([]).location],
        "redrive": ["--prefix", f"{(tmp_path / 'on-failure').as_uri()}/"],
    }
    command = Path(sys.executable).with_name("dynaurora")
    folder = tmp_path / "tables"
    shutil.copytree(TABLES, folder)

    def one(verb: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        given = [*(["list"] if verb == "rejects" else []), "employees", *words.get(verb, ())]
        variables = {"PATH": os.environ["PATH"], "DYNAURORA_TABLES": str(folder)} | environment
        return subprocess.run([command, verb, *given], env=variables, capture_output=True, text=True, check=False)

    return one


def assert_told(done: subprocess.CompletedProcess[str], code: int, sentence: str) -> None:
    """It ended with this code and one line that contains this text, without a name or a traceback."""
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    told = done.stdout + done.stderr
    assert [name for name in ("napoleon", "waterloo", "blücher", "10.1.2.3") if name in told] == []


def rows(database: str) -> int:
    """How many rows the table has, read from the server directly."""
    with psycopg.connect(database) as connection:
        return (connection.execute('SELECT count(*) FROM replica."Employees"').fetchone() or (0,))[0]


def settings_of_database(database: str) -> dict[str, Any]:
    """A secret with the same content as a URL."""
    parts = conninfo_to_dict(database)
    return {"username": parts.pop("user"), **parts}


def nobody(port: int) -> dict[str, Any]:
    """A secret for a server that refuses every session."""
    return {"username": "napoleon", "password": "blücher", "host": "127.0.0.1", "port": port, "dbname": "waterloo"}


def test_every_verb_is_refused_by_a_pooler_of_transactions_and_leaves_nothing(
    migrated: str, pgbouncer: Callable[..., PgBouncer], run: Run
) -> None:
    pooler = pgbouncer(migrated, mode="transaction", pool_size=1)
    for verb in VERBS:
        if verb == "redrive":
            continue
        assert_told(run(verb, {"DATABASE_URL": pooler.url}), 2, "a connection pooler answered")
        session = {"DATABASE_URL": pooler.url, "DATABASE_POOLER": "session"}
        assert_told(run(verb, session), 2, "it pools transactions")
    assert rows(migrated) == 0
    assert locks_left(migrated) == []
    assert_untouched(pooler, 1)
    for _ in range(2):  # the batch it applies is then done; it works through a pooler, as the replicator does
        assert run("redrive", {"DATABASE_URL": pooler.url}).returncode == 0
    assert rows(migrated) == 1
    assert locks_left(migrated) == []
    assert_untouched(pooler, 1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that signs the server's certificate."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls(authority: Authority) -> Generator[PostgresServer]:
    """A migrated server with TLS, whose certificate is for `localhost`."""
    with run_directory() as folder:
        with PostgresServer(folder / "pg", durable=False) as server:
            migrate_tables(server.url)
            settings = authority.server_settings(folder / "pg", "localhost")
        with PostgresServer(folder / "pg", durable=False, settings=settings) as server:
            yield server


@pytest.mark.parametrize("verb", ["load", "status"])
def test_the_secrets_verify_full_holds_for_the_command(
    tls: PostgresServer, authority: Authority, tmp_path: Path, run: Run, verb: str
) -> None:
    other = Authority(tmp_path)
    good = settings_of_database(tls.url) | {
        "host": "localhost",
        "sslmode": "verify-full",
        "sslrootcert": str(authority.certificate),
    }
    with secrets_endpoint(**good) as secrets:
        done = run(verb, secrets.environment)
        assert done.returncode == 0, done.stderr
        for fault, sentence in (
            ({"sslrootcert": str(other.certificate)}, "is not signed by an authority in the given bundle"),
            ({"host": "127.0.0.1"}, "certificate is for another host name"),
            ({"sslrootcert": "/nosuch.pem"}, "root certificates does not exist or cannot be read"),
            ({"sslmode": "verify-fully"}, "PostgreSQL does not know this sslmode"),
        ):
            secrets.secret = good | fault
            assert_told(run(verb, secrets.environment), 2, sentence)


@pytest.mark.parametrize("verb", ["load", "status"])
def test_the_command_refuses_a_server_without_tls_where_tls_is_required(migrated: str, run: Run, verb: str) -> None:
    with secrets_endpoint(**settings_of_database(migrated), sslmode="require") as secrets:
        assert_told(run(verb, secrets.environment), 2, "TLS is required, and the server offers none")
    assert rows(migrated) == 0


@pytest.mark.parametrize("verb", ["load", "reconcile", "status"])
def test_a_cluster_that_resumes_is_waited_for(migrated: str, run: Run, verb: str) -> None:
    if verb == "reconcile":
        assert run("load", {"DATABASE_URL": migrated}).returncode == 0
    port = int(str(conninfo_to_dict(migrated)["port"]))
    with (
        refusing(*NO_ENTRY, refusals=2, then=port) as server,
        secrets_endpoint(**settings_of_database(migrated) | {"port": server.port}) as secrets,
    ):
        done = run(verb, secrets.environment)
        assert done.returncode == 0, done.stderr
        assert server.sessions > 2
        assert secrets.fetches == server.sessions - 2, "one for each opening, none for a refused session"
    assert rows(migrated) == (0 if verb == "status" else 5)


@pytest.mark.parametrize("verb", VERBS)
def test_a_cluster_that_stays_away_is_a_dependency_out_of_reach(run: Run, verb: str) -> None:
    with refusing(*NO_ENTRY) as server, secrets_endpoint(**nobody(server.port)) as secrets:
        done = run(verb, secrets.environment | {"DATABASE_WAIT_SECONDS": "0.5"})
        assert_told(done, 3, "resumes from zero capacity")
        assert server.sessions > 1
        assert secrets.fetches < server.sessions


@pytest.mark.parametrize(
    "text",
    [
        "sorry, too many clients already",
        "remaining connection slots are reserved for roles with the SUPERUSER attribute",
        'too many connections for role "napoleon"',
        'too many connections for database "waterloo"',
    ],
)
def test_no_connection_to_spare_is_out_of_reach_and_reads_the_secret_once(run: Run, text: str) -> None:
    with refusing("53300", text) as server, secrets_endpoint(**nobody(server.port)) as secrets:
        done = run("status", secrets.environment | {"DATABASE_WAIT_SECONDS": "1"})
        assert_told(done, 3, "the server has no connection to spare")
        assert server.sessions > 1
        assert secrets.fetches == 1


@pytest.mark.parametrize("verb", ["load", "redrive", "status"])
def test_a_refused_password_is_wrong_configuration_at_once(run: Run, verb: str) -> None:
    refused = ("28P01", 'password authentication failed for user "napoleon"')
    with refusing(*refused) as server, secrets_endpoint(**nobody(server.port)) as secrets:
        assert_told(run(verb, secrets.environment), 2, "check the user and password in the database secret")
        assert (server.sessions, secrets.fetches) == (1, 1)


@pytest.mark.parametrize("verb", ["load", "redrive", "status"])
def test_a_writer_that_is_set_to_read_only_is_wrong_configuration(migrated: str, run: Run, verb: str) -> None:
    with psycopg.connect(migrated, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
    assert_told(run(verb, {"DATABASE_URL": migrated}), 2, "RESET default_transaction_read_only")
