"""Forgetting an item: nothing of it is left but its tombstone, others keep everything, and it does not come back."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.cli import main
from pipeline.core.errors import TerminalError
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.jobs import forget as forget_job
from pipeline.jobs.forget import ForgetReport, forget
from pipeline.jobs.load.load import load
from pipeline.jobs.redrive import redrive
from pipeline.jobs.replicate import Replicator
from tests.jobs.conftest import named, record
from tests.jobs.past_table import PastServices, PastTable
from tests.jobs.test_privacy import statistics, stored
from tests.jobs.test_redrive import Kept

HOUR = timedelta(hours=1)
NOW = datetime.now(UTC).replace(microsecond=0)
START = NOW - 20 * HOUR
MARK, OTHER = "Slartibartfast", "Ford Prefect"
MAPPING = """
name: employees
source: {table: Employees, key: {Id: N}}
targets:
  Employees:
    primary_key: [Id]
    columns:
      Id:   {attribute: Id, type: bigint}
      Name: {attribute: empName, type: varchar(20)}
    history: {keep: 400d}
  Cards:
    parent: Employees
    explode: cards
    element: {place: integer}
    columns:
      number: {attribute: number, type: text}
"""


class World:
    """One person and another, in every place that keeps something about an item."""

    def __init__(self, database: str, folder: Path) -> None:
        self.past = PastTable(folder / "s3")
        self.services = PastServices(database, self.past)
        self.mapping = read_mapping(MAPPING, "employees.yaml")
        self.kept = Kept(folder / "on-failure")
        with closing(self.services.connect("test")) as connection:
            migrate(connection, [self.mapping])

    def apply(self, *events: dict[str, Any]) -> None:
        replicator = Replicator([self.mapping], lambda: self.services.connect("test"), writer="test")
        with closing(replicator):
            replicator.replicate({"Records": list(events)}, deadline=time.monotonic() + 60)

    def fill(self, connection: Connection) -> None:
        at = int(START.timestamp())
        for number, name in ((7, MARK), (8, OTHER)):
            cards = {"L": [{"M": {"number": {"S": name}}}]}
            self.apply(record(number, number, at=at, empName={"S": name}, cards=cards))
            self.apply(named(number, 10 + number, f"{name}, a name that is far too long", at=at + 1))
            self.past.put(START, number, name)
        load(self.services, self.mapping, self.past.full(START + HOUR))
        both = [named(7, 20, MARK, at=at + 2), named(8, 21, OTHER, at=at + 2)]
        self.kept.keep(both)
        self.kept.keep([named(7, 22, f"{MARK} alone", at=at + 3)])
        self.kept.put("done/aws/lambda/mapping/s/1.x", self.kept.waiting[0].read_bytes())
        connection.execute(
            "INSERT INTO replication.reconciliations (table_name, snapshot, snapshot_time, as_of, status)"
            " VALUES ('employees', 's', now(), now(), 'done')"
        )
        connection.execute("CREATE TABLE replica._reconcile_1_0 (a text)")
        connection.execute("INSERT INTO replica._reconcile_1_0 VALUES (%s)", [MARK])

    def forget(self, number: int = 7) -> ForgetReport:
        return forget(self.services, self.mapping, {"Id": {"N": str(number)}}, prefix=self.kept.location)

    def found(self, connection: Connection, text: str) -> bool:
        in_objects = any(text.encode() in path.read_bytes() for path in self.kept.folder.rglob("*.x"))
        return in_objects or text in stored(connection)


@pytest.fixture
def world(database: str, tmp_path: Path) -> World:
    return World(database, tmp_path)


def test_what_is_kept_about_a_deleted_item_is_removed_and_nothing_else(world: World) -> None:
    with closing(world.services.connect("test")) as connection:
        world.fill(connection)
        with pytest.raises(TerminalError, match="still has it"):
            world.forget()
        world.past.delete(NOW - HOUR, 7)
        assert world.found(connection, MARK)
        connection.execute("ANALYZE")
        assert MARK in statistics(connection)
        report = world.forget()
        assert MARK not in statistics(connection)
        assert (report.rows, report.rejects, report.batches, report.batch_records) == (1, 1, 3, 3)
        assert report.versions >= 2
        assert report.exports
        assert [text.partition(" after")[0] for text in report.left] == ["run it again"]
        assert not world.found(connection, MARK)
        assert world.found(connection, OTHER)
        row = connection.execute(
            'SELECT "Name", attributes, _deleted FROM replica."Employees" WHERE "Id" = 7'
        ).fetchone()
        assert row == (None, None, True)
        assert connection.execute('SELECT "number" FROM "Cards"').fetchall() in ([], [(OTHER,)])
        assert len(world.kept.waiting) == 1, "a batch of which nothing is left is done"

        again = world.forget()
        assert (again.rows, again.rejects, again.batches) == (0, 0, 0)
        redriven = redrive(world.services, [world.mapping], prefix=world.kept.location)
        assert (redriven.batches, redriven.records, redriven.left) == (1, 1, [])
        world.apply(named(7, 23, MARK, at=int(START.timestamp()) + 4))
        assert connection.execute('SELECT "Id" FROM "Employees"').fetchall() == [(8,)]


def test_a_row_that_is_newer_than_the_margin_is_left_and_said(world: World) -> None:
    with closing(world.services.connect("test")) as connection:
        now = datetime.now(UTC).timestamp()
        world.apply(named(7, 1, MARK, at=now))
        report = world.forget()
        assert report.rows == 0
        assert "run this again after" in report.left[0]
        assert connection.execute('SELECT "Name" FROM "Employees"').fetchall() == [(MARK,)]
        world.apply(record(7, 2, "REMOVE", at=now + 1))
        assert "newer" not in "".join(world.forget().left)
        assert not world.found(connection, MARK)


@pytest.mark.parametrize(
    ("taken", "ignored"),
    [
        ("      Name: {attribute: empName, type: varchar(20)}\n", "    unmapped: ignore\n    history: {keep: 400d}\n"),
        ("    history: {keep: 400d}\n", ""),
    ],
    ids=["column", "history"],
)
def test_what_the_mapping_has_no_more_is_forgotten_too(world: World, taken: str, ignored: str) -> None:
    with closing(world.services.connect("test")) as connection:
        world.apply(named(7, 7, MARK, at=START.timestamp()))
        text = MAPPING.replace(taken, "").replace("    history: {keep: 400d}\n" if ignored else "\0", ignored)
        world.mapping = read_mapping(text, "employees.yaml")
        migrate(connection, [world.mapping])
        world.past.delete(NOW - HOUR, 7)
        world.apply(record(7, 8, "REMOVE", at=START.timestamp() + 1))
        assert world.found(connection, MARK)
        world.forget()
        assert not world.found(connection, MARK)


def test_an_older_snapshot_that_is_loaded_after_forgetting_is_not_the_newest_version(world: World) -> None:
    with closing(world.services.connect("test")) as connection:
        world.fill(connection)
        world.past.put(START + 2 * HOUR, 7, MARK)
        world.past.delete(NOW - HOUR, 7)
        assert "before the delete" in world.forget().later
        load(world.services, world.mapping, world.past.full(START + 3 * HOUR))
        current = connection.execute(
            'SELECT deleted, "Name" FROM "Employees_history" WHERE "Id" = 7 AND is_current'
        ).fetchall()
        assert current == [(True, None)]
        world.forget()
        assert not world.found(connection, MARK)


def test_a_record_that_names_the_key_anywhere_is_removed_and_one_that_names_none_is_said(world: World) -> None:
    at = START.timestamp()
    in_image, nameless = named(8, 8, MARK, at=at), named(7, 9, OTHER, at=at)
    in_image["dynamodb"]["NewImage"]["Id"] = {"N": "7"}
    del nameless["dynamodb"]["Keys"], nameless["dynamodb"]["NewImage"]["Id"]
    with closing(world.services.connect("test")) as connection:
        world.apply(in_image, nameless)
        world.kept.keep([in_image, nameless])
        report = world.forget()
        assert (report.rejects, report.batch_records) == (1, 1)
        assert not world.found(connection, MARK)
        assert world.found(connection, OTHER)
        assert len([text for text in report.left if "no key" in text]) == 2


def test_what_could_bring_the_item_back_is_removed_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is redriven while its item is forgotten, before the batch is rewritten."""
    with closing(world.services.connect("test")) as connection:
        late = named(7, 9, f"{MARK}, a name that is far too long", at=START.timestamp())
        world.kept.keep([late])
        rewrite = forget_job.without_item

        def redriven_then_rewritten(*given: Any) -> Any:  # noqa: ANN401 - passed on
            world.apply(late)
            return rewrite(*given)

        monkeypatch.setattr(forget_job, "without_item", redriven_then_rewritten)
        world.forget()
        assert not world.found(connection, MARK)


def test_tables_of_targets_that_the_mapping_has_no_more_are_said(world: World) -> None:
    world.mapping = read_mapping(MAPPING.partition("  Cards:")[0], "employees.yaml")
    assert any('replica."Cards"' in text for text in world.forget().left)


def test_a_batch_that_cannot_be_read_is_named(world: World) -> None:
    path = world.kept.put("aws/lambda/mapping/s/1.x", b'{"DDBStreamBatchInfo": {')
    report = world.forget()
    assert any(str(path) in text and "cannot be read" in text for text in report.left)
    left = forget(world.services, world.mapping, {"Id": {"N": "7"}}).left
    assert any(text.startswith("it is not known where") for text in left)


def test_a_key_that_is_none_is_refused_before_anything_is_asked(database: str, tmp_path: Path) -> None:
    (tmp_path / "employees.yaml").write_text(MAPPING)
    environment = {"DATABASE_URL": database, "DYNAURORA_TABLES": str(tmp_path)}
    assert main(["forget", "employees", "--key", "Nr=7"], environment) == 2
