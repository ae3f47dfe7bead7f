"""A snapshot by scan on the local stack: of a table that cannot be exported, killed and resumed, loaded end to end.

`SCAN_KILLS` sets how many scans are killed (3 unless set).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pipeline.aurora.sessions.connection import Connection
from pipeline.cli import main
from pipeline.core.errors import ConfigurationError, TerminalError
from pipeline.core.model.mapping import TableMapping
from pipeline.dynamodb.client import client
from pipeline.dynamodb.exports.manifest import read_manifest
from pipeline.jobs.load.load import load
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.services import Services
from pipeline.jobs.snapshots.scan_snapshot import scan_snapshot
from pipeline.jobs.snapshots.snapshot import ScanChoice, take_snapshot
from pipeline.local.stack import LocalStack
from pipeline.settings import Settings
from tests.jobs.conftest import named, record, view
from tests.jobs.past_table import item

KILLS = int(os.environ.get("SCAN_KILLS", "3"))
ITEMS = 400


@pytest.fixture
def environment(
    stack: LocalStack, database: str, tmp_path: Path, employees: TableMapping, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """A table without point-in-time recovery, with items, and the environment of a command."""
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    table, bucket = f"Employees-{uuid4().hex[:8]}", f"exports-{uuid4().hex[:8]}"
    client("s3", stack.endpoint_url).create_bucket(Bucket=bucket)
    create(stack, table)
    (tmp_path / "tables").mkdir()
    text = Path(employees.path).read_text().replace("table: Employees", f"table: {table}")
    (tmp_path / "tables" / "employees.yaml").write_text(text)
    settings = {"DYNAURORA_TABLES": str(tmp_path / "tables"), "DYNAURORA_EXPORT_BUCKET": bucket, "TABLE": table}
    return {**os.environ, "DATABASE_URL": database, **settings}


def create(stack: LocalStack, table: str, items: int = ITEMS) -> None:
    dynamodb = client("dynamodb", stack.endpoint_url)
    dynamodb.create_table(
        TableName=table,
        AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
        KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    for start in range(0, items, 25):
        requests: Any = [{"PutRequest": {"Item": item(n, f"name {n}")}} for n in range(start, min(start + 25, items))]
        dynamodb.batch_write_item(RequestItems={table: requests})


@pytest.fixture
def source(environment: dict[str, str], employees: TableMapping) -> TableMapping:
    return replace(employees, table=environment["TABLE"])


@pytest.fixture
def real(environment: dict[str, str], services: Services, connection: Connection) -> Services:
    assert services  # migrated, for a table of another name
    connection.execute("UPDATE replication.tables SET source_table = %s", [environment["TABLE"]])
    return Services(Settings.from_environment(environment))


def names(connection: Connection) -> dict[int, str]:
    return {number: name for number, (name, _) in view(connection).items()}


def test_a_table_that_cannot_be_exported_is_loaded_and_proven_by_the_command(
    environment: dict[str, str], real: Services, connection: Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    assert real
    assert main(["load", "employees"], environment) == 2
    assert "load by a scan: --scan" in capsys.readouterr().err
    words = ["--scan", "--read-capacity", "2000", "--segments", "2", "--margin-seconds", "1", "--json"]
    assert main(["load", "employees", *words], environment) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["items"], report["applied"], report["files"]) == (ITEMS, ITEMS, 2)
    assert names(connection) == {n: f"name {n}" for n in range(ITEMS)}
    assert connection.execute("SELECT kind, status FROM replication.exports").fetchall() == [("scan", "loaded")]
    connection.execute('DELETE FROM replica."Employees" WHERE "Id" = 7')
    assert main(["reconcile", "employees", *words], environment) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["missing"], found["extra"], found["different"]) == (1, 0, 0)
    assert main(["load", "employees", "--read-capacity", "5"], environment) == 2
    assert "need --scan" in capsys.readouterr().err


def test_the_snapshot_is_of_the_start_of_the_scan(
    real: Services,
    source: TableMapping,
    connection: Connection,
) -> None:
    """The stream covers what changed while the scan ran: whichever arrives first, the end is the same."""
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    snapshot = take_snapshot(real, source, scan=ScanChoice(5000.0, 1))
    manifest = snapshot.manifest
    assert manifest.scanned
    assert snapshot.export_arn is None
    assert before <= manifest.snapshot_time <= datetime.now(UTC)
    assert manifest.checksummed
    at = int(manifest.snapshot_time.timestamp()) + 1
    arn = real.dynamodb.describe_table(TableName=source.table)["Table"].get("LatestStreamArn")
    replicator = Replicator([source], lambda: real.connect("test"), writer="test")

    def apply(*records: dict[str, Any]) -> None:
        event = {"Records": [each | {"eventSourceARN": arn} for each in records]}
        replicator.replicate(event, deadline=time.monotonic() + 60)

    apply(record(1, 1, "REMOVE", at=at), named(2, 2, "changed meanwhile", at=at))
    load(real, source, snapshot.location)
    apply(record(3, 3, "REMOVE", at=at), named(4, 4, "changed meanwhile", at=at))
    expected = {n: f"name {n}" for n in range(ITEMS) if n not in {1, 3}}
    assert names(connection) == expected | {2: "changed meanwhile", 4: "changed meanwhile"}
    replicator.close()


CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload([__name__])


def scan_to_be_killed(begun: Event, environment: dict[str, str], mapping: TableMapping, capacity: float = 60) -> None:
    os.environ.update(environment)
    services = Services(Settings.from_environment(environment))
    begun.set()
    scan_snapshot(services, mapping, read_capacity=capacity, segments=3, file_bytes=500)


@pytest.mark.timeout(300)
def test_a_killed_scan_resumes_where_it_was(
    environment: dict[str, str], real: Services, source: TableMapping, connection: Connection
) -> None:
    bucket = environment["DYNAURORA_EXPORT_BUCKET"]
    key = f"dynaurora/AWSDynamoDB/_scans/{source.table}.json"
    started: set[str] = set()
    files: list[int] = []
    for _ in range(KILLS):
        begun = CHILDREN.Event()
        process = CHILDREN.Process(target=scan_to_be_killed, args=(begun, environment, source))
        process.start()
        assert begun.wait(60)
        time.sleep(random.uniform(0.5, 2))
        process.kill()
        process.join()
        try:
            progress = json.loads(real.store(f"s3://{bucket}").read(bucket, key))
        except TerminalError:  # killed before it had begun
            continue
        if not progress["finished"]:
            started.add(progress["started_at"])
            files.append(len(progress["files"]))
    location = scan_snapshot(real, source, read_capacity=5000, file_bytes=500)
    manifest = read_manifest(real.store(location), location, expected_table=source.table)
    assert len(started) <= 1
    assert files == sorted(files)
    assert manifest.item_count == ITEMS
    assert load(real, source, location).applied == ITEMS
    assert names(connection) == {n: f"name {n}" for n in range(ITEMS)}
    other = scan_snapshot(real, source, read_capacity=5000)
    assert other != location  # a scan that is done is not taken for another


def test_a_second_scan_waits_for_the_first_and_takes_its_snapshot(
    real: Services, source: TableMapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to be refused."""
    monkeypatch.setattr("pipeline.jobs.snapshots.scan_snapshot._TELL_SECONDS", 0.0)
    scan_snapshot(real, source, read_capacity=5000)  # a finished one is not used
    waits, told, others = threading.Event(), list[str](), list[str]()

    def tell(text: str) -> None:
        told.append(text)
        waits.set()

    def join() -> None:
        others.append(scan_snapshot(real, source, read_capacity=5000, on_progress=tell))

    def halfway(_: str) -> None:
        if second.ident is None:
            second.start()
            assert waits.wait(60)

    second = threading.Thread(target=join)
    first = scan_snapshot(real, source, read_capacity=5000, on_progress=halfway)
    second.join(60)
    assert others == [first]
    assert told == ["another run scans the table: waiting for its snapshot, which this run uses too"]


def at_work(real: Services, bucket: str, source: TableMapping) -> bool:
    try:
        kept = real.store(f"s3://{bucket}").read(bucket, f"dynaurora/AWSDynamoDB/_scans/{source.table}.json")
    except TerminalError:
        return False
    return not json.loads(kept)["finished"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("finished_one_before", [True, False])
def test_a_second_scan_replaces_a_first_that_dies(
    environment: dict[str, str], real: Services, source: TableMapping, *, finished_one_before: bool
) -> None:
    before = scan_snapshot(real, source, read_capacity=5000) if finished_one_before else None
    begun, told = CHILDREN.Event(), list[str]()
    process = CHILDREN.Process(target=scan_to_be_killed, args=(begun, environment, source, 1))
    process.start()
    assert begun.wait(60)
    while not at_work(real, environment["DYNAURORA_EXPORT_BUCKET"], source):
        time.sleep(0.1)

    def tell(text: str) -> None:
        told.append(text)
        if text.startswith("another run"):
            process.kill()

    location = scan_snapshot(real, source, read_capacity=5000, file_bytes=500, on_progress=tell)
    process.join()
    assert told[0].startswith("another run scans the table")
    assert location != before
    assert read_manifest(real.store(location), location, expected_table=source.table).item_count == ITEMS


def test_wrong_use_is_refused(real: Services, source: TableMapping, database: str) -> None:
    with pytest.raises(ConfigurationError, match="above 0"):
        scan_snapshot(real, source, read_capacity=0)
    with pytest.raises(ConfigurationError, match="no bucket to write it to"):
        scan_snapshot(Services(Settings.from_environment(dict(os.environ) | {"DATABASE_URL": database})), source)


def test_an_export_of_a_recreated_table_is_refused(stack: LocalStack, real: Services, source: TableMapping) -> None:
    old = scan_snapshot(real, source, read_capacity=5000)
    assert take_snapshot(real, source, manifest=old).location == old
    real.dynamodb.delete_table(TableName=source.table)
    create(stack, source.table, items=5)
    with pytest.raises(TerminalError, match=r"table id .*: the table was deleted and recreated since"):
        take_snapshot(real, source, manifest=old)
