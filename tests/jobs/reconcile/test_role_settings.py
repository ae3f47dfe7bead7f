"""Settings of the database or role: load, stream and reconciliation end as they would without them."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from pipeline.aurora.sessions.connection import connect
from tests.jobs.conftest import record
from tests.jobs.reconcile.conftest import Probe, Source, found, item, replicated

SETTINGS = (
    ("array_nulls", "off"),
    ("bytea_output", "escape"),
    ("DateStyle", "SQL, DMY"),
    ("default_transaction_isolation", "serializable"),
    ("extra_float_digits", "-15"),
    ("idle_in_transaction_session_timeout", "500ms"),
    ("idle_session_timeout", "500ms"),
    ("IntervalStyle", "sql_standard"),
    ("lock_timeout", "1ms"),
    ("quote_all_identifiers", "on"),
    ("standard_conforming_strings", "off"),
    ("statement_timeout", "500ms"),
    ("synchronous_commit", "off"),
    ("TimeZone", "Australia/Lord_Howe"),
    ("transaction_timeout", "500ms"),
)


@pytest.mark.parametrize(("name", "value"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_a_setting_of_the_database_changes_nothing(
    source: Source, probe: Probe, database: str, name: str, value: str
) -> None:
    assert probe.behind is not None
    with psycopg.connect(database, autocommit=True) as plain:
        row = plain.execute("SELECT current_database()").fetchone()
        assert row
        plain.execute(
            sql.SQL("ALTER DATABASE {} SET {} = {}").format(sql.Identifier(row[0]), sql.Identifier(name), value)
        )
    absent = item(10) | {"empName": {"NULL": True}}
    source.put(absent, item(11, "a\\b'c"))
    source.load(30)
    assert found(source.reconcile(6)) == (0, 0, 0)
    now = source.now.timestamp()
    streamed = [
        record(12, 1, at=now, empName={"NULL": True}),
        record(13, 2, at=now, empName={"S": "back\\slash"}),
        record(11, 3, "REMOVE", at=now),
    ]
    report = replicated(source, *streamed)
    assert (report.applied, report.rejected) == (3, 0)
    with connect(database, application_name="test reader") as reader:
        seen = reader.execute("SELECT current_setting(%s)", [name]).fetchone()
        rows = dict(reader.execute('SELECT "Id", "Name" FROM public."Employees" WHERE "Id" >= 10').fetchall())
        gone = reader.execute('SELECT "Name" IS NULL FROM replica."Employees" WHERE "Id" = 11').fetchone()
    assert seen
    assert seen[0] != value
    assert rows == {10: None, 12: None, 13: "back\\slash"}
    assert gone == (True,)
