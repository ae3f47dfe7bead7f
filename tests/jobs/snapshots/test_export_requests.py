"""Exports cost money: only one is requested, however often the wait for it is interrupted.

The command line runs as its own process against an export service that takes its time, and real PostgreSQL.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from botocore.stub import Stubber
from types_boto3_dynamodb.client import DynamoDBClient

from pipeline.aurora.bookkeeping import loads
from pipeline.aurora.sessions.advisory_locks import giving_locks_back
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import ConfigurationError, TerminalError, TransientError
from pipeline.core.model.mapping import TableMapping
from pipeline.dynamodb.client import client
from pipeline.dynamodb.exports.objects import S3Objects
from pipeline.jobs.catch_up.catch_up import catch_up
from pipeline.jobs.load.load import load
from pipeline.jobs.services import Services
from pipeline.jobs.snapshots.export_destination import export_destination, write_options
from pipeline.jobs.snapshots.scan_snapshot import scan_snapshot
from pipeline.jobs.snapshots.snapshot import take_snapshot
from pipeline.local.export_server import ExportServer
from pipeline.local.stack import LocalStack
from pipeline.mappings import load_mappings
from pipeline.settings import Settings
from tests.jobs.conftest import view
from tests.jobs.past_table import item

NOT_AT_ALL = timedelta(0)
MARGIN = timedelta(seconds=1)
HOLD = "hold"


class Slow(NamedTuple):
    """An export service whose exports run for a while, and as long as the file `hold` exists."""

    url: str
    hold: Path


@pytest.fixture(scope="module")
def slow(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slow]:
    """The address of an export service whose exports run for a while."""
    folder = tmp_path_factory.mktemp("slow")
    with ExportServer(
        folder, stack.ministack.port, delay_seconds=6.0, minimum_window_seconds=0.0, hold=folder / HOLD
    ) as server:
        yield Slow(server.url, folder / HOLD)


@pytest.fixture
def held(slow: Slow) -> Iterator[Path]:
    """While this file exists no export ends, however slow the machine is."""
    slow.hold.touch()
    yield slow.hold
    slow.hold.unlink(missing_ok=True)


@dataclass
class Source:
    """A table of ten items with its mapping, a bucket, and what a process needs to reach them."""

    environment: dict[str, str]
    mapping: TableMapping
    arn: str
    bucket: str

    @property
    def services(self) -> Services:
        """Services of a separate process: no client is shared."""
        return Services(Settings.from_environment(self.environment))

    def exports(self) -> list[dict[str, Any]]:
        """Descriptions of every export requested of the table."""
        dynamodb = self.services.dynamodb
        found = dynamodb.list_exports(TableArn=self.arn)["ExportSummaries"]
        return [
            dict(dynamodb.describe_export(ExportArn=summary.get("ExportArn", ""))["ExportDescription"])
            for summary in found
        ]

    def command(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.cli", *words],
            env={**self.environment, "PYTHONPATH": str(Path.cwd()), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, **environment: str) -> tuple[int, str, str]:
        process = self.command(*words, **environment)
        out, err = process.communicate()
        return process.returncode, out, err


@pytest.fixture
def source(
    slow: Slow,
    stack: LocalStack,
    services: Services,
    employees: TableMapping,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Source:
    settings = {
        **stack.environment(),
        "AWS_ENDPOINT_URL": slow.url,
        "DATABASE_URL": str(services.settings.database_url),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    name, bucket = f"Employees-{uuid4().hex[:8]}", f"exports-{uuid4().hex[:8]}"
    dynamodb = client("dynamodb", slow.url)
    client("s3", slow.url).create_bucket(Bucket=bucket)
    made = dynamodb.create_table(
        TableName=name,
        AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
        KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    dynamodb.update_continuous_backups(
        TableName=name, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
    )
    for number in range(10):
        dynamodb.put_item(TableName=name, Item=item(number, f"name {number}"))
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "employees.yaml").write_text(
        Path(employees.path).read_text().replace("table: Employees", f"table: {name}")
    )
    with closing(services.connect("test")) as connection:
        connection.execute("UPDATE replication.tables SET source_table = %s", [name])
    environment = {**os.environ, **settings, "DYNAURORA_TABLES": str(tables), "DYNAURORA_EXPORT_BUCKET": bucket}
    (mapping,) = load_mappings(tables)
    return Source(environment, mapping, made["TableDescription"].get("TableArn", ""), bucket)


def read_until(process: subprocess.Popen[str], *words: str) -> str:
    """Read the process's output until one of the words appears; returns that line."""
    assert process.stderr is not None
    for line in process.stderr:
        if any(word in line for word in words):
            return line
    raise AssertionError(f"none of {words} was said")


def test_three_interrupted_loads_and_one_that_ends_are_one_export(
    source: Source, held: Path, connection: Connection
) -> None:
    for _ in range(3):
        process = source.command("load", "employees")
        read_until(process, "in progress")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 130
        (export,) = source.exports()
        assert f"run this again: it resumes export {export['ExportArn']}" in err
    (export,) = source.exports()
    held.unlink()
    code, out, err = source.run("load", "employees", "--json")
    assert (code, json.loads(out)["items"]) == (0, 10)
    assert f"export {export['ExportArn']} is under way, requested at" in err
    assert len(source.exports()) == 1
    assert len(view(connection)) == 10
    assert connection.execute("SELECT outcome FROM replication.export_requests").fetchall() == [("used",)]


def test_a_load_after_one_that_ended_requests_its_own_export(source: Source) -> None:
    for count in (1, 2):
        assert source.run("load", "employees")[0] == 0
        assert len(source.exports()) == count


@pytest.mark.usefixtures("held")
def test_a_wait_that_runs_out_names_the_export_and_is_one_setting(source: Source) -> None:
    for words, variables in (
        (["load", "employees", "--export-wait", "0s"], {}),
        (["load", "employees"], {"DYNAURORA_EXPORT_WAIT": "0s"}),
        (["reconcile", "employees", "--export-wait", "0s"], {"DYNAURORA_EXPORT_WAIT": "1h"}),
    ):
        code, _, err = source.run(*words, **variables)
        (export,) = source.exports()
        assert code == 3
        assert f"waiting for the export {export['ExportArn']}: it is not done after 0 s" in err
        assert f"it resumes export {export['ExportArn']}" in err
    for words, variables, said in (
        (["load", "employees", "--export-wait", "soon"], {}, '--export-wait "soon" is not a duration; write a number'),
        (["load", "employees"], {"DYNAURORA_EXPORT_WAIT": "soon"}, 'DYNAURORA_EXPORT_WAIT, "soon", is not a duration'),
    ):
        code, _, err = source.run(*words, **variables)
        assert code == 2
        assert said in err


@pytest.mark.usefixtures("held")
def test_a_new_export_is_requested_where_that_is_asked_for(source: Source) -> None:
    for flags, count in ((["--export-wait", "0s"], 1), (["--new-export", "--export-wait", "0s"], 2)):
        assert source.run("load", "employees", *flags)[0] == 3
        assert len(source.exports()) == count
    assert source.run("load", "employees", "--new-export", "--scan")[0] == 2


def test_the_second_of_two_loads_says_that_an_export_is_under_way(source: Source) -> None:
    first = source.command("load", "employees")
    read_until(first, "requested export")
    second = source.command("load", "employees")
    (export,) = source.exports()
    assert export["ExportArn"] in read_until(second, "is under way")
    err = "".join(process.communicate()[1] for process in (first, second))
    codes = [first.returncode, second.returncode]
    assert codes == [0, 0], err
    assert len(source.exports()) == 1


def test_nothing_is_requested_while_a_load_is_running(source: Source, services: Services) -> None:
    with closing(services.connect("test")) as holder:
        loads.lock_table(holder, "employees")
        code, _, err = source.run("load", "employees")
    assert (code, source.exports()) == (1, [])
    assert "another load of this table is running" in err


@pytest.mark.parametrize("lock", [loads.lock_table, loads.keep_loads_out])
def test_a_job_waits_while_another_only_requests_an_export(
    services: Services, employees: TableMapping, lock: Callable[[Connection, str], None]
) -> None:
    with closing(services.connect(loads.REQUESTING)) as requesting, closing(services.connect("test")) as job:
        loads.lock_table(requesting, employees.name)
        end = threading.Timer(1.0, giving_back, [requesting])
        end.start()
        lock(job, employees.name)
        end.join()


def giving_back(connection: Connection) -> None:
    with giving_locks_back(connection):
        pass


class KilledError(Exception):
    """Represents the end of the process."""


def killed_after_the_request(source: Source) -> None:
    services = source.services

    def die(**_: object) -> None:
        raise KilledError

    services.dynamodb.meta.events.register("after-call.dynamodb.ExportTableToPointInTime", die)
    with pytest.raises(KilledError):
        take_snapshot(services, source.mapping)


def test_a_run_that_is_killed_between_the_request_and_its_answer_finds_its_export(
    source: Source, connection: Connection
) -> None:
    killed_after_the_request(source)
    assert connection.execute("SELECT export_arn FROM replication.export_requests").fetchall() == [(None,)]
    taken = take_snapshot(source.services, source.mapping)
    assert [export["ExportArn"] for export in source.exports()] == [taken.export_arn]


def test_a_token_that_was_used_for_something_else_is_replaced(source: Source, connection: Connection) -> None:
    killed_after_the_request(source)
    other: Any = {"TableArn": source.arn, "S3Bucket": source.bucket, "S3Prefix": "elsewhere", "ClientToken": "taken"}
    source.services.dynamodb.export_table_to_point_in_time(**other)
    connection.execute("UPDATE replication.export_requests SET client_token = 'taken'")
    with pytest.raises(TransientError):
        take_snapshot(source.services, source.mapping, timeout=NOT_AT_ALL)
    outcomes = connection.execute("SELECT outcome FROM replication.export_requests ORDER BY id").fetchall()
    assert outcomes == [("refused",), (None,)]


def left_open(source: Source) -> str:
    with pytest.raises(TransientError):
        take_snapshot(source.services, source.mapping, timeout=NOT_AT_ALL)
    return str(source.exports()[-1]["ExportArn"])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("requested_at = requested_at - interval '25 hours'", "it is older than the stream's 24 hours"),
        ("export_arn = NULL, requested_at = requested_at - interval '8 hours'", "its client token has expired"),
        ("request = 'another bucket'", "the table, the bucket or its encryption has changed"),
        (
            "export_arn = replace(export_arn, '/export/', '/export/9')",
            "DynamoDB no longer knows it",
        ),
    ],
)
def test_what_is_not_worth_resuming_is_not(source: Source, connection: Connection, change: str, why: str) -> None:
    left_open(source)
    connection.execute(b"UPDATE replication.export_requests SET " + change.encode())
    told: list[str] = []
    with pytest.raises(TransientError):
        take_snapshot(source.services, source.mapping, timeout=NOT_AT_ALL, on_progress=told.append)
    assert any(line.startswith("not resuming ") and why in line for line in told)
    assert len(source.exports()) == 2


def test_an_export_that_failed_is_requested_again(source: Source) -> None:
    source.environment["DYNAURORA_EXPORT_BUCKET"] = bucket = f"later-{uuid4().hex[:8]}"
    with pytest.raises(TerminalError, match="it failed with S3NoSuchBucket"):
        take_snapshot(source.services, source.mapping)
    source.services.s3.create_bucket(Bucket=bucket)
    assert take_snapshot(source.services, source.mapping).manifest.item_count == 10
    assert [export["ExportStatus"] for export in source.exports()] == ["FAILED", "COMPLETED"]


def test_an_older_export_than_what_is_loaded_is_not_resumed(source: Source) -> None:
    resumable = left_open(source)
    services = source.services
    newer = scan_snapshot(services, source.mapping, read_capacity=5000)
    load(services, source.mapping, newer, margin=MARGIN)
    time.sleep(2 * MARGIN.total_seconds())  # the next counts as of a time after the request
    load(services, source.mapping, scan_snapshot(services, source.mapping, read_capacity=5000), margin=MARGIN)
    assert left_open(source) != resumable


@pytest.mark.parametrize("what", ["manifest-summary.json", ".json.gz"])
def test_an_export_whose_files_were_deleted_is_requested_again(source: Source, what: str) -> None:
    s3, resumable = source.services.s3, left_open(source)
    while source.exports()[-1]["ExportStatus"] != "COMPLETED":
        time.sleep(0.2)
    for found in s3.list_objects_v2(Bucket=source.bucket).get("Contents", []):
        if found.get("Key", "").endswith(what):
            s3.delete_object(Bucket=source.bucket, Key=found.get("Key", ""))
    assert left_open(source) != resumable
    assert len(source.exports()) == 2


def test_a_catch_up_that_is_broken_off_requests_each_window_once(source: Source) -> None:
    services = source.services
    end = datetime.now(UTC).replace(microsecond=0)
    start = end - timedelta(seconds=30)
    table: Any = services.dynamodb.describe_continuous_backups(TableName=source.mapping.table)
    recovery = table["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]
    start = max(start, recovery["EarliestRestorableDateTime"] + timedelta(seconds=1))
    if end - start < 4 * MARGIN:
        end = start + 5 * MARGIN
        time.sleep(max(0.0, (end - datetime.now(UTC)).total_seconds()))
    for _ in range(2):
        with pytest.raises(TransientError, match="it resumes export"):
            catch_up(services, source.mapping, start, end, margin=MARGIN, timeout=NOT_AT_ALL)
    requested = len(source.exports())
    report = catch_up(services, source.mapping, start, end, margin=MARGIN)
    assert len(source.exports()) == requested == len(report.windows)


def test_the_request_names_encryption_and_owner(source: Source) -> None:
    source.environment |= {
        "DYNAURORA_EXPORT_KMS_KEY": "alias/exports",
        "DYNAURORA_EXPORT_BUCKET_OWNER": "111122223333",
    }
    left_open(source)
    (export,) = source.exports()
    named = export["S3SseAlgorithm"], export["S3SseKmsKeyId"], export["S3BucketOwner"]
    assert named == ("KMS", "alias/exports", "111122223333")


def test_scans_and_moved_objects_name_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_DEFAULT_REGION", "x")):
        monkeypatch.setenv(name, value)
    environment = {
        "DATABASE_URL": "x",
        "DYNAURORA_EXPORT_BUCKET": "exports",
        "DYNAURORA_EXPORT_SSE": "aws:kms",
        "DYNAURORA_EXPORT_KMS_KEY": "key",
        "DYNAURORA_EXPORT_BUCKET_OWNER": "111122223333",
    }
    s3 = client("s3")
    store = S3Objects(s3, write_options(Settings.from_environment(environment)))
    named = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "key"}
    with Stubber(s3) as stubber:
        ours = {"ExpectedBucketOwner": "111122223333"}
        stubber.add_response("put_object", {}, {"Bucket": "exports", "Key": "k", "Body": b"", **named, **ours})
        source = {"Bucket": "given-up", "Key": "k"}
        stubber.add_response("copy_object", {}, {"Bucket": "given-up", "Key": "t", "CopySource": source, **named})
        stubber.add_response("delete_object", {}, source)
        store.write("exports", "k", b"")
        store.move("given-up", "k", "t")
        stubber.assert_no_pending_responses()
    s3.close()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"DYNAURORA_EXPORT_BUCKET": "s3://name/x"}, "write only the name, name, without s3://"),
        ({"DYNAURORA_EXPORT_BUCKET": "arn:aws:s3:::name"}, "is not a bucket's name"),
        ({"DYNAURORA_EXPORT_SSE": "none"}, "DYNAURORA_EXPORT_SSE is none; set it to AES256 or KMS"),
        ({"DYNAURORA_EXPORT_SSE": "AES256", "DYNAURORA_EXPORT_KMS_KEY": "k"}, "set DYNAURORA_EXPORT_SSE to KMS"),
        ({"DYNAURORA_EXPORT_BUCKET_OWNER": "me"}, "not an account's 12 digits"),
    ],
)
def test_settings_that_cannot_be_right_name_their_variable(variables: dict[str, str], message: str) -> None:
    settings = Settings.from_environment({"DATABASE_URL": "x", "DYNAURORA_EXPORT_BUCKET": "name"} | variables)
    with pytest.raises(ConfigurationError, match=message):
        export_destination(settings, "requesting an export", table="employees")


def test_a_bucket_given_as_a_location_is_wrong_use_for_load_and_scan(source: Source) -> None:
    for flags in ([], ["--scan"]):
        code, _, err = source.run("load", "employees", *flags, DYNAURORA_EXPORT_BUCKET=f"s3://{source.bucket}")
        assert code == 2
        assert f"write only the name, {source.bucket}, without s3://" in err
    assert source.exports() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "2026-05-02T00:00:00Z", "--to", "2026-05-01T00:00:00Z"], "is not before --to"),
        (["--from", "2999-05-02T00:00:00Z"], "--from 2999-05-02T00:00:00Z is in the future"),
        (
            ["--from", "2026-05-02T00:00:00Z", "--to", "2999-05-01T00:00:00Z"],
            "--to 2999-05-01T00:00:00Z is in the future",
        ),
    ],
)
def test_a_range_of_the_future_or_the_wrong_way_round_is_said_so(
    source: Source, words: list[str], message: str
) -> None:
    code, _, err = source.run("catch-up", "employees", *words)
    assert code == 2
    assert message in err


def test_an_export_that_dynamodb_projected_is_refused_by_every_verb(source: Source, connection: Connection) -> None:
    def projected(dynamodb: DynamoDBClient) -> str:
        answer = dynamodb.export_table_to_point_in_time(
            TableArn=source.arn,
            S3Bucket=source.bucket,
            FilterSpecification={"ProjectionExpression": "#i", "ExpressionAttributeNames": {"#i": "Id"}},
        )
        return answer["ExportDescription"].get("ExportArn", "")

    arn = projected(source.services.dynamodb)
    for name in ("load", "reconcile", "catch-up"):
        code, _, err = source.run(name, "employees", "--export-arn", arn)
        assert code == 1
        assert "FilterSpecification says that it was filtered or projected" in err
    assert not view(connection)
