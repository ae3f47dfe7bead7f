"""Connections: how each of them is set up."""

from __future__ import annotations

import psycopg
import pytest

from pipeline.aurora.sessions.connection import connect
from pipeline.core.errors import ConfigurationError


def test_text_goes_over_in_utf_8_whatever_the_environment_says(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with connect(database, application_name="test") as connection, connection.cursor() as cursor:
        with cursor.copy("COPY (SELECT 'Ж') TO STDOUT") as copy:
            assert b"".join(map(bytes, copy)) == "Ж\n".encode()
        connection.execute("CREATE TABLE t (v text)")
        with cursor.copy("COPY t FROM STDIN") as copy:
            copy.write("Ж\n".encode())
        assert connection.execute("SELECT v, length(v) FROM t").fetchall() == [("Ж", 1)]


def test_a_database_of_another_encoding_is_refused(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        name = f"{connection.info.dbname}_ascii"
        connection.execute(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0".encode())
        try:
            with pytest.raises(ConfigurationError, match=r"its encoding is SQL_ASCII.*ENCODING 'UTF8'"):
                connect(database, application_name="test", parameters={"dbname": name})
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
