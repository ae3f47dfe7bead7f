"""The packaged zip and its ways to the database: poolers, TLS, servers that accept no session, and the secret."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import connect
from pipeline.local.postgres import PostgresServer
from pipeline.mappings import load_mappings
from tests.aurora.certificates import Authority
from tests.aurora.refusing_server import NO_ENTRY, refusing
from tests.conftest import run_directory
from tests.lambda_replicator.emulator import Emulator, Function
from tests.pgbouncer import PgBouncer, assert_untouched, locks_left
from tests.secrets_endpoint import secrets_endpoint

pytestmark = pytest.mark.rie

Start = Callable[..., Emulator]
TABLES = ("Employees", "Customers")
MAPPING = """\
name: {name}
source: {{table: {table}, key: {{Id: N}}}}
targets:
  {table}:
    primary_key: [Id]
    columns:
      Id: {{attribute: Id, type: bigint}}
      Name: {{attribute: empName, type: varchar(20)}}
    unmapped: attributes
"""
# Long enough for the replicator to try several times, short enough for a test that ends in its error.
SOON_OVER = {"AWS_LAMBDA_FUNCTION_TIMEOUT": "5"}


@pytest.fixture
def start(tmp_path: Path, runtime_folder: Path, task_root: Path) -> Generator[Start]:
    """Start functions from the zip, each its own execution environment, with the given variables."""
    with ExitStack() as running:
        count = 0

        def one(environment: dict[str, str]) -> Emulator:
            nonlocal count
            count += 1
            function = Function(task_root, runtime_folder, environment)
            return running.enter_context(Emulator(function, tmp_path / f"emulator-{count}.log"))

        yield one


def test_two_functions_behind_one_pooler_of_transactions_never_write_each_others_rows(
    start: Start, database: str, tmp_path: Path, pgbouncer: Callable[..., PgBouncer], make_record: Any
) -> None:
    """Their prepared statements would have the same name, on the one server connection that both get."""
    folder = tmp_path / "tables"
    folder.mkdir()
    for table in TABLES:
        (folder / f"{table}.yaml").write_text(MAPPING.format(name=table.lower(), table=table))
    with connect(database, application_name="test migrate") as connection:
        migrate(connection, load_mappings(folder))
    pooler = pgbouncer(database, mode="transaction", pool_size=1)
    functions = {table: start({"DATABASE_URL": pooler.url, "DYNAURORA_TABLES": str(folder)}) for table in TABLES}
    turns = 12  # psycopg prepares what it has sent five times
    for turn in range(turns):
        for table, function in functions.items():
            records = [
                make_record(2 * turn, turn, name=f"{table} {turn}", table=table),
                make_record(2 * turn + 1, turn - 3, event="REMOVE", table=table),
            ]
            assert function.invoke({"Records": records}) == {"batchItemFailures": []}
        if turn == turns // 2:
            pooler.kill()
            pooler.start()
    with connect(database, application_name="test") as direct:
        for table in TABLES:
            view = sql.SQL('SELECT "Id", "Name" FROM {} ORDER BY 1').format(sql.Identifier("public", table))
            rows = direct.execute(view).fetchall()
            assert rows == [(turn, f"{table} {turn}") for turn in range(turns - 3, turns)]
        assert direct.execute("SELECT count(*) FROM replication.rejects").fetchone() == (0,)
    assert locks_left(database) == []
    assert_untouched(pooler, 1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that signs the server's certificate."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls(authority: Authority, mappings: Path) -> Generator[PostgresServer]:
    """A migrated server with TLS, whose certificate is for `localhost`."""
    with run_directory() as folder:
        with PostgresServer(folder / "pg", durable=False) as server:
            with connect(server.url, application_name="test migrate") as connection:
                migrate(connection, load_mappings(mappings))
            settings = authority.server_settings(folder / "pg", "localhost")
        with PostgresServer(folder / "pg", durable=False, settings=settings) as server:
            yield server


def secret_of(server: PostgresServer, **more: str) -> dict[str, Any]:
    """The secret, in the form of Secrets Manager."""
    return {
        "username": "dynaurora",
        "password": server.password,
        "host": "127.0.0.1",
        "port": server.port,
        "dbname": "postgres",
        **more,
    }


def assert_refused(function: Emulator, event: dict[str, Any], kind: str, sentence: str) -> None:
    """The batch fails with this error, and neither the answer nor the log reveals a name."""
    answer = function.invoke(event)
    assert answer["errorType"] == kind, answer
    assert sentence in answer["errorMessage"]
    told = json.dumps(answer) + function.log.read_text()
    assert [name for name in ("napoleon", "waterloo", "blücher", "10.1.2.3") if name in told] == []


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"sslrootcert": "OTHER"}, "the server's certificate is not signed by an authority in the given bundle"),
        ({"host": "127.0.0.1"}, "the server's certificate is for another host name"),
        ({"sslrootcert": "/nosuch.pem"}, "the file of root certificates does not exist or cannot be read"),
    ],
    ids=["wrong authority", "wrong host", "no bundle"],
)
def test_the_secrets_verify_full_holds_for_the_zip(
    start: Start,
    tls: PostgresServer,
    authority: Authority,
    tmp_path: Path,
    make_record: Any,
    fault: dict[str, str],
    sentence: str,
) -> None:
    event = {"Records": [make_record(1, 1)]}
    good = secret_of(tls, host="localhost", sslmode="verify-full", sslrootcert=str(authority.certificate))
    if fault.get("sslrootcert") == "OTHER":
        fault = {"sslrootcert": str(Authority(tmp_path).certificate)}
    with secrets_endpoint(**good) as secrets:
        assert start(secrets.environment).invoke(event) == {"batchItemFailures": []}
        secrets.secret = good | fault
        assert_refused(start(secrets.environment), event, "ConfigurationError", sentence)


def test_the_zip_refuses_a_server_without_tls_where_tls_is_required(
    start: Start, postgres: PostgresServer, make_record: Any
) -> None:
    with secrets_endpoint(**secret_of(postgres, sslmode="require")) as secrets:
        assert_refused(
            start(secrets.environment),
            {"Records": [make_record(1, 1)]},
            "ConfigurationError",
            "TLS is required, and the server offers none",
        )


def test_the_zip_waits_for_a_cluster_that_resumes(start: Start, target: Any, make_record: Any) -> None:
    with refusing(*NO_ENTRY, refusals=2, then=target.server.port) as server:
        with secrets_endpoint(**target.secret | {"port": server.port}) as secrets:
            answer = start(secrets.environment).invoke({"Records": [make_record(1, 7, name="Ney")]})
            assert answer == {"batchItemFailures": []}
            assert secrets.fetches == 1
        assert server.sessions == 3
    assert target.execute('SELECT "Id", "Name" FROM public."Employees"') == [(7, "Ney")]


def test_a_cluster_that_stays_away_fails_the_batch_as_what_passes(start: Start, make_record: Any) -> None:
    with refusing(*NO_ENTRY) as server, secrets_endpoint(**nobody(server.port)) as secrets:
        function = start(secrets.environment | SOON_OVER)
        assert_refused(function, {"Records": [make_record(1, 1)]}, "NotNowError", "resumes from zero capacity")
        assert server.sessions > 1


def nobody(port: int) -> dict[str, Any]:
    """A secret for a server that refuses every session."""
    return {"username": "napoleon", "password": "blücher", "host": "127.0.0.1", "port": port, "dbname": "waterloo"}


@pytest.mark.parametrize(
    "text",
    [
        "sorry, too many clients already",
        "remaining connection slots are reserved for roles with the SUPERUSER attribute",
        'too many connections for role "napoleon"',
        'too many connections for database "waterloo"',
    ],
)
def test_no_connection_to_spare_reads_the_secret_once(start: Start, make_record: Any, text: str) -> None:
    with refusing("53300", text) as server, secrets_endpoint(**nobody(server.port)) as secrets:
        function = start(secrets.environment | SOON_OVER)
        for _ in range(2):  # on a busy machine an invocation may make only one attempt
            assert_refused(function, {"Records": [make_record(1, 1)]}, "NotNowError", "no connection to spare")
        assert server.sessions > 1
        assert secrets.fetches == 1


def test_a_refused_password_reads_the_secret_again_once_an_opening(start: Start, make_record: Any) -> None:
    refused = ("28P01", 'password authentication failed for user "napoleon"')
    with refusing(*refused) as server, secrets_endpoint(**nobody(server.port)) as secrets:
        function = start(secrets.environment | SOON_OVER)
        assert_refused(
            function, {"Records": [make_record(1, 1)]}, "LoginRefusedError", "check the user and password in"
        )
        assert server.sessions > 1
        assert secrets.fetches == 1 + server.sessions
