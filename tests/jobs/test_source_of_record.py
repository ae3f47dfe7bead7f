"""The source of record: changes of any other table are refused on every path, whatever the mapping says."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from pipeline.aurora.bookkeeping import sources
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.schema.plan import plan
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import ConfigurationError, TerminalError
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.catch_up.catch_up import apply_export, catch_up
from pipeline.jobs.explain import explain
from pipeline.jobs.load.load import load
from pipeline.jobs.reconcile.reconcile import reconcile
from pipeline.jobs.redrive import redrive
from pipeline.jobs.replay import replay
from pipeline.jobs.replicate import ReplicationReport, Replicator
from pipeline.jobs.services import Services
from pipeline.jobs.snapshots.export_requests import request_or_resume
from pipeline.jobs.snapshots.scan_snapshot import scan_snapshot
from pipeline.settings import Settings
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, Layout
from tests.dynamodb.scripted_stream import ScriptedServices, ScriptedStream
from tests.jobs.conftest import STREAM, named, record, view
from tests.jobs.test_redrive import Kept
from tests.jobs.test_replicate_counts import CHILDREN, TWO_TARGETS
from tests.pgbouncer import PgBouncer

ARN = STREAM.partition("/stream/")[0]
NEW = "EmployeesRestored"
Apply = Callable[..., ReplicationReport]
LONG = "a name that is far too long for its column"


def switched(connection: Connection, table: str = NEW, arn: str | None = None) -> None:
    """What `repoint` leaves in the record."""
    connection.execute(
        "UPDATE replication.tables SET source_table = %s, source_arn = %s, source_since = now()", [table, arn]
    )


def everything(connection: Connection) -> list[tuple[Any, ...]]:
    """Everything that a batch may write."""
    found: list[tuple[Any, ...]] = []
    for (name,) in connection.execute(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'replica'"
        " OR schemaname = 'replication' AND tablename IN ('watermarks', 'rejects', 'settled_values') ORDER BY 1"
    ).fetchall():
        rows = connection.execute(sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1").format(sql.SQL(name))).fetchall()
        found.append((name, rows))
    return found


TAGS = {"L": [{"M": {"tag": {"S": "a"}}}]}
BATCHES: list[Any] = [
    pytest.param("", [named(1, 5, "OLD TABLE"), record(2, 6, "REMOVE")], id="one statement"),
    pytest.param("", [named(1, 5, "OLD TABLE"), named(2, 6, LONG)], id="with a reject"),
    pytest.param("", [named(1, 5, LONG)], id="rejects alone"),
    pytest.param(TWO_TARGETS, [record(1, 5, empName={"S": "OLD TABLE"}, level={"N": "70000"})], id="several targets"),
    pytest.param(CHILDREN, [record(1, 5, tags=TAGS)], id="children"),
    pytest.param("check", [named(1, 5, "OLD TABLE"), named(3, 6, "checked")], id="a value that PostgreSQL refuses"),
]


@pytest.mark.parametrize(("text", "records"), BATCHES)
@pytest.mark.parametrize("pooled", [False, True], ids=["direct", "pooled"])
def test_a_replicator_of_the_old_table_writes_nothing_at_all(
    database: str,
    employees: TableMapping,
    text: str,
    records: list[dict[str, Any]],
    pooled: bool,
    pgbouncer: Callable[..., PgBouncer],
) -> None:
    """No row, no watermark and no reject: the event source mapping keeps the batch."""
    mapping = employees if text in {"", "check"} else read_mapping(text, "test.yaml")
    services = Services(Settings.from_environment({"DATABASE_URL": database}))
    url = pgbouncer(database, mode="transaction").url if pooled else database
    through = Services(Settings.from_environment({"DATABASE_URL": url}))
    replicator = Replicator([mapping], lambda: through.connect("test", needs_session=False), writer="old")
    with closing(services.connect("test")) as connection, closing(replicator):
        migrate(connection, [mapping])
        if text == "check":
            connection.execute("""ALTER TABLE replica."Employees" ADD CHECK ("Name" <> 'checked')""")
        replicator.replicate({"Records": [named(9, 1, "before")]}, deadline=time.monotonic() + 60)
        switched(connection)
        before = everything(connection)
        for _ in range(7):  # psycopg prepares what it has sent five times
            with pytest.raises(ConfigurationError) as raised:
                replicator.replicate({"Records": records}, deadline=time.monotonic() + 60)
            assert everything(connection) == before
            told = str(raised.value)
            assert f"table Employees, not {NEW}" in told
            assert ARN in told
            assert "dynaurora repoint employees" in told
            assert "OLD TABLE" not in told
        switched(connection, "Employees")
        (report,) = replicator.replicate({"Records": records}, deadline=time.monotonic() + 60)
        assert report.records == len(records)
        assert everything(connection) != before


@pytest.mark.parametrize(
    ("other", "how"),
    [
        (ARN.replace("111122223333", "999999999999"), "account 111122223333, not 999999999999"),
        (ARN.replace("eu-central-1", "us-east-1"), "Region eu-central-1, not us-east-1"),
    ],
)
def test_a_table_of_that_name_in_another_account_or_region_is_refused_once_the_recorded_one_is_known(
    apply: Apply, connection: Connection, other: str, how: str
) -> None:
    apply(named(1, 1, "known by its name"))
    switched(connection, "Employees", ARN)
    apply(named(1, 2, "known by its ARN"))
    switched(connection, "Employees", other)
    with pytest.raises(ConfigurationError, match=how):
        apply(named(1, 3, "of the other"))
    assert view(connection)[1][0] == "known by its ARN"


def test_a_later_part_of_a_batch_is_refused_too(apply: Apply, connection: Connection) -> None:
    """A switch between two chunks: the answer reports what was committed, and the rest is delivered again."""
    connection.execute(
        "CREATE FUNCTION switch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE replication.tables SET source_table = 'EmployeesRestored'; RETURN NULL; END $$"
    )
    connection.execute(
        'CREATE TRIGGER switch AFTER INSERT ON replica."Employees" FOR EACH STATEMENT EXECUTE FUNCTION switch()'
    )
    report = apply(*(named(number, number, "x") for number in range(1, 2_502)))
    assert (report.records, report.first_unprocessed) == (2_500, str(10**20 + 2_501))
    assert isinstance(report.failure, ConfigurationError)
    assert len(view(connection)) == 2_500


@pytest.fixture
def scripted(services: Services) -> ScriptedServices:
    assert services  # migrated
    return ScriptedServices(
        Settings.from_environment(
            {"DATABASE_URL": str(services.settings.database_url), "DYNAURORA_EXPORT_BUCKET": "bucket"}
        ),
        ScriptedStream(),
    )


Door = Callable[[ScriptedServices, TableMapping, ExportFactory], object]
SINCE, UNTIL = EXPORT_TIME - timedelta(hours=20), EXPORT_TIME - timedelta(hours=10)


def _replaying(services: ScriptedServices, mapping: TableMapping, _: ExportFactory) -> object:
    with closing(services.connect("test")) as connection:
        return replay(connection, mapping)


DOORS: dict[str, Door] = {
    "load": lambda s, m, e: load(s, m, e.full([]).location),
    "reconcile": lambda s, m, e: reconcile(s, m, e.full([]).location),
    "catch up": lambda s, m, _: catch_up(s, m, SINCE, UNTIL),
    "apply an incremental export": lambda s, m, e: apply_export(
        s, m, location=e.incremental([], window=(SINCE, UNTIL)).location
    ),
    "scan": lambda s, m, _: scan_snapshot(s, m),
    "request an export": lambda s, m, _: request_or_resume(s, m, (ARN, None), print),
    "replay rejects": _replaying,
    "explain": lambda s, m, _: explain(s, m, {"Id": {"N": "1"}}),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_mapping_that_names_another_table_than_the_source_of_record_comes_through_no_door(
    door: Door, scripted: ScriptedServices, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    switched(connection)
    with pytest.raises(ConfigurationError, match=f"table Employees, not {NEW}.*dynaurora repoint employees"):
        door(scripted, employees, exports)
    assert connection.execute("SELECT count(*) FROM replication.exports").fetchone() == (0,)
    assert connection.execute("SELECT count(*) FROM replication.reconciliations").fetchone() == (0,)


@pytest.mark.parametrize("name", ["load", "reconcile", "catch up", "apply an incremental export", "scan"])
def test_an_account_other_than_the_recorded_one_comes_through_no_door(
    name: str, scripted: ScriptedServices, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    switched(connection, "Employees", ARN.replace("111122223333", "999999999999"))
    with pytest.raises(TerminalError, match="account 111122223333, not 999999999999"):
        DOORS[name](scripted, employees, exports)
    assert connection.execute("SELECT count(*) FROM replication.exports").fetchone() == (0,)


def test_the_first_job_that_sees_the_table_records_which_it_is(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    assert sources.read(connection, "employees") == sources.SourceOfRecord("Employees")
    load(services, employees, exports.full([]).location)
    known = sources.read(connection, "employees")
    assert known is not None
    assert known.arn == ARN
    assert known.table_id


def test_an_export_of_another_table_that_is_meant_is_loaded_and_teaches_nothing(
    services: Services, employees: TableMapping, exports: ExportFactory, connection: Connection
) -> None:
    other = exports.full([{"Id": {"N": "1"}}], Layout(summary={"tableArn": ARN.replace("Employees", NEW)}))
    load(services, employees, other.location, accept_other_table=True)
    assert sources.read(connection, "employees") == sources.SourceOfRecord("Employees")
    assert list(view(connection)) == [1]


def test_a_batch_that_was_given_up_by_the_old_table_of_that_name_stays_where_it_is(
    services: Services, employees: TableMapping, connection: Connection, tmp_path: Path
) -> None:
    kept = Kept(tmp_path / "on-failure")
    kept.keep([named(1, 1, "OLD TABLE")])
    switched(connection, "Employees", ARN.replace("111122223333", "999999999999"))
    report = redrive(services, [employees], prefix=kept.location)
    assert (report.batches, report.records) == (0, 0)
    assert "account 111122223333, not 999999999999" in report.left[0].reason
    assert "repoint" in str(report.left[0].next_step)
    assert len(kept.waiting) == 1
    assert view(connection) == {}


def test_migrate_never_re_points_and_names_the_command(connection: Connection, employees: TableMapping) -> None:
    renamed = replace(employees, table=NEW)
    (refusal,) = migrate(connection, [renamed]).refusals
    assert refusal.what == f"the mapping's table is not its source of record: table {NEW}, not Employees"
    assert "dynaurora repoint employees" in refusal.way_out
    assert sources.read(connection, "employees") == sources.SourceOfRecord("Employees")
    assert plan(connection, [renamed], repointing=True).empty


def test_a_database_whose_bookkeeping_is_older_says_migrate(apply: Apply, connection: Connection) -> None:
    connection.execute("ALTER TABLE replication.tables DROP COLUMN source_arn")
    with pytest.raises(TerminalError, match="dynaurora migrate"):
        apply(named(1, 1, "x"))


def test_the_servers_log_says_why_a_batch_was_refused(connection: Connection) -> None:
    """The statement's own error, from which the replicator makes one that names the next step."""
    switched(connection)
    gate = sources.of_record(sql.Literal("employees"), sql.Literal("Employees"), sql.SQL("NULL::text"))
    with pytest.raises(Exception, match=f"the source of record of employees is another, {NEW}"):
        connection.execute(sql.SQL("SELECT {}").format(gate))
