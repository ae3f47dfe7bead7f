"""Rejects replayed: under a corrected mapping, under the ordering rule, once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.mapping import OnError, TableMapping
from pipeline.core.types.sql_types import SqlType
from pipeline.jobs.load.load import load
from pipeline.jobs.replay import ReplayReport, replay
from pipeline.jobs.replicate import ReplicationReport, Replicator
from pipeline.jobs.services import Services
from tests.dynamodb.export_fixture import ExportFactory
from tests.jobs.conftest import CREATED, named, record, view

Apply = Callable[..., ReplicationReport]
LONG = "a name of more than twenty characters"


def wider(mapping: TableMapping, sql_type: SqlType = SqlType("varchar", (60,)), **changed: Any) -> TableMapping:  # noqa: ANN401, B008 - fields of a column; a frozen value
    """The mapping with another type for its column "Name"."""
    (target,) = mapping.targets
    columns = tuple(replace(c, type=sql_type, **changed) if c.name == "Name" else c for c in target.columns)
    return replace(mapping, targets=(replace(target, columns=columns),))


def waiting(connection: Connection) -> list[str]:
    rows = connection.execute("SELECT reason FROM replication.rejects WHERE replayed_at IS NULL ORDER BY id")
    return [reason for (reason,) in rows]


def counts(report: ReplayReport) -> tuple[int, int, int, int]:
    return report.applied, report.stale, report.failed, report.waiting


def test_a_reject_is_applied_once_the_mapping_is_corrected(
    apply: Apply, connection: Connection, employees: TableMapping
) -> None:
    apply(named(1, 1, LONG), named(2, 2, "fine"))
    assert counts(replay(connection, employees)) == (0, 0, 1, 1)
    corrected = wider(employees)
    migrate(connection, [corrected])
    assert counts(replay(connection, corrected)) == (1, 0, 0, 0)
    assert view(connection) == {1: (LONG, "NA"), 2: ("fine", "NA")}
    assert connection.execute('SELECT _version FROM replica."Employees" WHERE "Id" = 1').fetchone() is not None
    assert counts(replay(connection, corrected)) == (0, 0, 0, 0), "a second replay has nothing to do"


def test_a_replayed_record_that_is_delivered_again_stays_replayed(
    apply: Apply, connection: Connection, employees: TableMapping
) -> None:
    apply(named(1, 1, LONG))
    corrected = wider(employees)
    migrate(connection, [corrected])
    replay(connection, corrected)
    assert apply(named(1, 1, LONG)).rejected == 1, "this replicator still has the old mapping"
    assert waiting(connection) == []
    assert view(connection) == {1: (LONG, "NA")}


def test_a_change_made_since_is_not_undone(apply: Apply, connection: Connection, employees: TableMapping) -> None:
    apply(named(1, 1, LONG), named(2, 2, LONG))
    apply(named(1, 3, "newer"), record(2, 4, "REMOVE"))
    corrected = wider(employees)
    migrate(connection, [corrected])
    assert counts(replay(connection, corrected)) == (0, 2, 0, 0)
    assert view(connection) == {1: ("newer", "NA")}


def test_what_still_fails_is_settled_where_the_stored_row_is_newer_and_else_stays_with_its_new_reason(
    apply: Apply, connection: Connection, employees: TableMapping
) -> None:
    apply(named(1, 1, LONG), named(2, 2, LONG))
    apply(named(1, 3, "newer"))
    corrected = wider(employees, SqlType("varchar", (30,)))
    assert counts(replay(connection, corrected)) == (0, 1, 1, 1)
    assert waiting(connection) == ['column "Name": is longer than 30 characters']


def test_what_still_fails_and_is_older_than_what_was_purged_is_settled(
    apply: Apply, connection: Connection, employees: TableMapping
) -> None:
    apply(named(1, 1, LONG), named(2, 2, LONG, at=CREATED + 60))
    connection.execute("UPDATE replication.tables SET purged_through = to_timestamp(%s)", [CREATED + 30])
    assert counts(replay(connection, employees)) == (0, 1, 1, 1)
    assert view(connection) == {}


def test_several_rejects_of_one_key_end_at_the_newest(
    apply: Apply, connection: Connection, employees: TableMapping
) -> None:
    apply(named(1, 2, LONG + " b"), named(1, 1, LONG + " a"))
    corrected = wider(employees)
    migrate(connection, [corrected])
    assert counts(replay(connection, corrected)) == (1, 1, 0, 0)
    assert view(connection) == {1: (LONG + " b", "NA")}


def test_a_policy_settles_what_was_rejected(apply: Apply, connection: Connection, employees: TableMapping) -> None:
    apply(named(1, 1, "a\x00b"))
    settled = wider(employees, SqlType("varchar", (20,)), on_error=OnError.NULL)
    assert counts(replay(connection, settled)) == (1, 0, 0, 0)
    assert view(connection) == {1: (None, "NA")}


def test_what_postgresql_alone_refuses_does_not_take_the_others_along(
    apply: Apply, connection: Connection, employees: TableMapping
) -> None:
    apply(*[named(number, number, f"{LONG} {number}") for number in range(1, 6)])
    corrected = wider(employees)
    migrate(connection, [corrected])
    connection.execute(f"""ALTER TABLE replica."Employees" ADD CHECK ("Name" <> '{LONG} 3')""".encode())
    assert counts(replay(connection, corrected)) == (4, 0, 1, 1)
    assert sorted(view(connection)) == [1, 2, 4, 5]
    assert "CheckViolation" in waiting(connection)[0]
    assert LONG not in waiting(connection)[0]


def test_more_rejects_than_a_chunk(apply: Apply, connection: Connection, employees: TableMapping) -> None:
    apply(*[named(number, number, LONG) for number in range(250)])
    corrected, told = wider(employees), list[int]()
    migrate(connection, [corrected])
    assert counts(replay(connection, corrected, on_progress=told.append)) == (250, 0, 0, 0)
    assert told == [100, 200, 250]
    assert len(view(connection)) == 250


def test_a_record_without_its_position_waits(apply: Apply, connection: Connection, employees: TableMapping) -> None:
    apply({"eventSourceARN": record(1, 1)["eventSourceARN"], "eventName": "INSERT", "dynamodb": {}}, named(9, 9, "a"))
    assert counts(replay(connection, employees)) == (0, 0, 1, 1)
    assert waiting(connection) == ["reading a stream record: it lacks its Keys"]


def test_a_target_that_is_gone_is_named(apply: Apply, connection: Connection, employees: TableMapping) -> None:
    apply(named(1, 1, LONG))
    renamed = replace(employees, targets=(replace(employees.targets[0], name="Staff"),))
    assert counts(replay(connection, renamed)) == (0, 0, 1, 1)
    assert "the mapping no longer has a target public.Employees" in waiting(connection)[0]


def item(number: int, name: str) -> dict[str, Any]:
    return {"Id": {"N": str(number)}, "empName": {"S": name}}


def test_a_line_of_an_export_is_replayed_at_the_snapshots_position(
    services: Services, connection: Connection, employees: TableMapping, exports: ExportFactory, apply: Apply
) -> None:
    export = exports.full([item(1, LONG), item(2, LONG), item(3, "fine")])
    report = load(services, employees, export.location)
    assert (report.applied, report.rejected) == (1, 2)
    apply(named(2, 9, "newer", at=report.as_of.timestamp() + 60))
    corrected = wider(employees)
    migrate(connection, [corrected])
    assert counts(replay(connection, corrected)) == (1, 1, 0, 0)
    assert view(connection) == {1: (LONG, "NA"), 2: ("newer", "NA"), 3: ("fine", "NA")}
    row = connection.execute('SELECT _version, _as_of FROM replica."Employees" WHERE "Id" = 1').fetchone()
    assert row == (None, report.as_of)


def test_a_later_snapshot_with_the_same_line_opens_its_reject_again(
    services: Services, connection: Connection, employees: TableMapping, exports: ExportFactory
) -> None:
    first = load(services, employees, exports.full([item(1, LONG)]).location)
    settled = wider(employees, SqlType("varchar", (20,)), on_error=OnError.NULL)
    replay(connection, settled)
    assert waiting(connection) == []
    load(services, employees, first.location)
    assert waiting(connection) == [], "the same export does not open it again"
    later = load(services, employees, exports.full([item(1, LONG)]).location, margin=timedelta(minutes=1))
    assert later.as_of > first.as_of
    assert waiting(connection) == ['column "Name": is longer than 20 characters']
    assert counts(replay(connection, settled)) == (1, 0, 0, 0)
    row = connection.execute('SELECT _as_of FROM replica."Employees"').fetchone()
    assert row == (later.as_of,)


def test_a_record_delivered_twice_in_one_batch_is_one_reject(apply: Apply, connection: Connection) -> None:
    assert apply(named(1, 1, LONG), named(1, 1, LONG)).rejected == 2
    assert len(waiting(connection)) == 1


def test_a_replay_and_a_replicator_at_once_end_at_the_newest(
    services: Services, connection: Connection, employees: TableMapping, apply: Apply
) -> None:
    apply(*[named(number, number + 1, LONG) for number in range(200)])
    corrected = wider(employees)
    migrate(connection, [corrected])
    replicator = Replicator([corrected], lambda: services.connect("test"), writer="other")

    def write_on(_: int) -> None:
        records = [named(number, 1000 + number, "newer") for number in range(200)]
        replicator.replicate({"Records": records}, deadline=time.monotonic() + 60)

    report = replay(connection, corrected, on_progress=write_on)
    replicator.close()
    assert counts(report) == (100, 100, 0, 0)
    assert set(view(connection).values()) == {("newer", "NA")}


@pytest.mark.parametrize("sequence", [1, 3])
def test_incremental_lines_are_replayed(
    connection: Connection, employees: TableMapping, apply: Apply, sequence: int
) -> None:
    from pipeline.aurora.bookkeeping import rejects  # noqa: PLC0415 - the door of incremental exports keeps its rejects like this
    from pipeline.core.model.reject import Reject  # noqa: PLC0415
    from pipeline.core.ordering import snapshot_position  # noqa: PLC0415

    apply(named(1, sequence, "stored"), named(2, sequence + 1, "stored"))
    row = connection.execute('SELECT max(_as_of) FROM replica."Employees"').fetchone()
    assert row
    position = snapshot_position(row[0] + timedelta(hours=1), timedelta(minutes=5))
    lines: list[Any] = [
        {"Metadata": {}, "Keys": {"Id": {"N": "1"}}, "NewImage": item(1, LONG)},
        {"Metadata": {}, "Keys": {"Id": {"N": "2"}}},
    ]
    rejects.add(
        connection, "employees", [Reject("public.Employees", "r", line, position) for line in lines], source="export x"
    )
    corrected = wider(employees)
    migrate(connection, [corrected])
    assert counts(replay(connection, corrected)) == (2, 0, 0, 0)
    assert view(connection) == {1: (LONG, "NA")}
