"""The source of the exam: the local stack with a big table, a writer that never stops, and a replicator beside it.

Invariant: writer and replicator are separate processes, as in production. The replicator reads the stream through an
event source mapping and passes events to the handler's own `Replicator`.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Self

from pipeline.aurora.schema.migrate import migrate
from pipeline.dynamodb.client import client
from pipeline.jobs.probe.probe import probe
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.services import Services
from pipeline.local.mapping_delivery import MappingSettings
from pipeline.local.mapping_poller import MappingPoller
from pipeline.local.mapping_source import DynamoDbStream
from pipeline.local.mapping_targets import in_process
from pipeline.local.ministack import REGION
from pipeline.local.raw_aws import RawAws
from pipeline.local.stack import LocalStack
from pipeline.mappings import load_mappings
from pipeline.settings import Settings
from tests.exam import ledger

BUCKET = "dynaurora-exam"
PROBE_EVERY_SECONDS = 5.0
_BATCH_ITEMS = 25  # BatchWriteItem's limit
_FILLERS = 2
# The writer updates and deletes only these Ids, and inserts from here on: it does not touch what is damaged.
HOT_EVERY = 10
FIRST_NEW_ID = 1_000_000_000


def is_hot(identifier: int) -> bool:
    """Whether the writer may touch the item."""
    return identifier % HOT_EVERY == 0 or identifier >= FIRST_NEW_ID


@dataclass(frozen=True)
class Writing:
    """A writer that is running."""

    process: BaseProcess
    written: Any
    """The number of its writes so far, shared with it."""

    @property
    def count(self) -> int:
        """How many writes it has made."""
        return self.written.value


@contextmanager
def halted(process: BaseProcess) -> Generator[None]:
    """Halt a process inside the block."""
    pid = process.pid
    if pid is None:
        raise RuntimeError("the process is not running")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Source:
    """A running stack with the table in it and the database migrated. Use as a context manager."""

    def __init__(
        self, run_dir: Path, *, environment: Mapping[str, str] | None = None, recovery_reach_seconds: float = 0.0
    ) -> None:
        """`environment`: more variables for the servers; `recovery_reach_seconds`: see `LocalStack`."""
        self.folder = run_dir / "tables"
        self.stack = LocalStack(
            run_dir, fresh=True, durable=False, environment=environment, recovery_reach_seconds=recovery_reach_seconds
        )

    def __enter__(self) -> Self:
        self.stack.start()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "ledger.yaml").write_text(ledger.MAPPING)
        (self.mapping,) = load_mappings(self.folder)
        self.services = Services(Settings.from_environment(self.environment()))
        os.environ.update(self.environment())
        self.aws = RawAws(int(self.stack.ministack.port), "test", REGION)
        self.front = RawAws(int(self.stack.endpoint_url.rpartition(":")[2]), "test", REGION)
        with closing(self.services.connect("exam migrate")) as connection:
            migrate(connection, [self.mapping])
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.stop()

    def fill(self, rows: int, *, change_log: bool = False) -> None:
        """Create the table with `rows` items, then its stream and point-in-time recovery.

        `change_log`: exports take the past from a Kinesis destination of the table, not from its stream.
        """
        self.aws.dynamodb(
            "CreateTable",
            {
                "TableName": ledger.TABLE,
                "KeySchema": [{"AttributeName": "Id", "KeyType": "HASH"}],
                "AttributeDefinitions": [{"AttributeName": "Id", "AttributeType": "N"}],
                "BillingMode": "PAY_PER_REQUEST",
            },
        )
        context = multiprocessing.get_context("spawn")
        fillers = [
            context.Process(target=_fill, args=(self.aws.port, range(1 + number, rows + 1, _FILLERS)))
            for number in range(_FILLERS)
        ]
        for filler in fillers:
            filler.start()
        for filler in fillers:
            filler.join()
            if filler.exitcode:
                raise RuntimeError(f"filling the table failed with {filler.exitcode}")
        if change_log:
            self.aws.kinesis("CreateStream", {"StreamName": ledger.TABLE, "ShardCount": 1})
            described = self.aws.kinesis("DescribeStreamSummary", {"StreamName": ledger.TABLE})
            log = {"StreamName": ledger.TABLE, "RetentionPeriodHours": 8_760}
            self.aws.kinesis("IncreaseStreamRetentionPeriod", log)
            arn = described["StreamDescriptionSummary"]["StreamARN"]
            self.aws.dynamodb("EnableKinesisStreamingDestination", {"TableName": ledger.TABLE, "StreamArn": arn})
        self.enable_stream()
        recovery = {"PointInTimeRecoveryEnabled": True}
        self.front.dynamodb(
            "UpdateContinuousBackups",
            {"TableName": ledger.TABLE, "PointInTimeRecoverySpecification": recovery},
        )
        client("s3", endpoint_url=self.stack.endpoint_url).create_bucket(Bucket=BUCKET)

    def enable_stream(self, *, enabled: bool = True) -> None:
        """Enable the table's stream, or disable it."""
        stream = (
            {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"} if enabled else {"StreamEnabled": False}
        )
        self.aws.dynamodb("UpdateTable", {"TableName": ledger.TABLE, "StreamSpecification": stream})

    @contextmanager
    def replicating(self) -> Generator[BaseProcess]:
        """Run a replicator inside the block; yields its process, so that it can be halted."""
        arn: str = self.aws.dynamodb("DescribeTable", {"TableName": ledger.TABLE})["Table"]["LatestStreamArn"]
        with _process(_replicate, (self.aws, arn, self.services, self.folder)) as process:
            yield process

    @contextmanager
    def probing(self) -> Generator[BaseProcess]:
        """Run the probe inside the block, as Dagster's sensor runs it."""
        with _process(_probe, (self.services, self.folder)) as process:
            yield process

    @contextmanager
    def writing(self, rows: int, rate: float) -> Generator[Writing]:
        """Run a writer inside the block."""
        written = multiprocessing.get_context("spawn").Value("q", 0)
        with _process(_write, (self.aws.port, rows, rate, written)) as process:
            yield Writing(process, written)

    def wait_until_applied(self, limit_seconds: float = 120.0) -> None:
        """Return once an item written now is in the view: the local stream has one shard."""
        marker = FIRST_NEW_ID * 3 + time.time_ns() // 1_000_000 % 10**9
        self.put([ledger.item(marker, 0)])
        deadline = time.monotonic() + limit_seconds
        with closing(self.services.connect("exam wait")) as connection:
            while connection.execute('SELECT FROM public."Ledger" WHERE "Id" = %s', [marker]).fetchone() is None:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"a write was not in the view after {limit_seconds:.0f} s")
                time.sleep(0.1)

    def put(self, items: Iterable[dict[str, Any]]) -> None:
        """Put items, over the network as an application does."""
        _send(self.aws.port, ({"PutRequest": {"Item": item}} for item in items))

    def delete(self, identifiers: Iterable[int]) -> None:
        """Delete items."""
        _send(self.aws.port, ({"DeleteRequest": {"Key": {"Id": {"N": str(i)}}}} for i in identifiers))

    def environment(self) -> dict[str, str]:
        """Variables with which the product reaches this stack."""
        return {
            **self.stack.environment(),
            "DYNAURORA_TABLES": str(self.folder.absolute()),
            "DYNAURORA_EXPORT_BUCKET": BUCKET,
        }


@contextmanager
def _process(work: Any, arguments: tuple[Any, ...]) -> Generator[BaseProcess]:  # noqa: ANN401 - a function of a process
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=work, args=(*arguments, stop), daemon=True)
    process.start()
    try:
        yield process
    finally:
        if process.is_alive():  # if it was killed while it waited for the event, setting the event would wait forever
            stop.set()
        process.join(60)
        if process.is_alive():
            process.kill()
    if process.exitcode:
        raise RuntimeError(f"{work.__name__.strip('_')} ended with {process.exitcode}: see its traceback above")


def _replicate(aws: RawAws, arn: str, services: Services, folder: Path, stop: Event) -> None:
    """Run the handler's replicator behind an event source mapping, with the batch size of the template."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replicator = Replicator(load_mappings(folder), lambda: services.connect("dynaurora replicator"), writer="exam")

    def handle(event: Any, context: Any) -> None:  # noqa: ANN401 - as Lambda calls a handler
        replicator.replicate(event, deadline=time.monotonic() + context.get_remaining_time_in_millis() / 1000)

    settings = MappingSettings(batch_size=1_000)
    with closing(replicator), MappingPoller(DynamoDbStream(aws, arn), in_process(handle), settings):
        stop.wait()


def _probe(services: Services, folder: Path, stop: Event) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    (mapping,) = load_mappings(folder)
    while not stop.wait(PROBE_EVERY_SECONDS):
        probe(services, mapping)


def _fill(port: int, identifiers: Iterable[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _send(port, ({"PutRequest": {"Item": ledger.item(identifier, 0)}} for identifier in identifiers))


def _write(port: int, rows: int, rate: float, written: Any, stop: Event) -> None:  # noqa: ANN401 - a shared number
    """Insert, update and delete among the hot items, `rate` a second, until the event is set."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    choose = random.Random(4711)
    live, fresh = list(range(HOT_EVERY, rows + 1, HOT_EVERY)), count(FIRST_NEW_ID)
    started = time.monotonic()
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        while not stop.is_set():
            draw = choose.random()
            if draw < 0.3 or len(live) < 10:
                live.append(next(fresh))
                _put_one(connection, live[-1], written.value + 1)
            elif draw < 0.8:
                _put_one(connection, choose.choice(live), written.value + 1)
            else:
                position = choose.randrange(len(live))
                live[position], live[-1] = live[-1], live[position]
                key = {"Id": {"N": str(live.pop())}}
                _call(connection, "DeleteItem", {"TableName": ledger.TABLE, "Key": key})
            written.value += 1
            ahead = written.value / rate - (time.monotonic() - started)
            if ahead > 0:
                stop.wait(ahead)


def _put_one(connection: http.client.HTTPConnection, identifier: int, version: int) -> None:
    _call(connection, "PutItem", {"TableName": ledger.TABLE, "Item": ledger.item(identifier, version)})


def _send(port: int, requests: Iterable[dict[str, Any]]) -> None:
    """Send write requests in batches, and unprocessed ones again."""
    waiting = iter(requests)
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        while batch := list(islice(waiting, _BATCH_ITEMS)):
            while batch:
                answer = _call(connection, "BatchWriteItem", {"RequestItems": {ledger.TABLE: batch}})
                batch = answer.get("UnprocessedItems", {}).get(ledger.TABLE, [])


def _call(connection: http.client.HTTPConnection, operation: str, request: dict[str, Any]) -> dict[str, Any]:
    headers = {
        "X-Amz-Target": f"DynamoDB_20120810.{operation}",
        "Content-Type": "application/x-amz-json-1.0",
        "Authorization": f"AWS4-HMAC-SHA256 Credential=test/20200101/{REGION}/dynamodb/aws4_request,"
        " SignedHeaders=host, Signature=local",
    }
    body = json.dumps(request).encode()
    try:
        connection.request("POST", "/", body, headers)
        response = connection.getresponse()
    except (ConnectionError, http.client.HTTPException):
        connection.close()  # the server has closed it: this process was halted for longer than it keeps connections
        connection.request("POST", "/", body, headers)
        response = connection.getresponse()
    body = response.read()
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(f"{operation} answered {response.status}")
    return json.loads(body or b"{}")
