"""Items by every path into a real database and back: equal to the source, and the same row each time."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import botocore.session
import pytest
from botocore.parsers import create_parser
from hypothesis import HealthCheck, given, settings
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads

from pipeline.aurora.bookkeeping.watermarks import Mark
from pipeline.aurora.rows.apply import ApplyStatement
from pipeline.aurora.rows.batch import BatchWriter
from pipeline.aurora.rows.staging import Staging
from pipeline.aurora.schema import tables
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.exports.export_lines import decode_full, decode_incremental
from pipeline.core.model.attributes import Item, number
from pipeline.core.model.change import Change, coalesce
from pipeline.core.ordering import snapshot_position
from pipeline.core.streams.stream_records import StreamDecoder
from pipeline.dynamodb.wire import to_wire
from tests.aurora.values import ITEMS, MAPPING, TARGET, expected, read_json
from tests.dynamodb.export_fixture import WindowChange, full_lines, incremental_lines

AS_OF = datetime(2026, 5, 14, 12, tzinfo=UTC)
POSITION = snapshot_position(AS_OF)
DECODER = RowDecoder(TARGET)
STATEMENT = ApplyStatement(TARGET, MAPPING.name, MAPPING.table)
Door = Callable[[Connection, Sequence[Item]], None]


@pytest.fixture
def connection(database: str) -> Generator[Connection]:
    with closing(connect(database, application_name="test")) as opened:
        migrate(opened, [MAPPING])
        set_json_loads(read_json, opened)
        yield opened


def by_stream(connection: Connection, items: Sequence[Item]) -> None:
    """As the stream's records, in Lambda's form."""
    event = json.dumps(
        [
            {
                "eventName": "INSERT",
                "dynamodb": {
                    "ApproximateCreationDateTime": AS_OF.timestamp(),
                    "Keys": {"K": item["K"], "R": item["R"]},
                    "NewImage": item,
                    "SequenceNumber": str(10**21 + number),
                },
            }
            for number, item in enumerate(items)
        ]
    )
    records = json.loads(event)
    batch = StreamDecoder(MAPPING).decode(records, "2026-05-14T10:00:00.000")
    mark = Mark(MAPPING.name, "w", "label", "1", AS_OF, len(items), 0, 0)
    assert BatchWriter(MAPPING).write(connection, batch, records, mark).rejected == 0


def by_full_export(connection: Connection, items: Sequence[Item]) -> None:
    """As a load does: lines, COPY, merge."""
    rows, failures = decode_full(b"".join(line + b"\n" for line in full_lines(items)), DECODER, file="f")
    assert failures == []
    with connection.transaction():
        staging = Staging.temporary(connection, TARGET)
        staging.copy(connection, [rows])
        staging.merge(connection, MAPPING.name, POSITION.as_of)


def by_incremental_export(connection: Connection, items: Sequence[Item]) -> None:
    """As catching up does."""
    changes = [WindowChange({"K": item["K"], "R": item["R"]}, new=item) for item in items]
    block = b"".join(line + b"\n" for line in incremental_lines(changes, "NEW_IMAGE"))
    decoded, failures = decode_incremental(block, DECODER, POSITION, file="f")
    assert failures == []
    connection.execute(STATEMENT.query, STATEMENT.parameters(coalesce(decoded)))


_SESSION: Any = botocore.session.get_session()
_OUTPUT = _SESSION.get_service_model("dynamodb").operation_model("BatchGetItem").output_shape


def by_reading_again(connection: Connection, items: Sequence[Item]) -> None:
    """As a repair does: the SDK's own parser reads the answer of BatchGetItem."""
    body = json.dumps({"Responses": {"Values": items}, "UnprocessedKeys": {}}).encode()
    answer: Any = create_parser("json").parse({"status_code": 200, "headers": {}, "body": body}, _OUTPUT)
    rows = [DECODER.row(to_wire(item)) for item in answer["Responses"]["Values"]]
    changes = [Change(DECODER.key_of(row), row, POSITION) for row in rows]
    connection.execute(STATEMENT.query, STATEMENT.parameters(coalesce(changes)))


DOORS: dict[str, Door] = {
    "stream": by_stream,
    "full export": by_full_export,
    "incremental export": by_incremental_export,
    "read again": by_reading_again,
}


def stored(connection: Connection) -> dict[Any, dict[str, Any]]:
    """Return the stored rows by key, as the driver reads them, and empty the table."""
    names = tables.identifiers(TARGET.stored_columns)
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(sql.SQL("SELECT {} FROM {}").format(names, tables.storage(TARGET))).fetchall()
    return {(row["key"], row["range"]): row for row in rows}


def texts(connection: Connection) -> list[Any]:
    """Return the stored rows as PostgreSQL writes them, to compare without any client, and empty the table."""
    query = sql.SQL("SELECT v::text FROM (SELECT {} FROM {}) AS v ORDER BY 1")
    columns = tables.identifiers(TARGET.stored_columns)
    rows = connection.execute(query.format(columns, tables.storage(TARGET))).fetchall()
    connection.execute(sql.SQL("TRUNCATE {}").format(tables.storage(TARGET)))
    return rows


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(items=ITEMS)
def test_what_is_read_back_is_what_was_sent_and_the_same_through_every_door(
    connection: Connection, items: list[Item]
) -> None:
    wanted = {(item["K"]["S"], Decimal(item["R"]["N"])): expected(item) for item in items}
    written: dict[str, list[Any]] = {}
    for name, door in DOORS.items():
        door(connection, items)
        assert stored(connection) == wanted, name
        written[name] = texts(connection)
    assert len({str(rows) for rows in written.values()}) == 1, written


def nested(levels: int) -> Any:  # noqa: ANN401 - attribute values
    value: Any = {"N": "1E-130"}
    for level in range(levels):
        value = {"L": [value]} if level % 2 else {"M": {"inner": value}}
    return value


EXTREMES = ["9." + "9" * 37 + "E+125", "1E-130", "-1E-130", "1" + "0" * 125, "12345678901234567890.123456789012345678"]


@pytest.mark.parametrize("door", DOORS.values(), ids=list(DOORS))
def test_the_ends_of_what_dynamodb_has(connection: Connection, door: Door) -> None:
    item: Any = {
        "K": {"S": "\U0010ffff\n\t\\\"'"},
        "R": {"N": EXTREMES[3]},
        "number": {"N": EXTREMES[0]},
        "sizes": {"NS": EXTREMES},
        "names": {"SS": ["", "\\", '"', "{}", "NULL", ",", "\r"]},
        "anything": nested(32),
        "deep": nested(32),
        "words": {"S": ""},
        "blob": {"B": ""},
    }
    door(connection, [item])
    (row,) = stored(connection).values()
    assert row == expected(item)
    assert row["number"] == Decimal(EXTREMES[0])
    assert row["sizes"] == sorted(map(Decimal, EXTREMES))


def test_missing_null_and_empty_stay_three_things(connection: Connection) -> None:
    def item(number: int, **attributes: Any) -> Any:  # noqa: ANN401 - attribute values
        return {"K": {"S": "k"}, "R": {"N": str(number)}, **attributes}

    null, empty = {"NULL": True}, {"S": ""}
    by_stream(connection, [item(0), item(1, short=null, anything=null), item(2, short=empty, anything=empty)])
    rows = connection.execute('SELECT short, anything::text FROM replica."Values" ORDER BY range').fetchall()
    assert rows == [("none", None), (None, "null"), ("", '""')]


def test_an_attribute_that_an_update_removes_is_missing(connection: Connection) -> None:
    full: Any = {"K": {"S": "k"}, "R": {"N": "1"}, "short": {"S": "x"}, "words": {"S": "x"}, "other": {"S": "x"}}
    by_full_export(connection, [full])
    bare = {name: full[name] for name in ("K", "R")}
    records: Any = [
        {
            "eventName": "MODIFY",
            "dynamodb": {
                "ApproximateCreationDateTime": (AS_OF + timedelta(hours=1)).timestamp(),
                "Keys": bare,
                "NewImage": bare,
                "OldImage": full,
                "SequenceNumber": str(10**21),
            },
        }
    ]
    batch = StreamDecoder(MAPPING).decode(records, "2026-05-14T10:00:00.000")
    BatchWriter(MAPPING).write(connection, batch, records, Mark(MAPPING.name, "w", "l", "1", AS_OF, 1, 0, 0))
    (row,) = stored(connection).values()
    assert (row["short"], row["words"], row["rest"]) == ("none", None, {})


@pytest.mark.parametrize("digits", ["0", "-0", "1", "1.0", "1.50", "-0.10", "12345678901234567890"])
@pytest.mark.parametrize("exponent", ["E+5", "e5", "E-5", "E0", "e+005", "E+125", "E-130"])
def test_jsonb_makes_of_an_exponent_what_the_plain_notation_is(
    connection: Connection, digits: str, exponent: str
) -> None:
    spelt = digits + exponent
    row = connection.execute("SELECT %s::jsonb::text, %s::jsonb::text", [spelt, number(spelt)]).fetchone()
    assert row
    assert row[0] == row[1]
