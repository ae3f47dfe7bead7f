"""Opening the connection: the secret, its rotation, and the errors when it fails."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from lambda_replicator.database import DatabaseOpener, DatabaseSecret, DatabaseUrl
from pipeline.core.errors import ConfigurationError, LoginRefusedError, UnreachableError
from pipeline.local.process import free_port
from pipeline.settings import Pooler


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch, cloud: Any) -> None:
    """The SDK's variables, as the function gets them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


def opener(credentials: DatabaseSecret | DatabaseUrl, **options: Any) -> DatabaseOpener:
    """An opener with a statement timeout of 27 s."""
    return DatabaseOpener(credentials, statement_timeout_seconds=27, **options)


@pytest.mark.usefixtures("sdk")
def test_a_rotated_password_is_read_again_once(cloud: Any, target: Any) -> None:
    arn = cloud.store_secret(target.secret)
    connect = opener(DatabaseSecret(arn))
    with connect() as connection:
        assert connection.execute("SELECT current_user").fetchone() == (target.role,)
    target.change_password("second")
    cloud.replace_secret(arn, target.secret)
    with connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.usefixtures("sdk")
def test_the_secret_is_cached_while_it_works(cloud: Any, target: Any) -> None:
    arn = cloud.store_secret(target.secret)
    connect = opener(DatabaseSecret(arn))
    connect().close()
    cloud.replace_secret(arn, {"username": "nobody", "password": "wrong", "host": "127.0.0.1", "dbname": "none"})
    connect().close()


@pytest.mark.usefixtures("sdk")
def test_a_login_refused_with_the_new_secret_too_is_told_without_names(cloud: Any, target: Any) -> None:
    arn = cloud.store_secret({**target.secret, "password": "not-this-one"})
    with pytest.raises(LoginRefusedError) as raised:
        opener(DatabaseSecret(arn))()
    told = "".join(traceback.format_exception(raised.value))
    assert "not-this-one" not in told
    assert target.role not in told
    assert "127.0.0.1" not in told


@pytest.mark.usefixtures("sdk")
@pytest.mark.parametrize("text", ["swordfish", '["swordfish"]'])
def test_a_secret_that_is_no_json_object_is_not_quoted(cloud: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a JSON object") as raised:
        opener(DatabaseSecret(cloud.store_secret(text)))()
    assert "swordfish" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.usefixtures("sdk")
def test_a_secret_that_does_not_exist_is_a_configuration_error() -> None:
    with pytest.raises(
        ConfigurationError, match="ResourceNotFoundException; check the name or ARN in DATABASE_SECRET_ID"
    ):
        opener(DatabaseSecret("no-such-secret"))()


def test_secrets_manager_out_of_reach_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(UnreachableError, match="did not answer"):
        opener(DatabaseSecret("some-secret"))()


def test_a_database_out_of_reach_is_transient() -> None:
    with pytest.raises(UnreachableError):
        opener(DatabaseUrl(f"postgresql://user:password@127.0.0.1:{free_port()}/db"))()


def test_the_session_is_set_up(target: Any) -> None:
    with opener(DatabaseUrl(target.url))() as connection:
        settings = "SELECT current_setting('statement_timeout'), current_setting('TimeZone')"
        assert connection.execute(settings).fetchone() == ("27s", "UTC")
        assert connection.prepare_threshold is not None
        assert connection.info.get_parameters()["keepalives_idle"] == "1"


def test_behind_a_pooler_nothing_is_prepared_or_kept_in_the_session(target: Any) -> None:
    with opener(DatabaseUrl(target.url), through=Pooler.TRANSACTION)() as connection:
        for _ in range(8):
            connection.execute("SELECT %s::int", [1], prepare=True)
        assert connection.execute("SELECT current_setting('statement_timeout')").fetchone() == ("0",)
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_a_writer_that_is_set_to_read_only_is_refused(target: Any) -> None:
    target.execute(f'ALTER DATABASE "{target.name}" SET default_transaction_read_only = on')
    with pytest.raises(ConfigurationError, match="its sessions begin read-only"):
        opener(DatabaseUrl(target.url))()


def test_the_statement_of_a_small_batch_is_planned_once(database: str) -> None:
    """PostgreSQL would plan it for each value, because that plan is a little cheaper to execute."""
    with opener(DatabaseUrl(database))() as connection:
        connection.execute("CREATE TABLE numbers AS SELECT n FROM generate_series(1, 100) AS n")
        for _ in range(10):
            connection.execute(
                "SELECT count(*) FROM unnest(%s::int[]) AS n JOIN numbers USING (n)", ("{1}",), prepare=True
            )
        found = connection.execute(
            "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement LIKE '%unnest%'"
        ).fetchall()
    assert found == [(10, 0)]
