"""The replicator through PgBouncer, in both modes, with one or several server connections; jobs, which refuse it.

Each test asks the server directly what is stored and what is left on the pooler's connections.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import connect
from pipeline.cli import main
from pipeline.core.errors import ConfigurationError
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.load.load import load
from pipeline.jobs.replicate import ReplicationReport, Replicator
from pipeline.jobs.services import Services
from pipeline.mappings import load_mappings
from pipeline.settings import Settings
from tests.dynamodb.export_fixture import ExportFactory, Layout
from tests.pgbouncer import PgBouncer, assert_untouched, locks_left

Start = Callable[..., PgBouncer]
TABLES = ("Employees", "Customers")
CREATED = 1_778_752_900
LABEL = "2026-05-14T10:00:00.000"
MAPPING = """\
name: {name}
source: {{table: {table}, key: {{Id: N}}}}
targets:
  {table}:
    primary_key: [Id]
    columns:
      Id: {{attribute: Id, type: bigint}}
      Name: {{attribute: empName, type: varchar(20)}}
    unmapped: attributes
"""
BOTH_WAYS = pytest.mark.parametrize(
    ("mode", "pool_size"), [("transaction", 1), ("transaction", 5), ("session", 5)], ids=str
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "tables"
    made.mkdir()
    for table in TABLES:
        (made / f"{table.lower()}.yaml").write_text(MAPPING.format(name=table.lower(), table=table))
    return made


@pytest.fixture
def migrated(database: str, folder: Path) -> str:
    """The URL of a database with both tables, straight to the server."""
    with closing(connect(database, application_name="test migrate")) as connection:
        migrate(connection, load_mappings(folder))
    return database


def change(table: str, number: int, sequence: int, name: str | None) -> dict[str, Any]:
    """A stream record; without a name it is a removal."""
    image = {} if name is None else {"NewImage": {"Id": {"N": str(number)}, "empName": {"S": name}}}
    return {
        "eventName": "REMOVE" if name is None else "MODIFY",
        "eventSourceARN": f"arn:aws:dynamodb:eu-central-1:111122223333:table/{table}/stream/{LABEL}",
        "dynamodb": {
            "ApproximateCreationDateTime": CREATED,
            "Keys": {"Id": {"N": str(number)}},
            "SequenceNumber": str(10**20 + sequence),
            "StreamViewType": "NEW_IMAGE",
            **image,
        },
    }


class Clients:
    """A replicator for each table behind a pooler, as two functions would be; and what they should have stored."""

    def __init__(self, folder: Path, url: str) -> None:
        services = Services(Settings.from_environment({"DATABASE_URL": url}))
        self.replicators = {
            mapping.table: Replicator(
                [mapping], lambda: services.connect("replicator", needs_session=False), writer=mapping.table
            )
            for mapping in load_mappings(folder)
        }
        self.stored: dict[str, dict[int, str]] = {table: {} for table in TABLES}
        self.sequences = 0

    def apply(self, table: str, *changes: tuple[int, str | None]) -> ReplicationReport:
        records: list[dict[str, Any]] = []
        for number, name in changes:
            self.sequences += 1
            records.append(change(table, number, self.sequences, name))
        (report,) = self.replicators[table].replicate({"Records": records}, deadline=time.monotonic() + 60)
        for number, name in changes:
            if name is None:
                self.stored[table].pop(number, None)
            elif len(name) <= 20:
                self.stored[table][number] = name
        return report

    def close(self) -> None:
        for replicator in self.replicators.values():
            replicator.close()


@pytest.fixture
def clients_of(folder: Path) -> Generator[Callable[[str], Clients]]:
    made: list[Clients] = []

    def build(url: str) -> Clients:
        made.append(Clients(folder, url))
        return made[-1]

    yield build
    for each in made:
        each.close()


def views(database: str) -> dict[str, dict[int, str]]:
    with psycopg.connect(database) as connection:
        return {
            table: dict(
                connection.execute(
                    sql.SQL('SELECT "Id", "Name" FROM {}').format(sql.Identifier("public", table))
                ).fetchall()
            )
            for table in TABLES
        }


@BOTH_WAYS
def test_two_clients_of_one_pooler_never_write_each_others_rows(
    migrated: str, pgbouncer: Start, clients_of: Callable[[str], Clients], mode: str, pool_size: int
) -> None:
    """Both clients' prepared statement would be called `_pg3_0`."""
    pooler = pgbouncer(migrated, mode=mode, pool_size=pool_size)
    clients = clients_of(pooler.url)
    for turn in range(40):
        for table in TABLES:
            report = clients.apply(table, (turn, f"{table} {turn}"), (turn - 3, None))
            assert (report.records, report.failure) == (2, None)
    assert views(migrated) == clients.stored
    assert locks_left(migrated) == []
    if mode == "transaction":
        assert_untouched(pooler, pool_size)


@BOTH_WAYS
def test_nothing_is_sent_after_the_end_of_a_transaction(
    migrated: str, pgbouncer: Start, folder: Path, tmp_path: Path, mode: str, pool_size: int
) -> None:
    """A pooler that gets a Flush from an idle client gives it a server connection, and waits for an answer to it.

    With all of a pool's connections held so, every other client waits in vain (PgBouncer's query_wait_timeout).
    """
    services = Services(
        Settings.from_environment({"DATABASE_URL": pgbouncer(migrated, mode=mode, pool_size=pool_size).url})
    )
    opened = services.connect("replicator", needs_session=False)
    trace = tmp_path / "protocol"
    replicator = Replicator(list(load_mappings(folder)), lambda: opened, writer="one")
    with trace.open("w") as file, closing(replicator):
        opened.pgconn.trace(file.fileno())
        for table, name in (("Employees", "a"), ("Employees", "x" * 30), ("Customers", "b")):
            replicator.replicate({"Records": [change(table, 1, len(name), name)]}, deadline=time.monotonic() + 60)
        opened.pgconn.untrace()
    sent = [line.split("\t")[3] for line in trace.read_text().splitlines() if "\tF\t" in line]
    assert sent[-1] in ("Sync", "Query")
    assert "Flush" not in sent


@BOTH_WAYS
def test_clients_at_the_same_time_end_equal(
    migrated: str, pgbouncer: Start, clients_of: Callable[[str], Clients], mode: str, pool_size: int
) -> None:
    pooler = pgbouncer(migrated, mode=mode, pool_size=pool_size)
    of = {table: clients_of(pooler.url) for table in TABLES}
    failed: list[BaseException] = []

    def work(table: str) -> None:
        try:
            for turn in range(60):
                of[table].apply(table, *[(number, f"{table} {turn} {number}") for number in range(turn % 7 + 1)])
        except BaseException as error:  # noqa: BLE001 - raised by the test
            failed.append(error)

    threads = [threading.Thread(target=work, args=(table,)) for table in TABLES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert views(migrated) == {table: of[table].stored[table] for table in TABLES}


@BOTH_WAYS
def test_rejects_and_values_that_only_postgresql_refuses(
    migrated: str, pgbouncer: Start, clients_of: Callable[[str], Clients], mode: str, pool_size: int
) -> None:
    """Batches that are not a single statement: with rejects, and isolating under savepoints."""
    with psycopg.connect(migrated) as connection:
        connection.execute("""ALTER TABLE replica."Employees" ADD CHECK ("Name" <> 'bad')""")
    pooler = pgbouncer(migrated, mode=mode, pool_size=pool_size)
    clients = clients_of(pooler.url)
    assert clients.apply("Employees", (1, "good"), (2, "x" * 30)).rejected == 1
    assert clients.apply("Employees", (3, "bad"), (4, "good too")).rejected == 1
    del clients.stored["Employees"][3]
    assert clients.apply("Customers", (5, "theirs")).applied == 1
    assert views(migrated) == clients.stored
    if mode == "transaction":
        assert_untouched(pooler, pool_size)


@pytest.mark.parametrize("pool_size", [1, 5])
def test_a_pooler_killed_in_mid_stream_is_connected_to_again(
    migrated: str, pgbouncer: Start, clients_of: Callable[[str], Clients], pool_size: int
) -> None:
    pooler = pgbouncer(migrated, mode="transaction", pool_size=pool_size)
    clients = clients_of(pooler.url)
    for turn in range(4):
        for table in TABLES:
            clients.apply(table, (turn, f"{table} {turn}"))
        pooler.kill()
        pooler.start()
    assert views(migrated) == clients.stored


CLIENT = """\
import json, sys, time
from pathlib import Path
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.services import Services
from pipeline.mappings import load_mappings
from pipeline.settings import Settings
services = Services(Settings.from_environment({"DATABASE_URL": sys.argv[2]}))
mappings = [m for m in load_mappings(Path(sys.argv[1])) if m.table == "Employees"]
replicator = Replicator(mappings, lambda: services.connect("killed client", needs_session=False), writer="killed")
replicator.replicate(json.loads(sys.stdin.read()), deadline=time.monotonic() + 60)
"""


@pytest.mark.parametrize("pool_size", [1, 5])
def test_a_client_killed_in_mid_batch_leaves_nothing(
    migrated: str, folder: Path, pgbouncer: Start, clients_of: Callable[[str], Clients], pool_size: int
) -> None:
    pooler = pgbouncer(migrated, mode="transaction", pool_size=pool_size)
    clients = clients_of(pooler.url)
    clients.apply("Employees", (1, "before"))
    with psycopg.connect(migrated) as holding:
        holding.execute('UPDATE replica."Employees" SET "Name" = "Name"')
        batch = json.dumps({"Records": [change("Employees", 1, 900, "killed"), change("Employees", 2, 901, "killed")]})
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(folder), pooler.url], stdin=subprocess.PIPE, env=os.environ
        )
        assert client.stdin
        client.stdin.write(batch.encode())
        client.stdin.close()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        with psycopg.connect(migrated, autocommit=True) as watching:
            while not watching.execute(waiting).fetchone():
                assert client.poll() is None
                time.sleep(0.05)
            client.send_signal(signal.SIGKILL)
            client.wait()
    with psycopg.connect(migrated, autocommit=True) as watching:
        while watching.execute(
            "SELECT 1 FROM pg_stat_activity WHERE state <> 'idle' AND datname = current_database()"
            " AND pid <> pg_backend_pid()"
        ).fetchone():
            time.sleep(0.05)
    # The whole batch had been sent, COMMIT included: it is all stored or not at all, and is delivered again.
    found = views(migrated)["Employees"]
    assert found in ({1: "before"}, {1: "killed", 2: "killed"})
    clients.sequences = 899
    clients.apply("Employees", (1, "killed"), (2, "killed"))
    clients.apply("Customers", (1, "theirs"))
    assert views(migrated) == clients.stored
    assert locks_left(migrated) == []
    assert_untouched(pooler, pool_size)


@pytest.mark.parametrize("pool_size", [1, 5])
@pytest.mark.parametrize(
    "verb",
    [
        ["load", "employees", "--manifest", "EXPORT"],
        ["reconcile", "employees", "--manifest", "EXPORT"],
        ["migrate"],
        ["plan"],
        ["status"],
        ["purge", "employees"],
        ["rejects", "list"],
    ],
    ids=lambda verb: verb[0],
)
def test_the_command_line_refuses_a_pooler_with_the_way_out(
    migrated: str,
    folder: Path,
    pgbouncer: Start,
    exports: ExportFactory,
    verb: list[str],
    pool_size: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    location = exports.full([{"Id": {"N": "1"}}], Layout(table="Employees", files=1)).location
    pooler = pgbouncer(migrated, mode="transaction", pool_size=pool_size)
    environment = {"DATABASE_URL": pooler.url, "DYNAURORA_TABLES": str(folder)}
    for more, told in (
        ({}, "a connection pooler answered"),
        ({"DATABASE_POOLER": "session"}, "it pools transactions"),
    ):
        assert main([location if word == "EXPORT" else word for word in verb], environment | more) == 2
        error = capsys.readouterr().err
        assert told in error
        assert "the cluster's writer endpoint" in error
    assert locks_left(migrated) == []
    assert_untouched(pooler, pool_size)


def test_a_load_through_a_pooler_of_sessions_is_whole_and_gives_its_locks_back(
    migrated: str, folder: Path, pgbouncer: Start, exports: ExportFactory
) -> None:
    pooler = pgbouncer(migrated, mode="session", pool_size=20)
    mapping: TableMapping = next(m for m in load_mappings(folder) if m.table == "Employees")
    items = [{"Id": {"N": str(number)}, "empName": {"S": f"name {number}"}} for number in range(50)]
    location = exports.full(items, Layout(table="Employees", files=4)).location
    environment = {"DATABASE_URL": pooler.url}
    with pytest.raises(ConfigurationError, match="a connection pooler answered"):
        load(Services(Settings.from_environment(environment)), mapping, location)
    services = Services(Settings.from_environment(environment | {"DATABASE_POOLER": "session"}))
    load(services, mapping, location)
    assert views(migrated)["Employees"] == {number: f"name {number}" for number in range(50)}
    with closing(psycopg.connect(pooler.url, autocommit=True)) as following:
        following.execute("SELECT 1")  # the connection that was reset last
    with psycopg.connect(migrated, autocommit=True) as watching:
        while watching.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'").fetchone():
            time.sleep(0.05)
