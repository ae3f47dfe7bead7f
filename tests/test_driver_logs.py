"""The drivers' logs while the root logger is at DEBUG: no secret, no host, no user."""

from __future__ import annotations

import logging

import psycopg
import pytest

from lambda_replicator.database import DatabaseOpener, DatabaseSecret
from pipeline.aurora.sessions.connection import connect
from pipeline.core.errors import UnreachableError
from pipeline.dynamodb.client import client
from pipeline.jobs.services import Services
from pipeline.local.stack import LocalStack
from pipeline.settings import Settings

SECRET = '{"username": "napoleon", "password": "blucher-1815", "host": "127.0.0.1", "port": 1, "dbname": "waterloo"}'


@pytest.mark.parametrize("front_end", ["lambda", "others"])
def test_no_secret_is_logged_at_debug(
    front_end: str, stack: LocalStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", stack.endpoint_url)
    name = f"waterloo-{front_end}"
    client("secretsmanager", endpoint_url=stack.endpoint_url).create_secret(Name=name, SecretString=SECRET)
    services = Services(Settings.from_environment({"DATABASE_SECRET_ID": name, "AWS_ENDPOINT_URL": stack.endpoint_url}))
    opener = DatabaseOpener(DatabaseSecret(name), statement_timeout_seconds=5)
    for driver in ("botocore", "boto3", "urllib3"):
        logging.getLogger(driver).setLevel(logging.NOTSET)
    with caplog.at_level(logging.DEBUG), pytest.raises(UnreachableError, match="nothing listens"):
        opener() if front_end == "lambda" else services.connect("test")
    assert not [name for name in ("blucher", "napoleon", "127.0.0.1") if name in caplog.text]


def test_a_rollback_that_fails_warns_without_the_connection(database: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        with connection.transaction():
            backend = connection.execute("SELECT pg_backend_pid()").fetchone()
            with psycopg.connect(database, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", backend)
            raise LookupError

    connection = connect(database, application_name="test")
    with caplog.at_level(logging.DEBUG), pytest.raises(LookupError):
        broken()
    connection.close()
    assert "error ignored in rollback" in caplog.text
    assert "details left out" in caplog.text
    assert not [name for name in ("127.0.0.1", "dynaurora", "database=") if name in caplog.messages[-1]]
