"""Every verb under its role, in a database whose schema public lets nobody create; and what each role is denied."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from lambda_replicator import runtime
from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.schema import role_needs
from pipeline.aurora.schema.role_needs import Role, VerbNeeds
from pipeline.aurora.schema.roles import create_roles, plan_roles
from pipeline.aurora.sessions.connection import connect
from pipeline.cli import main
from pipeline.core.errors import TerminalError
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.catch_up.catch_up import catch_up
from pipeline.jobs.explain import explain
from pipeline.jobs.forget import forget
from pipeline.jobs.load.load import load
from pipeline.jobs.probe.lost_history import lost_history_report
from pipeline.jobs.probe.probe import probe
from pipeline.jobs.promote import promote
from pipeline.jobs.purge import purge_table
from pipeline.jobs.reconcile.reconcile import Bounds, reconcile
from pipeline.jobs.redrive import redrive
from pipeline.jobs.replay import replay
from pipeline.jobs.repoint import repoint
from pipeline.jobs.services import Services
from pipeline.jobs.status import status
from pipeline.jobs.unmapped import unmapped
from pipeline.local.postgres import PostgresServer
from pipeline.mappings import load_mappings
from pipeline.settings import Settings
from tests.dynamodb.export_fixture import Layout
from tests.dynamodb.scripted_stream import ScriptedServices, ScriptedShard, ScriptedStream
from tests.jobs.conftest import STREAM, named, record
from tests.jobs.past_table import PastServices, PastTable, records
from tests.jobs.test_redrive import Kept

HOUR = timedelta(hours=1)
NOW = datetime.now(UTC).replace(microsecond=0)
START = NOW - 20 * HOUR
LONG = "a name that is far too long for its column"
EMPLOYEES = """
name: employees
source: {table: Employees, key: {Id: N}}
targets:
  Employees:
    primary_key: [Id]
    columns:
      Id:         {attribute: Id, type: bigint}
      Name:       {attribute: empName, type: varchar(20), default: NA}
      Department: {attribute: empDepartment, type: varchar(10), default: NA, on_error: truncate}
    unmapped: attributes
    indexes: [{columns: [Name]}]
    history: {keep: 400d}
"""
ORDERS = """
name: orders
source: {table: Orders, key: {Id: N}}
targets:
  shop.orders:
    primary_key: [order_id]
    history: {keep: 400d}
    columns:
      order_id: {attribute: Id, type: bigint}
  shop.lines:
    parent: shop.orders
    explode: lines
    element: {line: integer}
    columns:
      sku: {attribute: sku, type: text}
"""
CITY = "      City: {attribute: city, type: text}\n    unmapped:"


def order(number: int, sequence: int, *skus: str) -> dict[str, Any]:
    lines = [{"M": {"sku": {"S": sku}}} for sku in skus]
    made = record(number, sequence, "MODIFY", lines={"L": lines})
    return made | {"eventSourceARN": STREAM.replace("Employees", "Orders")}


@dataclass
class World:
    """A database owned by a master user who is not a superuser, the mappings, and a source with an invented past."""

    server: PostgresServer
    database: str
    folder: Path
    past: PastTable
    exact: bool = False
    """Whether each verb runs under a role of its own, which has what that verb needs and nothing else."""
    names: dict[Role, str] = field(default_factory=dict[Role, str])
    made: list[str] = field(default_factory=list[str])

    def url(self, role: str) -> str:
        return f"postgresql://{role}:{quote('Slartibartfast-1')}@127.0.0.1:{self.server.port}/{self.database}"

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """As the superuser."""
        with psycopg.connect(self.server.url_of(self.database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def environment(self, role: str) -> dict[str, str]:
        return {"DATABASE_URL": self.url(role), "DYNAURORA_TABLES": str(self.folder)}

    @property
    def mappings(self) -> dict[str, TableMapping]:
        return {mapping.name: mapping for mapping in load_mappings(self.folder)}

    def arguments(self) -> list[str]:
        return [word for role, name in self.names.items() for word in (f"--{role.value}", name)]

    def log_in(self, *names: str) -> None:
        self.made += names
        for name in names:
            self.execute(f"ALTER ROLE {name} LOGIN PASSWORD 'Slartibartfast-1'")

    def as_verb(self, name: str) -> str:
        """The URL of the role that the verb runs under."""
        (verb,) = (each for each in role_needs.VERBS if each.verb == name)
        if not self.exact or verb.role is Role.OWNER:
            return self.url(self.names[verb.role])
        return self.url(self._role_of(verb))

    def _role_of(self, verb: VerbNeeds) -> str:
        role = f"v{uuid4().hex}"
        with connect(self.server.url_of(self.database), application_name="test") as connection:
            names = self.names | {verb.role: role}
            create_roles(connection, plan_roles(connection, self.mappings.values(), names, verbs=[verb]))
        self.log_in(role)
        return role

    def services(self, verb: str) -> PastServices:
        return PastServices(self.as_verb(verb), self.past)


@pytest.fixture
def world(postgres: PostgresServer, tmp_path: Path) -> Generator[World]:
    name = f"test_{uuid4().hex}"
    master = f"master_{name}"
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "employees.yaml").write_text(EMPLOYEES)
    (tables / "orders.yaml").write_text(ORDERS)
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        for statement in (
            f"CREATE ROLE {master} CREATEROLE LOGIN PASSWORD 'Slartibartfast-1'",
            f"GRANT pg_read_all_stats TO {master} WITH ADMIN OPTION",
            f"CREATE DATABASE {name} OWNER {master}",
            f"REVOKE ALL ON DATABASE {name} FROM PUBLIC",
        ):
            connection.execute(statement.encode())
    made = World(postgres, name, tables, PastTable(tmp_path / "s3"))
    made.names = {role: f"{role.value}_{name}" for role in Role}
    made.made = [master]
    made.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    yield made
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        for role in (*made.names.values(), *made.made):
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


@pytest.fixture
def roles(world: World) -> World:
    """The roles created by the master user, with passwords that a person set; the owner has migrated."""
    assert main(["roles", "--create", *world.arguments()], world.environment(f"master_{world.database}")) == 0
    world.log_in(*world.names.values())
    assert main(["migrate"], world.environment(world.names[Role.OWNER])) == 0
    return world


def denied(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())


def replicate(world: World, *events: dict[str, Any]) -> None:
    environment = world.environment("") | {"DATABASE_URL": world.as_verb("the Lambda function")}
    replicator = runtime.build(environment, timeout_seconds=60).replicator
    with closing(replicator):
        replicator.replicate({"Records": list(events)}, deadline=time.monotonic() + 60)


@pytest.mark.parametrize("exact", [False, True], ids=["under its role", "with what it alone needs"])
def test_every_verb_works_under_its_role(
    roles: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, exact: bool
) -> None:
    monkeypatch.setattr(
        "pipeline.aurora.bookkeeping.applied_through.settled_through",
        lambda *_: datetime.now(UTC),  # pyright: ignore[reportUnknownLambdaType,reportUnknownArgumentType]
    )
    world, past = roles, roles.past
    world.exact = exact
    employees, orders = world.mappings["employees"], world.mappings["orders"]
    for number in range(20):
        past.put(START, number, f"before {number}")

    # The Lambda function: a row, a delete, a reject, a settled value, and children that are replaced.
    settled: dict[str, Any] = {"empName": {"S": "fine"}, "empDepartment": {"S": "much too long"}}
    replicate(
        world,
        named(1, 1, "streamed"),
        record(2, 2, "REMOVE"),
        named(50, 3, LONG),
        record(51, 4, **settled),
        record(52, 5, "REMOVE"),
    )
    replicate(world, order(1, 1, "a", "b"))
    replicate(world, order(1, 2, "c"))
    assert world.execute("SELECT sku FROM shop.lines") == [("c",)]

    first = load(world.services("load"), employees, past.full(START + HOUR), aside_from=1)
    assert (first.strategy, first.merged_because) == ("aside", ())
    again = load(world.services("load"), employees, past.full(START + 2 * HOUR), aside_from=10**9)
    assert again.strategy == "merge"
    items = [{"Id": {"N": "7"}, "lines": {"L": [{"M": {"sku": {"S": "x"}}}]}}]
    exported = past.factory.full(items, Layout(table="Orders"), export_time=START + HOUR).location
    assert load(world.services("load"), orders, exported).applied == 1

    world.execute("""UPDATE replica."Employees" SET "Name" = 'wrong' WHERE "Id" = 5""")
    report = reconcile(world.services("reconcile"), employees, past.full(START + 3 * HOUR), repair=True,
                       bounds=Bounds(patience=timedelta(0)))  # fmt: skip
    assert (report.different, report.extra, report.repaired) == (1, 1, 2)

    past.put(START + 4 * HOUR, 9, "lost")
    past.delete(START + 4 * HOUR, 6)
    assert catch_up(world.services("catch-up"), employees, START + 3 * HOUR, START + 6 * HOUR).applied == 2

    kept = Kept(tmp_path / "on-failure")
    kept.keep(records([past.put(START + 7 * HOUR, 8, "redriven")]))
    assert redrive(world.services("redrive"), [employees], prefix=kept.location).applied == 1

    replicate(world, record(60, 99, at=int((START + 8 * HOUR).timestamp()), city={"S": "Accra"}))
    grown = EMPLOYEES.replace("varchar(20)", "varchar(60)").replace("    unmapped:", CITY)
    (world.folder / "employees.yaml").write_text(grown)
    assert main(["migrate"], world.environment(world.names[Role.OWNER])) == 0
    employees = world.mappings["employees"]
    with closing(world.services("rejects").connect("test")) as connection:
        assert replay(connection, employees).applied == 1
    promoted = promote(world.services("promote"), employees).attributes
    assert [each.filled for each in promoted] == [1, 1], "the rows, and their versions"
    with closing(world.services("purge").connect("test")) as connection:
        assert purge_table(connection, employees, now=NOW + 400 * HOUR, retention=HOUR).tombstones >= 1

    past.delete(NOW - HOUR, 10)
    forgotten = forget(world.services("forget"), employees, {"Id": {"N": "10"}}, prefix=kept.location)
    assert (forgotten.rows, [text[:12] for text in forgotten.left]) == (1, ["run it again"])

    stream = ScriptedStream()
    stream.shards["a"] = ScriptedShard()
    sensors = {"DATABASE_URL": world.as_verb("the sensors (probe, lost history)")}
    seen = ScriptedServices(Settings.from_environment(sensors), stream)
    probe(seen, employees)
    stream.write("a", 1, NOW.timestamp())
    assert probe(seen, employees).waiting == 1
    assert lost_history_report(seen, employees).findings

    assert main(["plan"], world.environment("") | {"DATABASE_URL": world.as_verb("plan")}) == 0
    assert status(world.services("status"), [employees]) != [None]
    assert unmapped(world.services("unmapped"), employees)
    assert explain(world.services("reconcile --key"), employees, {"Id": {"N": "5"}})

    (world.folder / "employees.yaml").write_text(grown.replace("table: Employees", "table: EmployeesRestored"))
    restored = ScriptedStream(label=f"{NOW:%Y-%m-%dT%H:%M:%S}.000")
    restored.table, restored.shards["s"], restored.more = "EmployeesRestored", ScriptedShard(), {"TableId": "id-2"}
    switching = ScriptedServices(Settings.from_environment({"DATABASE_URL": world.as_verb("repoint")}), restored)
    assert repoint(switching, world.mappings["employees"]).since

    with psycopg.connect(world.as_verb("reading the views")) as reader:
        assert dict(reader.execute('SELECT "Id", "Name" FROM "Employees" WHERE "Id" IN (8, 9)').fetchall()) == {
            8: "redriven", 9: "lost"
        }  # fmt: skip
        assert reader.execute("SELECT count(*) FROM shop.lines").fetchone() == (2,)
        current = 'SELECT "Name" FROM "Employees_history" WHERE "Id" = 9 AND is_current'
        assert reader.execute(current).fetchall() == [("lost",)]
        assert reader.execute("SELECT count(*) FROM shop.orders_history WHERE lines IS NOT NULL").fetchone() == (3,)
    owned = world.execute(
        "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
        " WHERE nspname IN ('replica', 'replication', 'shop') OR nspname = 'public' AND relkind = 'v'"
    )
    assert owned == [(world.names[Role.OWNER],)]


def test_each_role_is_denied_what_its_verbs_do_not_need(roles: World) -> None:
    """PostgreSQL denies everything else. The operator would first have to take on the owner's role, as a swap does."""
    names, storage = roles.names, 'replica."Employees"'
    changes_schema = (
        f"DROP TABLE {storage}", f"ALTER TABLE {storage} ADD COLUMN x int", f"TRUNCATE {storage}",
        'DROP VIEW public."Employees"', "DROP TABLE replication.watermarks", "DROP SCHEMA replication CASCADE",
        "TRUNCATE replication.watermarks", "CREATE TABLE replication.x (i int)", "CREATE TABLE public.x (i int)",
        "CREATE SCHEMA x",
    )  # fmt: skip
    denied(roles.url(names[Role.OPERATOR]), *changes_schema)
    denied(
        roles.url(names[Role.REPLICATOR]), *changes_schema, "CREATE TABLE replica.x (i int)",
        "CREATE TEMPORARY TABLE x (i int)", "SELECT FROM replication.exports", "SELECT FROM replication.losses",
        "DELETE FROM replication.rejects", "UPDATE replication.tables SET purged_through = now()",
        f"SET ROLE {names[Role.OWNER]}", 'SELECT FROM public."Employees"',
    )  # fmt: skip
    denied(
        roles.url(names[Role.READER]), *changes_schema, f"SELECT FROM {storage}", "SELECT FROM replication.rejects",
        "SELECT FROM replication.watermarks", "CREATE TEMPORARY TABLE x (i int)",
        """INSERT INTO "Employees" ("Id") VALUES (1)""", 'DELETE FROM "Employees"',
        f"SET ROLE {names[Role.OWNER]}",
    )  # fmt: skip
    with psycopg.connect(roles.url(names[Role.OWNER])) as owner, pytest.raises(psycopg.errors.InsufficientPrivilege):
        owner.execute("CREATE ROLE x")


def test_the_owner_lets_a_mappings_readers_use_a_schema_that_is_not_its_own(roles: World) -> None:
    analyst = f"analyst_{roles.database}"
    roles.execute(f"CREATE ROLE {analyst}; GRANT CONNECT ON DATABASE {roles.database} TO {analyst}")
    roles.log_in(analyst)
    file = roles.folder / "employees.yaml"
    file.write_text(f"{EMPLOYEES}readers: [{analyst}]\n")
    owner = roles.environment(roles.names[Role.OWNER])
    assert main(["migrate"], owner) == 0
    assert main(["plan"], owner) == 0
    replicate(roles, named(1, 1, "streamed"))
    with psycopg.connect(roles.url(analyst)) as connection:
        assert connection.execute('SELECT "Name" FROM "Employees"').fetchall() == [("streamed",)]
    denied(roles.url(analyst), "SELECT FROM shop.orders", 'SELECT FROM replica."Employees"')
    file.write_text(EMPLOYEES)
    assert main(["migrate"], owner) == 0
    denied(roles.url(analyst), 'SELECT FROM public."Employees"')


def test_without_the_way_to_the_owner_a_load_merges_and_says_why(roles: World) -> None:
    roles.execute(f"REVOKE {roles.names[Role.OWNER]} FROM {roles.names[Role.OPERATOR]} GRANTED BY {roles.made[0]}")
    roles.past.put(START, 1, "one")
    report = load(roles.services("load"), roles.mappings["employees"], roles.past.full(START + HOUR), aside_from=1)
    assert report.strategy == "merge"
    assert "may SET ROLE" in report.merged_because[0]


def test_what_a_superuser_migrated_before_ends_with_the_owner(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    superuser = {"DATABASE_URL": world.server.url_of(world.database), "DYNAURORA_TABLES": str(world.folder)}
    world.execute("CREATE VIEW mine AS SELECT 1 AS one")
    assert main(["migrate"], superuser) == 0
    world.execute("CREATE SCHEMA theirs; CREATE TABLE theirs.t (i int); CREATE TABLE replica.theirs (i int)")
    world.execute("CREATE TABLE replica._load_7_0 (i int)")
    assert main(["roles", "--create", *world.arguments()], superuser) == 0
    assert "replica._load_7_0 was left by a load or reconciliation of another user" in capsys.readouterr().out
    world.log_in(*world.names.values())
    owned = world.execute(
        "SELECT n.nspname || '.' || relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"  # noqa: S608 - the test's own names
        f" WHERE relowner = '{world.names[Role.OWNER]}'::regrole AND relkind IN ('r', 'v')"
        " AND nspname <> 'replication' AND NOT relispartition ORDER BY 1"
    )
    assert [name for (name,) in owned] == [
        "public.Employees", "public.Employees_history", "replica.Employees", "replica._history_base_Employees",
        "replica._history_base_shop.orders", "replica.shop.lines", "replica.shop.orders", "shop.lines", "shop.orders",
        "shop.orders_history",
    ]  # fmt: skip
    owners = world.execute(
        "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class WHERE relispartition OR relkind = 'p'"
    )
    assert owners == [(world.names[Role.OWNER],)]
    replicate(world, named(1, 1, "streamed"), order(1, 1, "a", "b"))
    assert load(world.services("load"), world.mappings["employees"], world.past.full(START), aside_from=1).strategy
    with psycopg.connect(world.as_verb("reading the views")) as reader:
        assert reader.execute('SELECT "Name" FROM "Employees"').fetchall() == [("streamed",)]


def test_what_the_user_may_not_grant_is_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """PostgreSQL only warns of it."""
    master = f"master_{world.database}"
    world.execute(f"CREATE SCHEMA shop; GRANT ALL ON SCHEMA shop TO {master}; GRANT USAGE ON SCHEMA shop TO PUBLIC")
    assert main(["roles", "--create", *world.arguments()], world.environment(master)) == 1
    owner = world.names[Role.OWNER]
    said = capsys.readouterr().out
    assert f'! still missing, because this user may not grant it: GRANT CREATE ON SCHEMA "shop" TO "{owner}"' in said
    world.execute(f"GRANT CREATE ON SCHEMA shop TO {owner}")
    assert main(["roles", "--create", *world.arguments()], world.environment(master)) == 0


def test_it_is_shown_as_a_script_that_leaves_nothing_to_do(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    master = world.environment(f"master_{world.database}")
    assert main(["roles", *world.arguments()], master) == 1
    script = capsys.readouterr().out
    assert "Slartibartfast" not in script
    assert "PASSWORD '" not in script
    assert world.execute(f"SELECT FROM pg_roles WHERE rolname = '{world.names[Role.OWNER]}'") == [], "it only shows"
    with psycopg.connect(master["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(script.encode())
    assert main(["roles", *world.arguments()], master) == 0
    assert "nothing to do" in capsys.readouterr().out
    shown = main(["roles", "--json", *world.arguments()], master), json.loads(capsys.readouterr().out)
    assert (shown[0], shown[1]["statements"], [role["exists"] for role in shown[1]["roles"]]) == (0, [], [True] * 4)


def test_a_user_who_may_not_create_roles_is_told_and_changes_nothing(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.execute(f"ALTER ROLE master_{world.database} NOCREATEROLE")
    assert main(["roles", "--create", *world.arguments()], world.environment(f"master_{world.database}")) == 1
    said = capsys.readouterr().err
    assert f"may not create role {world.names[Role.OWNER]} (42501); nothing was changed; run it as a user who" in said


@pytest.mark.parametrize("name", ["pg_owner", "", "x" * 64, "public"])
def test_names_that_cannot_be_roles_are_refused(world: World, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    master = world.environment(f"master_{world.database}")
    assert main(["roles", *world.arguments(), "--owner", name], master) == 2
    assert "cannot be the name of a role" in capsys.readouterr().err
    assert main(["roles", "--owner", "same", "--reader", "same"], master) == 2
    assert "differ from each other" in capsys.readouterr().err


def test_a_missing_privilege_names_the_table_and_the_way_out(roles: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"], roles.environment(roles.names[Role.REPLICATOR])) == 1
    said = capsys.readouterr().err
    assert "InsufficientPrivilege (42501, table exports)" in said
    assert "`dynaurora roles` shows which role each verb runs under" in said


def test_who_holds_the_load_lock_is_told_to_one_who_may_not_see_when_it_began(roles: World) -> None:
    """Without pg_read_all_stats only the process and its name are known."""
    roles.execute(f"REVOKE pg_read_all_stats FROM {roles.names[Role.OPERATOR]} GRANTED BY {roles.made[0]}")
    (mapping,) = (each for each in roles.mappings.values() if each.name == "employees")
    roles.past.put(START, 1, "one")
    owner = Services(Settings.from_environment(roles.environment(roles.names[Role.OWNER])))
    with closing(owner.connect("somebody else")) as holder:
        loads.lock_table(holder, mapping.name)
        with pytest.raises(TerminalError, match=r"\(backend \d+, somebody else\)"):
            load(roles.services("load"), mapping, roles.past.full(START + HOUR))
