"""The packaged zip under AWS's Runtime Interface Emulator, as Lambda would run it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lambda_replicator.emulator import Emulator, Function

pytestmark = pytest.mark.rie

VALUE = "Trillian-4242"


@pytest.fixture
def emulator(tmp_path: Path, runtime_folder: Path, task_root: Path, target: Any, cloud: Any) -> Iterator[Emulator]:
    """The zip's handler, with the secret of a fresh database."""
    environment = {
        "AWS_ENDPOINT_URL": cloud.url,
        "DATABASE_SECRET_ID": cloud.store_secret(target.secret),
        "PGSSLMODE": "prefer",
        "POWERTOOLS_LOG_LEVEL": "DEBUG",
    }
    with Emulator(Function(task_root, runtime_folder, environment), tmp_path / "emulator.log") as running:
        yield running


def test_the_zip_applies_batches(emulator: Emulator, target: Any, make_record: Any) -> None:
    begun = time.monotonic()
    event = {"Records": [make_record(1, 2001, name=VALUE), make_record(2, 2002), make_record(3, 2002, event="REMOVE")]}
    assert emulator.invoke(event) == {"batchItemFailures": []}
    assert time.monotonic() - begun < 30
    assert emulator.invoke({"Records": [make_record(4, 2003, name=VALUE)]}) == {"batchItemFailures": []}
    assert target.execute('SELECT "Id", "Name" FROM public."Employees" ORDER BY 1') == [(2001, VALUE), (2003, VALUE)]
    log = emulator.log.read_text()
    assert log.count('"message":"batch applied"') == 2
    assert '"Namespace":"Dynaurora"' in log
    assert VALUE not in log


def test_the_zip_fails_a_batch_without_telling_its_values(emulator: Emulator, target: Any, make_record: Any) -> None:
    """Lambda logs the exception and also returns it in the answer: the test reads both."""
    target.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'bad row %', NEW USING DETAIL = NEW::text; END $$"
    )
    target.execute('CREATE TRIGGER refuse BEFORE INSERT ON replica."Employees" FOR EACH ROW EXECUTE FUNCTION refuse()')
    answer = emulator.invoke({"Records": [make_record(1, 1, name=VALUE)]})
    assert answer["errorType"] == "TerminalError"
    assert "P0001" in answer["errorMessage"]
    told = json.dumps(answer) + emulator.log.read_text()
    assert "batch failed, nothing of it is stored" in told
    assert VALUE not in told
    assert target.password not in told
    assert target.execute('SELECT count(*) FROM replica."Employees"') == [(0,)]


@pytest.mark.parametrize(
    ("event", "came"),
    [
        ({}, "an empty object"),
        ({"key1": VALUE}, "console's test event"),
        ({"records": [], "deliveryStreamArn": VALUE}, "Firehose"),
        ({"Records": None}, "`Records` is null"),
    ],
)
def test_the_zip_names_an_event_that_is_no_batch(emulator: Emulator, event: Any, came: str) -> None:
    answer = emulator.invoke(event)
    assert answer["errorType"] == "TerminalError"
    assert came in answer["errorMessage"]
    assert VALUE not in json.dumps(answer) + emulator.log.read_text()


def test_the_zip_takes_a_list_and_milliseconds_and_stops_where_no_time_can_be_read(
    emulator: Emulator, target: Any, make_record: Any
) -> None:
    assert emulator.invoke([make_record(1, 1, seconds=1_767_225_600_000)]) == {"batchItemFailures": []}
    assert target.execute('SELECT extract(epoch FROM _as_of)::bigint FROM replica."Employees"') == [(1_767_225_600,)]
    answer = emulator.invoke({"Records": [make_record(n, n, seconds=VALUE) for n in range(2, 102)]})
    assert answer["errorType"] == "TerminalError"
    assert "ApproximateCreationDateTime is a text that is not a number" in answer["errorMessage"]
    assert VALUE not in json.dumps(answer) + emulator.log.read_text()
    assert target.execute("SELECT count(*) FROM replication.rejects") == [(0,)]


def test_the_zip_of_a_table_that_is_no_longer_the_source_of_record_writes_nothing(
    emulator: Emulator, target: Any, make_record: Any
) -> None:
    """A mapping re-pointed to a restored table, while the replicator of the old one is still deployed."""
    assert emulator.invoke({"Records": [make_record(1, 1, name="before")]}) == {"batchItemFailures": []}
    target.execute("UPDATE replication.tables SET source_table = 'EmployeesRestored'")
    written = (
        'SELECT (SELECT array_agg(e::text) FROM replica."Employees" AS e), (SELECT array_agg(w::text)'
        " FROM replication.watermarks AS w), (SELECT count(*) FROM replication.rejects)"
    )
    before = target.execute(written)
    poison = make_record(3, 3, name="a name that is far too long for its column")
    for records in ([make_record(2, 1, name=VALUE)], [make_record(2, 1, name=VALUE), poison], [poison]):
        answer = emulator.invoke({"Records": records})
        assert answer["errorType"] == "ConfigurationError"
        assert "table Employees, not EmployeesRestored" in answer["errorMessage"]
        assert "dynaurora repoint employees" in answer["errorMessage"]
        assert target.execute(written) == before
    log = emulator.log.read_text()
    assert "batch failed, nothing of it is stored" in log
    assert VALUE not in log
    target.execute("UPDATE replication.tables SET source_table = 'Employees'")
    assert emulator.invoke({"Records": [make_record(2, 1, name="after")]}) == {"batchItemFailures": []}
    assert target.execute('SELECT "Name" FROM public."Employees"') == [("after",)]
