"""Promote: a mapping's new columns are filled from the jsonb column, whoever writes at the same time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.rows.promotion import Promotion, Written
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.schema.plan import plan
from pipeline.aurora.sessions.connection import Connection
from pipeline.cli import main
from pipeline.core.errors import ConfigurationError, TerminalError, TransientError
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs import promote as promote_module
from pipeline.jobs.promote import PromotedAttribute, promote
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.services import Services
from tests.jobs.conftest import record

Apply = Callable[..., Any]
CITY = "City: {attribute: city, type: text}"


def with_columns(mapping: TableMapping, *lines: str) -> TableMapping:
    """The seed's mapping with more columns."""
    body = "".join(f"      {line}\n" for line in lines)
    return read_mapping(Path(mapping.path).read_text().replace("    unmapped:", f"{body}    unmapped:"), "grown.yaml")


def one(services: Services, mapping: TableMapping) -> PromotedAttribute:
    (found,) = promote(services, mapping).attributes
    return found


def stored(connection: Connection, *columns: str) -> dict[int, tuple[Any, ...]]:
    names = ", ".join(f'"{name}"' for name in columns)
    query = f'SELECT "Id", {names}, attributes::text FROM replica."Employees" WHERE NOT _deleted'  # noqa: S608 - constants
    return {row[0]: row[1:] for row in connection.execute(query.encode()).fetchall()}


@pytest.fixture
def grow(connection: Connection, employees: TableMapping) -> Callable[..., TableMapping]:
    """Add columns to the mapping and migrate the database to it."""

    def make(*lines: str) -> TableMapping:
        grown = with_columns(employees, *lines)
        migrate(connection, [grown])
        return grown

    return make


@pytest.fixture
def new_apply(services: Services, employees: TableMapping) -> Generator[Apply]:
    """Apply records as the replicator that was deployed with the column City."""
    made = Replicator([with_columns(employees, CITY)], lambda: services.connect("test new replicator"), writer="new")

    def run(*records: dict[str, Any]) -> Any:  # noqa: ANN401 - a report
        return made.replicate({"Records": list(records)}, deadline=time.monotonic() + 60)

    yield run
    made.close()


VALUES: list[tuple[str, dict[str, Any]]] = [
    ("text", {"S": 'Accra "\\\n\t é 太郎'}),
    ("varchar(5)", {"S": "Accra"}),
    ("text", {"S": ""}),
    ("numeric", {"N": "12345678901234567890123456789012345678"}),
    ("numeric", {"N": "0.00000000000000000000000000000000000012"}),
    ("numeric", {"S": "12.50"}),
    ("bigint", {"N": "-9223372036854775808"}),
    ("double precision", {"N": "1.5"}),
    ("timestamptz, epoch: milliseconds", {"N": "1767225600123"}),
    ("timestamptz", {"S": "2026-01-31T12:00:00.5+01:00"}),
    ("date", {"S": "2026-01-31"}),
    ("uuid", {"S": "0b7e1f0a-5a62-4c8e-9f53-2f6d1c1a9b11"}),
    ("boolean", {"BOOL": False}),
    ("bytea", {"B": "AP8="}),
    ("'text[]'", {"SS": ["b", "a", 'q"uote,']}),
    ("'numeric[]'", {"NS": ["10", "9", "1.25"]}),
    ("'bytea[]'", {"BS": ["AP8=", "AAAA"]}),
    ("'text[]'", {"L": [{"S": "b"}, {"NULL": True}, {"S": "a"}, {"S": "b"}]}),
    ("'text[]'", {"L": []}),
    ("'numeric[]'", {"L": [{"N": "2"}, {"N": "1.50"}, {"N": "2"}]}),
    ("'double precision[]'", {"L": [{"N": "0.1"}, {"N": "12345678901234567890123456789012345678"}]}),
    ("'bytea[]'", {"L": [{"B": "AP8="}, {"B": "AAAA"}, {"B": "AP8="}]}),
    ("jsonb", {"M": {"n": {"N": "1.10"}, "l": {"L": [{"S": "b"}, {"S": "a"}, {"NULL": True}]}, "b": {"BOOL": True}}}),
    ("jsonb", {"L": [{"N": "2"}, {"N": "1"}]}),
    ("jsonb", {"S": "text"}),
    ("text", {"NULL": True}),
    ("jsonb", {"NULL": True}),
]


@pytest.mark.parametrize(("type_", "value"), VALUES)
def test_a_value_comes_out_as_if_the_replicator_had_known_the_column(
    services: Services,
    connection: Connection,
    apply: Apply,
    grow: Callable[..., TableMapping],
    type_: str,
    value: dict[str, Any],
) -> None:
    apply(record(1, 1, thing=value, other={"N": "1"}), record(2, 2, other={"N": "2"}))
    before = connection.execute('SELECT "Id", _version, _as_of FROM replica."Employees" ORDER BY 1').fetchall()
    grown = grow(f"Thing: {{attribute: thing, type: {type_}}}")
    report = one(services, grown)
    assert (report.filled, report.refused, report.finished) == (1, {}, True)
    assert connection.execute('SELECT "Id", _version, _as_of FROM replica."Employees" ORDER BY 1').fetchall() == before
    promoted = stored(connection, "Thing")
    assert promoted[2] == (None, '{"other": 2}')
    # The oracle: the same item through the replicator that knows the column.
    known = Replicator([grown], lambda: services.connect("test oracle"), writer="oracle")
    with closing(known):
        known.replicate({"Records": [record(3, 3, thing=value, other={"N": "1"})]}, deadline=time.monotonic() + 60)
    assert promoted[1] == stored(connection, "Thing")[3]
    assert promote(services, grown).attributes == (), "nothing waits any more"


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("text", {"N": "1"}),
        ("varchar(3)", {"S": "Accra"}),
        ("bigint", {"N": "1.5"}),
        ("smallint", {"N": "70000"}),
        ("uuid", {"S": "no"}),
        ("bytea", {"S": "not base64!"}),
        ("'text[]'", {"L": [{"S": "a"}, {"N": "1"}]}),
        ("'numeric[]'", {"L": [{"N": "2"}, {"L": [{"N": "2"}]}]}),
        ("'bigint[]'", {"L": [{"N": "2"}, {"N": "2.5"}]}),
        ("double precision", {"N": "1" + "0" * 125 + "0" * 200}),
    ],
)
def test_what_a_column_cannot_hold_stays_and_is_counted(
    services: Services,
    connection: Connection,
    apply: Apply,
    grow: Callable[..., TableMapping],
    type_: str,
    value: dict[str, Any],
) -> None:
    apply(record(1, 1, thing=value), record(2, 2, thing={"NULL": True}))
    kept = connection.execute('SELECT attributes::text FROM replica."Employees" WHERE "Id" = 1').fetchone()
    report = one(services, grow(f"Thing: {{attribute: thing, type: {type_}}}"))
    assert (report.filled, sum(report.refused.values()), report.finished) == (1, 1, True)
    (reason,) = report.refused
    assert reason.startswith("Thing: ")
    assert "Accra" not in reason
    assert stored(connection, "Thing") == {1: (None, *(kept or ())), 2: (None, "{}")}


def test_on_error_null_and_truncate_do_as_the_replicator_would(
    services: Services, connection: Connection, apply: Apply, grow: Callable[..., TableMapping]
) -> None:
    apply(record(1, 1, a={"S": "Accra"}, b={"S": "Accra"}))
    grown = grow(
        "A: {attribute: a, type: bigint, on_error: null}", "B: {attribute: b, type: varchar(3), on_error: truncate}"
    )
    first, second = promote(services, grown).attributes
    assert (first.settled, second.settled) == (1, 1)
    assert stored(connection, "A", "B") == {1: (None, "Acc", "{}")}


def test_a_default_is_for_what_is_absent_and_null_stays_null(
    services: Services, connection: Connection, apply: Apply, grow: Callable[..., TableMapping]
) -> None:
    apply(record(1, 1, city={"S": "Accra"}), record(2, 2), record(3, 3, city={"NULL": True}))
    grown = grow("City: {attribute: city, type: text, default: NA}")
    apply(record(4, 4))  # a replicator that does not know the column, after the migration
    promote(services, grown)
    assert stored(connection, "City") == {1: ("Accra", "{}"), 2: ("NA", "{}"), 3: (None, "{}"), 4: ("NA", "{}")}
    assert plan(connection, [grown]).empty


def test_paths_are_filled_and_followed_and_their_map_stays(
    services: Services, connection: Connection, apply: Apply, grow: Callable[..., TableMapping]
) -> None:
    def address(**members: dict[str, str]) -> dict[str, Any]:
        return {"M": {"zip": {"S": "1"}, **members}}

    for number in range(1, 5):
        apply(record(number, number, address=address(city={"S": f"city {number}"})))
    grown = grow("City: {attribute: address.city, type: text, default: NA}")
    assert one(services, grown).filled == 4
    apply(record(1, 11, "MODIFY", address=address()))  # written by a replicator that does not know the column
    apply(record(2, 12, "MODIFY"))
    apply(record(3, 13, "MODIFY", address=address(city={"S": "moved"})))
    report = one(services, grown)
    assert (report.filled, report.finished) == (3, True)
    assert {number: row[0] for number, row in stored(connection, "City").items()} == {
        1: "NA", 2: "NA", 3: "moved", 4: "city 4",
    }  # fmt: skip
    assert json.loads(stored(connection, "City")[4][1])["address"]["city"] == "city 4"


def test_a_newer_value_from_either_replicator_is_never_overwritten(
    services: Services,
    connection: Connection,
    apply: Apply,
    new_apply: Apply,
    grow: Callable[..., TableMapping],
) -> None:
    for number in range(1, 7):
        apply(record(number, number, city={"S": "first"}))
    grown = grow(CITY)
    new_apply(record(1, 11, "MODIFY", city={"S": "new code"}))
    new_apply(record(2, 12, "MODIFY"))
    promote(services, grown)
    apply(record(3, 13, "MODIFY", city={"S": "old code"}))
    new_apply(record(4, 14, "MODIFY", city={"S": "new code"}), record(4, 15, "MODIFY", city={"S": "newer"}))
    apply(record(5, 16, "REMOVE"))
    apply(record(6, 17, "MODIFY", city={"NULL": True}))
    assert stored(connection, "City")[3][0] == "first", "an older replicator leaves the column as it is"
    promote(services, grown)
    assert {number: row[0] for number, row in stored(connection, "City").items()} == {
        1: "new code", 2: None, 3: "old code", 4: "newer", 6: None,
    }  # fmt: skip
    assert all(row[1] == "{}" for row in stored(connection, "City").values())
    tombstone = connection.execute('SELECT "City" FROM replica."Employees" WHERE "Id" = 5').fetchone()
    assert tombstone == (None,), "nothing of a deleted item stays"


@pytest.mark.parametrize("writer", ["old", "new"])
def test_a_row_written_between_read_and_write_is_left_to_the_next_pass(
    services: Services,
    connection: Connection,
    apply: Apply,
    new_apply: Apply,
    grow: Callable[..., TableMapping],
    monkeypatch: pytest.MonkeyPatch,
    writer: str,
) -> None:
    apply(record(1, 1, city={"S": "first"}), record(2, 2, city={"S": "first"}))
    grown = grow(CITY)
    write, done = Promotion.write, list[Written]()

    def write_late(self: Promotion, *arguments: Any) -> Written:  # noqa: ANN401 - passed through
        if not done:
            change = {"old": apply, "new": new_apply}[writer]
            change(record(1, 11, "MODIFY", city={"S": "meanwhile"}))
        done.append(write(self, *arguments))
        return done[-1]

    monkeypatch.setattr(Promotion, "write", write_late)
    report = one(services, grown)
    assert (len(done[0].changed), done[0].skipped) == (1, 1)
    assert report.finished
    assert stored(connection, "City") == {1: ("meanwhile", "{}"), 2: ("first", "{}")}


def test_a_row_that_another_transaction_holds_is_not_waited_for(
    services: Services, connection: Connection, apply: Apply, grow: Callable[..., TableMapping]
) -> None:
    apply(record(1, 1, city={"S": "first"}), record(2, 2, city={"S": "first"}))
    grown = grow(CITY)
    started = time.monotonic()
    with connection.transaction():
        connection.execute('SELECT FROM replica."Employees" WHERE "Id" = 1 FOR UPDATE')
        report = one(services, grown)
        assert (report.filled, report.finished) == (1, False)
    assert time.monotonic() - started < 5
    assert one(services, grown).finished
    assert stored(connection, "City") == {1: ("first", "{}"), 2: ("first", "{}")}


def test_an_interrupted_promotion_resumes_where_it_was(
    services: Services,
    connection: Connection,
    grow: Callable[..., TableMapping],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection.execute(
        """INSERT INTO replica."Employees" ("Id", attributes, _as_of)
           SELECT n, jsonb_build_object('city', 'city ' || n), now() FROM generate_series(1, 500) n"""
    )
    grown = grow(CITY)
    monkeypatch.setattr(promote_module, "_FIRST_ROWS", 100)
    write, sizes = Promotion.write, list[int]()

    def write_twice(self: Promotion, connection: Connection, rows: Any) -> Written:  # noqa: ANN401 - passed through
        sizes.append(int(rows[0].key[0]))
        if len(sizes) == 3:
            raise KeyboardInterrupt
        return write(self, connection, rows)

    monkeypatch.setattr(Promotion, "write", write_twice)
    with pytest.raises(KeyboardInterrupt):
        promote(services, grown)
    (filled,) = connection.execute("""SELECT count("City") FROM replica."Employees" """).fetchone() or (0,)
    assert 0 < filled < 500
    assert connection.execute("SELECT filled, after_key, finished_at FROM replication.promotions").fetchone() == (
        filled, [str(filled)], None,
    )  # fmt: skip
    report = one(services, grown)
    assert sizes[3] == filled + 1, "after the last key that was done"
    assert report.finished
    assert all(row == (f"city {number}", "{}") for number, row in stored(connection, "City").items())
    row = connection.execute("SELECT filled, after_key, finished_at IS NULL FROM replication.promotions").fetchone()
    assert row == (500, None, False)


def test_a_statement_over_the_bound_is_cancelled_and_tried_with_fewer_rows(
    services: Services,
    connection: Connection,
    grow: Callable[..., TableMapping],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection.execute(
        """INSERT INTO replica."Employees" ("Id", attributes, _as_of)
           SELECT n, jsonb_build_object('city', 'x'), now() FROM generate_series(1, 200) n"""
    )
    grown = grow(CITY)
    connection.execute(
        """CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN PERFORM pg_sleep(0.004); RETURN new; END $$;
           CREATE TRIGGER slow BEFORE UPDATE ON replica."Employees" FOR EACH ROW EXECUTE FUNCTION slow()"""
    )
    monkeypatch.setattr(promote_module, "LONGEST_LOCK_SECONDS", 0.3)
    report = promote(services, grown)
    assert report.longest_lock_seconds < 0.6
    assert set(stored(connection, "City").values()) == {("x", "{}")}
    monkeypatch.setattr(promote_module, "LONGEST_LOCK_SECONDS", 0.001)
    monkeypatch.setattr(promote_module, "_PAUSE_SECONDS", 0.0)
    connection.execute("""UPDATE replica."Employees" SET attributes = '{"city": "y"}' WHERE "Id" < 20""")
    with pytest.raises(TransientError, match="QueryCanceled"):
        promote(services, grown)


def test_two_promotions_of_a_table_exclude_each_other(
    services: Services, connection: Connection, grow: Callable[..., TableMapping]
) -> None:
    grown = grow(CITY)
    connection.execute("SELECT pg_advisory_lock(hashtext('dynaurora.promote'), hashtext('employees'))")
    with pytest.raises(TerminalError, match="another promotion of this table is running"):
        promote(services, grown)


def test_what_is_wrong_is_said(services: Services, employees: TableMapping) -> None:
    text = Path(employees.path).read_text().replace("unmapped: attributes", "unmapped: ignore")
    with pytest.raises(ConfigurationError, match="dynaurora load employees"):
        promote(services, read_mapping(text, "ignoring.yaml"))
    with pytest.raises(TerminalError, match="run `dynaurora migrate`"):
        promote(services, with_columns(employees, CITY))
    with pytest.raises(ConfigurationError, match=r"an attribute town .*the attributes are empName, empDepartment"):
        promote(services, employees, attribute="town")


def test_the_verb(
    database: str, employees: TableMapping, apply: Apply, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply(record(1, 1, city={"S": "Accra"}), record(2, 2, city={"N": "1"}))
    text = Path(employees.path).read_text().replace("    unmapped:", f"      {CITY}\n    unmapped:")
    (tmp_path / "employees.yaml").write_text(text)
    environment = {"DATABASE_URL": database, "DYNAURORA_TABLES": str(tmp_path)}
    assert main(["migrate"], environment) == 0
    assert "dynaurora promote employees" in capsys.readouterr().out
    assert main(["promote", "employees"], environment) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("employees: 1 rows filled in ")
    assert told[1:] == [
        "  city → public.Employees (City): 1 rows filled",
        "  ! 1 values stay in the jsonb column: City: accepts S, and the attribute is of type N",
    ]
    assert main(["promote", "employees", "--json"], environment) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["refused"], document["finished"], document["attributes"][0]["filled"]) == (1, True, 0)
