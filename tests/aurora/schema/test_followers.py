"""Followers of the database: what `plan` says about publications, slots, subscriptions and replicas; and it is true."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

import psycopg
import pytest
from psycopg import sql

from pipeline.aurora.schema.followers import Caution
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.schema.plan import plan
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.commands.plan import cautioned
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.local.postgres import PostgresServer
from tests.conftest import run_directory

COLUMNS = ("Id: {attribute: Id, type: bigint}", "Name: {attribute: name, type: text}")
CITY, ZIP = "City: {attribute: city, type: text}", "Zip: {attribute: zip, type: text}"
ALTER_SUBSCRIBERS_FIRST = "on each subscriber, run the statements of this plan that create or alter tables of replica"
pytestmark = pytest.mark.filterwarnings("ignore")  # the server's own, of publications


def mapping(*more: str, name: str = "employees") -> TableMapping:
    body = "".join(f"      {column}\n" for column in (*COLUMNS, *more))
    target = name.capitalize()
    return read_mapping(
        f"name: {name}\nsource: {{table: {target}, key: {{Id: N}}}}\n"
        f"targets:\n  {target}:\n    primary_key: [Id]\n    columns:\n{body}",
        f"{name}.yaml",
    )


@pytest.fixture(scope="module")
def logical() -> Generator[PostgresServer]:
    settings = {"wal_level": "logical", "wal_retrieve_retry_interval": "100ms"}
    with run_directory() as folder, PostgresServer(folder / "postgres", durable=False, settings=settings) as server:
        yield server


Sessions = Callable[[str], Connection]


@pytest.fixture
def session(logical: PostgresServer) -> Generator[Sessions]:
    """Create databases on a server that publishes, and drop everything that holds on to them."""
    opened: list[Connection] = []

    def create(name: str) -> Connection:
        with psycopg.connect(logical.url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        made = connect(logical.url_of(name), application_name="test followers")
        opened.append(made)
        return made

    yield create
    for connection in opened:
        for (name,) in connection.execute(
            "SELECT subname FROM pg_subscription JOIN pg_database d ON d.oid = subdbid"
            " WHERE datname = current_database()"
        ).fetchall():
            connection.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(sql.Identifier(name)))
            connection.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("DROP SUBSCRIPTION {}").format(sql.Identifier(name)))
    eventually(lambda: not any(active for _, active in slots(opened[0])))
    for name, _ in slots(opened[0]):
        opened[0].execute("SELECT pg_drop_replication_slot(%s)", [name])
    for connection in opened:
        connection.close()


def slots(connection: Connection) -> list[tuple[str, bool]]:
    return connection.execute("SELECT slot_name, active FROM pg_replication_slots").fetchall()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def cautions(connection: Connection, *mappings: TableMapping) -> tuple[Caution, ...]:
    return plan(connection, mappings or [mapping()]).cautions


def test_nobody_follows_a_database_of_its_own(session: Sessions) -> None:
    assert cautions(session("alone")) == ()


def test_a_subscriber_stops_at_a_new_column_unless_the_steps_are_followed(
    session: Sessions, logical: PostgresServer
) -> None:
    publisher, subscriber = session("publisher"), session("subscriber")
    for connection in (publisher, subscriber):
        migrate(connection, [mapping()])
    publisher.execute('CREATE PUBLICATION reports FOR TABLE replica."Employees"')
    publisher.execute("SELECT pg_create_logical_replication_slot('reports', 'pgoutput')")
    subscriber.execute(
        sql.SQL("CREATE SUBSCRIPTION reports CONNECTION {} PUBLICATION reports WITH (create_slot = false)").format(
            sql.Literal(logical.url_of("publisher"))
        )
    )

    def arrives(number: int, columns: str = '"Id"', values: str = "") -> Callable[[], bool]:
        publisher.execute(
            f'INSERT INTO replica."Employees" ({columns}, _as_of) VALUES ({number}{values}, now())'.encode()  # noqa: S608 - constants
        )
        return lambda: (
            subscriber.execute('SELECT FROM replica."Employees" WHERE "Id" = %s', [number]).fetchone() is not None
        )

    eventually(arrives(1))
    planned = plan(publisher, [mapping(CITY)])
    altered, published = planned.cautions
    assert altered.what.startswith(
        "replica.Employees is published (reports). Logical replication carries rows but no DDL"
    )
    assert altered.steps[:2] == (ALTER_SUBSCRIBERS_FIRST, "here, run `dynaurora migrate`")
    assert "a load merges row by row" in published.what
    for step in planned.steps:
        if step.alters:
            subscriber.execute(step.sql.encode())
    migrate(publisher, [mapping(CITY)])
    eventually(arrives(2, '"Id", "City"', ", 'Ulm'"))
    assert [caution.what for caution in cautions(publisher, mapping(CITY))] == [published.what], "nothing is altered"

    late = plan(publisher, [mapping(CITY, ZIP)])  # in the other order it stops, and continues once the step is done
    migrate(publisher, [mapping(CITY, ZIP)])
    arrived = arrives(3, '"Id", "Zip"', ", '89073'")
    eventually(
        lambda: subscriber.execute("SELECT apply_error_count > 0 FROM pg_stat_subscription_stats").fetchone() == (True,)
    )
    assert not arrived()
    for step in late.steps:
        if step.alters:
            subscriber.execute(step.sql.encode())
    eventually(arrived)
    (subscribes,) = [caution for caution in cautions(subscriber) if "subscriber itself" in caution.what]
    assert "(reports)" in subscribes.what


@pytest.mark.parametrize("of", ["FOR ALL TABLES", "FOR TABLES IN SCHEMA replica"])
def test_a_table_that_is_yet_to_be_made_will_be_published_too(session: Sessions, of: str) -> None:
    connection = session("whole")
    migrate(connection, [mapping()])
    connection.execute(f"CREATE PUBLICATION whole {of}".encode())
    altered, published = cautions(connection, mapping(), mapping(name="orders"))
    assert altered.what.startswith("replica.Orders is published (whole)")
    assert published.what.startswith("replica.Employees, replica.Orders are published (whole)")
    assert "ALTER SUBSCRIPTION … REFRESH PUBLICATION" in altered.steps[2]


def test_slots_are_told_whether_or_not_something_reads_them(session: Sessions) -> None:
    connection = session("slots")
    connection.execute("SELECT pg_create_logical_replication_slot('forgotten', 'test_decoding')")
    unknown, idle = cautions(connection)
    assert "slots read this database (forgotten), without a publication" in unknown.what
    assert idle.what.startswith("nothing reads the logical replication slots forgotten")
    assert cautions(session("another")) == (), "a slot belongs to one database"


def test_replicas_are_counted_also_by_a_role_that_may_see_no_more(session: Sessions, logical: PostgresServer) -> None:
    connection = session("primary")
    connection.execute("DROP ROLE IF EXISTS dynaurora_planner")
    connection.execute("CREATE ROLE dynaurora_planner")
    with psycopg.connect(logical.url, replication="true", autocommit=True):
        connection.execute("SET ROLE dynaurora_planner")
        (replica,) = cautions(connection)
        connection.execute("RESET ROLE")
    assert replica.what.startswith("1 replica follows this database: there, a statement is cancelled")
    assert any("hot_standby_feedback" in step for step in replica.steps)
    assert any("max_standby_streaming_delay" in step for step in replica.steps)


def test_an_aurora_clusters_readers_are_replicas(session: Sessions) -> None:
    """They stream nothing; Aurora's function lists them, the writer among them (Aurora user guide)."""
    connection = session("cluster")
    connection.execute(
        "CREATE FUNCTION aurora_replica_status() RETURNS TABLE (server_id text, session_id text) LANGUAGE sql AS"
        " $$ VALUES ('a', 'MASTER_SESSION_ID'), ('b', 'e2d8'), ('c', 'f3a1') $$"
    )
    (replicas,) = cautions(connection)
    assert replicas.what.startswith("2 replicas follow this database")


def test_they_are_comments_of_the_script_with_their_steps_numbered() -> None:
    assert cautioned((Caution("it is so", ("first this", "then that")),)) == [
        "-- CAUTION: it is so",
        "--   1. first this",
        "--   2. then that",
        "",
    ]
