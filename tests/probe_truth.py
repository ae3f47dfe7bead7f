"""The probe's truth table: what it reports about a table in each of five states, measured with the real clock.

`python -m tests.probe_truth` starts the local stack and writes build/probe_truth.json. The states idle, healthy, dead
and disabled use a real table whose stream the local event source mapping delivers. That stream has one shard, so the
stuck shard is one of eight of a scripted stream. `behind_seconds` is the age of the oldest change that had not been
applied, counted from the start of its write; `lag_seconds` is what the probe reports. A creation time is in whole
seconds, rounded down, so the probe may report up to a second more, and less only by the time that the write took.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pipeline.aurora.bookkeeping import probes
from pipeline.aurora.schema.migrate import migrate
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.jobs.probe.probe import TICK_SECONDS, probe
from pipeline.jobs.probe.probe_shards import Limits
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.services import Services
from pipeline.local.mapping_delivery import MappingSettings
from pipeline.local.mapping_poller import MappingPoller
from pipeline.local.mapping_source import DynamoDbStream
from pipeline.local.mapping_targets import in_process
from pipeline.local.ministack import REGION
from pipeline.local.raw_aws import RawAws
from pipeline.local.stack import LocalStack
from pipeline.settings import Settings
from tests.dynamodb.scripted_stream import ScriptedServices, ScriptedShard, ScriptedStream

if TYPE_CHECKING:
    from pipeline.aurora.bookkeeping.probes import Tick
    from pipeline.core.model.mapping import TableMapping

MAPPING = """
name: NAME
source: {table: TABLE, key: {Id: N}}
targets:
  TABLE:
    primary_key: [Id]
    columns:
      Id: {attribute: Id, type: bigint}
"""


@dataclass(frozen=True)
class Row:
    """One state: the truth, and what the probe reports."""

    state: str
    behind_seconds: float
    write_seconds: float
    lag_seconds: float | None
    waiting: int
    claims_too_much: bool
    """Whether `caught_up_through` is later than a change that had not been applied."""


class DeadError(RuntimeError):
    """The error of a function that fails on every batch."""


class Table:
    """A table of the local stack; its event source mapping can be stopped, and its function can die."""

    def __init__(self, stack: LocalStack, services: Services) -> None:
        self.name = f"Truth{uuid4().hex[:10]}"
        self.services = services
        self.mapping = _migrated(services, self.name)
        services.dynamodb.create_table(
            TableName=self.name,
            KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
        )
        described = services.dynamodb.describe_table(TableName=self.name)["Table"]
        self._source = DynamoDbStream(RawAws(stack.exports.port, "test", REGION), described.get("LatestStreamArn", ""))
        self.dead = False

    def write(self, number: int) -> tuple[float, float]:
        """Write an item; returns when the write began and when it was done."""
        begun = time.time()
        self.services.dynamodb.put_item(TableName=self.name, Item={"Id": {"N": str(number)}})
        return begun, time.time()

    @contextmanager
    def mapped(self) -> Generator[MappingPoller]:
        """Run the event source mapping. It begins at the oldest record each time: earlier changes are stale."""
        replicator = Replicator([self.mapping], lambda: self.services.connect("truth"), writer="truth")

        def handler(event: Any, _: Any) -> object:  # noqa: ANN401 - JSON, and the Lambda's context
            if self.dead:
                raise DeadError
            return {"n": len(replicator.replicate(event, deadline=time.monotonic() + 60))}

        settings = MappingSettings(maximum_retry_attempts=-1)
        with closing(replicator), MappingPoller(self._source, in_process(handler), settings) as poller:
            yield poller

    def look(self) -> Tick:
        """Run a tick."""
        return probe(self.services, self.mapping, limits=_limits())


def _limits() -> Limits:
    return Limits(time.monotonic() + TICK_SECONDS, sleep=lambda _: None)


def mapping_of(table: str) -> str:
    """Return the mapping file of a table."""
    return MAPPING.replace("TABLE", table).replace("NAME", table.lower())


def _migrated(services: Services, table: str) -> TableMapping:
    mapping = read_mapping(mapping_of(table), "truth.yaml")
    with closing(services.connect("truth")) as connection:
        migrate(connection, [mapping])
    return mapping


def _row(state: str, services: Services, mapping: TableMapping, tick: Tick, written: tuple[float, float] | None) -> Row:
    begun, done = written or (0.0, 0.0)
    with closing(services.connect("truth")) as connection:
        last = probes.read_tick(connection, mapping.name)
    through = last.caught_up_through if last else None
    behind = tick.ticked_at.timestamp() - begun if written else 0.0
    too_much = through is not None and written is not None and through > datetime.fromtimestamp(done, UTC)
    lag = None if tick.lag_seconds is None else round(tick.lag_seconds, 3)
    return Row(state, round(behind, 3), round(done - begun, 3), lag, tick.waiting, too_much)


def _until_arrived(look: Callable[[], Tick]) -> Tick:
    deadline = time.monotonic() + 60
    while True:
        tick = look()
        if (tick.waiting == 0 and tick.read_whole) or time.monotonic() > deadline:
            return tick


def measure(stack: LocalStack, database_url: str, *, seconds: float) -> list[Row]:
    """Return the five states; in the bad ones the probe is asked `seconds` after the change."""
    services = Services(Settings.from_environment({**os.environ, "DATABASE_URL": database_url}))
    table = Table(stack, services)
    rows = [_row("idle", services, table.mapping, table.look(), None)]
    with table.mapped():
        for number in range(20):
            table.write(number)
        rows.append(_row("healthy", services, table.mapping, _until_arrived(table.look), None))
        table.dead = True
        written = table.write(101)
        time.sleep(seconds)
        rows.append(_row("Lambda dead", services, table.mapping, table.look(), written))
        table.dead = False
        _until_arrived(table.look)
    written = table.write(102)
    time.sleep(seconds)
    rows.append(_row("mapping disabled", services, table.mapping, table.look(), written))
    with table.mapped():
        rows.append(_row("enabled again", services, table.mapping, _until_arrived(table.look), None))
    return [*rows, _stuck(services.settings, seconds)]


def _stuck(settings: Settings, seconds: float) -> Row:
    stream = ScriptedStream(label=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.000}")
    stream.table = f"Stuck{uuid4().hex[:10]}"
    stream.shards = {f"shard-{number}": ScriptedShard() for number in range(8)}
    services = ScriptedServices(settings, stream)
    mapping = _migrated(services, stream.table)
    replicator = Replicator([mapping], lambda: services.connect("truth"), writer="truth")
    probe(services, mapping, limits=_limits())
    written = time.time()
    stream.write("shard-3", 3, written)
    time.sleep(seconds)
    others = [stream.write(name, number, time.time()) for number, name in enumerate(stream.shards) if number != 3]
    with closing(replicator):
        replicator.replicate({"Records": others}, deadline=time.monotonic() + 60)
    tick = probe(services, mapping, limits=_limits())
    return _row("one shard of 8 stuck", services, mapping, tick, (written, written))


def main() -> int:
    """Measure, print and write the table; returns 1 if the probe was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        with LocalStack(Path(folder) / "stack", durable=False) as stack:
            os.environ.update(stack.environment())
            rows = measure(stack, stack.postgres.url, seconds=10.0)
    document = [asdict(row) for row in rows]
    Path("build").mkdir(exist_ok=True)
    Path("build/probe_truth.json").write_text(json.dumps(document, indent=2) + "\n")
    json.dump(document, sys.stdout, indent=2)
    return 0 if all(right(row) for row in rows) else 1


def right(row: Row) -> bool:
    """Whether the probe reported the truth, except for the second by which creation times are rounded down."""
    if row.claims_too_much or row.lag_seconds is None:
        return False
    least = row.behind_seconds - row.write_seconds
    return least - 0.01 <= row.lag_seconds <= row.behind_seconds + (1.01 if row.behind_seconds else 0.0)


if __name__ == "__main__":
    sys.exit(main())
