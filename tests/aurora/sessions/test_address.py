"""The one reader of the secret and the URL, and the TLS mode that follows from them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.aurora.sessions.address import from_secret, from_url
from pipeline.core.errors import ConfigurationError
from pipeline.settings import DatabaseDefaults, Settings

LOGIN = {"username": "admin", "password": "a b'c\\d"}
SECRET = {**LOGIN, "host": "db.example", "port": 5433, "dbname": "hr"}


def read(secret: dict[str, Any], **defaults: str) -> dict[str, Any]:
    """The parameters of a secret, except those that only keep the environment out."""
    parameters = from_secret(json.dumps(secret), DatabaseDefaults(**defaults)).parameters
    return {name: value for name, value in parameters.items() if value != ""}


def test_every_field_of_a_secret_that_rds_writes_is_understood() -> None:
    written = {**SECRET, "engine": "aurora-postgresql", "dbInstanceIdentifier": "i", "dbClusterIdentifier": "c"}
    assert read(written) == {
        "user": "admin",
        "password": "a b'c\\d",
        "host": "db.example",
        "port": "5433",
        "dbname": "hr",
        "sslmode": "require",
    }


@pytest.mark.parametrize("engine", ["postgres", "aurora-postgresql"])
def test_the_name_of_an_engine_is_no_database(engine: str) -> None:
    secret = {**LOGIN, "host": "db.example", "engine": engine}
    with pytest.raises(ConfigurationError, match=r"it lacks dbname; set DATABASE_NAME"):
        read(secret)
    assert read(secret, name="hr")["dbname"] == "hr"


def test_the_engine_of_awss_example_is_the_database_where_nothing_else_names_one() -> None:
    secret = {**LOGIN, "host": "db.example", "engine": "company"}
    assert read(secret)["dbname"] == "company"
    assert read(secret, name="hr")["dbname"] == "hr"
    assert read({**secret, "dbname": "own"}, name="hr")["dbname"] == "own"


@pytest.mark.parametrize("engine", ["mysql", "aurora-mysql", "mariadb", "sqlserver-ex"])
def test_a_secret_of_another_engine_is_refused(engine: str) -> None:
    with pytest.raises(ConfigurationError, match="its engine is not PostgreSQL"):
        read({**SECRET, "engine": engine})


def test_a_secret_of_username_and_password_alone_names_the_settings_that_complete_it() -> None:
    with pytest.raises(ConfigurationError, match=r"lacks host, dbname; set DATABASE_HOST and DATABASE_NAME") as raised:
        read(LOGIN)
    assert "admin" not in str(raised.value)
    variables = {"DATABASE_SECRET_ID": "s", "DATABASE_HOST": "h.example", "DATABASE_NAME": "hr", "DATABASE_PORT": "6"}
    complete = from_secret(json.dumps(LOGIN), Settings.from_environment(variables).database_defaults).parameters
    assert (complete["host"], complete["port"], complete["dbname"]) == ("h.example", "6", "hr")
    assert read(LOGIN, host="h.example", name="hr")["port"] == 5432


def test_what_the_secret_says_wins_over_the_settings() -> None:
    assert read(SECRET, host="other", port="1", name="other")["host"] == "db.example"
    assert read({**SECRET, "sslmode": "verify-ca"}, sslmode="disable")["sslmode"] == "verify-ca"


@pytest.mark.parametrize("missing", ["username", "password"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_login_that_is_missing_is_asked_of_the_secret(missing: str, value: str | None) -> None:
    with pytest.raises(ConfigurationError, match=f"it lacks {missing}; add {missing} to the secret"):
        read({**SECRET, missing: value})


@pytest.mark.parametrize("text", ["swordfish", '["swordfish"]', ""])
def test_a_secret_that_is_no_json_object_is_not_quoted(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not a JSON object") as raised:
        from_secret(text)
    assert "swordfish" not in str(raised.value)


@pytest.mark.parametrize(
    ("host", "sslmode"),
    [
        ("db.example", "require"),
        ("127.0.0.1", None),
        ("localhost", None),
        ("::1", None),
        ("/run/postgresql", None),
        ("127.0.0.1,db.example", "require"),
        ("10.0.0.1", "require"),
        ("localhost.example", "require"),
    ],
)
def test_tls_is_required_everywhere_but_on_this_machine(host: str, sslmode: str | None) -> None:
    assert read({**SECRET, "host": host}).get("sslmode") == sslmode
    assert from_url(f"host={host} dbname=hr user=admin").parameters.get("sslmode") == sslmode


def test_a_host_of_the_environment_is_not_taken_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "sslmode" not in from_url("postgresql:///hr").parameters
    monkeypatch.setenv("PGHOST", "db.example")
    assert from_url("postgresql:///hr").parameters["sslmode"] == "require"
    assert from_url("postgresql://127.0.0.1/hr?hostaddr=10.0.0.1").parameters["sslmode"] == "require"


def test_the_mode_of_the_url_or_secret_wins_over_the_setting_and_that_over_the_default() -> None:
    assert from_url("postgresql://db.example/hr?sslmode=disable").parameters["sslmode"] == "disable"
    assert read(SECRET, sslmode="disable")["sslmode"] == "disable"
    assert read({**SECRET, "host": "127.0.0.1"}, sslmode="require")["sslmode"] == "require"
    defaults = DatabaseDefaults(sslmode="verify-full", sslrootcert="/opt/bundle.pem")
    given = from_url("postgresql://db.example/hr", defaults).parameters
    assert (given["sslmode"], given["sslrootcert"]) == ("verify-full", "/opt/bundle.pem")


def test_a_bundle_alone_means_verify_full() -> None:
    assert read(SECRET, sslrootcert="system")["sslmode"] == "verify-full"
    assert read({**SECRET, "sslrootcert": "/opt/bundle.pem"})["sslmode"] == "verify-full"
    assert from_url("postgresql://db.example/hr?sslrootcert=system").parameters["sslmode"] == "verify-full"


def test_a_mode_that_postgresql_does_not_know_is_refused_without_being_quoted() -> None:
    with pytest.raises(ConfigurationError, match=r"PostgreSQL does not know this sslmode; write one of disable") as no:
        read({**SECRET, "sslmode": "swordfish"})
    assert "swordfish" not in str(no.value)


def test_libpqs_own_variables_of_tls_are_taken_where_ours_are_not_set() -> None:
    variables = {"DATABASE_SECRET_ID": "s", "PGSSLMODE": "verify-ca", "PGSSLROOTCERT": "/bundle"}
    assert Settings.from_environment(variables).database_defaults.sslmode == "verify-ca"
    assert Settings.from_environment({**variables, "DATABASE_SSLMODE": "prefer"}).database_defaults.sslmode == "prefer"


def test_no_address_shows_its_parameters() -> None:
    assert "admin" not in repr(from_secret(json.dumps(SECRET)))
