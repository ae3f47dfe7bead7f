"""`dynaurora repoint`: a table restored under another name replaces the old one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pipeline.aurora.bookkeeping import loads, losses, sources
from pipeline.aurora.sessions.connection import Connection
from pipeline.cli import main
from pipeline.core.errors import ConfigurationError, TerminalError, TransientError
from pipeline.core.model.mapping import TableMapping
from pipeline.dynamodb.client import client
from pipeline.dynamodb.streams.stream_ranges import event_record
from pipeline.jobs import repoint as repointing
from pipeline.jobs.probe.lost_history import lost_history_report
from pipeline.jobs.probe.probe import probe
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.repoint import repoint
from pipeline.jobs.services import Services
from pipeline.local.stack import LocalStack
from pipeline.mappings import load_mappings
from pipeline.settings import Settings
from tests.dynamodb.scripted_stream import ScriptedServices, ScriptedShard, ScriptedStream
from tests.jobs.conftest import STREAM, named, record, view
from tests.jobs.past_table import item

MARGIN = 1.0
LONG = "a name that is far too long for its column"
NEW_LABEL = "2026-05-15T10:00:00.000"


@dataclass
class Tables:
    """Tables on the local stack, a mapping that names one of them, and the command line."""

    environment: dict[str, str]
    folder: Path
    text: str
    capsys: pytest.CaptureFixture[str]
    deployed: ExitStack

    @property
    def services(self) -> Services:
        return Services(Settings.from_environment(self.environment))

    @property
    def mapping(self) -> TableMapping:
        return load_mappings(self.folder)[0]

    def create(self) -> str:
        name, dynamodb = f"Employees-{uuid4().hex[:8]}", self.services.dynamodb
        dynamodb.create_table(
            TableName=name,
            AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
            KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )
        dynamodb.update_continuous_backups(
            TableName=name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
        )
        return name

    def put(self, table: str, number: int, name: str) -> None:
        self.services.dynamodb.put_item(TableName=table, Item=item(number, name))

    def name(self, table: str) -> None:
        """Edit the mapping file as a person would."""
        (self.folder / "employees.yaml").write_text(self.text.replace("table: Employees", f"table: {table}"))

    def run(self, *words: str) -> tuple[int, dict[str, Any] | None, str]:
        code = main([*words, "--json"], self.environment)
        said = self.capsys.readouterr()
        return code, json.loads(said.out) if said.out else None, said.err

    def events(self, table: str) -> list[Any]:
        """The records of a table's stream, in Lambda's form."""
        streams, described = self.services.streams, self.services.dynamodb.describe_table(TableName=table)
        arn = described["Table"].get("LatestStreamArn", "")
        shards: Any = streams.describe_stream(StreamArn=arn)["StreamDescription"]
        iterator: Any = streams.get_shard_iterator(
            StreamArn=arn, ShardId=shards["Shards"][0]["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )
        found: Any = streams.get_records(ShardIterator=iterator["ShardIterator"])
        return [event_record(each, arn) for each in found["Records"]]

    def replicator(self) -> Replicator:
        """A replicator with the present mapping, which it keeps as a deployed one would."""
        made = Replicator([self.mapping], lambda: self.services.connect("test"), writer=uuid4().hex)
        self.deployed.callback(made.close)
        return made


@pytest.fixture
def tables(
    stack: LocalStack,
    services: Services,
    employees: TableMapping,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Tables]:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    bucket, folder = f"exports-{uuid4().hex[:8]}", tmp_path / "tables"
    client("s3", stack.endpoint_url).create_bucket(Bucket=bucket)
    folder.mkdir()
    environment = {
        **os.environ,
        "DATABASE_URL": str(services.settings.database_url),
        "DYNAURORA_TABLES": str(folder),
        "DYNAURORA_EXPORT_BUCKET": bucket,
    }
    text = Path(employees.path).read_text() + "margin: 1s\n"
    with ExitStack() as deployed:
        yield Tables(environment, folder, text, capsys, deployed)


def deliver(replicator: Replicator, records: list[Any]) -> None:
    replicator.replicate({"Records": records}, deadline=time.monotonic() + 60)


def names(connection: Connection) -> dict[int, str]:
    return {number: name for number, (name, _) in view(connection).items()}


@pytest.mark.timeout(300)
def test_a_restored_table_takes_over_by_the_printed_commands_alone(tables: Tables, connection: Connection) -> None:
    old = tables.create()
    connection.execute("UPDATE replication.tables SET source_table = %s", [old])
    for number in range(20):
        tables.put(old, number, f"old {number}")
    tables.name(old)
    assert tables.run("load", "employees")[0] == 0
    still_deployed = tables.replicator()
    deliver(still_deployed, tables.events(old))
    time.sleep(1.1)  # labels are precise to a millisecond, positions to a second
    new = tables.create()
    for number in range(10, 30):
        tables.put(new, number, f"new {number}")
    tables.put(old, 5, "old 5, later")
    deliver(still_deployed, tables.events(old))

    tables.name(new)
    code, planned, _ = tables.run("plan", "employees")
    assert (code, planned and "dynaurora repoint employees" in planned["refusals"][0]["way_out"]) == (1, True)
    for words in ("load employees", "reconcile employees", "catch-up employees --last 1h", "rejects replay employees"):
        code, _, err = tables.run(*words.split())
        assert code == 2, err
        assert "dynaurora repoint employees" in err
    code, shown, _ = tables.run("repoint", "employees", "--dry-run")
    assert code == 1
    assert shown is not None
    assert shown["since"] is None
    assert tables.run("plan", "employees")[0] == 1

    code, done, _ = tables.run("repoint", "employees")
    assert code == 0
    assert done is not None
    assert (done["old_table"], done["new_table"]) == (old, new)
    with pytest.raises(ConfigurationError, match=f"table {old}, not {new}"):
        deliver(still_deployed, tables.events(old))
    assert names(connection)[5] == "old 5, later"
    deliver(tables.replicator(), tables.events(new))
    code, again, _ = tables.run("repoint", "employees")
    assert (code, again and again["since"], again and again["next_steps"]) == (0, None, [])

    steps = [step.partition(",")[0].split() for step in done["next_steps"] if step.startswith("dynaurora ")]
    commands = [words[1:] for words in steps]
    assert [words[0] for words in commands] == ["load", "reconcile"]
    time.sleep(MARGIN + 1.1)  # as the last step says
    tables.run(*commands[0])
    code, report, err = tables.run(*commands[1])
    assert code in {0, 1}, err
    assert report is not None
    assert report["undecided"] == 0
    assert names(connection) == {number: f"new {number}" for number in range(10, 30)}
    kept = lost_history_report(tables.services, tables.mapping)
    assert [finding for finding in kept.findings if "source of record" in finding.what] == []
    with pytest.raises(ConfigurationError):
        deliver(still_deployed, tables.events(old))
    assert names(connection) == {number: f"new {number}" for number in range(10, 30)}


@pytest.fixture
def scripted(services: Services) -> ScriptedServices:
    stream = ScriptedStream(label=NEW_LABEL)
    stream.table = "EmployeesRestored"
    stream.shards["s"] = ScriptedShard()
    stream.more = {"TableId": "id-2"}
    return ScriptedServices(Settings.from_environment({"DATABASE_URL": str(services.settings.database_url)}), stream)


@pytest.fixture
def restored(employees: TableMapping, scripted: ScriptedServices, tmp_path: Path) -> TableMapping:
    (tmp_path / "employees.yaml").write_text(
        Path(employees.path).read_text().replace("table: Employees", f"table: {scripted.stream.table}")
    )
    return load_mappings(tmp_path)[0]


Apply = Callable[..., Any]


def test_what_was_known_of_the_old_table_goes_and_the_rows_and_what_was_purged_stay(
    apply: Apply, connection: Connection, scripted: ScriptedServices, restored: TableMapping
) -> None:
    apply(named(1, 1, "old"), named(2, 2, LONG), record(3, 3, "REMOVE"))
    purged = datetime(2026, 5, 1, tzinfo=UTC)
    connection.execute("UPDATE replication.tables SET purged_through = %s, proven = '{(,today]}'", [purged])
    connection.execute(
        "INSERT INTO replication.exports (table_name, kind, location, snapshot_time, as_of, item_count, file_count,"
        " size_bytes, status) VALUES ('employees', 'full', 'x', now(), now(), 1, 1, 1, 'loaded')"
    )
    connection.execute(
        "INSERT INTO replication.caught_up (table_name, since, until) VALUES ('employees', now(), now())"
    )
    connection.execute("INSERT INTO replication.source_states (table_name, seen_at) VALUES ('employees', now())")
    connection.execute(
        "INSERT INTO replication.losses (table_name, kind, since, until) VALUES ('employees', 'trimmed', now(), now())"
    )
    told: list[tuple[str, ...]] = []
    report = repoint(scripted, restored, on_effects=told.append)
    assert told == [report.effects]
    assert "1 loads of the old table" in report.effects[2]
    assert "1 of its rejects" in report.effects[2]
    known = sources.read(connection, "employees")
    assert known == sources.SourceOfRecord(
        "EmployeesRestored", STREAM.partition("/stream/")[0] + "Restored", "id-2", report.since, NEW_LABEL
    )
    counts = connection.execute(
        "SELECT (SELECT count(*) FROM replication.exports), (SELECT count(*) FROM replication.caught_up),"
        " (SELECT count(*) FROM replication.source_states), (SELECT count(*) FROM replication.watermarks"
        " WHERE stream_label IS NOT NULL OR sequence_number IS NOT NULL),"
        " (SELECT sum(records) FROM replication.watermarks), (SELECT purged_through FROM replication.tables),"
        " (SELECT count(*) FROM replication.rejects WHERE replayed_at IS NULL),"
        " (SELECT proven FROM replication.tables)"
    ).fetchone()
    assert counts == (0, 0, 0, 0, 3, purged, 0, None)
    ((reason,),) = connection.execute("SELECT reason FROM replication.rejects").fetchall()
    assert reason.startswith("of Employees, which is no longer the source of record: ")
    assert names(connection) == {1: "old"}
    assert report.since is not None
    (loss,) = losses.open_losses(connection, "employees")
    assert (loss.kind, loss.since, loss.until) == ("repointed", report.since, report.since)


def test_catching_up_over_a_switch_does_not_close_it_and_a_clean_reconciliation_does(
    connection: Connection, scripted: ScriptedServices, restored: TableMapping
) -> None:
    since = repoint(scripted, restored).since
    assert since is not None
    losses.note_caught_up(connection, "employees", since - timedelta(days=1), since + timedelta(days=1))

    def found() -> list[str]:
        report = lost_history_report(scripted, restored)
        return [finding.remedy for finding in report.findings if finding.kind == "repointed"]

    (remedy,) = found()
    assert "`dynaurora load employees`" in remedy
    assert "`dynaurora reconcile employees --repair`" in remedy
    insert = (
        "INSERT INTO replication.reconciliations (table_name, snapshot, snapshot_time, as_of, status, missing, extra,"
        " different, repaired, undecided) VALUES ('employees', 'x', %s, %s, 'done', 1, 2, 3, 6, 0)"
    )
    connection.execute(insert, [since, since - timedelta(seconds=1)])
    assert found()
    connection.execute(insert, [since, since])
    assert found() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"KeySchema": [{"AttributeName": "Nr", "KeyType": "HASH"}],
          "AttributeDefinitions": [{"AttributeName": "Nr", "AttributeType": "N"}]}, "the key of EmployeesRestored is"),
        ({"StreamSpecification": {}}, "the stream of EmployeesRestored is off"),
        ({"StreamSpecification": {"StreamEnabled": True, "StreamViewType": "KEYS_ONLY"}}, "view type KEYS_ONLY"),
        ({"LatestStreamLabel": "2026-05-13T10:00:00.000"}, "the changes of the older stream would count as older"),
    ],
)  # fmt: skip
def test_a_table_that_is_not_fit_is_refused_and_nothing_is_switched(
    apply: Apply,
    connection: Connection,
    scripted: ScriptedServices,
    restored: TableMapping,
    change: dict[str, Any],
    said: str,
) -> None:
    apply(named(1, 1, "old"))
    scripted.stream.more = change
    with pytest.raises(ConfigurationError, match=said):
        repoint(scripted, restored)
    assert sources.read(connection, "employees") == sources.SourceOfRecord("Employees")


def test_a_switch_waits_for_the_writers_and_gives_up_when_one_does_not_end(
    connection: Connection, services: Services, scripted: ScriptedServices, restored: TableMapping,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A statement that began under the old record commits before the switch, or not at all."""
    monkeypatch.setattr(repointing, "_ATTEMPTS", 1)
    with closing(services.connect("test writer")) as writer:
        writer.execute("BEGIN")
        writer.execute('INSERT INTO replica."Employees" ("Id", _as_of) VALUES (1, now())')
        with pytest.raises(TransientError, match="switching the source of record"):
            repoint(scripted, restored)
        assert sources.read(connection, "employees") == sources.SourceOfRecord("Employees")
        writer.execute("COMMIT")
    assert repoint(scripted, restored).since is not None


def test_a_reader_that_does_not_exist_keeps_nobody_from_switching(
    connection: Connection, scripted: ScriptedServices, restored: TableMapping
) -> None:
    assert not connection.closed  # it has migrated
    targets = tuple(replace(target, readers=("No such role",)) for target in restored.targets)
    assert repoint(scripted, replace(restored, targets=targets)).since is not None


def test_no_switch_while_a_load_runs(
    connection: Connection, scripted: ScriptedServices, restored: TableMapping
) -> None:
    loads.lock_table(connection, "employees")
    with pytest.raises(TerminalError, match="another load of this table is running"):
        repoint(scripted, restored)


def test_records_of_a_stream_before_the_first_of_the_table_of_record_are_refused(
    apply: Apply, connection: Connection
) -> None:
    """A table that was deleted and created again under its name: its old stream can be read for another day."""
    record_ = sources.SourceOfRecord("Employees", table_id="id-1")
    connection.execute("UPDATE replication.tables SET source_table_id = 'id-1'")
    sources.note_seen(connection, "employees", record_, STREAM.replace("2026-05-14", "2026-05-15"), "id-2")
    with pytest.raises(ConfigurationError, match=f"stream 2026-05-14T10:00:00.000, older than {NEW_LABEL}"):
        apply(named(1, 1, "of the table that is gone"))
    newer = {**named(1, 2, "new"), "eventSourceARN": STREAM.replace("2026-05-14", "2026-05-15")}
    apply(newer)
    assert names(connection) == {1: "new"}


def test_the_tick_that_finds_a_table_created_again_has_its_old_stream_refused(
    apply: Apply, connection: Connection, services: Services, employees: TableMapping
) -> None:
    stream = ScriptedStream()
    stream.shards["s"], stream.more = ScriptedShard(), {"TableId": "id-1"}
    seen = ScriptedServices(Settings.from_environment({"DATABASE_URL": str(services.settings.database_url)}), stream)
    probe(seen, employees)
    apply(named(1, 1, "of the first"))
    stream.label, stream.more = NEW_LABEL, {"TableId": "id-2"}
    probe(seen, employees)
    assert sources.read(connection, "employees") == sources.SourceOfRecord(
        "Employees", STREAM.partition("/stream/")[0], "id-2", first_label=NEW_LABEL
    )
    with pytest.raises(ConfigurationError, match="the first of the table that has this name now"):
        apply(named(1, 2, "late"))
    assert names(connection) == {1: "of the first"}


def test_the_probe_looks_at_no_other_table_than_the_source_of_record(
    connection: Connection, scripted: ScriptedServices, restored: TableMapping
) -> None:
    with pytest.raises(ConfigurationError, match="probing: the mapping's table is not its source of record"):
        probe(scripted, restored)
    assert connection.execute("SELECT count(*) FROM replication.probes").fetchone() == (0,)
