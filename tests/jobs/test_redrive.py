"""Redrive: discarded batches are applied late, and undo nothing newer; a batch that cannot be applied is reported.

`REDRIVE_KILLS` sets how many redrives are killed (3 unless set).
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline.aurora.bookkeeping.status import read_status
from pipeline.aurora.sessions.connection import Connection
from pipeline.cli import main
from pipeline.core.errors import ConfigurationError, UnreachableError
from pipeline.core.model.mapping import TableMapping
from pipeline.core.streams.failed_batches import parse_failed_batch
from pipeline.jobs.redrive import RedriveReport, redrive
from pipeline.jobs.services import Services
from pipeline.local.mapping_delivery import Discard
from pipeline.local.mapping_documents import failure_document
from pipeline.settings import Settings
from tests.jobs.conftest import CREATED, STREAM, named, record, view

KILLS = int(os.environ.get("REDRIVE_KILLS", "3"))
WEEK = timedelta(days=7).total_seconds()
Records = list[dict[str, Any]]
Apply = Callable[..., Any]


class Kept:
    """The folder that stands for the on-failure prefix; batches are stored as an event source mapping stores them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    @property
    def location(self) -> str:
        return self.folder.absolute().as_uri() + "/"

    def keep(self, records: Records, *, stream: str = STREAM, payload: bool = True) -> Path:
        discard = Discard(records, "RetryAttemptsExhausted", 4, function_error=True)
        content = failure_document("shardId-0001", stream, discard, datetime.now(UTC))
        if not payload:
            content = json.dumps({k: v for k, v in json.loads(content).items() if k != "payload"}).encode()
        return self.put(
            f"aws/lambda/mapping/shardId-0001/2026/05/14/{len(list(self.folder.rglob('*.x'))):05}.x", content
        )

    def put(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    @property
    def waiting(self) -> list[Path]:
        return [path for path in self.folder.rglob("*.x") if "done" not in path.parts]

    @property
    def done(self) -> list[Path]:
        return list((self.folder / "done").rglob("*.x"))


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "on-failure")


@pytest.fixture
def run(services: Services, employees: TableMapping, kept: Kept) -> Callable[[], RedriveReport]:
    return lambda: redrive(services, [employees], prefix=kept.location)


Run = Callable[[], RedriveReport]


def names(connection: Connection) -> dict[int, str]:
    return {number: name for number, (name, _) in view(connection).items()}


def history(source: random.Random, length: int) -> tuple[Records, dict[int, str]]:
    """Records of some keys over a week, and the state they end in."""
    records: Records = []
    state: dict[int, str] = {}
    for sequence in range(1, length + 1):
        number, at = source.randrange(40), CREATED + sequence / length * WEEK
        if source.random() < 0.3:
            records.append(record(number, sequence, "REMOVE", at=int(at)))
            state.pop(number, None)
        else:
            records.append(named(number, sequence, f"{sequence}", at=int(at)))
            state[number] = f"{sequence}"
    return records, state


@pytest.mark.parametrize("seed", range(4))
def test_a_week_old_batch_over_a_live_table_brings_nothing_back(
    run: Run, kept: Kept, apply: Apply, connection: Connection, seed: int
) -> None:
    """A third of the batches is discarded over a week; they are redriven, out of order, after newer changes."""
    source = random.Random(seed)
    records, state = history(source, 600)
    batches = [records[start : start + 15] for start in range(0, len(records), 15)]
    given_up: list[Records] = []
    for batch in batches:
        if source.random() < 0.33:
            given_up.append(batch)
        else:
            apply(*batch)
    source.shuffle(given_up)
    for batch in [*given_up, *given_up[:3]]:  # some are stored twice
        kept.keep(batch)
    fresh = {row["dynamodb"]["Keys"]["Id"]["N"] for batch in batches[-5:] for row in batch if batch not in given_up}
    live = {number: name for number, name in names(connection).items() if str(number) in fresh}
    newest = {number: int(name) for number, name in names(connection).items()}
    report = run()
    after = names(connection)
    assert after == state
    assert all(int(after[number]) >= version for number, version in newest.items() if number in after)
    assert all(after.get(number) in {name, state.get(number)} for number, name in live.items())
    assert (report.batches, report.left, report.rejected) == (len(given_up) + 3, [], 0)
    assert report.applied + report.stale == report.records == 15 * (len(given_up) + 3)
    assert kept.waiting == []
    assert len(kept.done) == len(given_up) + 3


def test_again_there_is_nothing_to_do(run: Run, kept: Kept, connection: Connection) -> None:
    kept.keep([named(1, 1, "one"), named(2, 2, "two")])
    assert (run().batches, run().batches) == (1, 0)
    assert names(connection) == {1: "one", 2: "two"}


def test_a_crash_between_applying_and_marking_applies_again(
    run: Run, kept: Kept, connection: Connection, apply: Apply
) -> None:
    path = kept.keep([named(1, 1, "one"), record(2, 2, "REMOVE")])
    content = path.read_bytes()
    run()
    kept.put(str(path.relative_to(kept.folder)), content)  # as if it had not been moved
    apply(named(2, 3, "newer"))
    report = run()
    assert (report.batches, report.applied, report.stale) == (1, 0, 2)
    assert names(connection) == {1: "one", 2: "newer"}


def test_what_is_foreign_or_damaged_is_named_and_left_and_the_others_go_on(
    run: Run, kept: Kept, connection: Connection
) -> None:
    first = kept.keep([named(1, 1, "one")])
    text = first.read_text()
    whole = json.loads(text)
    two = json.dumps({"Records": [named(1, 1, "one"), named(2, 2, "two")]})
    foreign = json.dumps({"Records": [named(1, 1, "one") | {"eventSourceARN": STREAM.replace("Employees", "Other")}]})
    damaged = {
        "cut short": text[:-40].encode(),
        "not JSON": b"\x00\xff",
        "somebody's": b'{"hello": "world"}',
        "without payload text": json.dumps(whole | {"payload": 7}).encode(),
        "payload cut short": json.dumps(whole | {"payload": whole["payload"][:-9]}).encode(),
        "more than stated": json.dumps(whole | {"payload": two}).encode(),
        "of two streams": json.dumps(whole | {"payload": foreign}).encode(),
    }
    for name, content in damaged.items():
        kept.put(f"aws/{name}.x", content)
    kept.keep([named(3, 3, "three")], stream=STREAM)
    report = run()
    assert names(connection) == {1: "one", 3: "three"}
    assert report.batches == 2
    assert {Path(left.location).stem for left in report.left} == set(damaged)
    assert {path.stem for path in kept.waiting} == set(damaged)
    assert all("two" not in left.reason.split() for left in report.left)


def strange(number: int, image: Any) -> dict[str, Any]:  # noqa: ANN401 - whatever JSON holds
    one = named(number, number, "x")
    one["dynamodb"]["NewImage"] = image
    return one


def at_times(path: Path, value: Any) -> Path:  # noqa: ANN401 - whatever JSON holds
    whole = json.loads(path.read_bytes())
    records = json.loads(whole["payload"])["Records"]
    for one in records:
        one["dynamodb"]["ApproximateCreationDateTime"] = value
    path.write_text(json.dumps(whole | {"payload": json.dumps({"Records": records})}))
    return path


def test_a_batch_with_a_malformed_image_does_not_end_the_redrive(run: Run, kept: Kept, connection: Connection) -> None:
    kept.keep([strange(1, "x"), strange(2, None), named(3, 3, "three")])
    kept.keep([named(4, 4, "four")])
    report = run()
    assert (report.batches, report.rejected, report.left) == (2, 2, [])
    assert names(connection) == {3: "three", 4: "four"}


@pytest.mark.parametrize("value", [None, "SECRET", "2026-05-14T10:00:00Z", 1.7e18])
def test_a_batch_whose_records_all_lack_their_position_is_never_filed_as_done(
    run: Run,
    kept: Kept,
    connection: Connection,
    value: Any,  # noqa: ANN401 - whatever JSON holds
) -> None:
    path = at_times(kept.keep([named(n, n, "x") for n in range(1, 101)]), value)
    report = run()
    assert (report.batches, kept.waiting, kept.done) == (0, [path], [])
    assert "ApproximateCreationDateTime" in report.left[0].reason
    assert report.left[0].next_step
    assert "SECRET" not in str(report.left)
    assert connection.execute("SELECT count(*) FROM replication.rejects").fetchone() == (0,)


def test_a_batch_in_milliseconds_is_applied(run: Run, kept: Kept, connection: Connection) -> None:
    at_times(kept.keep([named(1, 1, "one")]), CREATED * 1000)
    assert (run().applied, names(connection)) == (1, {1: "one"})


def test_a_compressed_batch_is_read(run: Run, kept: Kept, connection: Connection) -> None:
    path = kept.keep([named(1, 1, "one")])
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert (run().batches, names(connection)) == (1, {1: "one"})


def damaged(whole: dict[str, Any], how: str) -> bytes:
    if how == "60 of 100":
        some = json.loads(whole["payload"])["Records"][:60]
        return json.dumps(whole | {"payload": json.dumps({"Records": some})}).encode()
    text = json.dumps(whole).encode()
    at = text.index(str(10**20 + 61).encode())
    return gzip.compress(text)[:-100] if how == "gzip cut short" else text[:at]


def test_a_record_with_a_damaged_byte_is_not_applied_as_another_value(
    services: Services, employees: TableMapping, kept: Kept, connection: Connection
) -> None:
    path = kept.keep([named(n, n, f"name {n}") for n in range(1, 4)])
    path.write_bytes(path.read_bytes().replace(b"name 2", b"name \xc3"))
    report = redrive(services, [employees], prefix=kept.location, only=path.as_uri(), accept_partial=True)
    assert names(connection) == {1: "name 1", 3: "name 3"}
    assert [left.reason for left in report.partial] == ["2 of 3 records are applied"]


@pytest.mark.parametrize("how", ["60 of 100", "cut short", "gzip cut short"])
def test_of_a_damaged_batch_what_is_there_is_applied_when_a_person_says_so(
    database: str, run: Run, kept: Kept, connection: Connection, how: str,
    monkeypatch: Any, capsys: Any,  # noqa: ANN401 - pytest's
) -> None:  # fmt: skip
    path = kept.keep([named(n, n, f"name {n}") for n in range(1, 101)])
    path.write_bytes(damaged(json.loads(path.read_bytes()), how))
    other = kept.put("aws/other.x", b"{")
    report = run()
    assert {Path(left.location).name for left in report.left} == {path.name, other.name}
    assert all("--accept-partial" in (left.next_step or "") for left in report.left)
    where = next(left.location for left in report.left if left.location.endswith(path.name))
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("DYNAURORA_ON_FAILURE", kept.location)
    assert main(["redrive", "employees", "--accept-partial"]) == 2
    assert main(["redrive", "employees", "--object", "nosuch", "--accept-partial"]) == 2
    capsys.readouterr()
    assert main(["redrive", "employees", "--object", where, "--accept-partial"]) == 1
    told = capsys.readouterr().out
    assert "records are applied" in told
    assert "catch-up employees" in told
    stored = names(connection)
    assert len(stored) == 60 if how != "gzip cut short" else 0 < len(stored) < 100
    assert stored == {n: f"name {n}" for n in range(1, len(stored) + 1)}
    assert kept.waiting == [other]


def test_batches_of_other_tables_are_left_alone(run: Run, kept: Kept) -> None:
    other = STREAM.replace("table/Employees", "table/Orders")
    kept.keep([named(1, 1, "one") | {"eventSourceARN": other}], stream=other)
    report = run()
    assert (report.batches, report.of_other_tables, report.left) == (0, 1, [])
    assert len(kept.waiting) == 1


def test_a_record_that_cannot_be_stored_is_a_reject_and_its_batch_is_done(
    run: Run, kept: Kept, connection: Connection
) -> None:
    kept.keep([named(1, 1, "x" * 21), named(2, 2, "fits")])
    report = run()
    assert (report.batches, report.applied, report.rejected) == (1, 1, 1)
    assert connection.execute("SELECT count(*) FROM replication.rejects").fetchone() == (1,)
    assert kept.waiting == []


def test_a_redrive_says_nothing_of_how_far_the_stream_is(
    run: Run, kept: Kept, connection: Connection, apply: Apply, employees: TableMapping
) -> None:
    apply(named(1, 9, "live", at=time.time()))
    before = read_status(connection, [employees])["employees"]
    kept.keep([named(2, 1, "a week old", at=int(time.time() - WEEK))])
    run()
    after = read_status(connection, [employees])["employees"]
    assert (after.lag_seconds, after.applied_at, after.writers) == (before.lag_seconds, before.applied_at, 1)
    assert (after.records, after.applied) == (2, 2)


def test_a_database_that_is_away_leaves_everything(employees: TableMapping, kept: Kept) -> None:
    kept.keep([named(1, 1, "one")])
    away = Services(Settings.from_environment({"DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none"}))
    with pytest.raises(UnreachableError):
        redrive(away, [employees], prefix=kept.location)
    assert len(kept.waiting) == 1


def test_without_a_place_the_remedy_is_named(services: Services, employees: TableMapping) -> None:
    with pytest.raises(ConfigurationError, match="set DYNAURORA_ON_FAILURE"):
        redrive(services, [employees])
    with pytest.raises(ConfigurationError, match="neither s3"):
        redrive(services, [employees], prefix="/tmp/somewhere")


def test_the_command_and_its_exit_codes(
    services: Services, kept: Kept, employees: TableMapping, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = {
        "DATABASE_URL": services.settings.database_url or "",
        "DYNAURORA_TABLES": str(Path(employees.path).parent),
        "DYNAURORA_ON_FAILURE": kept.location,
    }
    kept.keep([named(1, 1, "one")])
    assert main(["redrive", "employees", "--json"], environment) == 0
    assert json.loads(capsys.readouterr().out)["batches"] == 1
    kept.put("broken.x", b"{}")
    assert main(["redrive", "employees"], environment) == 1
    told = capsys.readouterr().out
    assert "broken.x" in told
    assert "no event source mapping of a DynamoDB stream wrote it" in told
    del environment["DYNAURORA_ON_FAILURE"]
    assert main(["redrive", "employees"], environment) == 2


def test_a_genuine_document_of_a_queue_is_read() -> None:
    document = {
        "requestContext": {"condition": "RetryAttemptsExhausted"},
        "version": "1.0",
        "DDBStreamBatchInfo": {
            "shardId": "shardId-00000001573689847184-864758bb",
            "startSequenceNumber": "800000000003126276362",
            "endSequenceNumber": "800000000003126276362",
            "approximateArrivalOfFirstRecord": "2019-11-14T00:13:19Z",
            "approximateArrivalOfLastRecord": "2019-11-14T00:13:19Z",
            "batchSize": 1,
            "streamArn": "arn:aws:dynamodb:us-east-2:123456789012:table/mytable/stream/2019-11-14T00:04:06.388",
        },
    }
    batch = parse_failed_batch(json.dumps(document).encode())
    assert (batch.table, batch.size, batch.records) == ("mytable", 1, None)
    assert batch.first_arrived == datetime(2019, 11, 14, 0, 13, 19, tzinfo=UTC)


CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload([__name__])


def redrive_to_be_killed(begun: Any, services: Services, mapping: TableMapping, location: str) -> None:  # noqa: ANN401 - an event
    begun.set()
    redrive(services, [mapping], prefix=location)


@pytest.mark.timeout(300)
def test_redrives_killed_at_any_moment_lose_nothing(
    services: Services, employees: TableMapping, kept: Kept, connection: Connection, run: Run
) -> None:
    source = random.Random()
    records, state = history(source, 2_000)
    batches = [records[start : start + 10] for start in range(0, len(records), 10)]
    source.shuffle(batches)
    for batch in batches:
        kept.keep(batch)
    for _ in range(KILLS):
        begun = CHILDREN.Event()
        process = CHILDREN.Process(target=redrive_to_be_killed, args=(begun, services, employees, kept.location))
        process.start()
        assert begun.wait(60)
        time.sleep(source.uniform(0, 0.8))
        process.kill()
        process.join()
    report = run()
    assert report.left == []
    assert names(connection) == state
    assert (len(kept.waiting), len(kept.done)) == (0, 200)
