"""Protected attributes: no value of one is stored, in any flow; and who holds another key or mapping is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.bookkeeping import protection
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.schema.plan import plan
from pipeline.aurora.sessions.connection import Connection
from pipeline.cli import main
from pipeline.core.decode.protect import Protector
from pipeline.core.errors import ConfigurationError
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.core.model.protection import privacy_key
from pipeline.dynamodb.exports.manifest import PROTECTION_MARK, SCAN_MARK
from pipeline.jobs.load import load as load_job
from pipeline.jobs.load.load import load
from pipeline.jobs.replay import replay
from pipeline.jobs.replicate import ReplicationReport, Replicator
from pipeline.jobs.services import Services
from pipeline.settings import Settings
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, Layout
from tests.jobs.conftest import record

KEY, OTHER_KEY = "k" * 32, "another key of 32 characters ...."
CLEAR = """
name: employees
source: {table: Employees, key: {Id: N}}
targets:
  Employees:
    primary_key: [Id]
    columns:
      Id:    {attribute: Id, type: bigint}
      Name:  {attribute: empName, type: varchar(20)}
      Email: {attribute: email, type: text}
  Cards:
    parent: Employees
    explode: cards
    element: {place: integer}
    columns:
      number: {attribute: number, type: text}
      bank: {attribute: bank, type: text}
"""
PROTECTED = (
    CLEAR.replace("email, type: text", "email, type: text, protect: hash")
    .replace("number, type: text", "number, type: text, protect: mask")
    .replace("  Cards:", '    unmapped: {column: attributes, drop: [ssn, "notes.*.text"], hash: [phone]}\n  Cards:')
)
HISTORY = "    history: {keep: 400d}\n  Cards:"
MARK = "Slartibartfast"
"""In each value that is protected."""
PERSON: dict[str, Any] = {
    "empName": {"S": "in clear"},
    "email": {"S": f"{MARK}@example.com"},
    "phone": {"N": "4242424242"},
    "ssn": {"S": f"{MARK} 1"},
    "notes": {"L": [{"M": {"text": {"S": f"{MARK} 2"}, "by": {"S": "in clear"}}}]},
    "cards": {"L": [{"M": {"number": {"S": f"{MARK} 3"}, "bank": {"S": "in clear"}}}]},
}


def mapping(text: str, key: str = KEY) -> TableMapping:
    return replace(read_mapping(text, "employees.yaml"), privacy_key=privacy_key(key, variable="PRIVACY_KEY"))


@pytest.fixture
def services(database: str) -> Services:
    return Services(Settings.from_environment({"DATABASE_URL": database, "PRIVACY_KEY": KEY}))


@pytest.fixture
def connection(services: Services) -> Generator[Connection]:
    with closing(services.connect("test")) as opened:
        yield opened


Apply = Callable[..., ReplicationReport]


@pytest.fixture
def apply(services: Services) -> Apply:
    def run(of: TableMapping, *records: dict[str, Any]) -> ReplicationReport:
        replicator = Replicator([of], lambda: services.connect("test replicator"), writer="test")
        with closing(replicator):
            (report,) = replicator.replicate({"Records": list(records)}, deadline=time.monotonic() + 60)
        return report

    return run


def stored(connection: Connection) -> str:
    """All that the database holds, as text."""
    tables = connection.execute(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('replica', 'replication')"
    ).fetchall()
    found = [connection.execute(b"SELECT t::text FROM %s AS t" % name.encode()).fetchall() for (name,) in tables]
    return "\n".join(text for rows in found for (text,) in rows)


def statistics(connection: Connection) -> str:
    """What the planner knows of values."""
    rows = connection.execute(
        "SELECT most_common_vals::text, histogram_bounds::text FROM pg_stats WHERE schemaname = 'replica'"
    ).fetchall()
    return str(rows)


def clear_values(connection: Connection) -> list[str]:
    text = stored(connection)
    assert "in clear" in text, "the search finds what is there"
    return [value for value in (MARK, "4242424242") if value in text]


def test_nothing_of_a_protected_attribute_is_stored_from_the_stream(connection: Connection, apply: Apply) -> None:
    protected = mapping(PROTECTED)
    migrate(connection, [protected])
    assert plan(connection, [protected]).empty
    old = {"OldImage": {"Id": {"N": "1"}, **PERSON}}
    first = record(1, 1, **PERSON)
    first["dynamodb"] |= old
    report = apply(protected, first, record(2, 2, **LONG_PERSON))
    assert (report.applied, report.rejected) == (1, 1)
    assert clear_values(connection) == []
    (row,) = connection.execute('SELECT "Email", attributes FROM replica."Employees"').fetchall()
    assert len(row[0]) == 64
    assert row[1]["notes"] == [{"by": "in clear"}]
    assert len(row[1]["phone"]) == 64
    assert "ssn" not in row[1]
    assert connection.execute('SELECT "number", bank FROM "Cards"').fetchall() == [("***", "in clear")]


def person(number: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - attribute values
    return {"Id": {"N": str(number)}, **PERSON, **more}


LONG_NAME: dict[str, Any] = {"empName": {"S": "in clear, and too long for its column"}}
LONG_PERSON: dict[str, Any] = {**PERSON, **LONG_NAME}


@pytest.mark.parametrize("aside_from", [1, 10**9], ids=["aside", "merge"])
def test_nothing_of_a_protected_attribute_is_stored_from_a_load(
    services: Services, connection: Connection, exports: ExportFactory, aside_from: int
) -> None:
    protected = mapping(PROTECTED)
    migrate(connection, [protected])
    items = [*map(person, range(1, 6)), person(6, **LONG_NAME)]
    report = load(services, read_mapping(PROTECTED, "employees.yaml"), exports.full(items).location,
                  aside_from=aside_from)  # fmt: skip
    assert (report.strategy, report.applied, report.rejected) == ("aside" if aside_from == 1 else "merge", 5, 1)
    assert clear_values(connection) == []
    assert connection.execute('SELECT count(DISTINCT "Email"), min(length("Email")) FROM "Employees"').fetchone() == (
        1,
        64,
    )


def test_a_stream_and_a_load_make_the_same_rows(
    services: Services, connection: Connection, apply: Apply, exports: ExportFactory
) -> None:
    protected = mapping(PROTECTED)
    migrate(connection, [protected])
    apply(protected, record(1, 1, **PERSON))
    load(services, protected, exports.full([person(2)]).location)
    (one, other) = connection.execute(
        """SELECT to_jsonb(t) - '{Id,_version,_as_of}'::text[] FROM replica."Employees" AS t ORDER BY "Id" """
    ).fetchall()
    assert one == other


def test_a_reject_is_replayed_without_being_protected_twice(connection: Connection, apply: Apply) -> None:
    protected = mapping(PROTECTED)
    migrate(connection, [protected])
    apply(protected, record(1, 1, **PERSON), record(2, 2, **PERSON), record(3, 3, **LONG_PERSON))
    wider = mapping(PROTECTED.replace("varchar(20)", "varchar(80)"))
    migrate(connection, [wider])
    report = replay(connection, wider)
    assert (report.applied, report.failed) == (1, 0)
    assert connection.execute(
        """SELECT count(DISTINCT ("Email", attributes->>'phone')), count(*) FROM replica."Employees" """
    ).fetchone() == (1, 3)
    assert clear_values(connection) == []


def test_adding_protection_empties_what_was_stored_in_clear_and_a_load_fills_it(
    services: Services, connection: Connection, apply: Apply, exports: ExportFactory
) -> None:
    clear, protected = mapping(CLEAR), mapping(PROTECTED)
    migrate(connection, [clear])
    connection.execute("""ALTER TABLE replica."Employees" ADD "Old" text""")
    apply(clear, record(1, 1, **PERSON), record(2, 2, **LONG_PERSON), record(4, 4, **PERSON))
    connection.execute("""UPDATE replica."Employees" SET "Old" = %s""", [MARK])
    assert clear_values(connection) == [MARK, "4242424242"]
    connection.execute("ANALYZE")
    assert MARK in statistics(connection)
    steps = plan(connection, [protected]).steps
    assert [step.what.partition(" (")[0] for step in steps] == [
        "record what is protected, and empty what was stored before",
        "protect 1 stored rejects",
    ]
    assert "dynaurora load employees" in steps[0].note
    migrate(connection, [protected])
    assert plan(connection, [protected]).empty
    assert clear_values(connection) == []
    assert MARK not in statistics(connection)
    kept = connection.execute('SELECT "Name", "Email", attributes FROM replica."Employees" WHERE "Id" = 1').fetchone()
    assert kept == ("in clear", None, {})
    assert connection.execute('SELECT "number", bank FROM "Cards"').fetchall() == [(None, "in clear")] * 2

    load(services, protected, exports.full([person(1), person(2), person(4)]).location)
    assert clear_values(connection) == []
    assert connection.execute('SELECT count("Email") FROM "Employees"').fetchone() == (3,)
    wider = mapping(PROTECTED.replace("varchar(20)", "varchar(80)"))
    migrate(connection, [wider])
    replay(connection, wider)
    assert clear_values(connection) == []


def test_removing_protection_leaves_no_hash_among_values(connection: Connection, apply: Apply) -> None:
    clear, protected = mapping(CLEAR), mapping(PROTECTED)
    migrate(connection, [protected])
    apply(protected, record(1, 1, **PERSON), record(2, 2, **LONG_PERSON))
    migrate(connection, [clear])
    assert connection.execute('SELECT "Email", attributes FROM replica."Employees"').fetchall() == [(None, {})]
    apply(clear, record(3, 3, **PERSON))
    wider = mapping(CLEAR.replace("varchar(20)", "varchar(80)"))
    migrate(connection, [wider])
    report = replay(connection, wider)
    assert (report.applied, report.failed) == (0, 1), "what was hashed cannot be had back"
    (reason,) = connection.execute("SELECT reason FROM replication.rejects").fetchone() or ("",)
    assert "load the table" in reason


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ConfigurationError) as raised:
        call()
    return str(raised.value)


def test_a_writer_with_another_key_or_another_mapping_stores_nothing(
    services: Services, database: str, connection: Connection, apply: Apply, exports: ExportFactory
) -> None:
    protected, other_key, clear = mapping(PROTECTED), mapping(PROTECTED, OTHER_KEY), mapping(CLEAR)

    def applying(of: TableMapping, *records: dict[str, Any]) -> Callable[[], object]:
        return lambda: apply(of, *records)

    migrate(connection, [protected])
    records = record(1, 1, **PERSON), record(2, 2, **LONG_PERSON)
    location = exports.full([person(1)]).location
    text = refused(applying(other_key, *records))
    assert "the privacy key is not the one" in text
    assert "--new-privacy-key" in text
    assert "another key" not in text
    assert "protects other attributes" in refused(applying(clear, *records))
    assert "protects other attributes" in refused(applying(clear, records[1])), "a reject alone"
    elsewhere = Services(Settings.from_environment({"DATABASE_URL": database, "PRIVACY_KEY": OTHER_KEY}))
    assert "privacy key" in refused(lambda: load(elsewhere, read_mapping(PROTECTED, "e.yaml"), location))
    assert "protects other attributes" in refused(lambda: load(services, clear, location))
    assert "privacy key" in refused(lambda: replay(connection, other_key))
    without = Services(Settings.from_environment({"DATABASE_URL": database}))
    assert "privacy key is not set" in refused(lambda: load(without, read_mapping(PROTECTED, "e.yaml"), location))
    for table in ('replica."Employees"', "replication.rejects", "replication.exports"):
        assert connection.execute(b"SELECT count(*) FROM %s" % table.encode()).fetchone() == (0,)
    assert [refusal.what for refusal in plan(connection, [other_key]).refusals] == [protection.KEY_DIFFERS]


def test_a_load_that_another_protection_overtakes_stores_nothing(
    services: Services, connection: Connection, exports: ExportFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapping gains protection between the load's first look and its file."""
    clear, protected = mapping(CLEAR), mapping(PROTECTED)
    migrate(connection, [clear])
    require = protection.require

    def require_then_change(on: Connection, of: TableMapping, *, doing: str) -> None:
        require(on, of, doing=doing)
        if doing == "loading":
            migrate(connection, [protected])

    monkeypatch.setattr(protection, "require", require_then_change)
    assert "protects other" in refused(lambda: load(services, clear, exports.full([person(1)]).location))
    assert MARK not in stored(connection)


def test_a_replaced_key_empties_the_hashes_and_a_load_fills_them(
    database: str, connection: Connection, services: Services, exports: ExportFactory
) -> None:
    protected, rotated = mapping(PROTECTED), mapping(PROTECTED, OTHER_KEY)
    migrate(connection, [protected])
    load(services, protected, exports.full([person(1)]).location)
    (old,) = connection.execute('SELECT "Email" FROM "Employees"').fetchone() or ("",)
    assert migrate(connection, [rotated]).refusals
    assert migrate(connection, [rotated], new_key=True).refusals == ()
    assert old not in stored(connection)
    assert connection.execute('SELECT "number" FROM "Cards"').fetchall() == [("***",)], "what is masked has no key"
    elsewhere = Services(Settings.from_environment({"DATABASE_URL": database, "PRIVACY_KEY": OTHER_KEY}))
    newer = exports.full([person(1)], export_time=EXPORT_TIME + timedelta(hours=1)).location
    load(elsewhere, read_mapping(PROTECTED, "employees.yaml"), newer)
    (new,) = connection.execute('SELECT "Email" FROM "Employees"').fetchone() or ("",)
    assert len(new) == 64
    assert new != old


def test_a_replicator_reads_the_key_again_after_it_was_refused(connection: Connection, services: Services) -> None:
    unarmed = read_mapping(PROTECTED, "employees.yaml")
    migrate(connection, [mapping(PROTECTED)])
    keys = iter([OTHER_KEY, KEY])
    replicator = Replicator(
        [unarmed],
        lambda: services.connect("test replicator"),
        writer="test",
        with_key=lambda of: replace(of, privacy_key=privacy_key(next(keys), variable="")),
    )
    event = {"Records": [record(1, 1, **PERSON)]}
    with closing(replicator):
        with pytest.raises(ConfigurationError, match="privacy key"):
            replicator.replicate(event, deadline=time.monotonic() + 60)
        (report,) = replicator.replicate(event, deadline=time.monotonic() + 60)
        assert report.applied == 1
        replicator.replicate(event, deadline=time.monotonic() + 60)  # the key is kept: `keys` has no third


def test_adding_protection_empties_histories(connection: Connection, apply: Apply) -> None:
    clear, protected = (mapping(text.replace("  Cards:", HISTORY)) for text in (CLEAR, PROTECTED))
    migrate(connection, [clear])
    apply(clear, record(1, 1, **PERSON))
    again: dict[str, Any] = {**PERSON, "email": {"S": f"{MARK} again"}}
    apply(clear, record(1, 2, **again))
    assert connection.execute('SELECT count(*) FROM replica."Employees_history"').fetchone() == (2,)
    migrate(connection, [protected])
    assert clear_values(connection) == []
    assert connection.execute('SELECT count(*), count("Email") FROM replica."Employees_history"').fetchone() == (2, 0)
    apply(protected, record(1, 3, **PERSON))
    assert connection.execute('SELECT count(*), count("Email") FROM replica."Employees_history"').fetchone() == (3, 1)
    assert clear_values(connection) == []


def test_a_scan_that_protected_other_attributes_is_not_loaded(
    services: Services, connection: Connection, exports: ExportFactory
) -> None:
    protected = mapping(PROTECTED)
    migrate(connection, [protected])
    marks = {SCAN_MARK: True, PROTECTION_MARK: mapping(PROTECTED, OTHER_KEY).protection}
    location = exports.full([person(1)], Layout(summary=marks)).location
    assert "take another scan" in refused(lambda: load(services, protected, location))
    as_it_is = exports.full(
        [Protector(protected).item(person(1))],
        Layout(summary={SCAN_MARK: True, PROTECTION_MARK: protected.protection}),
    ).location
    assert load(services, protected, as_it_is).applied == 1
    (email,) = connection.execute('SELECT "Email" FROM "Employees"').fetchone() or ("",)
    assert email == Protector(protected).item(person(1))["email"]["S"]


def test_a_swap_that_another_protection_overtakes_leaves_the_tables_as_they_are(
    services: Services, connection: Connection, exports: ExportFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapping gains protection when every file is loaded into the new tables, and before they are put in place."""
    clear, protected = mapping(CLEAR), mapping(PROTECTED)
    migrate(connection, [clear])
    require = protection.require

    def change_then_require(on: Connection, of: TableMapping, *, doing: str) -> None:
        if doing == "putting the loaded table in place":
            on.execute("COMMIT")  # the lock that keeps the change out until the swap is done
            migrate(connection, [protected])
            on.execute("BEGIN")
        require(on, of, doing=doing)

    monkeypatch.setattr(protection, "require", change_then_require)
    location = exports.full([person(1)]).location
    assert "protects other" in refused(lambda: load(services, clear, location, aside_from=1))
    assert connection.execute('SELECT count(*) FROM replica."Employees"').fetchone() == (0,)
    monkeypatch.undo()
    load(services, protected, exports.full([person(1)], export_time=EXPORT_TIME + timedelta(hours=1)).location)
    assert MARK not in stored(connection), "the load has dropped what the other had built"


def test_versions_that_another_protection_overtakes_are_not_recorded(
    services: Services, connection: Connection, exports: ExportFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapping gains protection, and its history is emptied, just before a load aside records its versions."""
    clear, protected = (mapping(text.replace("  Cards:", HISTORY)) for text in (CLEAR, PROTECTED))
    migrate(connection, [clear])
    record_build = load_job.record_build

    def change_then_record(*given: Any, **named: Any) -> None:  # noqa: ANN401 - passed on
        migrate(connection, [protected])
        record_build(*given, **named)

    monkeypatch.setattr(load_job, "record_build", change_then_record)
    location = exports.full([person(1)]).location
    assert "protects other" in refused(lambda: load(services, clear, location, aside_from=1))
    monkeypatch.undo()
    load(services, protected, exports.full([person(1)], export_time=EXPORT_TIME + timedelta(hours=1)).location)
    assert clear_values(connection) == []


def test_what_a_name_reaches_through_a_list_is_emptied(connection: Connection, apply: Apply) -> None:
    text = """
name: employees
source: {table: Employees, key: {Id: N}}
targets:
  Employees:
    primary_key: [Id]
    columns:
      Id:    {attribute: Id, type: bigint}
      first: {attribute: "orders[0].card", type: jsonb}
    history: {keep: 400d}
    unmapped: attributes
  Orders:
    parent: Employees
    explode: orders
    element: {place: integer}
    columns:
      card: {attribute: card, type: jsonb}
      by: {attribute: by, type: text}
"""
    clear = mapping(text)
    protected = mapping(text.replace(": attributes", ': {column: attributes, mask: ["orders.card.number"]}'))
    migrate(connection, [clear])
    card = {"M": {"number": {"S": MARK}}}
    orders: dict[str, Any] = {"orders": {"L": [{"M": {"card": card, "by": {"S": "in clear"}}}]}}
    apply(clear, record(1, 1, **orders))
    migrate(connection, [protected])
    apply(protected, record(2, 2, **orders))
    assert clear_values(connection) == []
    assert connection.execute('SELECT card, by FROM "Orders" ORDER BY "Id"').fetchall() == [
        (None, "in clear"),
        ({"number": "***"}, "in clear"),
    ]


def test_nothing_is_protected_while_a_table_of_a_removed_target_may_have_it(
    connection: Connection, apply: Apply
) -> None:
    clear, protected = mapping(CLEAR), mapping(PROTECTED.partition("  Cards:")[0].replace("[ssn", "[ssn, cards"))
    migrate(connection, [clear])
    apply(clear, record(1, 1, **PERSON))
    (refusal,) = migrate(connection, [protected]).refusals
    assert 'DROP TABLE replica."Cards"' in refusal.way_out
    connection.execute('DROP VIEW "Cards"; DROP TABLE replica."Cards"')
    assert migrate(connection, [protected]).refusals == ()
    assert clear_values(connection) == []


def test_the_command_replaces_the_key_only_when_it_is_told_to(database: str, tmp_path: Path) -> None:
    (tmp_path / "employees.yaml").write_text(PROTECTED)
    environment = {"DATABASE_URL": database, "DYNAURORA_TABLES": str(tmp_path)}
    assert main(["plan"], environment) == 1
    assert main(["migrate"], environment) == 1, "without a key nothing is created"
    assert main(["migrate"], environment | {"PRIVACY_KEY": "too short"}) == 2
    assert main(["migrate"], environment | {"PRIVACY_KEY": KEY}) == 0
    other = environment | {"PRIVACY_KEY": OTHER_KEY}
    assert (main(["plan"], other), main(["migrate"], other)) == (1, 1)
    assert main(["migrate", "--new-privacy-key"], other) == 0
    assert (main(["plan"], other), main(["migrate"], other)) == (0, 0)
