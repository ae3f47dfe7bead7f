"""Values that PostgreSQL cannot hold end as their column's policy says, and affect nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import pytest

from pipeline.aurora.bookkeeping import settled
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.load.load import load
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.services import Services
from pipeline.settings import Settings
from tests.dynamodb.export_fixture import ExportFactory, Layout

MAPPING = """
name: poison
source: {table: Poison, key: {PK: S, SK: S}}
targets:
  Poison:
    primary_key: [pk, sk]
    columns:
      pk: {attribute: PK, type: text}
      sk: {attribute: SK, type: text}
      words: {attribute: words, type: text ON_ERROR}
      short: {attribute: short, type: varchar(3) ON_ERROR}
      small: {attribute: small, type: smallint ON_ERROR}
      money: {attribute: money, type: "numeric(5,2)" ON_ERROR}
      at: {attribute: at, type: timestamptz ON_ERROR}
      day: {attribute: day, type: date ON_ERROR}
      id: {attribute: id, type: uuid ON_ERROR}
      tags: {attribute: tags, type: "text[]" ON_ERROR}
      doc: {attribute: doc, type: jsonb ON_ERROR}
      parsed: {attribute: parsed, type: jsonb, json: parse ON_ERROR}
    unmapped: rest
"""
POISON: dict[str, Any] = {
    "words": {"S": "a\x00b"},
    "short": {"S": "four"},
    "small": {"N": "32768"},
    "money": {"N": "1000"},
    "at": {"S": "+10000-01-01T00:00:00Z"},
    "day": {"S": "10000-01-01"},
    "id": {"S": "no uuid"},
    "tags": {"SS": ["fine", "\ud800"]},
    "doc": {"M": {"a\x00b": {"N": "1"}}},
    "parsed": {"S": '{"a": "\\ud800"}'},
    "not mapped": {"L": [{"S": "\x00"}]},
    "name \x00 not mapped": {"S": "x"},
    "surrogate": {"S": "\udfff"},
}
Deliver = Callable[[Services, TableMapping, list[Any]], tuple[int, int]]


def mapping(on_error: str = "", target: str = "") -> TableMapping:
    text = MAPPING.replace(" ON_ERROR", f", on_error: {on_error}" if on_error else "")
    return read_mapping(text + target, "poison.yaml")


def item(number: int, **attributes: Any) -> Any:  # noqa: ANN401 - attribute values
    return {"PK": {"S": f"item {number}"}, "SK": {"S": "s"}, **attributes}


def items() -> list[Any]:
    """One item with each kind of bad value, with a harmless item between each two."""
    found = [item(0)]
    for number, (name, value) in enumerate(POISON.items(), 1):
        found += [item(2 * number - 1, **{name: value}), item(2 * number, words={"S": "fine"})]
    return found


@pytest.fixture
def services(database: str) -> Services:
    made = Services(Settings.from_environment({"DATABASE_URL": database}))
    with closing(made.connect("test migrate")) as connection:
        migrate(connection, [mapping()])
    return made


@pytest.fixture
def connection(services: Services) -> Generator[Connection]:
    with closing(services.connect("test")) as opened:
        yield opened


def by_stream(services: Services, used: TableMapping, wanted: list[Any]) -> tuple[int, int]:
    arn = "arn:aws:dynamodb:eu-central-1:111122223333:table/Poison/stream/2026-05-14T10:00:00.000"
    records: list[Any] = [
        {
            "eventName": "INSERT",
            "eventSourceARN": arn,
            "dynamodb": {
                "ApproximateCreationDateTime": 1_778_752_900,
                "Keys": {"PK": found["PK"], "SK": found["SK"]},
                "NewImage": found,
                "SequenceNumber": str(10**21 + number),
            },
        }
        for number, found in enumerate(wanted)
    ]
    with closing(Replicator([used], lambda: services.connect("test"), writer="w")) as replicator:
        (report,) = replicator.replicate({"Records": records}, deadline=time.monotonic() + 60)
    return report.applied, report.rejected


@pytest.fixture(params=["stream", "export"])
def deliver(request: pytest.FixtureRequest, exports: ExportFactory) -> Deliver:
    """Deliver items on one path; returns (applied, rejected)."""

    def by_export(services: Services, used: TableMapping, wanted: list[Any]) -> tuple[int, int]:
        lines = [found for found in wanted if not holds_surrogate(found)]
        export = exports.full(lines, Layout(table="Poison"))
        report = load(services, used, export.location)
        return report.applied, report.rejected

    return by_stream if request.param == "stream" else by_export


def holds_surrogate(value: Any) -> bool:  # noqa: ANN401 - attribute values
    """Whether a text is not UTF-8: the export fixture writes files, which hold only UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def stored(connection: Connection) -> dict[str, tuple[Any, ...]]:
    rows = connection.execute(
        'SELECT pk, words, short, small, money, at, day, id, tags, doc, parsed, rest FROM replica."Poison"'
    ).fetchall()
    return {row[0]: row[1:] for row in rows}


def test_by_default_each_is_rejected_whole_and_nothing_else(
    services: Services, connection: Connection, deliver: Deliver
) -> None:
    wanted = items()
    applied, rejected = deliver(services, mapping(), wanted)
    assert sorted(stored(connection)) == sorted(f"item {2 * number}" for number in range(len(POISON) + 1))
    assert applied == len(POISON) + 1
    reasons = [reason for (reason,) in connection.execute("SELECT reason FROM replication.rejects ORDER BY id")]
    assert len(reasons) == rejected
    assert rejected >= len(POISON) - 2, "two cannot be written to a file"
    for column in ("words", "short", "small", "money", "at", "day", "id", "doc", "parsed", "rest"):
        assert any(f'column "{column}"' in reason for reason in reasons), column
    assert not any("no uuid" in reason or "32768" in reason for reason in reasons)


def test_null_keeps_the_record_and_empties_the_column(
    services: Services, connection: Connection, deliver: Deliver
) -> None:
    wanted = items()
    applied, rejected = deliver(services, mapping("null", "    unmapped_on_error: null\n"), wanted)
    assert rejected == 0
    rows = stored(connection)
    assert len(rows) == applied >= len(wanted) - 2
    for number, name in enumerate(POISON, 1):
        if (row := rows.get(f"item {2 * number - 1}")) is None:
            continue
        assert row[:10] == (None,) * 10
        assert row[10] == (
            {} if name == "name \x00 not mapped" else {name: None} if " " in name or name == "surrogate" else {}
        )


def test_truncate_cuts_text_and_rejects_what_no_cut_helps(
    services: Services, connection: Connection, deliver: Deliver
) -> None:
    used = read_mapping(
        MAPPING.replace("varchar(3) ON_ERROR", "varchar(3), on_error: truncate").replace(" ON_ERROR", ""), "p.yaml"
    )
    wanted = [item(1, short={"S": "four"}), item(2, short={"S": "\x00"}), item(3, short={"N": "1"}), item(4)]
    assert deliver(services, used, wanted) == (2, 2)
    assert {key: row[1] for key, row in stored(connection).items()} == {"item 1": "fou", "item 4": None}


LONG_PK, LONG_SK = "p" * 2048, "s" * 1024


def test_a_key_too_long_for_the_index_is_refused_however_well_it_compresses(
    services: Services, connection: Connection, deliver: Deliver
) -> None:
    too_long: Any = {"PK": {"S": LONG_PK}, "SK": {"S": LONG_SK}}
    fits: Any = {"PK": {"S": LONG_PK}, "SK": {"S": "s" * (2600 - 2048)}}
    by_bytes: Any = {"PK": {"S": "é" * 1024}, "SK": {"S": "é" * 277}}
    assert deliver(services, mapping(), [item(1), too_long, fits, by_bytes, item(2)]) == (3, 2)
    assert sorted(stored(connection)) == ["item 1", "item 2", LONG_PK]
    reasons = {reason for (reason,) in connection.execute("SELECT reason FROM replication.rejects")}
    assert {reason[: len('column "pk, sk": the key has 3072 bytes')] for reason in reasons} == {
        'column "pk, sk": the key has 3072 bytes',
        'column "pk, sk": the key has 2602 bytes',
    }


def test_the_longest_key_that_is_taken_fits_the_index_whatever_it_holds(
    services: Services, connection: Connection
) -> None:
    # No two bytes in a row are alike, so that compression gains nothing.
    noise = "".join(chr(0x80 + (number * 7919) % 1900) for number in range(1300))
    assert len(noise.encode()) == 2600
    key: Any = {"PK": {"S": noise[:1024]}, "SK": {"S": noise[1024:]}}
    assert by_stream(services, mapping(), [key]) == (1, 0)
    assert len(stored(connection)) == 1


def test_the_delete_of_a_key_too_long_is_a_reject_too(services: Services, connection: Connection) -> None:
    removed: Any = {
        "eventName": "REMOVE",
        "eventSourceARN": "arn:aws:dynamodb:eu-central-1:1:table/Poison/stream/2026-05-14T10:00:00.000",
        "dynamodb": {
            "ApproximateCreationDateTime": 1_778_752_900,
            "Keys": {"PK": {"S": LONG_PK}, "SK": {"S": LONG_SK}},
            "SequenceNumber": str(10**21),
        },
    }
    with closing(Replicator([mapping()], lambda: services.connect("test"), writer="w")) as replicator:
        (report,) = replicator.replicate({"Records": [removed]}, deadline=time.monotonic() + 60)
    assert (report.applied, report.rejected) == (0, 1)
    assert connection.execute("SELECT count(*) FROM replication.rejects").fetchone() == (1,)


def test_names_that_no_column_could_have_are_members_of_the_jsonb_column(
    services: Services, connection: Connection, deliver: Deliver
) -> None:
    names = {
        "N" * 300: {"N": "1"},
        "Words": {"S": "upper"},
        "WORDS": {"S": "all"},
        "": {"S": "x"},
        "_version": {"N": "2"},
    }
    deliver(services, mapping(), [item(1, words={"S": "lower"}, **names)])
    row = stored(connection)["item 1"]
    assert row[0] == "lower"
    assert row[10] == {"N" * 300: 1, "Words": "upper", "WORDS": "all", "": "x", "_version": 2}


def test_what_a_policy_settles_is_counted_with_its_rows(
    services: Services, connection: Connection, deliver: Deliver
) -> None:
    used = mapping("null", "    unmapped_on_error: null\n")
    deliver(services, used, [item(1, short={"S": "four"}, small={"S": "x"}), item(2, short={"S": "four"}), item(3)])
    by_stream(
        services, used, [item(4, short={"S": "fits"[:3]}), item(5, other={"S": "\x00"}), item(6, small={"NULL": True})]
    )
    cut = read_mapping(
        MAPPING.replace("varchar(3) ON_ERROR", "varchar(3), on_error: truncate").replace(" ON_ERROR", ""), "p.yaml"
    )
    deliver(services, cut, [item(7, short={"S": "four"}), item(8, short={"S": "\x00\x00\x00\x00"})])
    found = {values.column: values.settled for values in settled.read(connection, ["poison"])}
    assert found == {"short": 3, "small": 1, "rest": 1}
    assert settled.read(connection, ["another"]) == []


def test_a_key_that_text_cannot_hold_is_rejected_whatever_the_policies_are(
    services: Services, connection: Connection, deliver: Deliver
) -> None:
    bad: Any = item(1) | {"SK": {"S": "a\x00b"}}
    assert deliver(services, mapping("null", "    unmapped_on_error: null\n"), [item(0), bad, item(2)]) == (2, 1)
    assert sorted(stored(connection)) == ["item 0", "item 2"]
    assert settled.read(connection) == []
    (row,) = connection.execute("SELECT reason, record::text FROM replication.rejects").fetchall()
    assert row[0] == 'column "sk": contains the character U+0000, which PostgreSQL text cannot hold'
    assert "a\\u0000b" in row[1]
