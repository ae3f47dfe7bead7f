"""Reads a table as of one exact moment while writes continue.

Invariant: the items returned are those of one moment, which is the returned time: every write answered before it is in,
every write begun after it is not.

If the stream carries old and new images: hold writes for a moment, which is the export's; then scan without hurry, and
rewind every key that changed since according to the stream. The export's time is known at once. The items are kept with
the stream's position, and the next export rolls them forward, because a local scan costs the square of the table.

If it only carries new images: note the end of the stream; scan, which takes time and so mixes moments; then hold writes
at the proxy for the few milliseconds that it takes to read the rest of the stream, and roll the scanned items forward
by what the stream recorded since before the scan. A key with a record since then takes its last new image; a key
without one did not change during the scan. Rolling forward puts the moment after the scan, which is why the service
answers such a request only then. For a table without a stream, or with one that carries no new images, writes are held
for the whole scan.

Earlier moments are proven from the stream's records (see `history`), or refused.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from pipeline.local.history import PastChange, key_text, past_change, roll_forward, state_at, to_json
from pipeline.local.raw_aws import STREAM_PAGE, AwsError, Json, RawAws

Hold = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Table:
    """What exports need to know about a table."""

    name: str
    arn: str
    table_id: str
    key_names: tuple[str, ...]
    created_ms: int
    stream_arn: str | None
    has_new_images: bool
    has_old_images: bool = False


@dataclass(frozen=True)
class Cut:
    """The items of one moment by key, as JSON."""

    at_ms: int
    items: dict[str, str]


def describe_table(aws: RawAws, name: str) -> Table:
    """Raises AwsError ResourceNotFoundException if there is no such table."""
    table: Json = aws.dynamodb("DescribeTable", {"TableName": name})["Table"]
    stream: Json = table.get("StreamSpecification") or {}
    keys = sorted(table["KeySchema"], key=lambda key: key["KeyType"] != "HASH")
    return Table(
        name=name,
        arn=table["TableArn"],
        table_id=table.get("TableId", ""),
        key_names=tuple(key["AttributeName"] for key in keys),
        created_ms=int(table["CreationDateTime"] * 1000),
        stream_arn=table.get("LatestStreamArn") if stream.get("StreamEnabled") else None,
        has_new_images=stream.get("StreamViewType") in ("NEW_IMAGE", "NEW_AND_OLD_IMAGES"),
        has_old_images=stream.get("StreamViewType") == "NEW_AND_OLD_IMAGES",
    )


@dataclass
class StreamTail:
    """Reads a stream from where it is; shards that appear later are read from their beginning."""

    aws: RawAws
    stream_arn: str
    start: str
    _iterators: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    _last: dict[str, str] = field(default_factory=dict[str, str])

    def open(self) -> None:
        """Fix the starting position in every shard there is."""
        self._find_shards(self.start)

    def read(self) -> list[Json]:
        """Every record since the last call, up to the stream's present end."""
        self._find_shards("TRIM_HORIZON")
        records: list[Json] = []
        for shard_id in self._iterators:
            while page := self._page(shard_id):
                records += page
        return records

    def _find_shards(self, start: str) -> None:
        request: Json = {"StreamArn": self.stream_arn}
        while True:
            description = self.aws.streams("DescribeStream", request)["StreamDescription"]
            for shard in description["Shards"]:
                if shard["ShardId"] not in self._iterators:
                    self._iterators[shard["ShardId"]] = self._iterator(shard["ShardId"], ShardIteratorType=start)
            if "LastEvaluatedShardId" not in description:
                return
            request["ExclusiveStartShardId"] = description["LastEvaluatedShardId"]

    def _iterator(self, shard_id: str, **position: str) -> str:
        request = {"StreamArn": self.stream_arn, "ShardId": shard_id, **position}
        return self.aws.streams("GetShardIterator", request)["ShardIterator"]

    def _page(self, shard_id: str) -> list[Json]:
        iterator = self._iterators[shard_id]
        if iterator is None:
            return []
        try:
            answer = self.aws.streams("GetRecords", {"ShardIterator": iterator, "Limit": STREAM_PAGE})
        except AwsError as error:
            # Iterators live for 15 minutes; a tail that is kept longer takes a new one at its place.
            if error.code != "ExpiredIteratorException" or shard_id not in self._last:
                raise
            after = self._last[shard_id]
            iterator = self._iterator(shard_id, ShardIteratorType="AFTER_SEQUENCE_NUMBER", SequenceNumber=after)
            answer = self.aws.streams("GetRecords", {"ShardIterator": iterator, "Limit": STREAM_PAGE})
        self._iterators[shard_id] = answer.get("NextShardIterator")
        records: list[Json] = answer["Records"]
        if records:
            self._last[shard_id] = records[-1]["dynamodb"]["SequenceNumber"]
        return records


@dataclass
class KeptCut:
    """The items of an earlier export, what its stream said after that, and the stream from there on."""

    at_ms: int
    items: dict[str, str]
    later: list[PastChange]
    tail: StreamTail

    def roll_forward(self, table: Table, at_ms: int) -> None:
        """Become the cut of `at_ms`, which is past. Raises AwsError if the stream cannot be read further."""
        changes = self.later + past_changes(table, self.tail.read())
        roll_forward(self.items, (change for change in changes if change.at_ms < at_ms))
        self.later = [change for change in changes if change.at_ms >= at_ms]
        self.at_ms = at_ms


# By stream. A thread takes a cut out while it works on it.
KeptCuts = dict[str, KeptCut]


def rewindable_cut(
    aws: RawAws, table: Table, hold: Hold, kept_cuts: KeptCuts
) -> tuple[int, Callable[[], dict[str, str]]]:
    """Fix a moment now; the returned function returns the items of it. Needs old and new images."""
    stream_arn = table.stream_arn
    if stream_arn is None or not table.has_old_images:
        raise ValueError(f"the stream of {table.name} carries no old images")
    tail = StreamTail(aws, stream_arn, "LATEST")
    tail.open()
    with hold():
        at_ms = _moment_ms()

    def items() -> dict[str, str]:
        cut = _rolled_forward(kept_cuts.pop(stream_arn, None), table, at_ms)
        if cut is None:
            scanned = _scan(aws, table)
            changes = past_changes(table, tail.read())
            later = [change for change in changes if change.at_ms >= at_ms]
            cut = KeptCut(at_ms, state_at(scanned, changes, at_ms), later, tail)
        items = dict(cut.items)
        kept_cuts[stream_arn] = cut
        return items

    return at_ms, items


def _rolled_forward(cut: KeptCut | None, table: Table, at_ms: int) -> KeptCut | None:
    """Bring an earlier cut to `at_ms`; None if it is a later one, or its stream can no longer be read."""
    if cut is None or cut.at_ms > at_ms:
        return None
    try:
        cut.roll_forward(table, at_ms)
    except AwsError:
        return None
    return cut


def cut_now(aws: RawAws, table: Table, hold: Hold) -> Cut:
    """The table as of a moment after the call and before its return."""
    if table.stream_arn is None or not table.has_new_images:
        with hold():
            items = _scan(aws, table)
            return Cut(_moment_ms(), items)
    tail = StreamTail(aws, table.stream_arn, "LATEST")
    tail.open()
    items = _scan(aws, table)
    later = tail.read()
    with hold():
        at_ms = _moment_ms()
        later += tail.read()
    roll_forward(items, past_changes(table, later))
    return Cut(at_ms, items)


def past_changes(table: Table, records: Sequence[Json]) -> list[PastChange]:
    """Records as the history wants them."""
    return [past_change(record, table.key_names) for record in records]


def _scan(aws: RawAws, table: Table) -> dict[str, str]:
    return {key_text(item, table.key_names): to_json(item) for item in aws.scan(table.name)}


def _moment_ms() -> int:
    """Wait for the next full millisecond and return it: a record carries the millisecond that it fell into, and must
    compare as before.
    """
    at_ms = int(time.time() * 1000) + 1
    while time.time() * 1000 < at_ms:
        time.sleep(0.0005)
    return at_ms
